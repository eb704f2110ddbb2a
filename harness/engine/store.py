"""Where artifacts live. A reader sees a whole artifact or none; a writer works beside and publishes by one rename.

<root>/<stage>-<key>/artifact.json …     finished, never changed again
<root>/.partial/<stage>-<key>/out/       becomes the artifact
<root>/.partial/<stage>-<key>/scratch/   survives a kill: checkpoints
<root>/.partial/<stage>-<key>.lock       held by the one process that works on it
"""

from __future__ import annotations

import json
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from harness.core.artifact import ADOPTED_FOLDER, Artifact, Work
from harness.core.files import file_sha256
from harness.errors import HarnessError

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = 1
"""Of `artifact.json`. Older numbers stay readable."""
ARTIFACT_FILE = "artifact.json"
RENAME_ATTEMPTS = 20


class Store:
    """A folder of artifacts by key."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, folder: str, *, key: str) -> Artifact | None:
        """The finished artifact of a step, or None."""
        path = self.root / folder
        if not (path / ARTIFACT_FILE).is_file():
            return None
        artifact = read_artifact(path)
        if artifact.key != key:
            raise HarnessError(f"{path}: holds key {artifact.key}, wanted {key}; remove this folder and run again")
        return artifact

    def partial(self, folder: str) -> Path:
        return self.root / ".partial" / folder

    def lock(self, folder: str) -> FileLock:
        """Released by the system when its holder dies, however it dies."""
        path = self.partial(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path.with_name(f"{path.name}.lock"))

    def open(self, folder: str) -> Work:
        """An empty `out` and whatever `scratch` an earlier, killed attempt left. Call it under the lock."""
        partial = self.partial(folder)
        out, scratch = partial / "out", partial / "scratch"
        for name in _adopted(scratch):
            if (out / name).is_dir() and not (scratch / name).exists():
                _rename(out / name, scratch / name)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        scratch.mkdir(exist_ok=True)
        return Work(path=out, scratch=scratch)

    def publish(self, folder: str, *, key: str, stage: str, meta: dict[str, Any], about: dict[str, Any]) -> Artifact:
        """Hash every file of `out` outside adopted folders, write `artifact.json`, make all visible by one rename."""
        out, final = self.partial(folder) / "out", self.root / folder
        adopted = _adopted(self.partial(folder) / "scratch")
        names = sorted(
            item.relative_to(out).as_posix()
            for top in out.iterdir()
            if top.name not in adopted
            for item in ([top] if top.is_file() else top.rglob("*"))
            if item.is_file()
        )
        files = {name: {"sha256": file_sha256(out / name), "size": (out / name).stat().st_size} for name in names}
        about = {**about, "adopted": {name: _weigh(out / name) for name in adopted}}
        record = {"schema": SCHEMA, "key": key, "stage": stage, "files": files, "meta": meta, **about}
        text = json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False)
        with (out / ARTIFACT_FILE).open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if final.is_dir() and not (final / ARTIFACT_FILE).is_file():
            shutil.rmtree(final)  # the rest of an artifact that somebody deleted in part
        _rename(out, final)
        shutil.rmtree(self.partial(folder), ignore_errors=True)
        return read_artifact(final)


def read_artifact(path: Path) -> Artifact:
    """Raises HarnessError if its record is damaged or of a newer schema."""
    try:
        record = json.loads((path / ARTIFACT_FILE).read_text(encoding="utf-8"))
        if record["schema"] > SCHEMA:
            raise HarnessError(f"{path}: schema {record['schema']} is newer than {SCHEMA}; update harness")
        files = {name: entry["sha256"] for name, entry in record["files"].items()}
        return Artifact(record["key"], record["stage"], path, files, record["meta"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HarnessError(
            f"{path / ARTIFACT_FILE}: cannot be read ({error}); remove the folder and run again"
        ) from error


def wall_s(path: Path) -> float | None:
    """Seconds that the step took when it ran."""
    record = json.loads((path / ARTIFACT_FILE).read_text(encoding="utf-8"))
    seconds: float | None = record.get("wall_s")
    return seconds


def _adopted(scratch: Path) -> list[str]:
    marks = scratch / ADOPTED_FOLDER
    return sorted(item.name for item in marks.iterdir()) if marks.is_dir() else []


def _weigh(folder: Path) -> dict[str, int]:
    sizes = [item.stat().st_size for item in folder.rglob("*") if item.is_file()]
    return {"num_files": len(sizes), "size": sum(sizes)}


def _rename(source: Path, target: Path) -> None:
    for attempt in range(RENAME_ATTEMPTS):
        try:
            source.rename(target)
        except PermissionError:
            # Windows refuses while a virus scanner or an indexer still has a file open.
            if attempt == RENAME_ATTEMPTS - 1:
                raise
            time.sleep(0.1)
        else:
            return
