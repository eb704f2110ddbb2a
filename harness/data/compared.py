"""Utterances as the leakage check compares them: a batch of a training set, and all held-out sets as one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.alternatives import first_wording
from harness.core.manifests import iterate_utterances
from harness.core.text import normalise
from harness.data import fingerprint
from harness.data.near_transcripts import TranscriptIndex

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    Indices = npt.NDArray[np.int64]

COLUMNS = ("id", "source", "audio", "text", "sha256", "duration_s", "speaker", "fingerprint")

Speaker = tuple[str, str]
"""Source and name: two corpora may number their speakers alike."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Columns of some utterances of one set, all of one length."""

    ids: list[str]
    sources: list[str]
    audio: list[str]
    """Relative to the set's folder."""
    texts: list[str]
    normalised: list[str]
    """Empty where transcripts are not compared."""
    digests: list[bytes]
    durations_s: npt.NDArray[np.float64]
    speakers: list[Speaker | None]
    fingerprints: list[bytes | None]

    @property
    def letters(self) -> list[str]:
        """Without spaces: "то же" and "тоже" are nearly the same."""
        return [text.replace(" ", "") for text in self.normalised]

    @property
    def digest_words(self) -> npt.NDArray[np.uint64]:
        """The first 64 bits of each digest."""
        import numpy as np

        return np.frombuffer(b"".join(digest[:8] for digest in self.digests), np.uint64)

    def vectors(self) -> tuple[Indices, npt.NDArray[np.float32]]:
        """Which rows have a fingerprint, and these."""
        import numpy as np

        known = [(row, item) for row, item in enumerate(self.fingerprints) if item is not None]
        return np.array([row for row, _ in known], np.int64), fingerprint.vectors([item for _, item in known])


def iterate_rows(folder: Path, *, transcripts: bool) -> Iterator[Rows]:
    """The utterances of a set in batches. transcripts: whether to normalise them, which takes most of the time."""
    for batch in iterate_utterances(folder, columns=COLUMNS):
        columns = {name: batch.column(name).to_pylist() for name in COLUMNS if name != "duration_s"}
        named = zip(columns["source"], columns["speaker"], strict=True)
        yield Rows(
            ids=columns["id"],
            sources=columns["source"],
            audio=columns["audio"],
            texts=columns["text"],
            normalised=[normalise(first_wording(text) or text) if transcripts else "" for text in columns["text"]],
            digests=columns["sha256"],
            durations_s=batch.column("duration_s").to_numpy(),
            speakers=[None if speaker is None else (source, speaker) for source, speaker in named],
            fingerprints=columns["fingerprint"],
        )


class Heldout:
    """All held-out sets as one table, one after the other."""

    def __init__(self, folders: Sequence[Path], *, transcripts: bool) -> None:
        import numpy as np

        sets = [list(iterate_rows(folder, transcripts=transcripts)) for folder in folders]
        batches = [batch for parts in sets for batch in parts]
        self.sizes = [sum(len(batch.ids) for batch in parts) for parts in sets]
        self.owners = np.repeat(np.arange(len(sets)), self.sizes).tolist()
        """The set of each row."""
        self.rows = Rows(
            ids=[item for batch in batches for item in batch.ids],
            sources=[item for batch in batches for item in batch.sources],
            audio=[item for batch in batches for item in batch.audio],
            texts=[item for batch in batches for item in batch.texts],
            normalised=[item for batch in batches for item in batch.normalised],
            digests=[item for batch in batches for item in batch.digests],
            durations_s=np.concatenate([np.zeros(0), *(batch.durations_s for batch in batches)]),
            speakers=[item for batch in batches for item in batch.speakers],
            fingerprints=[item for batch in batches for item in batch.fingerprints],
        )
        self.digests = self.rows.digest_words
        self.vector_rows, self.vectors = self.rows.vectors()
        self.recordings = self._first(self.rows.digests)
        self.transcripts = self._first(self.rows.normalised)
        self.speakers = self._first(self.rows.speakers)
        self.index = TranscriptIndex(self.rows.letters, durations_s=self.rows.durations_s) if transcripts else None

    def _first(self, column: Sequence[Any]) -> list[dict[Any, int]]:
        """For each set, value → the row that first has it; rows without a value are left out."""
        found: list[dict[Any, int]] = [{} for _ in self.sizes]
        for row, (owner, key) in enumerate(zip(self.owners, column, strict=True)):
            if key:
                found[owner].setdefault(key, row)
        return found
