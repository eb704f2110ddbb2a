"""A bundle into an application's folder: verified, tried out, and only then put in place; and the way back."""

from __future__ import annotations

import errno
import shutil
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from harness.errors import HarnessError, SuiteError
from harness.promote import fitness, smoke
from harness.promote.history import append, now, user
from harness.promote.manifest import Manifest
from harness.promote.payload import Hashes, copy_model, faults, needed, room
from harness.promote.swap import HOME, Place, State, read_state, recover, remove, swap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.promote.parcel import Parcel
    from harness.promote.smoke import Listen
    from harness.promote.targets import Slot, Target

Record = dict[str, Any]
"""What is known of an installed model: `bundle`, `manifest`, `files`, `installed_at`, `installed_by`, `heard`."""
HISTORY_FILE = "history.jsonl"
CLIPS = "clips"


@dataclass(frozen=True, slots=True)
class Installed:
    """What an installation or a rollback changed."""

    path: Path
    record: Record
    previous: Record | None
    """What `rollback` would bring back; None if nothing was there before."""
    is_new: bool = True
    """False: it was there already, whole."""


@dataclass(frozen=True, slots=True)
class Status:
    """One slot of an application."""

    path: Path
    record: Record | None
    """None: something that harness did not install, or nothing."""
    faults: list[str] = field(default_factory=list)
    """What is not as it was installed."""
    previous: Record | None = None
    previous_faults: list[str] = field(default_factory=list)


def install(parcel: Parcel, *, target: Target, folder: Path, listen: Listen = smoke.listen) -> Installed:
    """Put a bundle's model where the application finds it; the one before it stays, for `rollback`.

    folder: made if it is not there. listen: loads the model and returns what it hears in its clip.
    Raises HarnessError with the reason, and nothing has changed.
    """
    manifest = parcel.manifest
    slot = target.slot(manifest.export_kind)
    place = Place(folder, slot.name)
    with locked(folder):
        place.home.mkdir(parents=True, exist_ok=True)
        recover(place)
        state = read_state(place)
        _check_shape(place, slot)
        if _is_there(place, state, parcel):
            return Installed(place.live, state["current"], state["previous"], is_new=False)
        try:
            record = _stage(parcel, slot=slot, place=place, listen=listen)
            previous = state["previous"]
            if place.live.exists():
                previous = _known(place, state) or _foreign(place)
        except Exception:
            _discard(place)
            raise
        after = {"current": record, "previous": previous}
        _swap(place, staged=place.incoming, state=after)
        _log(place, "install", after, reason=manifest.authority)
    return Installed(place.live, record, previous)


def rollback(place: Place, *, target: Target, reason: str = "", listen: Listen = smoke.listen) -> Installed:
    """Bring the previous model back, verified like a new one; the current one becomes the previous.

    Raises HarnessError if there is none, or it is not whole.
    """
    if not place.home.is_dir():
        raise HarnessError(f"{place.live}: nothing has been installed here yet, so there is nothing to go back to")
    with locked(place.folder):
        recover(place)
        state = read_state(place)
        record = state["previous"]
        if record is None or not place.previous.exists():
            raise HarnessError(f"{place.live}: there is no previous model to go back to; install a bundle instead")
        found = faults(place.previous, record["files"])
        if found:
            raise HarnessError(f"{place.previous}: {'; '.join(found)}; install its bundle again: {record['bundle']}")
        if record["manifest"] is not None:
            manifest = Manifest.model_validate(record["manifest"])
            fitness.check(place.previous, manifest=manifest, slot=target.slot(manifest.export_kind))
            clip = _clip(place, manifest)
            if clip.is_file():
                smoke.check(listen(place.previous, manifest=manifest, clip=clip), manifest=manifest)
        was = (_known(place, state) or _foreign(place)) if place.live.exists() else None
        record = {**record, **_signed()}
        after = {"current": record, "previous": was}
        _swap(place, staged=place.previous, state=after)
        _log(place, "rollback", after, reason=reason)
    return Installed(place.live, record, was)


def status(target: Target, *, folder: Path) -> list[Status]:
    """Every slot of the application that holds something; ends or undoes what a kill cut off."""
    found = []
    for slot in target.slots.values():
        place = Place(folder, slot.name)
        if place.journal.is_file():
            with locked(folder):
                recover(place)
        state = read_state(place)
        record, previous = state["current"], state["previous"]
        if not (record or previous or place.live.exists()):
            continue
        found.append(
            Status(
                place.live,
                record,
                faults(place.live, record["files"]) if record else [],
                previous,
                faults(place.previous, previous["files"]) if previous else [],
            )
        )
    return found


