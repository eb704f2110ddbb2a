"""A part of a training: begins where an earlier part stopped, stops at a rung of a search.

The parts together end with the weights of one unbroken training that is evaluated at the same steps: schedule and data
order are those of the whole, and a checkpoint holds the rest.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from harness.core.manifests import write_jsonl
from harness.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.core.artifact import Inputs, Work
    from harness.suite.model import TrainingSpec

CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"


@dataclass(frozen=True, slots=True)
class Part:
    """Of a training: all of it, unless it continues others or has an `until`."""

    folders: tuple[Path, ...]
    """That hold `checkpoints`: its own, then those of the parts before it, the newest first."""
    until: int | None
    """Optimizer step to stop at; None: the last one."""
    patience: int | None
    """Evaluations without a better WER after which training stops."""
    averaged: int
    """The last checkpoints whose weights the end of the whole training needs."""
    broken: list[str] = field(default_factory=list)
    """What ended it before its time."""

    @classmethod
    def of(cls, spec: TrainingSpec, inputs: Inputs, work: Work) -> Self:
        """Of a step that may continue `inputs["resume"]`, and whose spec may be a `Segment`."""
        earlier = [artifact.path for artifact in inputs.get("resume", ())]
        if earlier and not (work.scratch / TENSORBOARD).exists():
            shutil.copytree(earlier[0] / TENSORBOARD, work.scratch / TENSORBOARD)
        patience = getattr(spec, "early_stopping_patience", None)
        averaged = getattr(spec, "average_checkpoints", None) or 1
        return cls((work.scratch, *earlier), getattr(spec, "until", None), patience, averaged)

    @contextmanager
    def diverging(self) -> Iterator[None]:
        """A variant whose loss breaks before a rung has lost the comparison there: it holds up no other."""
        try:
            yield
        except TrainingError as error:
            if self.until is None:
                raise
            self.broken.append(f"it stays behind at step {self.until}: {error}")

    def leave(self, work: Work, rows: list[dict[str, Any]]) -> None:
        """Publish the curves, and the checkpoints for the next part: moved, not copied."""
        write_jsonl(work.path / "curves.jsonl", rows)
        (work.scratch / TENSORBOARD).mkdir(exist_ok=True)
        shutil.copytree(work.scratch / TENSORBOARD, work.path / TENSORBOARD)
        # Empty where an earlier part has already ended the training.
        (work.scratch / CHECKPOINTS).mkdir(exist_ok=True)
        work.adopt(CHECKPOINTS)
