"""Headers of tar archives from anywhere, where Python's own reader would loop, or fill the memory."""

from __future__ import annotations

import tarfile
from typing import Any, Self

from harness.errors import DataError

MAX_HEADER = 1 << 20
"""Bytes of a member's extended header; real ones have a few hundred."""
EXTENDED = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class HostileArchiveError(DataError):
    """An archive that no corpus has: it would write outside its folder, or link, or claim to be a device."""


class Header(tarfile.TarInfo):
    """For `tarfile.open(…, tarinfo=Header)`."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            # tarfile takes what it cannot read for the end, save at the very beginning.
            raise tarfile.ReadError(str(error)) from error

    def _block(self, count: int) -> int:
        # A negative size leads back to a header that was read already, and on from there without end (CVE-2025-8194).
        if count < 0:
            raise tarfile.ReadError(f"a member has {count} bytes")
        return int(super()._block(count))  # type: ignore[misc]  # tarfile's own

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        # Extended headers are read whole; one of some gigabytes would fill the memory.
        if self.type in EXTENDED and self.size > MAX_HEADER:
            raise HostileArchiveError(f"{tar.name!r}: a member has a header of {self.size} bytes, over {MAX_HEADER}")
        return super()._proc_member(tar)  # type: ignore[misc]  # documented in its source for subclasses
