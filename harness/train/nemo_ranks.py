"""A Lightning training on several devices: together they do what one device does with all of their batches."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from harness.core.wer import ErrorCounts
from harness.train import ranks

if TYPE_CHECKING:
    import torch


def hardware(devices: int, *, precision: str) -> dict[str, Any]:
    """A Lightning trainer's arguments: alone, or as one of the ranks that `run_ranks` has started."""
    import torch
    from lightning.pytorch.strategies import DDPStrategy

    return {
        "accelerator": "gpu" if torch.cuda.is_available() else "cpu",
        "devices": devices,
        # `Together` takes care of the buffers; gradients that live where they are exchanged take no memory twice.
        "strategy": DDPStrategy(forward_sync_buffers=False, gradient_as_bucket_view=True) if devices > 1 else "auto",
        "precision": {"fp32": "32-true"}.get(precision, precision),
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def together(devices: int) -> list[Any]:
    """The Lightning callbacks that several devices need, and one does not."""
    if devices == 1:
        return []
    from lightning.pytorch import Callback

    class TogetherCallback(Together, Callback):  # type: ignore[misc]  # untyped
        pass

    return [TogetherCallback()]


class Together:
    """What DDP leaves to each rank by itself: the statistics of batch norms, and the evaluation of a share of dev."""

    def on_train_batch_start(self, _trainer: Any, model: Any, *_: Any) -> None:
        self._norms = _norms(model)
        self._before = [_statistics(norm) for norm in self._norms]

    def on_train_batch_end(self, *_: Any) -> None:
        """The statistics of one device that has had the batches of all ranks, one after the other.

        A norm forgets a share (its momentum m) with each batch. Where one device ends with s, a rank alone is moved by
        d from the same beginning; then s = beginning + Σ (1 - m)^(batches after the rank's) · d.
        """
        import torch
        import torch.distributed as dist

        if not self._norms:
            return
        rank, num_ranks = ranks.place()
        moved = [
            (_statistics(norm) - before) * (1 - norm.momentum) ** (num_ranks - 1 - rank)
            for norm, before in zip(self._norms, self._before, strict=True)
        ]
        flat = torch.cat([item.flatten() for item in moved])
        dist.all_reduce(flat)
        parts = flat.split([item.numel() for item in moved])
        for norm, before, part in zip(self._norms, self._before, parts, strict=True):
            mean, variance = before + part.view_as(before)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            norm.num_batches_tracked += num_ranks - 1

    def on_validation_start(self, *_: Any) -> None:
        self._heard: tuple[list[dict[str, Any]], ErrorCounts] = [], ErrorCounts()

    def on_validation_batch_end(
        self, trainer: Any, model: Any, outputs: Any, _batch: Any, batch_idx: int, *_: Any
    ) -> None:
        import torch

        if batch_idx < trainer.val_dataloaders.sampler.num_own:
            plain = {name: torch.as_tensor(value).tolist() for name, value in outputs.items()}
            self._heard = [*self._heard[0], plain], model.wer.characters

    def on_validation_epoch_end(self, _trainer: Any, model: Any) -> None:
        """Before NeMo sums up its list of results: every rank has those of all, in the order of the batches."""
        import torch

        heard = ranks.gathered(self._heard)
        turns = zip_longest(*(outputs for outputs, _ in heard))
        model.validation_step_outputs = [
            {name: torch.tensor(value, device=model.device) for name, value in output.items()}
            for turn in turns
            for output in turn
            if output is not None
        ]
        model.wer.characters = sum((characters for _, characters in heard), ErrorCounts())


def _norms(model: Any) -> list[Any]:
    """Batch norms that learn statistics."""
    from torch.nn.modules.batchnorm import _BatchNorm

    found = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in found if norm.training and norm.track_running_stats]


def _statistics(norm: Any) -> torch.Tensor:
    """Mean and variance: float32 [2, features]; a copy."""
    import torch

    return torch.stack([norm.running_mean, norm.running_var])
