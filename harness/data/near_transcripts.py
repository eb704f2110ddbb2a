"""Transcripts that are nearly the same: every pair within so many edits, without comparing every pair.

If a text turns into another by k edits, then of any k + 1 windows of it that do not overlap, one is in the other
unchanged. So k + 1 windows of each held-out text are looked up, as hashes, at every place of every other text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    Indices = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]
    Hashes = npt.NDArray[np.uint64]
    Codes = npt.NDArray[np.uint32]

LETTERS_PER_EDIT = 20
"""One edit is allowed for so many letters of the held-out text; texts with fewer letters are only compared whole."""
WINDOW = LETTERS_PER_EDIT // 2
"""Letters. A text of L letters has room for L // LETTERS_PER_EDIT + 1 windows that do not overlap."""
MAX_DURATION_RATIO = 1.5
MAX_DURATION_GAP_S = 1.0
"""Durations are alike if the longer is within the ratio or within the gap of the shorter."""
FILTER_BITS = 22
LENGTH_BITS = 16
MAX_PAIRS = 500_000
"""At once; bounds the memory where thousands of texts begin alike."""
SEPARATOR = "\n"
"""No window of a text holds it."""


class TranscriptIndex:
    """Held-out texts, ready to be met by others.

    texts: letters only, without spaces. durations_s: of their recordings.
    """

    def __init__(self, texts: Sequence[str], *, durations_s: Floats) -> None:
        import numpy as np

        self.texts = texts
        self.durations_s = durations_s
        self.lengths = np.array([len(text) for text in texts], np.int64)
        codes, starts = _joined(texts)
        hashes = _hashes(codes)
        owners, offsets = _rarest_windows(hashes, starts=starts, lengths=self.lengths)
        keys = _key(hashes[starts[owners] + offsets], self.lengths[owners])
        order = np.argsort(keys, kind="stable")
        self._keys, self._owners, self._offsets = keys[order], owners[order], offsets[order]
        # Most places of most texts are in no held-out text: one look at a bit map settles them.
        self._filter = np.zeros(1 << FILTER_BITS, np.bool_)
        self._filter[_bits(self._keys)] = True

    def matches(self, texts: Sequence[str], *, durations_s: Floats) -> tuple[Indices, Indices, Floats]:
        """Every pair that is nearly the same: indices of `texts`, of the held-out texts, and how alike (at most 1).

        Of L letters of the held-out text at most L // 20 may be inserted, deleted or replaced, so one of 20 to 39.
        """
        import numpy as np

        found = [self._verified(texts, durations_s, *pairs) for pairs in self._candidates(texts)]
        if not found:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
        rows, owners, scores = (np.concatenate(column) for column in zip(*found, strict=True))
        _, first = np.unique(rows * len(self.texts) + owners, return_index=True)
        return rows[first], owners[first], scores[first]

    def _candidates(self, texts: Sequence[str]) -> Iterator[tuple[Indices, Indices]]:
        """Pairs that share a window at about the same place."""
        import numpy as np

        codes, starts = _joined(texts)
        hashes = _hashes(codes)
        places = np.flatnonzero(self._filter[_bits(hashes)])
        rows = np.searchsorted(starts, places, side="right") - 1
        offsets = places - starts[rows]
        # Only held-out texts of about this length: a little wider than the edits that `_verified` allows.
        lengths = np.array([len(text) for text in texts], np.int64)[rows]
        shortest = lengths - lengths // LETTERS_PER_EDIT - 1
        longest = lengths + lengths // (LETTERS_PER_EDIT - 1) + 1
        first = np.searchsorted(self._keys, _key(hashes[places], shortest), side="left")
        counts = np.searchsorted(self._keys, _key(hashes[places], longest), side="right") - first
        for part in _parts(counts):
            each = np.repeat(np.arange(part.start, part.stop), counts[part])
            within = np.arange(len(each)) - np.repeat(np.cumsum(counts[part]) - counts[part], counts[part])
            posting = first[each] + within
            shifted = np.abs(offsets[each] - self._offsets[posting])
            near = shifted <= self.lengths[self._owners[posting]] // LETTERS_PER_EDIT
            yield rows[each[near]], self._owners[posting[near]]

    def _verified(
        self, texts: Sequence[str], durations_s: Floats, rows: Indices, owners: Indices
    ) -> tuple[Indices, Indices, Floats]:
        """Those of some pairs that are near enough, with their scores."""
        import numpy as np
        from rapidfuzz.distance import Levenshtein
        from rapidfuzz.process import cpdist

        allowed = self.lengths[owners] // LETTERS_PER_EDIT
        lengths = np.array([len(text) for text in texts], np.int64)
        kept = np.abs(lengths[rows] - self.lengths[owners]) <= allowed
        kept &= alike_s(durations_s[rows], self.durations_s[owners])
        rows, owners, allowed = rows[kept], owners[kept], allowed[kept]
        if not len(rows):
            return rows, owners, np.zeros(0)
        edits = cpdist(
            [texts[row] for row in rows],
            [self.texts[owner] for owner in owners],
            scorer=Levenshtein.distance,
            score_cutoff=int(allowed.max()),
        )
        near = edits <= allowed
        scores = 1 - edits[near] / self.lengths[owners[near]]
        return rows[near], owners[near], scores


