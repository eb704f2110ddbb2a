from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from harness.errors import DataError
from harness.train.joint_memory import GIB, check_joint, free_memory_bytes
from harness.train.speech_batches import Clips


def clips(durations_s: list[float], num_tokens: list[int]) -> Clips:
    return Clips(
        table=None,
        folder=Path(),
        rows=np.arange(len(durations_s)),
        durations_s=np.array(durations_s),
        num_tokens=np.array(num_tokens),
        left_out={},
        unwritable={},
    )


def transducer(*, fused: int | None, num_weights: int = 0) -> SimpleNamespace:
    """As large a vocabulary as Parakeet v3's, and frames of 80 ms."""
    weight = SimpleNamespace(requires_grad=True, numel=lambda: num_weights)
    frozen = SimpleNamespace(requires_grad=False, numel=lambda: 10**12)
    return SimpleNamespace(
        cfg=SimpleNamespace(
            preprocessor=SimpleNamespace(window_stride=0.01), encoder=SimpleNamespace(subsampling_factor=8)
        ),
        joint=SimpleNamespace(fuse_loss_wer=fused is not None, fused_batch_size=fused, num_classes_with_blank=8198),
        parameters=lambda: [weight, frozen],
    )


def joint_bytes(count: int, *, seconds: float, tokens: int) -> float:
    return count * np.ceil(seconds / 0.08) * (tokens + 1) * 8198 * 4


@pytest.mark.parametrize(
    ("fused", "copies"),
    [
        (None, 4),  # the whole joint, and three more of it for a moment
        (1, 1 + 3 / 8),  # the gradients of eight clips, and three joints of one
        (20, 4),
    ],
)
def test_the_longest_batch_must_fit(fused: int | None, copies: float) -> None:
    """Eight clips of 10 s, 15 s for what they cost, make 120 s."""
    some = clips([5.0, 10.0, 2.0], [20, 180, 4])
    limit = copies * joint_bytes(8, seconds=10.0, tokens=180)
    check_joint(transducer(fused=fused), some, seconds=120.0, free_bytes=int(limit) + 1)
    with pytest.raises(
        DataError, match=r"^8 clips of 10\.0 s make a joint of 8 × 125 frames × 181 tokens × 8198 logits"
    ):
        check_joint(transducer(fused=fused), some, seconds=120.0, free_bytes=int(limit) - 1)


def test_many_short_clips_with_much_text_can_be_the_worst() -> None:
    some = clips([40.0, 4.0], [10, 60])
    with pytest.raises(
        DataError, match=r"^25 clips of 4\.0 s make a joint of 25 × 50 frames × 61 tokens × 8198 logits"
    ):
        check_joint(transducer(fused=None), some, seconds=120.0, free_bytes=GIB)


@pytest.mark.parametrize(
    ("duration_s", "remedy"),
    [
        (10.0, r"lower batch_duration_s \(120\), and raise gradient_accumulation_steps in its place$"),
        (40.0, "lower max_clip_s below 40, or cut long clips$"),
    ],
)
def test_what_can_be_lowered_is_named(duration_s: float, remedy: str) -> None:
    with pytest.raises(DataError, match=remedy):
        check_joint(transducer(fused=None), clips([duration_s], [300]), seconds=120.0, free_bytes=GIB)


def test_the_optimizer_needs_its_share() -> None:
    some = clips([1.0], [1])
    check_joint(transducer(fused=None), some, seconds=10.0, free_bytes=GIB)
    with pytest.raises(DataError, match=r"8\.9 GiB for weights and optimizer are more than the 1\.0 GiB that are free"):
        check_joint(transducer(fused=None, num_weights=600_000_000), some, seconds=10.0, free_bytes=GIB)


def test_a_model_without_a_joint_is_not_asked() -> None:
    check_joint(SimpleNamespace(), clips([1000.0], [1000]), seconds=1e6, free_bytes=0)


def test_this_machine_has_memory() -> None:
    assert free_memory_bytes() > 2**20
