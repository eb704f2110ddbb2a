"""The curves of a Lightning training: kept for the artifact, sent to MLflow, and what early stopping looks at."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any

from harness.core.wer import ErrorCounts
from harness.train import ranks
from harness.train.curves import LOG, curve_metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.core.artifact import Work
    from harness.train.nemo_trainer import Schedule

Row = dict[str, float]
"""A point of the curves, as `curves.jsonl` has it: `step`, `epoch` and what was measured."""


def curves_callback(work: Work, *, schedule: Schedule, seed: int) -> Any:
    """`Curves` as a Lightning callback."""
    from lightning.pytorch import Callback

    class CurvesCallback(Curves, Callback):  # type: ignore[misc]  # untyped
        state_key = "curves"

    return CurvesCallback(work, schedule=schedule, seed=seed)


class Curves:
    """Keeps the curves, tells how far training is, and ends it where nothing improves any more."""

    def __init__(self, work: Work, *, schedule: Schedule, seed: int) -> None:
        self.work, self.schedule, self.seed = work, schedule, seed
        self.rows: list[Row] = []
        self.send = _sender()
        self._losses: list[float] = []
        self._current: Row = {}
        self._note = ""

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "losses": self._losses}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self._losses = state["rows"], state["losses"]

    def on_train_batch_start(self, _trainer: Any, _model: Any, _batch: Any, batch_idx: int) -> None:
        import torch

        # Dropout and masks depend on the batch's place alone: a resumed training draws what an unbroken one does, and
        # several devices what one does.
        rank, num_ranks = ranks.place()
        place = batch_idx * num_ranks + rank
        torch.manual_seed(self.seed * 2**31 + place)
        random.seed(self.seed * 2**31 + place)

    def on_before_optimizer_step(self, trainer: Any, model: Any, optimizer: Any) -> None:
        import torch

        if self._is_logged(trainer.global_step + 1):
            gradients = [item.grad for item in model.parameters() if item.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients).item()
            self._current = {"grad_norm": norm, "learning_rate": optimizer.param_groups[0]["lr"]}

    def on_train_batch_end(self, trainer: Any, _model: Any, outputs: Any, _batch: Any, batch_idx: int) -> None:
        # Lightning's loss is divided by the number of batches in a step.
        losses = ranks.gathered(float(outputs["loss"].detach() * self.schedule.accumulation))
        self._losses.append(sum(losses) / len(losses))
        step = trainer.global_step
        if (batch_idx + 1) % self.schedule.accumulation:
            return
        if self._is_logged(step):
            loss = sum(self._losses) / len(self._losses)
            self._losses.clear()
            self._note = f"loss {loss:.3f}"
            self._log(step, {"loss": loss, **self._current})
        if ranks.is_first():
            self.work.progress(step, self.schedule.max_steps, self._note)
        # Lightning validates when it is told to stop: the steps after the last whole interval count too.
        trainer.should_stop = trainer.should_stop or step >= (self.schedule.until or self.schedule.max_steps)

    def on_validation_start(self, _trainer: Any, model: Any) -> None:
        # NeMo measures a batch of training now and then too.
        model.wer.characters = ErrorCounts()

    def on_validation_end(self, trainer: Any, model: Any) -> None:
        step, metrics = trainer.global_step, trainer.callback_metrics
        if any(row["step"] == step and "eval_wer" in row for row in self.rows):
            return  # a resumed training begins with the validation that its checkpoint was written after
        row = {"eval_wer": float(metrics["val_wer"]), "eval_cer": model.wer.characters.rate}
        if "val_loss" in metrics:
            row["eval_loss"] = float(metrics["val_loss"])
        self._note = f"dev WER {row['eval_wer']:.3f}"
        self._log(step, row)
        wers = [row["eval_wer"] for row in self.rows if "eval_wer" in row]
        since_best = len(wers) - 1 - wers.index(min(wers))
        if self.schedule.patience is not None and since_best >= self.schedule.patience:
            trainer.should_stop = True

    def _is_logged(self, step: int) -> bool:
        return step == 1 or step % self.schedule.log_steps == 0

    def _log(self, step: int, values: Row) -> None:
        epoch = step * self.schedule.batches_per_step / self.schedule.batches_per_epoch
        self.rows.append({"step": step, "epoch": round(epoch, 4), **values})
        self.send(self.rows[-1])


def _sender() -> Callable[[Row], None]:
    """A function that sends a row to the MLflow run named in the environment, if any."""
    """A function that sends a row of the curves to the MLflow run named in the environment, if any."""
    run_id = os.environ.get("MLFLOW_RUN_ID", "")
    if not run_id or not ranks.is_first():
        return lambda _row: None
    from mlflow import MlflowClient

    client = MlflowClient()

    def send(row: Row) -> None:
        try:
            client.log_batch(run_id, metrics=curve_metrics(row, step=int(row["step"])))
        except Exception as error:  # noqa: BLE001  # whatever a tracking server does, training goes on
            LOG.warning("MLflow took no curve point at step %d: %s", row["step"], error)

    return send