def alike_s(one: Floats, other: Floats) -> npt.NDArray[np.bool_]:
    """Whether two recordings could be of one text, by their durations in seconds."""
    import numpy as np

    shorter, longer = np.minimum(one, other), np.maximum(one, other)
    alike: npt.NDArray[np.bool_] = longer <= np.maximum(shorter * MAX_DURATION_RATIO, shorter + MAX_DURATION_GAP_S)
    return alike


def _joined(texts: Sequence[str]) -> tuple[Codes, Indices]:
    """All letters as code points, and where each text begins."""
    import numpy as np

    joined = SEPARATOR.join([*texts, SEPARATOR * WINDOW])
    starts = np.cumsum([0, *(len(text) + 1 for text in texts)])[:-1]
    return np.frombuffer(joined.encode("utf-32-le"), np.uint32), starts


def _hashes(codes: Codes) -> Hashes:
    """Of the window that begins at each place; equal windows have equal hashes."""
    import numpy as np

    factors = np.random.default_rng(0).integers(1, 2**63, WINDOW, np.uint64) * np.uint64(2) + np.uint64(1)
    num = len(codes) - WINDOW + 1
    wide = codes.astype(np.uint64)
    hashes = np.zeros(num, np.uint64)
    for offset, factor in enumerate(factors):
        hashes += wide[offset : offset + num] * factor
    return hashes


def _key(hashes: Hashes, lengths: Indices) -> Hashes:
    """Sorts by window first, then by the length of the text around it."""
    import numpy as np

    bits = np.uint64(LENGTH_BITS)
    return (hashes >> bits << bits) | np.clip(lengths, 0, (1 << LENGTH_BITS) - 1).astype(np.uint64)


def _bits(hashes: Hashes) -> Hashes:
    import numpy as np

    return hashes >> np.uint64(64 - FILTER_BITS)


def _rarest_windows(hashes: Hashes, *, starts: Indices, lengths: Indices) -> tuple[Indices, Indices]:
    """Text and offset of each window to look up: of each text's k + 1 windows that do not overlap, the rarest.

    Phrases that half of a corpus begins with would otherwise make candidates of half of its pairs.
    """
    import numpy as np

    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    frequency = counts[inverse]
    owners, offsets = [], []
    for text in np.flatnonzero(lengths >= LETTERS_PER_EDIT).tolist():
        begin, length = int(starts[text]), int(lengths[text])
        chosen = _cheapest(frequency[begin : begin + length - WINDOW + 1], num=length // LETTERS_PER_EDIT + 1)
        owners += [text] * len(chosen)
        offsets += chosen
    return np.array(owners, np.int64), np.array(offsets, np.int64)


def _cheapest(costs: Indices, *, num: int) -> list[int]:
    """The offsets of `num` windows that do not overlap with the smallest sum of costs, the last one first."""
    import numpy as np

    # totals[i]: of the best windows so far, if the last of them begins at i or before.
    totals = [np.minimum.accumulate(costs)]
    sums = [costs]
    for turn in range(1, num):
        best = np.full(len(costs), np.iinfo(np.int64).max // 2)
        best[turn * WINDOW :] = costs[turn * WINDOW :] + totals[-1][(turn - 1) * WINDOW : len(costs) - WINDOW]
        sums.append(best)
        totals.append(np.minimum.accumulate(best))
    offsets: list[int] = []
    end = len(costs)
    for best in reversed(sums):
        offsets.append(int(best[:end].argmin()))
        end = max(offsets[-1] - WINDOW + 1, 0)
    return offsets


def _parts(counts: Indices) -> Iterator[slice]:
    """Slices of `counts`, each with a sum of up to MAX_PAIRS, or of one element."""
    import numpy as np

    ends = np.cumsum(counts)
    begin = 0
    while begin < len(counts):
        done = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, done + MAX_PAIRS, side="right")))
        yield slice(begin, end)
        begin = end
