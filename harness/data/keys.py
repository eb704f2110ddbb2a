"""What decides which clips belong together, as hashed columns: 48 bytes a clip instead of its text.

Two different values share a 64-bit key about once in 10^5 corpora of 16 million clips; then two groups become one.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from harness.core.alternatives import first_wording
from harness.core.text import normalise

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Hashes = npt.NDArray[np.uint64]

COLUMNS = ("sha256", "text", "speaker", "split")
NONE = 0
"""Stands for a clip without a transcript or a speaker."""


@dataclass(frozen=True, slots=True, eq=False)
class Keys:
    """Columns of one prepared set, all [num_clips]."""

    recordings: Hashes
    """From the samples."""
    transcripts: Hashes
    """Of the normalised text; NONE where nothing is left of it."""
    draws: Hashes
    """Where a clip lies in [0, 2^64) by its transcript, or by its recording where it has none."""
    speakers: Hashes
    """NONE where none is named."""
    speaker_draws: Hashes
    """Where a clip lies in [0, 2^64) by its speaker."""
    splits: npt.NDArray[np.int16]
    """Of the corpus's own `split_names`; -1 for a clip without one."""
    split_names: list[str]


def read_keys(batches: Iterable[pa.RecordBatch], *, seed: int, texts: bool = True) -> Keys:
    """The keys of utterances.

    batches: with COLUMNS. seed: of the draws; keys of two sets can be compared if they share it.
    texts: False leaves out the transcripts and their draws, which take most of the time.
    """
    import numpy as np

    names: dict[str, int] = {}
    columns: dict[str, list[np.ndarray]] = {name: [] for name in Keys.__slots__ if name != "split_names"}
    for batch in batches:
        recordings = first_word(batch.column("sha256").to_pylist())
        draws = transcripts = np.zeros(len(batch), np.uint64)
        if texts:
            draws, transcripts = _transcripts(batch.column("text").to_pylist(), recordings=recordings, seed=seed)
        speaker_draws, speakers = _speakers(batch.column("speaker"), seed=seed)
        splits = np.array(
            [-1 if name is None else names.setdefault(name, len(names)) for name in batch.column("split").to_pylist()],
            np.int16,
        )
        values: tuple[np.ndarray, ...] = (recordings, transcripts, draws, speakers, speaker_draws, splits)
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    joined = {
        name: np.concatenate([np.zeros(0, np.int16 if name == "splits" else np.uint64), *parts])
        for name, parts in columns.items()
    }
    return Keys(**joined, split_names=list(names))


def places(names: Iterable[str], *, seed: int) -> Hashes:
    """Where each of some names lies in [0, 2^64): a stable order that has nothing to do with the names."""
    return _words(f"{seed}\n{name}" for name in names)[:, 0]


def first_word(digests: Iterable[bytes]) -> Hashes:
    """The first 64 bits of each digest."""
    import numpy as np

    return np.frombuffer(b"".join(digest[:8] for digest in digests), ">u8").astype(np.uint64)


def _transcripts(texts: list[str], *, recordings: Hashes, seed: int) -> tuple[Hashes, Hashes]:
    """Draws and keys."""
    import numpy as np

    normalised = [normalise(first_wording(text) or text) for text in texts]
    words = _words(f"{seed}\n{text}" for text in normalised)
    draws, keys = words[:, 0], words[:, 1]
    empty = np.array([not text for text in normalised], bool)
    if empty.any():
        draws[empty] = places((f"recording\n{recording}" for recording in recordings[empty]), seed=seed)
        keys[empty] = NONE
    return draws, keys


def _speakers(column: pa.Array, *, seed: int) -> tuple[Hashes, Hashes]:
    """Draws and keys."""
    import numpy as np

    encoded = column.dictionary_encode()
    words = _words(f"{seed}\nspeaker\n{name}" for name in encoded.dictionary.to_pylist())
    # Row 0 is for clips without a speaker.
    words = np.concatenate([np.zeros((1, 4), np.uint64), words])
    index = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False) + 1
    return words[index, 0], words[index, 1]


def _words(texts: Iterable[str]) -> Hashes:
    """The four 64-bit words of each text's SHA-256: uint64 [num_texts, 4]."""
    import numpy as np

    joined = b"".join(sha256(text.encode()).digest() for text in texts)
    return np.frombuffer(joined, ">u8").astype(np.uint64).reshape(-1, 4)
