"""The files of a model on their way into an application's folder: copied and hashed in one pass, and checked later."""

from __future__ import annotations

import hashlib
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from harness.core.files import file_sha256
from harness.errors import HarnessError
from harness.promote.parcel import CHUNK, again, check_sha256
from harness.promote.swap import remove, sync, sync_folder

if TYPE_CHECKING:
    from harness.promote.parcel import Parcel
    from harness.promote.swap import Place
    from harness.promote.targets import Slot

SPARE_BYTES = 16 * 2**20
"""For records and the file system's own needs."""


class Hashes(dict[str, str]):
    """File → sha256; a model that is one file has it under its own name, ""."""

    @classmethod
    def of(cls, payload: Path) -> Self:
        """Reads all of it."""
        return cls({name: file_sha256(path) for name, path in _files(payload).items()})


def faults(payload: Path, hashes: dict[str, str]) -> list[str]:
    """What is not as it was: missing, changed or additional files."""
    if not payload.exists():
        return ["it is gone"]
    found = _files(payload)
    told = [f"{name or payload.name} is missing" for name in sorted(hashes.keys() - found.keys())]
    told += [f"{name or payload.name} has been added" for name in sorted(found.keys() - hashes.keys())]
    changed = [name for name in sorted(hashes.keys() & found.keys()) if file_sha256(found[name]) != hashes[name]]
    return [*told, *(f"{name or payload.name} has changed" for name in changed)]


def needed(parcel: Parcel, *, slot: Slot, place: Place) -> int:
    """Bytes to be written, less what an earlier, killed installation has left."""
    wanted = sum(parcel.manifest.files[name].size for name in _sources(parcel, slot).values())
    there = sum(path.stat().st_size for path in _files(place.incoming).values()) if place.incoming.exists() else 0
    return max(0, wanted - there)


def room(folder: Path, *, wanted: int) -> None:
    """Raises HarnessError if the disk has none."""
    free = shutil.disk_usage(folder).free
    if free < wanted + SPARE_BYTES:
        raise HarnessError(
            f"{folder}: {free >> 20} MiB free, {(wanted + SPARE_BYTES) >> 20} MiB needed; make room and try again"
        )


def copy_model(parcel: Parcel, *, slot: Slot, place: Place) -> Hashes:
    """Copy what the slot takes to `place.incoming`, and verify every other file of the bundle. Reads each file once.

    What a killed installation has left of a file is kept if it is the beginning of it.
    """
    sources = _sources(parcel, slot)
    _clear(place.incoming, sources)
    hashes = Hashes()
    for name, source in sources.items():
        target = place.incoming / name if name else place.incoming
        target.parent.mkdir(parents=True, exist_ok=True)
        hashes[name] = _copy(parcel, source, target)
    if place.incoming.is_dir():
        for folder in (place.incoming, *(path for path in place.incoming.rglob("*") if path.is_dir())):
            sync_folder(folder)
    for name in parcel.manifest.files.keys() - set(sources.values()) - {parcel.manifest.smoke.audio}:
        with parcel.files.open(name) as file:
            check_sha256(parcel, name, hashlib.file_digest(file, "sha256").hexdigest())  # type: ignore[arg-type]
    return hashes


def _sources(parcel: Parcel, slot: Slot) -> dict[str, str]:
    """Name inside the slot → file of the bundle."""
    manifest = parcel.manifest
    if slot.source is None:
        return {name: name for name in manifest.model}
    if slot.source not in manifest.model:
        raise HarnessError(
            f"{parcel.path}: the slot {slot.name} takes {slot.source}, the bundle has {', '.join(manifest.model)}; "
            f"{again()}"
        )
    return {"": slot.source}


def _clear(incoming: Path, sources: dict[str, str]) -> None:
    """Remove what cannot be the beginning of these files."""
    if incoming.exists() and incoming.is_dir() == ("" in sources):
        remove(incoming)
    if incoming.is_dir():
        for name, path in _files(incoming).items():
            if name not in sources:
                path.unlink()


def _copy(parcel: Parcel, name: str, target: Path) -> str:
    """Go on where an earlier attempt ended; start anew if the whole turns out to be wrong."""
    size = parcel.manifest.files[name].size
    begun = target.stat().st_size if target.is_file() else 0
    found = _append(parcel, name, target, begun=begun if begun <= size else 0)
    if begun and found != parcel.manifest.files[name].sha256:
        found = _append(parcel, name, target, begun=0)
    check_sha256(parcel, name, found)
    return found


def _append(parcel: Parcel, name: str, target: Path, *, begun: int) -> str:
    digest = hashlib.sha256()
    size = parcel.manifest.files[name].size
    with parcel.files.open(name) as source, target.open("r+b" if begun else "wb") as file:
        _feed(digest, file, begun)
        if begun:
            source.seek(begun)
        left = size - begun
        # The same buffers for all of it: fresh memory for each piece costs more than the copy.
        buffer, other = memoryview(bytearray(CHUNK)), memoryview(bytearray(CHUNK))
        with ThreadPoolExecutor(1) as hashing:
            hashed: Future[Any] = hashing.submit(bool)
            # No more than the manifest says, whatever a zip's stream holds.
            while left and (count := source.readinto(buffer[: min(CHUNK, left)])):  # type: ignore[attr-defined]
                hashed.result()
                hashed = hashing.submit(digest.update, buffer[:count])
                file.write(buffer[:count])
                left -= count
                buffer, other = other, buffer
        file.flush()
        sync(file.fileno())
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, file: IO[bytes], count: int) -> None:
    while count and (chunk := file.read(min(CHUNK, count))):
        digest.update(chunk)
        count -= len(chunk)


def _files(payload: Path) -> dict[str, Path]:
    if not payload.is_dir():
        return {"": payload}
    return {
        Path(folder, name).relative_to(payload).as_posix(): Path(folder, name)
        for folder, _, names in os.walk(payload)
        for name in names
        if name != ".DS_Store"  # the Finder's
    }
