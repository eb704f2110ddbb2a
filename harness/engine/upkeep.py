"""What the store holds, whether it is whole, and what of it nobody refers to any more."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from filelock import Timeout

from harness.core.files import file_sha256, replace_text
from harness.engine.store import ARTIFACT_FILE, folder_name, read_artifact, read_record, weigh
from harness.errors import HarnessError

if TYPE_CHECKING:
    from pathlib import Path

    from harness.engine.plan import Step
    from harness.engine.store import Store

NEEDED_FILE = "plan.json"
"""In `results/<suite>/`: the artifacts that its board refers to."""
SCHEMA = 1
FOLDER = re.compile(r"[a-z_]+-[0-9a-f]{16}")

Reasons = Mapping[str, Collection[str]]
"""Who refers → to what."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An artifact, by its record."""

    folder: str
    name: str
    """Of the step: `train whisper-base lr1e-5`; empty of one whose record is damaged."""
    size: int
    """Bytes."""
    modified_s: float
    """Since the epoch."""
    inputs: frozenset[str]
    """The artifacts that it was made of."""
    files: Mapping[str, str]
    """Name → sha256."""


@dataclass(frozen=True, slots=True)
class Waste:
    """What can go."""

    path: Path
    what: str
    size: int
    locked_by: str
    """The artifact whose lock its user would hold; empty if there is none."""

    @property
    def name(self) -> str:
        return self.path.name


def inventory(store: Store) -> list[Stored]:
    """All artifacts, by name of folder."""
    return [_stored(path) for path in _folders(store.root)]


def keepers(
    stored: Iterable[Stored], *, boards: Reasons, models: Reasons, digest: Callable[..., str]
) -> dict[str, set[str]]:
    """Artifact → who refers to it: to it, to what was made of it, or to the model that it was measured on.

    boards: folders by who shows them. models: digests of models by who has promoted them. digest: of a model's files.
    """
    known = {item.folder: item for item in stored}
    readers: dict[str, list[str]] = {}
    for item in known.values():
        for name in item.inputs:
            readers.setdefault(name, []).append(item.folder)
    kept: dict[str, set[str]] = {}
    for who, folders in boards.items():
        _spread(folders, who, kept, along=lambda name: known[name].inputs if name in known else ())
    for who, digests in models.items():
        promoted = [item.folder for item in known.values() if item.files and digest(item.files) in digests]
        measured: dict[str, set[str]] = {}
        _spread(promoted, who, measured, along=lambda name: readers.get(name, ()))
        _spread(measured, who, kept, along=lambda name: known[name].inputs if name in known else ())
    return kept


def wasted(store: Store, stored: Iterable[Stored], *, kept: Collection[str], older_than_s: float) -> list[Waste]:
    """Artifacts that nobody refers to, and what killed processes have left so many seconds ago.

    A killed step that somebody refers to goes on with what it has left, however old that is.
    """
    found = [
        Waste(store.root / item.folder, item.name or item.folder, item.size, item.folder)
        for item in stored
        if item.folder not in kept
    ]
    partial = store.partial("")
    for path in sorted(partial.iterdir()) if partial.is_dir() else ():
        folder, _, coming = path.name.partition(".")
        items = [path, *path.rglob("*")] if path.is_dir() else []
        resumable = folder in kept and not coming and not (store.root / folder).is_dir()
        if items and not resumable and time.time() - max(map(_modified_s, items)) > older_than_s:
            size = weigh(path)["size"]
            what = "read from the remote store" if coming[:3] == "of-" else "left by a killed process"
            found.append(Waste(path, f"{what}: {path.name}", size, "" if coming else folder))
    return [item for item in found if not _is_locked(store, item)]


def remove(store: Store, waste: Waste) -> bool:
    """Delete it, unless a process has begun to use it; whether it is gone. A reader sees it whole or not at all."""
    if not waste.locked_by:
        shutil.rmtree(waste.path, ignore_errors=True)
        return True
    try:
        with store.lock(waste.locked_by).acquire(timeout=0):
            going = store.partial(f"{waste.locked_by}.out-{secrets.token_hex(8)}")
            waste.path.rename(going)
    except (Timeout, PermissionError):  # Windows: a file in it is open
        return False
    shutil.rmtree(going, ignore_errors=True)
    return True


