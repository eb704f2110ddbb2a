"""Hashes of files outside the store, computed once per (path, size, modification time)."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from harness.core.files import replace_text

if TYPE_CHECKING:
    from pathlib import Path

MISSING = "missing"
WHOLE = 1 << 30
"""Bytes up to which a file is hashed whole. A corpus's archive of 100 GB would hold up every first plan by minutes."""
NUM_SAMPLES, SAMPLE = 256, 1 << 20
"""Of a larger file, so many pieces of so many bytes count, spread evenly, with its size: it is another file, or cut
off, or damaged on the way, or it is the same. Whether every byte is right, decoding finds out."""


class Digests:
    """Callable: a file or folder → a hash of its content. What was hashed before is not read again."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self._known: dict[str, tuple[int, int, str]] = {}
        if cache.is_file():
            try:
                stored = json.loads(cache.read_text(encoding="utf-8"))
                self._known = {
                    str(name): (int(size), int(modified_ns), str(digest))
                    for name, (size, modified_ns, digest) in stored.items()
                }
            except (ValueError, TypeError, AttributeError):
                self._known = {}  # a damaged cache costs time, nothing else
        self._changed = False

    def __call__(self, path: Path) -> str:
        """What is missing has a digest too: the step that needs it will say so in its own words."""
        if path.is_dir():
            files = sorted(item for item in path.rglob("*") if item.is_file())
            lines = [f"{item.relative_to(path).as_posix()}={self._file(item)}" for item in files]
            return hashlib.sha256("\n".join(lines).encode()).hexdigest()
        return self._file(path) if path.is_file() else MISSING

    def _file(self, path: Path) -> str:
        status = path.stat()
        size, modified_ns, digest = self._known.get(str(path), (-1, -1, ""))
        if (size, modified_ns) != (status.st_size, status.st_mtime_ns):
            digest = _digest(path, size=status.st_size)
            self._known[str(path)] = (status.st_size, status.st_mtime_ns, digest)
            self._changed = True
        return digest

    def save(self) -> None:
        if self._changed:
            replace_text(self.cache, json.dumps(self._known))
            self._changed = False


def _digest(path: Path, *, size: int) -> str:
    with path.open("rb") as file:
        if size <= WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        found = hashlib.sha256(f"{size}\n".encode())
        for turn in range(NUM_SAMPLES):
            file.seek((size - SAMPLE) * turn // (NUM_SAMPLES - 1))
            found.update(file.read(SAMPLE))
    return found.hexdigest()
