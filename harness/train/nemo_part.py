"""Parts of a training with Lightning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.train.nemo_trainer import BEST, last_checkpoint
from harness.train.part import CHECKPOINTS, Part

if TYPE_CHECKING:
    from pathlib import Path

    from harness.core.artifact import Work
    from harness.train.nemo_curves import Row


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training has come, as its newest checkpoint has it."""

    step: int
    rows: list[Row]
    """Of the curves, from the first step on."""

    @property
    def evaluations(self) -> list[Row]:
        return [row for row in self.rows if "eval_wer" in row]

    @property
    def best(self) -> Row:
        """The evaluation with the lowest WER, the first of equals."""
        return min(self.evaluations, key=lambda row: row["eval_wer"])

    @property
    def since_best(self) -> int:
        """Evaluations since then."""
        return len(self.evaluations) - 1 - self.evaluations.index(self.best)


class NemoPart(Part):
    """A part of a training, of which Lightning writes `best/STEP.ckpt` and `last/STEP.ckpt`."""

    def checkpoint(self) -> tuple[str, int] | None:
        """Where it goes on, and that optimizer step: the newest checkpoint of its own or of an earlier part."""
        return next(filter(None, map(last_checkpoint, self.folders)), None)

    def progress(self) -> Progress | None:
        """None before the first checkpoint."""
        import torch

        found = self.checkpoint()
        if found is None:
            return None
        # Mapped, since all but the curves is weights.
        state = torch.load(found[0], map_location="cpu", weights_only=True, mmap=True)
        return Progress(found[1], state["callbacks"]["curves"]["rows"])

    def has_ended(self) -> bool:
        """Whether nothing is left to train: the rung is reached, or nothing improved for long enough."""
        reached = self.progress()
        if reached is None:
            return False
        waited = self.patience is not None and reached.since_best >= self.patience
        return waited or (self.until is not None and reached.step >= self.until)

    def weights(self, step: int) -> Path:
        """The checkpoint of an evaluation, in whichever part it was written."""
        found = [folder / CHECKPOINTS / BEST / f"{step}.ckpt" for folder in self.folders]
        return next(path for path in found if path.is_file())

    def finish(self, work: Work) -> dict[str, Any]:
        """Leave what the next part needs: the last checkpoint, the weights of the best, the curves.

        Returns the part's meta. `dev_wer` and `dev_loss` at its end are what a search judges; None if the loss broke.
        """
        reached, ended = self.progress(), self.has_ended()
        if reached is None:
            self.leave(work, [])
            none = dict.fromkeys(("dev_wer", "dev_loss", "best_dev_wer", "best_step"))
            return {**none, "final_step": 0, "notes": self.broken}
        best, at_end = reached.best, reached.evaluations[-1]
        for path in (work.scratch / CHECKPOINTS / BEST).glob("*.ckpt"):
            if path.stem != str(int(best["step"])):
                path.unlink()
        self.leave(work, reached.rows)
        dev_wer = at_end["eval_wer"] if reached.step == self.until else best["eval_wer"]
        loss = at_end.get("eval_loss", math.nan)
        return {
            "dev_wer": dev_wer if ended else None,
            "dev_loss": loss if ended and math.isfinite(loss) else None,
            "best_dev_wer": best["eval_wer"],
            "best_step": int(best["step"]),
            "final_step": reached.step,
            "notes": self.broken,
        }
