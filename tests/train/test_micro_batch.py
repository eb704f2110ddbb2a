"""Micro-batches: found by trying, split without a trace, and the same step however it is split."""

from __future__ import annotations

import json
import random
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError

from harness.errors import MissingError
from harness.train import micro_batch, whisper
from harness.train.trainer_arguments import trainer_arguments
from harness.train.whisper import Training
from tests.trainings import inputs, settings, weights_of, work_in

if TYPE_CHECKING:
    from pathlib import Path

    from harness.core.artifact import Inputs


@pytest.fixture(scope="module")
def sets(tiny_whisper: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return inputs(tmp_path_factory.mktemp("sets"), tiny_whisper)


def full(size: int) -> RuntimeError:
    """What a full GPU raises."""
    import torch

    return torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size}.00 GiB.")


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device that holds two windows in training; the windows of each forward pass of a training."""
    from transformers import WhisperForConditionalGeneration

    forward, seen = WhisperForConditionalGeneration.forward, []

    @wraps(forward)
    def limited(self: Any, *arguments: Any, **options: Any) -> Any:
        features = options.get("input_features")
        if self.training and features is not None:
            seen.append(len(features))
            if len(features) > 2:
                raise full(len(features))
        return forward(self, *arguments, **options)

    monkeypatch.setattr(WhisperForConditionalGeneration, "forward", limited)
    return seen


@pytest.mark.parametrize(
    ("effective", "expected"),
    [(16, [16, 8, 4, 2, 1]), (24, [24, 12, 6, 3, 1]), (15, [15, 5, 1]), (7, [7, 1]), (1, [1])],
)
def test_candidates_divide_the_step(effective: int, expected: list[int]) -> None:
    assert micro_batch.candidates(effective) == expected


@pytest.mark.parametrize("room", [16, 9, 4, 1])
def test_the_largest_that_fits_is_found_and_remembered(tmp_path: Path, room: int) -> None:
    tried: list[int] = []

    def trial(size: int) -> None:
        tried.append(size)
        if size > room:
            raise full(size)

    found = micro_batch.find(16, scratch=tmp_path, trial=trial)
    assert found == max(size for size in (16, 8, 4, 2, 1) if size <= room)
    assert tried == [size for size in (16, 8, 4, 2, 1) if size >= found]
    assert micro_batch.find(16, scratch=tmp_path, trial=lambda _: pytest.fail("it is known")) == found


def test_not_one_window_fits(tmp_path: Path) -> None:
    def trial(size: int) -> None:
        raise full(size)

    with pytest.raises(MissingError, match="not even one 30-second window fits into the memory of this device; set"):
        micro_batch.find(4, scratch=tmp_path, trial=trial)
    assert not list(tmp_path.iterdir())


def test_other_errors_are_not_taken_for_a_full_memory(tmp_path: Path) -> None:
    def trial(_size: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        micro_batch.find(4, scratch=tmp_path, trial=trial)


def test_a_trial_leaves_the_random_generators_alone(tmp_path: Path) -> None:
    import torch

    def draw() -> tuple[float, ...]:
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)

    seed()
    expected = draw()
    seed()
    micro_batch.find(4, scratch=tmp_path, trial=lambda _: draw() and None)
    assert draw() == expected


def test_auto_ends_with_the_weights_of_the_same_split_given_by_hand(
    sets: Inputs, tmp_path: Path, small_device: list[int]
) -> None:
    """The trial trains with the real trainer, yet neither weights nor optimizer nor random state know of it."""
    import torch

    changes = {"dropout": 0.1, "lora": {"r": 4, "dropout": 0.1}, "eval_steps": 2}
    by_hand, auto = work_in(tmp_path / "by-hand"), work_in(tmp_path / "auto")
    whisper.run(settings(batch_size=2, gradient_accumulation_steps=2, **changes), sets, by_hand)
    small_device.clear()
    meta = whisper.run(settings(batch_size="auto", effective_batch_size=4, **changes), sets, auto)
    # The trial: once with four windows, then two steps of two parts; the training has as many.
    assert small_device == [4, *[2] * 8]
    assert meta["micro_batch"] == 2
    assert "batch_size: auto: 2 windows fit at once; a step of 4 takes them in turn" in meta["notes"]
    assert json.loads((auto.scratch / micro_batch.FILE).read_text("utf-8")) == {"micro_batch": 2}
    expected, found = weights_of(by_hand.path), weights_of(auto.path)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_parts_of_a_search_split_their_steps_alike(
    sets: Inputs, tiny_whisper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.conftest import artifact

    monkeypatch.setattr(micro_batch, "find", lambda *_, **__: pytest.fail("an earlier part has found it"))
    earlier = {**sets, "resume": (artifact(tmp_path, micro_batch=4),)}
    spec = settings(batch_size="auto", effective_batch_size=16)
    sized = whisper._sized(spec, earlier, work_in(tmp_path / "work"))
    assert (sized.batch_size, sized.gradient_accumulation_steps, sized.per_step) == (4, 4, 16)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_step_is_the_same_however_it_is_split(tiny_whisper: Path, tmp_path: Path, smoothing: float) -> None:
    """Windows of different lengths: a mean of means would not do."""
    loss, gradients = one_step(tiny_whisper, tmp_path / "whole", split=(4, 1), smoothing=smoothing)
    for split in [(2, 2), (1, 4)] if not smoothing else [(1, 4)]:
        split_loss, split_gradients = one_step(tiny_whisper, tmp_path / f"{split}", split=split, smoothing=smoothing)
        assert split_loss == pytest.approx(loss, rel=1e-5)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(split_gradients[name], gradient, atol=1e-5, rtol=0, err_msg=name)


def one_step(
    base: Path, folder: Path, *, split: tuple[int, int], smoothing: float
) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients of one optimizer step over the same four windows."""
    import torch
    from transformers import TrainerCallback

    size, parts = split
    spec = settings(batch_size=size, gradient_accumulation_steps=parts, max_grad_norm=1e9)
    model = whisper._model(base, spec)
    generator = torch.Generator().manual_seed(0)
    windows = []
    for length in (3, 40, 7, 90):
        text = torch.randint(1000, 40_000, (90,), generator=generator)
        labels = text.where(torch.arange(90) < length, -100)
        before = torch.cat([torch.tensor([model.config.decoder_start_token_id]), text[:-1]])
        features = torch.randn(model.config.num_mel_bins, 3000, generator=generator)
        windows.append({"input_features": features, "decoder_input_ids": before, "labels": labels})
    found: dict[str, np.ndarray] = {}

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            found.update(
                {name: item.grad.numpy().copy() for name, item in model.named_parameters() if item.requires_grad}
            )

    work = work_in(folder)
    arguments = trainer_arguments(spec, work, max_steps=1, longest=1)
    arguments.eval_strategy = arguments.save_strategy = "no"
    arguments.load_best_model_at_end = False
    arguments.report_to = []
    trainer = whisper.trainer_class()(model=model, args=arguments, train_dataset=windows, callbacks=[Gradients()])
    trainer.label_smoothing = smoothing
    trainer.train()
    return trainer.state.log_history[0]["loss"], found


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"batch_size": "auto", "gradient_accumulation_steps": 4},
            (
                "batch_size: auto chooses gradient_accumulation_steps, which is 4; remove it, and say how many windows "
                "a step has: effective_batch_size, now 16"
            ),
        ),
        (
            {"batch_size": 4, "gradient_accumulation_steps": 2, "effective_batch_size": 16},
            (
                "effective_batch_size is 16, but batch_size 4 × gradient_accumulation_steps 2 is 8; remove it, or set "
                "batch_size: auto"
            ),
        ),
        ({"batch_size": "atuo"}, "expected a whole number of at least 1, or auto, found 'atuo' (text)"),
        ({"batch_size": 0}, "expected a whole number of at least 1, or auto, found 0 (whole number)"),
        ({"batch_size": True}, "expected a whole number of at least 1, or auto, found true (true/false)"),
    ],
)
def test_batch_sizes_that_do_not_go_together(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Training.model_validate(fields)
    (error,) = caught.value.errors()
    assert error["msg"] == f"Value error, {message}"


@pytest.mark.parametrize(
    ("fields", "per_step"),
    [
        ({}, 16),
        ({"batch_size": 4}, 4),
        ({"batch_size": 4, "gradient_accumulation_steps": 3}, 12),
        ({"batch_size": "auto"}, 16),
        ({"batch_size": "auto", "effective_batch_size": 24}, 24),
        ({"batch_size": "auto", "gradient_accumulation_steps": 1}, 16),
        ({"batch_size": 8, "gradient_accumulation_steps": 2, "effective_batch_size": 16}, 16),
    ],
)
def test_windows_in_a_step(fields: dict[str, Any], per_step: int) -> None:
    assert Training.model_validate(fields).per_step == per_step
