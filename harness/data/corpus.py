"""A corpus as it was downloaded: archives, an unpacked folder, or a folder that holds archives."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol

from pydantic import Field

from harness.data.archives import CutOffError, Forward, is_archive, is_compressed, members
from harness.data.index import Index, Place, Refusal, Row
from harness.data.storage import Content, Span
from harness.errors import DataError
from harness.suite.spec import DatasetSpec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.data.archives import Member

__all__ = ["Corpus", "CorpusSpec", "FileCorpus", "Refusal", "Row", "archives_of"]

AUDIO = (".wav", ".flac", ".mp3", ".opus", ".ogg", ".oga", ".aif", ".aiff", ".au")
TEXT = ".txt"
MAX_TEXT = 1 << 16
"""Bytes of a transcript; a longer file is none."""
MAX_DEPTH = 2
"""Folders below the corpus's own that are searched for archives."""


class CorpusSpec(DatasetSpec):
    """Fields that all corpora share."""

    path: str = Field(min_length=1, description="An archive, an unpacked folder, or a folder that holds the archives.")
    storage: Literal["wav", "flac", "shards"] = Field(
        default="wav",
        description="A WAV or FLAC file a recording, or FLAC in tar shards of thousands: for corpora of millions.",
    )
    max_hours: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="A stable sample of the training part; held-out splits stay whole."
    )
    tasks: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Steps that prepare the corpus together, on as many machines of a cluster; each takes a range of "
        "its recordings. On one machine one step uses all cores as well.",
    )
    licence: str = Field(default="", description="Of the recordings; goes into the bundle.")
    on_bad: Literal["refuse", "skip"] = Field(
        default="skip", description="What to do about recordings that cannot be used; both list them all in a report."
    )

    not_identity: ClassVar[Mapping[str, str]] = {
        **DatasetSpec.not_identity,
        "path": "the content counts, wherever it lies",
        "tasks": "the same files come of it, however many steps make them",
    }

    def archives(self) -> list[Path]:
        """The archives that are read; kinds leave out those of parts that nobody asked for."""
        return archives_of(Path(self.path))


class Corpus(Protocol):
    """What a kind of corpus reads its rows from."""

    folder: Path | None
    """Absolute; None for archives alone."""

    def tables(self, pattern: str) -> list[str]:
        """Names of manifests and tables that match a glob, sorted."""

    def lines(self, name: str) -> Iterator[tuple[int, bytes]]:
        """The lines of a table with something on them, from 1, without a byte order mark."""

    def recordings(self) -> Iterator[str]:
        """Names of all recordings."""

    def size_of(self, audio: str) -> int:
        """Bytes of a recording in a folder; 0 where nobody knows."""

    def contents(self, part: Sequence[tuple[Row, Place]]) -> list[tuple[Content, str | Content]]:
        """Where the recording and the text of each row of a part are. Parts are asked for in their order."""


def archives_of(path: Path) -> list[Path]:
    """The archive itself, or the archives in a folder, in the order of their names."""
    if not path.is_dir():
        return [path] if is_archive(path) else []
    levels = ("*/" * depth + "*" for depth in range(MAX_DEPTH + 1))
    return sorted(item for level in levels for item in path.glob(level) if is_archive(item))


