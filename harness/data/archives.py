"""Archives as a download leaves them: read member by member, without unpacking, trusting nothing in them."""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING

from harness.core.tar_headers import Header, HostileArchiveError
from harness.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ARCHIVES = (".tar", ".tar.gz", ".tgz")
BLOCK = 1 << 16
"""Bytes that are decompressed at once; so many are lost before the place where an archive is cut off."""
MAX_SIZE = 1 << 31
"""Bytes of one member of a compressed archive: three hours of stereo at CD quality."""
DRIVE = re.compile(r"^[A-Za-z]:")


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive."""

    name: str
    offset: int
    """Of its first byte; in a compressed archive, of the decompressed stream."""
    size: int


class CutOffError(DataError):
    """An archive that ends before its end."""


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES) and path.is_file()


def is_compressed(path: Path) -> bool:
    return not path.name.lower().endswith(".tar")


def members(archive: Path) -> Iterator[tuple[Member, IO[bytes] | None]]:
    """All regular files of an archive in their order, each with its content, to be read before the next is asked for.

    Members whose name is not UTF-8 come with an empty name.
    Raises HostileArchiveError, and CutOffError when everything up to the cut has been given.
    """
    compressed = is_compressed(archive)
    size = archive.stat().st_size
    # tarfile's own reading of compressed streams lets half a dozen kinds of errors through.
    with gzip.open(archive) if compressed else archive.open("rb") as file:
        try:
            with tarfile.open(
                fileobj=file,
                mode="r|" if compressed else "r:",
                bufsize=BLOCK,
                tarinfo=Header,
                errors="surrogateescape",
            ) as tar:
                while (header := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep a header for each of a million members
                    _refuse_hostile(header, archive=archive)
                    if compressed and header.size > MAX_SIZE:
                        # tarfile would look for its end for as long as the number is large.
                        raise EOFError(f"a member claims {header.size} bytes")  # noqa: TRY301  # as below
                    if not header.isreg():
                        continue
                    if not compressed and header.offset_data + header.size > size:
                        raise EOFError("the last member is cut off")  # noqa: TRY301  # one place says what damage means
                    yield Member(_name(header), header.offset_data, header.size), tar.extractfile(header)
                # To the checksum, which an end of the tar before the end of the file would pass over.
                while compressed and file.read(BLOCK):
                    pass
        except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            what = str(error) or "no end"
            raise CutOffError(f"{archive}: it ends too early or is damaged ({what}); fetch it again") from error


class Forward:
    """A compressed archive as a stream that can only be read forward."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self._file = gzip.open(archive)  # noqa: SIM115  # closed by `close`
        self._position = 0
        self._last: tuple[int, bytes] = (-1, b"")

    def read(self, offset: int, *, size: int) -> bytes:
        """`size` bytes from `offset` on; fewer where the archive is cut off.

        offset: of the member that was read last, which is listed twice, or behind it.
        """
        if offset == self._last[0]:
            return self._last[1]
        try:
            while self._position < offset:
                skipped = len(self._file.read(min(BLOCK, offset - self._position)))
                if not skipped:
                    return b""
                self._position += skipped
            # In blocks: what a damaged header claims is not taken from the memory.
            blocks = []
            while size > 0 and (block := self._file.read(min(BLOCK, size))):
                blocks.append(block)
                size -= len(block)
            content = b"".join(blocks)
        except (EOFError, gzip.BadGzipFile, zlib.error):
            return b""
        self._position += len(content)
        self._last = (offset, content)
        return content

    def close(self) -> None:
        self._file.close()


def _refuse_hostile(header: tarfile.TarInfo, *, archive: Path) -> None:
    name = header.name.replace("\\", "/")
    fault = None
    if header.issym() or header.islnk():
        fault = f"is a link to {header.linkname!r}"
    elif not (header.isreg() or header.isdir()) or header.issparse():
        fault = "is neither a file nor a folder"
    elif name.startswith("/") or DRIVE.match(name):
        fault = "has an absolute path"
    elif ".." in name.split("/"):
        fault = "leads out of the archive"
    elif "\0" in name:
        fault = "has a zero byte in its name"
    if fault:
        raise HostileArchiveError(
            f"{archive}: the member {header.name!r} {fault}; no corpus is packed like this, so all of it is refused"
        )


def _name(header: tarfile.TarInfo) -> str:
    try:
        header.name.encode("utf-8")
    except UnicodeEncodeError:
        return ""
    return PurePosixPath(header.name).as_posix()
