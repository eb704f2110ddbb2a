"""TDT's loss on a CPU against all paths of small lattices written out, and against NeMo's transducer loss."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.train.tdt_loss import TdtSettings, make_portable, tdt_loss

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

DURATIONS = (0, 1, 2, 3, 4)
NUM_LABELS_KNOWN = 3
"""Labels of the small vocabulary; the blank's index."""


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    from nemo.utils import logging

    logging.setLevel(logging.ERROR)


def nemo_loss(*, durations: tuple[int, ...] = DURATIONS, **options: float) -> object:
    """NeMo's own, one loss an utterance, made portable."""
    from nemo.collections.asr.losses.rnnt import RNNTLoss

    kwargs = {"durations": list(durations), **options}
    loss = RNNTLoss(num_classes=NUM_LABELS_KNOWN, loss_name="tdt", loss_kwargs=kwargs, reduction=None)
    make_portable(loss)
    return loss


def example(
    num_frames: int, num_labels: int, *, num_durations: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits and labels of one utterance, in double precision."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    shape = (1, num_frames, num_labels + 1, NUM_LABELS_KNOWN + 1 + num_durations)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(0, NUM_LABELS_KNOWN, (1, num_labels), generator=generator)
    return logits, labels, torch.tensor([num_frames]), torch.tensor([num_labels])


def paths(num_frames: int, num_labels: int, durations: tuple[int, ...]) -> Iterator[list[tuple[int, int, bool, int]]]:
    """Every way through the lattice: (frame, labels so far, is a label, index of the duration) of each step."""

    def onward(frame: int, label: int) -> Iterator[list[tuple[int, int, bool, int]]]:
        for place, frames in enumerate(durations):
            blank, emit = (frame, label, False, place), (frame, label, True, place)
            if frames and frame + frames == num_frames and label == num_labels:
                yield [blank]
            if frames and frame + frames < num_frames:
                yield from ([blank, *rest] for rest in onward(frame + frames, label))
            if label < num_labels and frame + frames < num_frames:
                yield from ([emit, *rest] for rest in onward(frame + frames, label + 1))

    return onward(0, 0)


def brute_force(
    logits: torch.Tensor, labels: torch.Tensor, *, durations: tuple[int, ...], sigma: float
) -> torch.Tensor:
    import torch

    tokens = logits[0, ..., : NUM_LABELS_KNOWN + 1].log_softmax(-1) - sigma
    lasts = logits[0, ..., NUM_LABELS_KNOWN + 1 :].log_softmax(-1)
    sums = [
        sum(
            tokens[frame, label, labels[0, label] if is_label else NUM_LABELS_KNOWN] + lasts[frame, label, place]
            for frame, label, is_label, place in path
        )
        for path in paths(logits.shape[1], labels.shape[1], durations)
    ]
    return -torch.stack(sums).logsumexp(0)


def test_the_paths_of_a_lattice_small_enough_to_count() -> None:
    # Two frames, one label, durations 0 and 1. Blank-blank with the label before each, or the label for a blank.
    assert len(list(paths(2, 1, (0, 1)))) == 3
    assert len(list(paths(1, 3, DURATIONS))) == 1


@settings(max_examples=40, deadline=None)
@given(
    num_frames=st.integers(1, 5),
    num_labels=st.integers(0, 3),
    durations=st.sampled_from([(0, 1), (0, 1, 2), DURATIONS, (0, 2, 1)]),
    sigma=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 99),
)
def test_loss_and_gradient_are_those_of_all_paths_written_out(
    num_frames: int, num_labels: int, durations: tuple[int, ...], sigma: float, seed: int
) -> None:
    import torch

    logits, labels, frames, lengths = example(num_frames, num_labels, num_durations=len(durations), seed=seed)
    expected = brute_force(logits.requires_grad_(), labels, durations=durations, sigma=sigma)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    single = logits.detach().float().requires_grad_()
    loss = nemo_loss(durations=durations, sigma=sigma)(
        log_probs=single, targets=labels, input_lengths=frames, target_lengths=lengths
    )
    (gradient,) = torch.autograd.grad(loss.sum(), single)
    assert loss.tolist() == pytest.approx([expected.item()], rel=1e-5, abs=1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    import torch

    logits, labels, frames, lengths = example(4, 2, num_durations=len(DURATIONS), seed=5)
    known = TdtSettings(blank=NUM_LABELS_KNOWN, durations=DURATIONS, sigma=0.02)
    assert torch.autograd.gradcheck(
        lambda values: tdt_loss(values, labels, num_frames=frames, num_labels=lengths, settings=known),
        logits.requires_grad_(),
    )


def transducer(
    logits: torch.Tensor, labels: torch.Tensor, frames: torch.Tensor, lengths: torch.Tensor, **options: float
) -> torch.Tensor:
    """NeMo's plain transducer loss, which needs no CUDA, of the tokens' logits."""
    from nemo.collections.asr.losses.rnnt import RNNTLoss

    tokens = logits[..., : NUM_LABELS_KNOWN + 1].contiguous()
    loss = RNNTLoss(num_classes=NUM_LABELS_KNOWN, loss_name="warprnnt_numba", loss_kwargs=options, reduction=None)
    return loss(log_probs=tokens, targets=labels, input_lengths=frames, target_lengths=lengths)


@pytest.mark.parametrize(("num_frames", "num_labels"), [(1, 1), (1, 3), (6, 0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_where_no_duration_is_a_choice_it_is_the_transducer_loss(num_frames: int, num_labels: int, seed: int) -> None:
    """In one frame every label lasts 0 and the blank 1; of an empty text every blank lasts 1."""
    import torch

    logits, labels, frames, lengths = example(num_frames, num_labels, num_durations=2, seed=seed)
    single = logits.float().requires_grad_()
    lasts = single[0, ..., -2:].log_softmax(-1)
    chosen = lasts[0, :-1, 0].sum() + lasts[0, -1, 1] if num_frames == 1 else lasts[:, 0, 1].sum()
    expected = transducer(single, labels, frames, lengths)[0] - chosen
    (expected_gradient,) = torch.autograd.grad(expected, single)
    loss = nemo_loss(durations=(0, 1))(log_probs=single, targets=labels, input_lengths=frames, target_lengths=lengths)
    (gradient,) = torch.autograd.grad(loss.sum(), single)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_omega_is_the_share_of_batches_trained_as_a_plain_transducer() -> None:
    import random

    logits, labels, frames, lengths = example(5, 2, num_durations=len(DURATIONS), seed=1)
    batch = {"log_probs": logits.float(), "targets": labels, "input_lengths": frames, "target_lengths": lengths}
    plain = transducer(logits.float(), labels, frames, lengths).item()
    durational = nemo_loss()(**batch).item()
    random.seed(3)
    mixed = nemo_loss(omega=0.3)
    drawn = [mixed(**batch).item() for _ in range(200)]
    assert plain != pytest.approx(durational, rel=1e-3)
    assert sorted({round(value, 3) for value in drawn}) == sorted({round(plain, 3), round(durational, 3)})
    assert 0.2 < sum(value == pytest.approx(plain) for value in drawn) / 200 < 0.4


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99))
def test_what_pads_a_batch_changes_no_loss(seed: int) -> None:
    import torch

    sizes = [(6, 3), (4, 1), (3, 0)]
    alone = [example(*size, num_durations=len(DURATIONS), seed=seed + place) for place, size in enumerate(sizes)]
    logits = torch.randn(3, 6, 4, alone[0][0].shape[-1]) * 9
    labels = torch.zeros(3, 3, dtype=torch.long)
    for place, (own, text, *_) in enumerate(alone):
        logits[place, : own.shape[1], : own.shape[2]] = own[0].float()
        labels[place, : text.shape[1]] = text[0]
    loss = nemo_loss(sigma=0.02)
    frames, lengths = (torch.tensor(column) for column in zip(*sizes, strict=True))
    logits.requires_grad_()
    together = loss(log_probs=logits, targets=labels, input_lengths=frames, target_lengths=lengths)
    singly = [
        loss(log_probs=own.float(), targets=text, input_lengths=t, target_lengths=u).item() for own, text, t, u in alone
    ]
    assert together.tolist() == pytest.approx(singly, rel=1e-5)
    (gradient,) = torch.autograd.grad(together.sum(), logits)
    assert gradient[1, 4:].abs().max() == gradient[1, :, 2:].abs().max() == 0


@pytest.mark.parametrize("options", [{"fastemit_lambda": 0.3}, {"clamp": 0.05}])
def test_what_shapes_the_gradient_shapes_it_as_nemo_does_for_a_plain_transducer(options: dict[str, float]) -> None:
    import torch

    logits, labels, frames, lengths = example(5, 2, num_durations=len(DURATIONS), seed=4)
    single = logits.float().requires_grad_()
    (expected,) = torch.autograd.grad(transducer(single, labels, frames, lengths, **options).sum(), single)
    (without,) = torch.autograd.grad(transducer(single, labels, frames, lengths).sum(), single)
    loss = nemo_loss(omega=1.0, **options)(
        log_probs=single, targets=labels, input_lengths=frames, target_lengths=lengths
    )
    (gradient,) = torch.autograd.grad(loss.sum(), single)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(expected, without)


def test_it_agrees_with_the_loss_of_transformers_on_a_batch_of_speech_size() -> None:
    import torch
    from transformers.loss.loss_tdt import tdt_loss as reference

    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(3, 60, 21, NUM_LABELS_KNOWN + 1 + 5, generator=generator, requires_grad=True)
    labels = torch.randint(0, NUM_LABELS_KNOWN, (3, 20), generator=generator)
    frames, lengths = torch.tensor([60, 41, 33]), torch.tensor([20, 20, 7])
    tokens, lasts = logits.split([NUM_LABELS_KNOWN + 1, 5], dim=-1)
    expected = reference(
        tokens, lasts, labels, frames, lengths, NUM_LABELS_KNOWN, list(DURATIONS), sigma=0.02, reduction="none"
    )
    loss = nemo_loss(sigma=0.02)(log_probs=logits, targets=labels, input_lengths=frames, target_lengths=lengths)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), logits)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-5)


