"""Parts of a training with transformers' Trainer."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.files import replace_text
from harness.train.part import CHECKPOINTS, Part
from harness.train.ranks import from_first

if TYPE_CHECKING:
    from harness.core.artifact import Work

STATE_FILE = "trainer_state.json"
ONLY_TO_RESUME = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth")
"""What a checkpoint that nothing resumes does without."""


class TrainerPart(Part):
    """A part of a training, of which the trainer writes `checkpoint-STEP`."""

    def checkpoint(self) -> str | None:
        """Where it goes on: the newest whole checkpoint of its own or of an earlier part."""
        return next(filter(None, (last_checkpoint(folder / CHECKPOINTS) for folder in self.folders)), None)

    def train(self, trainer: Any) -> None:
        """Train to the end, or to the rung; not at all where that is reached already."""
        found = from_first(self.checkpoint)
        if found is None or not self._has_ended(_state(Path(found))):
            with self.diverging():
                trainer.train(resume_from_checkpoint=found)
            return
        from transformers import TrainerState

        trainer.state = TrainerState.load_from_json(str(Path(found) / STATE_FILE))
        trainer.state.best_model_checkpoint = best = self.best(trainer.state)
        if best:
            load_weights(trainer, best)

    def callback(self) -> Any:
        """A TrainerCallback that stops at the rung, with an evaluation and a checkpoint whatever `eval_steps` says."""
        from transformers import TrainerCallback

        part = self

        class Rung(TrainerCallback):  # type: ignore[misc]  # untyped
            def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
                state.best_model_checkpoint = part.best(state)

            def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
                if part.until is not None and state.global_step >= part.until:
                    control.should_evaluate = control.should_save = control.should_training_stop = True

        return Rung()

    def best(self, state: Any) -> str | None:
        """The best checkpoint so far, in whichever part it was written."""
        found = [folder / CHECKPOINTS / f"checkpoint-{state.best_global_step}" for folder in self.folders]
        return next((str(path) for path in found if path.is_dir()), None)

    def finish(self, work: Work) -> dict[str, Any]:
        """Leave what the next part needs: the last checkpoint whole, the weights of the best, the curves.

        Returns the part's meta. `dev_wer` and `dev_loss` at its end are what a search judges; None if the loss broke.
        """
        found = self.checkpoint()
        state: dict[str, Any] = {"global_step": 0, "log_history": []}
        state = _state(Path(found)) if found else state
        best = state.get("best_metric"), state.get("best_global_step")
        self._slim(work.scratch / CHECKPOINTS, best_step=best[1])
        self.leave(work, state["log_history"])
        dev_wer, dev_loss = self._at_end(state)
        return {
            "dev_wer": dev_wer,
            "dev_loss": dev_loss,
            "best_dev_wer": best[0],
            "best_step": best[1],
            "final_step": state["global_step"],
            "notes": self.broken,
        }

    def _at_end(self, state: dict[str, Any]) -> tuple[float | None, float | None]:
        """Dev WER and loss: those of the rung, or if the training ended before it, of what it ended with."""
        if not self._has_ended(state):
            return None, None
        row = next(row for row in reversed(state["log_history"]) if "eval_wer" in row)
        loss = row.get("eval_loss", math.nan)
        wer = row["eval_wer"] if state["global_step"] == self.until else state["best_metric"]
        return wer, loss if math.isfinite(loss) else None

    def _slim(self, folder: Path, *, best_step: int | None) -> None:
        """Remove what no later part reads."""
        found = checkpoints(folder)
        steps = list(found)
        for step in steps[:-1]:
            if step == best_step or step in steps[-self.averaged :]:
                leave_weights(found[step])
            else:
                shutil.rmtree(found[step])
        for path in list(found.values())[-1:]:
            # It names a folder of this machine that is about to move.
            replace_text(path / STATE_FILE, json.dumps({**_state(path), "best_model_checkpoint": None}, indent=2))

    def _has_ended(self, state: dict[str, Any]) -> bool:
        if self.until is not None and state["global_step"] >= self.until:
            return True
        stopping = state.get("stateful_callbacks", {}).get("EarlyStoppingCallback", {})
        waited = stopping.get("attributes", {}).get("early_stopping_patience_counter", 0)
        return self.patience is not None and bool(waited >= self.patience)


def checkpoints(folder: Path) -> dict[int, Path]:
    """Step → its `checkpoint-STEP`, the oldest first."""
    return dict(sorted((step_of(path), path) for path in folder.glob("checkpoint-*")))


def step_of(checkpoint: Path) -> int:
    """The optimizer step in its name."""
    return int(checkpoint.name.rpartition("-")[2])


def leave_weights(checkpoint: Path) -> None:
    """Remove what only a training that goes on from there needs: it is twice as large."""
    for pattern in ONLY_TO_RESUME:
        for path in checkpoint.glob(pattern):
            path.unlink()


def load_weights(trainer: Any, folder: Path | str) -> None:
    """Load a checkpoint's weights, as the trainer loads the best at its end."""
    trainer.state.best_model_checkpoint = str(folder)
    trainer._load_best_model()  # noqa: SLF001  # without a public name


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint. A kill while one is written leaves it without its state, which comes last."""
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        try:
            step = _state(path)["global_step"]
        except (OSError, ValueError, KeyError):
            shutil.rmtree(path)
        else:
            whole[step] = path
    return str(whole[max(whole)]) if whole else None


def _state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    return state
