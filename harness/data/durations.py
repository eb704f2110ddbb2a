"""The seconds of millions of recordings by name, 12 bytes each."""

from __future__ import annotations

from array import array
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class Durations:
    """What a table of durations says; names are kept as hashes of 64 bits."""

    def __init__(self, items: Iterable[tuple[str, float]]) -> None:
        """items: name and seconds; of a name that comes twice, one of the two counts."""
        import numpy as np

        keys, seconds = array("Q"), array("f")
        for name, duration_s in items:
            keys.append(_key(name))
            seconds.append(duration_s)
        self._keys = np.frombuffer(keys, np.uint64) if keys else np.empty(0, np.uint64)
        order = np.argsort(self._keys)
        self._keys = self._keys[order]
        self._seconds = np.frombuffer(seconds, np.float32)[order] if keys else np.empty(0, np.float32)
        self._as_key = np.uint64

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, name: str) -> int | None:
        """The place of a recording, from 0; None if the table does not have it."""
        # As its own type: numpy would turn all keys into floats to compare them with an int of Python.
        key = self._as_key(_key(name))
        place = int(self._keys.searchsorted(key))
        return place if place < len(self._keys) and self._keys[place] == key else None

    def seconds(self, place: int) -> float:
        return float(self._seconds[place])


def _key(name: str) -> int:
    return int.from_bytes(blake2b(name.encode("utf-8", errors="surrogatepass"), digest_size=8).digest(), "little")