def faults(path: Path) -> list[str]:
    """What is wrong with an artifact: every file is read again. path: its folder."""
    if not (path / ARTIFACT_FILE).is_file():
        return [f"{ARTIFACT_FILE} is missing: the rest of an artifact that was deleted"]
    try:
        artifact = read_artifact(path)
    except HarnessError as error:
        return [str(error)]
    adopted: dict[str, dict[str, int]] = read_record(path).get("adopted", {})
    found = []
    if folder_name(artifact.stage, artifact.key) != path.name:
        found.append(f"is '{artifact.stage}' with key {artifact.key}, which belongs into another folder")
    for name, sha256 in artifact.files.items():
        if not (path / name).is_file():
            found.append(f"{name} is missing")
        elif (now := file_sha256(path / name)) != sha256:
            found.append(f"{name} is damaged: its sha256 is {now}, recorded is {sha256}")
    for name, recorded in adopted.items():
        if (weight := weigh(path / name)) != recorded:
            there, then = (f"{item['num_files']} files, {item['size']:,} bytes" for item in (weight, recorded))
            found.append(f"{name}/ is damaged: it has {there}, recorded are {then}")
    names = {item.relative_to(path).as_posix() for item in path.rglob("*") if item.is_file()}
    extra = sorted(
        name for name in names - artifact.files.keys() - {ARTIFACT_FILE} if name.split("/")[0] not in adopted
    )
    return found + [f"{name} does not belong to it" for name in extra]


def write_needed(steps: Iterable[Step], *, folder: Path, beside: bool = False) -> None:
    """Note which artifacts a board refers to. folder: `results/<suite>`.

    beside: what was noted before stands too; a run that has begun does not know yet what its board will show.
    """
    folders = {step.folder for step in steps} | (needed(folder) or set() if beside else set())
    content = {"schema": SCHEMA, "artifacts": sorted(folders)}
    replace_text(folder / NEEDED_FILE, json.dumps(content, indent=1) + "\n")


def needed(folder: Path) -> set[str] | None:
    """What was noted; None if nothing was. Raises HarnessError if the note is damaged."""
    path = folder / NEEDED_FILE
    try:
        return {str(name) for name in json.loads(path.read_text(encoding="utf-8"))["artifacts"]}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise HarnessError(f"{path}: cannot be read ({error!r}); remove it and run the suite again") from error


def _folders(root: Path) -> Iterator[Path]:
    return iter(sorted(item for item in root.glob("*-*") if FOLDER.fullmatch(item.name) and item.is_dir()))


def _stored(path: Path) -> Stored:
    try:
        artifact, record = read_artifact(path), read_record(path)
        size = sum(item["size"] for group in ("files", "adopted") for item in record.get(group, {}).values())
        inputs = frozenset(name for names in record.get("inputs", {}).values() for name in names)
        modified_s = _modified_s(path / ARTIFACT_FILE)
        return Stored(path.name, str(record.get("name", "")), size, modified_s, inputs, artifact.files)
    except (HarnessError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return Stored(path.name, "", weigh(path)["size"], _modified_s(path), frozenset(), {})


def _spread(
    folders: Iterable[str], who: str, kept: dict[str, set[str]], *, along: Callable[[str], Iterable[str]]
) -> None:
    pending = list(folders)
    while pending:
        folder = pending.pop()
        if who not in kept.setdefault(folder, set()):
            kept[folder].add(who)
            pending += along(folder)


def _is_locked(store: Store, waste: Waste) -> bool:
    if not waste.locked_by or not store.partial(f"{waste.locked_by}.lock").is_file():
        return False
    try:
        with store.lock(waste.locked_by).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _modified_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0  # gone while we looked
