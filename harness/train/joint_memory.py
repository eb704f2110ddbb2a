"""Whether a transducer's joint, by far its largest tensor, fits into memory: known before the first batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from harness.core.estimates import Memory
from harness.errors import DataError
from harness.train import ranks
from harness.train.speech_batches import batch_size

if TYPE_CHECKING:
    from pathlib import Path

    from harness.train.parakeet import Training
    from harness.train.speech_batches import Clips

COPIES = 4
"""Of the joint that live at once: logits, their normalised copy in the loss, and the gradients of both."""
BYTES_PER_WEIGHT = 16
"""Itself, its gradient and Adam's two moments, in float32."""
GIB = 2**30
KNOWN = {"nvidia/parakeet-tdt-0.6b-v3": (627_000_000, 8198)}
"""Base model → its weights, and the logits of its joint: tokens, blank, durations."""
FRAME_S = 0.08
CLIP_S, TOKENS_PER_S = 5.0, 6
"""Of a batch that every corpus has: of short clips, whose joint is among the smallest."""


def check_joint(model: Any, clips: Clips, *, seconds: float, free_bytes: int) -> None:
    """Refuse a training whose longest batch cannot fit.

    The joint of a batch has clips × frames × (tokens + 1) × vocabulary numbers of 4 bytes. Where the model has a
    `fused_batch_size`, NeMo works on so many clips at a time, but keeps the gradients of all until the end.
    seconds: of a batch, as `batch_size` takes it.
    Raises DataError with the arithmetic.
    """
    import numpy as np

    if not hasattr(model, "joint"):
        return
    frame_s = model.cfg.preprocessor.window_stride * model.cfg.encoder.subsampling_factor
    frames = np.ceil(clips.durations_s / frame_s)
    together = np.array([batch_size(length_s, seconds=seconds) for length_s in clips.durations_s.tolist()])
    fused = model.joint.fused_batch_size if model.joint.fuse_loss_wer else int(together.max())
    width = model.joint.num_classes_with_blank
    num_bytes = together * frames * (clips.num_tokens + 1) * width * 4
    copies = 1 + (COPIES - 1) * np.minimum(1, fused / together)
    worst = int((copies * num_bytes).argmax())
    weights = sum(item.numel() for item in model.parameters() if item.requires_grad) * BYTES_PER_WEIGHT
    if copies[worst] * num_bytes[worst] + weights <= free_bytes:
        return
    raise DataError(
        f"{together[worst]:.0f} clips of {clips.durations_s[worst]:.1f} s make a joint of {together[worst]:.0f} × "
        f"{frames[worst]:.0f} frames × {clips.num_tokens[worst] + 1} tokens × {width} logits × 4 bytes = "
        f"{num_bytes[worst] / GIB:.1f} GiB; {copies[worst]:.2g} copies of it and {weights / GIB:.1f} GiB for weights "
        f"and optimizer are more than the {free_bytes / GIB:.1f} GiB that are free; lower "
        f"{_remedy(float(clips.durations_s[worst]), seconds, alone=together[worst] == 1)}"
    )


def memory(spec: Training, base: str, *, folder: Path | None, budget_b: float | None) -> Memory | None:  # noqa: ARG001  # as the plan asks every kind
    """What fine-tuning takes of a GPU at least: weights, gradients, optimizer, the joint of a batch of short clips.

    What the encoder keeps for the backward pass is not in it. None for a base model whose size is not known.
    """
    if base not in KNOWN:
        return None
    num_weights, width = KNOWN[base]
    if spec.tokenizer is not None:
        width = spec.tokenizer.vocab_size
    clip_s = min(CLIP_S, spec.max_clip_s)
    positions = math.ceil(clip_s / FRAME_S) * (math.ceil(clip_s * TOKENS_PER_S) + 1)
    joint = batch_size(clip_s, seconds=spec.batch_duration_s) * positions * width * 4
    # Of a frozen encoder, nearly all of the model, there are the weights alone.
    trained = 4 if spec.freeze == "encoder" else BYTES_PER_WEIGHT
    return Memory({"weights and optimizer": trained * num_weights, "joint": joint}, is_least=True)


def _remedy(duration_s: float, seconds: float, *, alone: bool) -> str:
    if not alone:
        return f"batch_duration_s ({seconds:g}), and raise gradient_accumulation_steps in its place"
    return f"max_clip_s below {math.ceil(duration_s)}, or cut long clips"


def free_memory_bytes() -> int:
    """Of the GPU where there is one, else this process's share of the machine's."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available) // ranks.place()[1]