def test_a_loss_made_portable_twice_is_the_same_and_others_are_left_alone() -> None:
    from nemo.collections.asr.losses.rnnt import RNNTLoss

    loss = nemo_loss()
    inside = loss._loss
    make_portable(loss)
    assert loss._loss is inside
    plain = RNNTLoss(num_classes=3, loss_name="warprnnt_numba")
    kept = plain._loss
    make_portable(plain)
    assert plain._loss is kept


def test_every_duration_has_its_own_logit() -> None:
    """Making one duration certain leaves exactly the paths that use it."""
    import torch

    logits, labels, frames, lengths = example(4, 0, num_durations=len(DURATIONS), seed=2)
    for place, frames_each in itertools.islice(enumerate(DURATIONS), 1, None):
        certain = logits.float().clone()
        certain[..., NUM_LABELS_KNOWN + 1 :] = -50.0
        certain[..., NUM_LABELS_KNOWN + 1 + place] = 50.0
        tokens = certain[0, :, 0, : NUM_LABELS_KNOWN + 1].log_softmax(-1)[:, NUM_LABELS_KNOWN]
        loss = nemo_loss()(log_probs=certain, targets=labels, input_lengths=frames, target_lengths=lengths).item()
        if 4 % frames_each == 0:
            assert loss == pytest.approx(-tokens[::frames_each].sum().item(), rel=1e-4)
        else:
            assert loss > 50
        assert torch.isfinite(torch.tensor(loss))