def places(target: Target, *, folder: Path) -> list[Place]:
    """Slots that have a model to go back to."""
    found = [Place(folder, slot.name) for slot in target.slots.values()]
    return [
        place for place in found if place.home.is_dir() and (read_state(place)["previous"] or place.journal.exists())
    ]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One install or rollback at a time, and every refusal of the system in words."""
    try:
        (folder / HOME).mkdir(parents=True, exist_ok=True)
        with FileLock(folder / HOME / "lock", timeout=0):
            yield
    except Timeout as error:
        raise HarnessError(
            f"{folder}: another install or rollback is at work here; wait until it has ended, and try again"
        ) from error
    except OSError as error:
        raise _told(error, folder) from error


def _told(error: OSError, folder: Path) -> HarnessError:
    if error.errno == errno.ENOSPC:
        return HarnessError(f"{folder}: the disk is full; nothing has changed: make room and try again")
    if isinstance(error, FileExistsError | NotADirectoryError):
        return SuiteError(f"{folder}: is a file, or lies under one; give a folder: --to DIR")
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return HarnessError(
            f"{folder}: cannot be written ({error.strerror}: {error.filename}); nothing has changed: if an application "
            "has the model open, quit it, else give a folder of your own: --to DIR"
        )
    return HarnessError(f"{folder}: {error}; nothing has changed")


def _stage(parcel: Parcel, *, slot: Slot, place: Place, listen: Listen) -> Record:
    """Copy the model beside its place, verify every file of the bundle, try the model out."""
    manifest = parcel.manifest
    room(place.folder, wanted=needed(parcel, slot=slot, place=place))
    files: Hashes = copy_model(parcel, slot=slot, place=place)
    clip = _clip(place, manifest)
    clip.parent.mkdir(exist_ok=True)
    clip.write_bytes(parcel.read(manifest.smoke.audio))
    fitness.check(place.incoming, manifest=manifest, slot=slot)
    heard = listen(place.incoming, manifest=manifest, clip=clip)
    smoke.check(heard, manifest=manifest)
    return {
        "bundle": parcel.name,
        "manifest_sha256": parcel.manifest_sha256,
        "manifest": manifest.model_dump(by_alias=True),
        "files": files,
        "heard": heard,
        **_signed(),
    }


def _swap(place: Place, *, staged: Path, state: State) -> None:
    try:
        swap(place, staged=staged, state=state)
    except Exception:
        recover(place)
        # What fails after the moment of change, such as removing the model before last, has been mended.
        if read_state(place)["current"] != state["current"]:
            _discard(place)
            raise
    _prune_clips(place, state)


def _signed() -> dict[str, str]:
    return {"installed_at": now(), "installed_by": user()}


def _is_there(place: Place, state: State, parcel: Parcel) -> bool:
    current = state["current"]
    same = current is not None and current["manifest_sha256"] == parcel.manifest_sha256
    return same and place.live.exists() and not faults(place.live, current["files"])


def _known(place: Place, state: State) -> Record | None:
    """The record of what is live; None if somebody has put something else there since."""
    current: Record | None = state["current"]
    return current if current is not None and not faults(place.live, current["files"]) else None


def _foreign(place: Place) -> Record:
    """Of a model that harness did not install: enough to see that it comes back as it was."""
    return {
        "bundle": "not installed by harness",
        "manifest_sha256": "",
        "manifest": None,
        "files": Hashes.of(place.live),
        "heard": None,
        "installed_at": now(),
        "installed_by": "",
    }


def _check_shape(place: Place, slot: Slot) -> None:
    wants_folder = slot.source is None
    if place.live.exists() and place.live.is_dir() != wants_folder:
        kinds = ("folder", "file") if place.live.is_dir() else ("file", "folder")
        raise HarnessError(f"{place.live}: is a {kinds[0]} where a {kinds[1]} belongs; move it away and try again")


def _clip(place: Place, manifest: Manifest) -> Path:
    return place.home / CLIPS / f"{manifest.files[manifest.smoke.audio].sha256}.wav"


def _prune_clips(place: Place, state: State) -> None:
    records = [record for record in state.values() if record and record["manifest"]]
    kept = {_clip(place, Manifest.model_validate(record["manifest"])).name for record in records}
    for path in (place.home / CLIPS).glob("*.wav"):
        if path.name not in kept:
            with suppress(OSError):
                path.unlink()


def _discard(place: Place) -> None:
    """After a refusal: as it was before."""
    with suppress(OSError):
        remove(place.incoming)
        _prune_clips(place, read_state(place))
        if not place.state.is_file() and not place.previous.exists():
            shutil.rmtree(place.home, ignore_errors=True)


def _log(place: Place, action: str, state: State, *, reason: str) -> None:
    current, previous = state["current"], state["previous"]
    entry = {
        "when": current["installed_at"],
        "action": action,
        "slot": place.name,
        "bundle": current["bundle"],
        "row": current["manifest"]["name"] if current["manifest"] else "",
        "suite": current["manifest"]["suite"] if current["manifest"] else "",
        "by": current["installed_by"],
        "reason": reason,
        "previous": previous["bundle"] if previous else "",
    }
    with suppress(OSError):  # the model is in place, which a full disk must not deny
        append(place.folder / HOME / HISTORY_FILE, entry)
