"""Opening a bundle, as a folder or a zip, that may be damaged or made to do harm. Nothing is unpacked to look at it."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from harness.errors import HarnessError, first_line
from harness.promote.manifest import MANIFEST_FILE, MAX_FILES, MAX_MANIFEST_BYTES, fault_of_name, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.promote.manifest import Manifest

MAX_RATIO = 50
"""A zip's content by its own size. Weights hardly get smaller; a zip bomb is a thousand times its size."""
ODD = (ValueError, OverflowError, LookupError, RuntimeError, OSError, struct.error)
"""What zipfile lets through of names that are no text, places before the beginning, and headers that are cut off."""
STORED_AS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
CHUNK = 1 << 20
MAX_SHOWN = 200
"""Letters of a name, or of what zipfile says, in a message."""


class Files(Protocol):
    """Where the bytes come from."""

    def sizes(self) -> dict[str, int]:
        """Every file by its name inside the bundle. Raises HarnessError for what no bundle has."""

    def open(self, name: str) -> IO[bytes]: ...


@dataclass(frozen=True, slots=True)
class Parcel:
    """A bundle whose manifest has been checked, and whose files are those that it lists, in name and size."""

    path: Path
    name: str
    """`<row>-<first 8 of the manifest's sha256>`."""
    manifest: Manifest
    manifest_sha256: str
    files: Files

    def read(self, name: str) -> bytes:
        """A small file, verified."""
        listed = self.manifest.files[name]
        with self.files.open(name) as source:
            content = source.read(listed.size + 1)
        check_sha256(self, name, hashlib.sha256(content).hexdigest())
        return content


@contextmanager
def opened(path: Path) -> Iterator[Parcel]:
    """Look through a bundle. Raises HarnessError that names what is wrong with it."""
    if path.is_dir():
        yield _parcel(path, _Folder(path))
        return
    if not path.is_file():
        raise HarnessError(f"{path}: there is no such bundle; give a folder or a .zip that `harness promote` wrote")
    try:
        with _zip(path) as archive:
            yield _parcel(path, _Zip(path, archive))
    except (zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error) as error:
        raise HarnessError(f"{path}: is no zip, or a damaged one ({str(error)[:MAX_SHOWN]}); {again()}") from error


def _zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except ODD as error:
        raise zipfile.BadZipFile(first_line(error)) from error


def again() -> str:
    """What to do with a bundle that cannot be trusted."""
    return "copy it again from where it was made, or promote again"


def check_sha256(parcel: Parcel, name: str, found: str) -> None:
    """Raises HarnessError if a file is not what the manifest says."""
    expected = parcel.manifest.files[name].sha256
    if found != expected:
        raise HarnessError(f"{parcel.path}: {name}: sha256 is {found}, its manifest says {expected}; {again()}")


def _parcel(path: Path, files: Files) -> Parcel:
    sizes = files.sizes()
    if MANIFEST_FILE not in sizes:
        raise HarnessError(f"{path}: holds no {MANIFEST_FILE}, so it is no bundle; {again()}")
    if sizes[MANIFEST_FILE] > MAX_MANIFEST_BYTES:
        raise HarnessError(
            f"{path}: {MANIFEST_FILE} has {sizes[MANIFEST_FILE]:,} bytes, at most {MAX_MANIFEST_BYTES:,} are read"
        )
    with files.open(MANIFEST_FILE) as file:
        content = file.read(MAX_MANIFEST_BYTES)
    manifest = parse(content, where=f"{path}: {MANIFEST_FILE}")
    listed = manifest.files
    missing = sorted(listed.keys() - sizes.keys())
    extra = sorted(sizes.keys() - listed.keys() - {MANIFEST_FILE})
    if missing:
        raise HarnessError(f"{path}: {missing[0]} is listed but not there; {again()}")
    if extra:
        raise HarnessError(f"{path}: {extra[0]} is there but not listed in its manifest; {again()}")
    for name, file_listed in listed.items():
        if sizes[name] != file_listed.size:
            raise HarnessError(f"{path}: {name}: {sizes[name]} bytes, its manifest says {file_listed.size}; {again()}")
    digest = hashlib.sha256(content).hexdigest()
    return Parcel(path, f"{manifest.name}-{digest[:8]}", manifest, digest, files)


@dataclass(frozen=True, slots=True)
class _Folder:
    path: Path

    def sizes(self) -> dict[str, int]:
        found: dict[str, int] = {}
        pending = [self.path]
        while pending:
            for entry in os.scandir(pending.pop()):
                place = Path(entry.path)
                name = place.relative_to(self.path).as_posix()
                if entry.is_symlink() or getattr(entry, "is_junction", bool)():
                    raise HarnessError(f"{self.path}: {name} is a link, which no bundle has; {again()}")
                if entry.is_dir():
                    pending.append(place)
                elif not entry.is_file():
                    raise HarnessError(f"{self.path}: {name} is neither file nor folder; {again()}")
                elif name != ".DS_Store":  # the Finder's
                    found[name] = entry.stat().st_size
                if len(found) > MAX_FILES:
                    raise HarnessError(f"{self.path}: more than {MAX_FILES} files; it is no bundle")
        return found

    def open(self, name: str) -> IO[bytes]:
        return (self.path / name).open("rb")


@dataclass(frozen=True, slots=True)
class _Zip:
    """Its files lie in one folder, or at the top."""

    path: Path
    archive: zipfile.ZipFile

    def sizes(self) -> dict[str, int]:
        entries = [entry for entry in self.archive.infolist() if not entry.filename.endswith("/")]
        if len(entries) > MAX_FILES:
            raise HarnessError(f"{self.path}: more than {MAX_FILES} files; it is no bundle")
        for entry in entries:
            self._check(entry)
        inside = self._inside()
        names = [entry.filename.removeprefix(inside) for entry in entries]
        if len({name.casefold() for name in names}) < len(names):
            raise HarnessError(f"{self.path}: holds a file twice; {again()}")
        content = sum(entry.file_size for entry in entries)
        size = self.path.stat().st_size
        if content > MAX_RATIO * size:
            raise HarnessError(f"{self.path}: {size:,} bytes that unpack to {content:,}: a zip bomb; it is not opened")
        return {name: entry.file_size for name, entry in zip(names, entries, strict=True)}

    def open(self, name: str) -> IO[bytes]:
        try:
            return self.archive.open(self._inside() + name)
        except ODD as error:
            raise zipfile.BadZipFile(first_line(error)) from error

    def _inside(self) -> str:
        tops = {name.partition("/")[0] for name in self.archive.namelist() if "/" in name}
        flat = any("/" not in name for name in self.archive.namelist())
        return f"{tops.pop()}/" if len(tops) == 1 and not flat else ""

    def _check(self, entry: zipfile.ZipInfo) -> None:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        fault = None
        if kind and not stat.S_ISREG(kind):
            fault = "a link or a device"
        elif entry.flag_bits & 0x1:
            fault = "encrypted"
        elif entry.compress_type not in STORED_AS:
            fault = "compressed in a way that bundles are not"
        elif not entry.filename.endswith(MANIFEST_FILE):
            fault = fault_of_name(entry.filename)
        elif ".." in entry.filename or entry.filename.startswith("/"):
            fault = "a path that leaves the bundle"
        if fault:
            raise HarnessError(f"{self.path}: {entry.filename[:MAX_SHOWN]!r}: {fault}; it is not opened")
