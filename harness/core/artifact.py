"""What a step takes, does its work in, and leaves behind."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.core.files import link_or_copy, replace_text

if TYPE_CHECKING:
    from pathlib import Path

Inputs = Mapping[str, "Sequence[Artifact]"]
"""What a step builds on, by role: `{"model": [Artifact], "heldout": [Artifact]}`."""

PROGRESS_FILE = "progress.json"
PROGRESS_INTERVAL_S = 0.1
CPUS = "HARNESS_CPUS"
"""Environment variable: how many cores a step has been given; without it, all that the machine has."""
CHECKPOINT_FILE = "checkpoint.txt"
"""In the scratch folder: how far the newest checkpoint there is."""
ADOPTED_FOLDER = "adopted"
"""In the scratch folder: an empty file for each folder that the step has handed over."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished, immutable folder in the store."""

    key: str
    stage: str
    path: Path
    files: Mapping[str, str]
    """Name relative to `path` (forward slashes) → sha256 of the content."""
    meta: Mapping[str, Any]
    """What the step found worth telling: counts, figures, versions. JSON values only.

    `notes`, a list of sentences, is shown to the user when the step has run.
    """


@dataclass(slots=True)
class Work:
    """The folder that a step fills, and its line to whoever watches."""

    path: Path
    """Becomes the artifact: everything in it is published by one rename."""
    scratch: Path
    """Survives a kill, is not published: checkpoints, and what a resumed step needs."""
    outbox: Path | None = None
    """Takes checkpoints that are on their way to other machines; None: there are none."""
    _last: float = field(default=0.0, repr=False)

    def adopt(self, name: str) -> None:
        """Publish the folder `name` of the scratch folder: moved, not copied, so that a kill loses nothing.

        Its files are not hashed one by one: the step vouches for them, as manifests do for recordings.
        """
        marks = self.scratch / ADOPTED_FOLDER
        marks.mkdir(exist_ok=True)
        (marks / name).touch()
        (self.scratch / name).rename(self.path / name)

    def checkpointed(self, step: int, names: Iterable[str]) -> None:
        """Tell that the step can go on from here, on any machine.

        step: larger than those before. names: files and folders of the scratch folder that it then needs, as far as
        they exist. They get second names, so that nothing waits until they are sent.
        """
        replace_text(self.scratch / CHECKPOINT_FILE, str(step))
        if self.outbox is None:
            return
        coming = self.outbox / f".{step}"
        for passed in (coming, *self.outbox.glob("[0-9]*")):
            shutil.rmtree(passed, ignore_errors=True)
        for name in names:
            path = self.scratch / name
            for file in sorted(item for item in (path, *path.rglob("*")) if item.is_file()):
                target = coming / file.relative_to(self.scratch)
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(file, target)
        coming.rename(self.outbox / str(step))

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Tell how far the step is; cheap enough to call for every utterance."""
        now = time.monotonic()
        if now - self._last < PROGRESS_INTERVAL_S and done < total:
            return
        self._last = now
        line = json.dumps({"done": done, "total": total, "note": note}, ensure_ascii=False)
        # Written in place: a reader that meets half a line skips it and looks again a moment later.
        (self.scratch / PROGRESS_FILE).write_text(line, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Resources:
    """What a step needs of a machine. A kind's module says it in `RESOURCES`; without it a step is light."""

    whole_machine: bool = False
    """Uses every core, or is timed: nothing else runs beside it."""
    divisible: bool = False
    """Uses as many cores as it is given, and is not timed: on a cluster any node will do."""
    gpu: bool = False
    """Uses the GPU where there is one."""
