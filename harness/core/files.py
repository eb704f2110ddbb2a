"""Files that a reader sees whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

CHUNK = 8 << 20
"""Bytes that are copied at once."""


def parse_json(text: str | bytes) -> Any:
    """As `json.loads`, for text from anywhere: what is nested too deeply to be read is a ValueError, too."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_json_file(path: Path) -> Any:
    """The same for a file, in UTF-8. Raises OSError and ValueError."""
    return parse_json(path.read_text(encoding="utf-8"))


def beside(path: Path) -> Path:
    """A name in the same folder to write to before the rename."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def replace_text(path: Path, text: str) -> None:
    """Write UTF-8 text with Unix line ends, published by one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    temporary.write_text(text, encoding="utf-8", newline="\n")
    temporary.replace(path)


def append_line(path: Path, line: str) -> None:
    """Add a line of UTF-8; on the disk before it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        # A kill may have left half a line: the next one begins on its own.
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def file_sha256(path: Path) -> str:
    """In hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_hashed(source: IO[bytes], target: IO[bytes], *, limit: int | None = None) -> tuple[int, str]:
    """Size and sha256 of what was copied: of more than `limit` bytes, no more than one too many."""
    size, digest = 0, hashlib.sha256()
    while chunk := source.read(CHUNK if limit is None else min(CHUNK, limit + 1 - size)):
        target.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file; a copy on another disk, or where there are no hard links."""
    try:
        os.link(source, target)
    except OSError:
        replace_copy(source, target)


def replace_copy(source: Path, target: Path) -> None:
    """Copy a file, published by one rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(target)
    shutil.copyfile(source, temporary)
    temporary.replace(target)
