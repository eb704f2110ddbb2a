"""Putting a model in another's place so that a kill at any moment leaves the old one or the new one, whole.

<folder>/<slot>                       what the application opens: a file, or a folder
<folder>/.harness/<slot>/incoming     the new one, until it has been verified
<folder>/.harness/<slot>/outgoing     the old one, for a moment
<folder>/.harness/<slot>/previous     the old one, to go back to
<folder>/.harness/<slot>/state.json   which is which
<folder>/.harness/<slot>/journal.json there while a swap is under way: the next command ends it or undoes it

A file is exchanged by one rename; so is a folder, where the system can exchange two (Linux and macOS, on their usual
file systems). Elsewhere a folder takes two renames, and between them there is none.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.files import beside, parse_json_file
from harness.errors import HarnessError, first_line

if TYPE_CHECKING:
    from pathlib import Path

HOME = ".harness"
"""Beside the models, so that every move is a rename."""
EXCHANGE = 2
"""RENAME_EXCHANGE of Linux's renameat2, and RENAME_SWAP of macOS's renamex_np."""
WORKING_FOLDER = -100
"""AT_FDCWD of Linux."""
FULL_SYNC = 51
"""F_FULLFSYNC of macOS, whose fsync does not reach the disk."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one model of an application lives."""

    folder: Path
    name: str

    @property
    def live(self) -> Path:
        return self.folder / self.name

    @property
    def home(self) -> Path:
        return self.folder / HOME / self.name

    @property
    def incoming(self) -> Path:
        return self.home / "incoming"

    @property
    def outgoing(self) -> Path:
        return self.home / "outgoing"

    @property
    def previous(self) -> Path:
        return self.home / "previous"

    @property
    def state(self) -> Path:
        return self.home / "state.json"

    @property
    def journal(self) -> Path:
        return self.home / "journal.json"


State = dict[str, Any]
"""`current` and `previous`: a record each, or None."""


def read_state(place: Place) -> State:
    """Raises HarnessError if the file is damaged."""
    if not place.state.is_file():
        return {"current": None, "previous": None}
    state = _read(place.state, wanted=("current", "previous"))
    for name, record in state.items():
        if record is not None and not (isinstance(record, dict) and isinstance(record.get("files"), dict)):
            raise _damaged(place.state, f"{name} has no files")
    return state


def swap(place: Place, *, staged: Path, state: State) -> None:
    """Put `staged`, whole and on disk, in the place of what is live; that becomes `previous`.

    staged: `place.incoming` or `place.previous`. state: what `state.json` shall say afterwards.
    """
    journal = {"staged": staged.name, "inode": staged.stat().st_ino, "state": state}
    write_json(place.journal, journal)
    if not place.live.exists():
        staged.rename(place.live)
    elif place.live.is_file():
        _keep(place.live, place.outgoing)
        staged.replace(place.live)
    elif exchange(staged, place.live):
        staged.rename(place.outgoing)
    else:
        place.live.rename(place.outgoing)
        staged.rename(place.live)
    sync_folder(place.folder)
    _finish(place, state)


def recover(place: Place) -> None:
    """End or undo the swap that a kill cut off, if there is one."""
    if not place.journal.is_file():
        return
    journal = _read(place.journal, wanted=("staged", "inode", "state"))
    staged = place.previous if journal["staged"] == "previous" else place.incoming
    if not staged.exists() or (place.live.exists() and place.live.stat().st_ino == journal["inode"]):
        if staged.exists():
            staged.rename(place.outgoing)  # two folders had been exchanged
        _finish(place, journal["state"])
        return
    if place.outgoing.exists():
        if place.live.exists():
            remove(place.outgoing)
        else:
            place.outgoing.rename(place.live)
    remove(place.incoming)
    place.journal.unlink()


def _finish(place: Place, state: State) -> None:
    if place.outgoing.exists():
        remove(place.previous)
        place.outgoing.rename(place.previous)
    write_json(place.state, state)
    place.journal.unlink()
    sync_folder(place.home)


def _keep(source: Path, target: Path) -> None:
    """A second name for a file, so that it outlives the rename over it; a copy where there are no hard links."""
    remove(target)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        with target.open("r+b") as file:
            sync(file.fileno())


def exchange(one: Path, other: Path) -> bool:
    """Let two folders change names in one step. Returns False where the system or the file system cannot."""
    if sys.platform not in {"linux", "darwin"}:
        return False
    system = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    with suppress(AttributeError):  # older than the call
        if sys.platform == "darwin":
            return bool(system.renamex_np(*names, EXCHANGE) == 0)
        return bool(system.renameat2(WORKING_FOLDER, names[0], WORKING_FOLDER, names[1], EXCHANGE) == 0)
    return False


def write_json(path: Path, content: dict[str, Any]) -> None:
    """On disk before it returns; a reader sees the old or the new."""
    temporary = beside(path)
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        json.dump(content, file, ensure_ascii=False, indent=1, allow_nan=False)
        file.flush()
        sync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync(descriptor: int) -> None:
    """Wait until a file is on the disk."""
    if sys.platform == "darwin":
        import fcntl

        with suppress(OSError):  # a network drive
            fcntl.fcntl(descriptor, FULL_SYNC)
            return
    os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk. Windows has no such call."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network drives refuse
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read(path: Path, *, wanted: tuple[str, ...]) -> dict[str, Any]:
    try:
        content: dict[str, Any] = parse_json_file(path)
        return {name: content[name] for name in wanted}
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, first_line(error)) from error


def _damaged(path: Path, what: str) -> HarnessError:
    return HarnessError(
        f"{path}: cannot be read ({what}); the model itself may be sound: move {path.parent} away, install again"
    )
