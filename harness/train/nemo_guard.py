"""Guards a Lightning training: what breaks ends it before anything of it is saved."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.train import ranks
from harness.train.guards import Guard, remedy, weights_norm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from harness.train.nemo_part import NemoPart
    from harness.train.nemo_trainer import Schedule
    from harness.train.speech_batches import Batches


def guard_callback(
    batches: Batches, *, part: NemoPart, schedule: Schedule, learning_rate: float, precision: str
) -> Any:
    """A Lightning callback, of a training over these batches with this precision."""
    import torch
    from lightning.pytorch import Callback

    guard = Guard(
        names=clip_names(batches),
        last=lambda: (part.checkpoint() or (None,))[0],
        num_steps=schedule.max_steps,
        remedy=remedy(learning_rate=learning_rate, precision=precision, safe=("fp32", "bf16-mixed")),
    )
    per_step = schedule.batches_per_step

    def of_step(step: int) -> range:
        return range((step - 1) * per_step, step * per_step)

    class GuardCallback(Callback):  # type: ignore[misc]  # untyped
        batch = 0

        def on_train_batch_start(self, _trainer: Any, _model: Any, _batch: Any, batch_idx: int) -> None:
            self.batch = batch_idx

        def on_before_backward(self, trainer: Any, _model: Any, loss: Any) -> None:
            losses = ranks.gathered(float(loss.detach()))
            # Every rank ends with the same error: none waits for one that has ended.
            for place, value in enumerate(losses, start=self.batch * len(losses)):
                guard.check(value, what="loss", step=trainer.global_step + 1, places=[place])

        def on_before_optimizer_step(self, trainer: Any, model: Any, _optimizer: Any) -> None:
            # The scaler passes over steps with such gradients by itself, and scales down.
            if precision != "16-mixed":
                gradients = [item.grad for item in model.parameters() if item.grad is not None]
                norm = float(torch.nn.utils.get_total_norm(gradients))
                step = trainer.global_step + 1
                guard.check(norm, what="gradient", step=step, places=of_step(step))

        def on_validation_start(self, trainer: Any, model: Any) -> None:
            # A checkpoint follows.
            step = trainer.global_step
            guard.check(weights_norm(model), what="weights", step=step, places=of_step(step))

    return GuardCallback()


def clip_names(batches: Batches) -> Callable[[Iterable[int]], Iterator[str]]:
    """What tells the recordings in some batches, which are counted from the beginning of the training."""

    def names(places: Iterable[int]) -> Iterator[str]:
        for place in places:
            rows = next(iter(replace(batches, start=place)))
            yield from (batches.clips.table[row]["audio"] for row in rows)

    return names