class FileCorpus:
    """A corpus of files, in archives or in a folder, as `index` has them."""

    def __init__(self, folder: Path | None, *, archives: Sequence[Path], index: Index, scratch: Path) -> None:
        self.folder = folder.resolve() if folder else None
        self.archives = archives
        self.index = index
        self.scratch = scratch
        self._stream: Forward | None = None

    @classmethod
    def at(cls, path: Path, *, archives: Sequence[Path], index: Index, scratch: Path) -> FileCorpus:
        """The corpus at a suite's `path`. Raises DataError if there is none."""
        if not path.exists():
            raise DataError(f"{path}: there is no such file or folder; `path` must name the corpus as downloaded")
        if not path.is_dir() and not archives:
            raise DataError(f"{path}: it is neither a folder nor a .tar, .tar.gz or .tgz archive; unpack it first")
        return cls(path if path.is_dir() else None, archives=archives, index=index, scratch=scratch)

    def scan(self) -> None:
        """Look through all archives, so that a hostile one is refused before anything is made of any.

        Raises HostileArchiveError.
        """
        for number, archive in enumerate(self.archives):
            self.index.add_members(self._members(archive), place=number)

    def tables(self, pattern: str) -> list[str]:
        names = {name for name in self.index.names(pattern) if _is_table(name)}
        return sorted(names.union(fnmatch.filter(self._tables_in_folder, pattern)))

    def lines(self, name: str) -> Iterator[tuple[int, bytes]]:
        with self._open(name) as file:
            for number, line in enumerate(file, start=1):
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if content.strip():
                    yield number, content.rstrip(b"\r\n")

    def recordings(self) -> Iterator[str]:
        yield from (name for name in chain(self.index.members(), self._in_folder()) if _suffix(name) in AUDIO)

    def contents(self, part: Sequence[tuple[Row, Place]]) -> list[tuple[Content, str | Content]]:
        return [(self._recording(row, place), self._text(row)) for row, place in part]

    def size_of(self, audio: str) -> int:
        try:
            return (self.folder / audio).stat().st_size if self.folder else 0
        except OSError:
            return 0

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _members(self, archive: Path) -> Iterator[Member]:
        """The named members of an archive, up to where it is cut off; of a compressed one, small files are kept."""
        num_unnamed = 0
        try:
            for member, file in members(archive):
                if not member.name:
                    num_unnamed += 1
                    continue
                if is_compressed(archive) and file is not None:
                    self._keep_small(member, file)
                yield member
        except CutOffError as error:
            self.index.note(str(error))
        if num_unnamed:
            self.index.note(f"{archive.name}: {num_unnamed} names are not UTF-8; these files were left out")

    def _keep_small(self, member: Member, file: IO[bytes]) -> None:
        """Texts and tables: a compressed archive cannot go back to them."""
        if _suffix(member.name) == TEXT and member.size <= MAX_TEXT:
            self.index.add_small(member.name, file.read())
        elif _is_table(member.name):
            self._spool(member.name, file)

    def _spool(self, name: str, file: IO[bytes]) -> None:
        target = self._spooled(name)
        target.parent.mkdir(exist_ok=True)
        with target.open("wb") as copy:
            while block := file.read(1 << 20):
                copy.write(block)

    def _spooled(self, name: str) -> Path:
        # By the hash of its name: nothing that an archive says becomes a path.
        return self.scratch / "tables" / sha256(name.encode()).hexdigest()

    def _open(self, name: str) -> IO[bytes]:
        place = self.index.place(name)
        if place is None or place.number is None:
            return (Path(self.folder or ".") / name).open("rb")
        archive = self.archives[place.number]
        if is_compressed(archive):
            return self._spooled(name).open("rb")
        return Span(archive, place.offset, place.size).open()

    @cached_property
    def _tables_in_folder(self) -> list[str]:
        return [name for name in self._in_folder() if _is_table(name)]

    def _in_folder(self) -> Iterator[str]:
        if self.folder is None:
            return
        for folder, folders, names in os.walk(self.folder):
            folders.sort()
            relative = Path(folder).relative_to(self.folder)
            yield from ((relative / name).as_posix() for name in sorted(names))

    def _recording(self, row: Row, place: Place) -> Content:
        if place.number is None:
            return (self.folder or Path()) / row.audio
        archive = self.archives[place.number]
        if is_compressed(archive):
            if self._stream is None or self._stream.archive != archive:
                self.close()
                self._stream = Forward(archive)
            return self._stream.read(place.offset, size=place.size)
        return Span(archive, place.offset, place.size)

    def _text(self, row: Row) -> str | Content:
        if row.text is not None:
            return row.text
        small = self.index.small(row.text_file)
        if small is not None:
            return small
        place = self.index.place(row.text_file)
        if place is not None and place.number is not None:
            return Span(self.archives[place.number], place.offset, place.size)
        return (self.folder / row.text_file) if self.folder else b""


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _is_table(name: str) -> bool:
    return _suffix(name) in (".jsonl", ".json", ".tsv", ".csv")
