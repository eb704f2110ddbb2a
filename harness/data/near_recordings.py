"""The same recording in another form: fingerprints find candidates among all pairs, the waveforms decide."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING

from harness.core.manifests import SAMPLE_RATE_HZ
from harness.core.recordings import read_samples

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Indices = npt.NDArray[np.int64]

MIN_COSINE = 0.55
"""Of fingerprints. Copies of 2 s or more lie above 0.6, even at 6 kbit/s; of unrelated pairs one in 10^7 is above."""
SHORT_S = 1.5
MIN_CORRELATION = 0.3
"""Of waveforms: Opus at 6 kbit/s keeps 0.39, common codecs 0.75; unrelated ones of over SHORT_S reach 0.10."""
MIN_CORRELATION_SHORT = 0.55
"""If the shorter one is under SHORT_S: the same word by the same voice reaches 0.46."""
BAND_HZ = (200.0, 3400.0)
NUM_SUBBANDS = 16
MAX_VERIFIED = 20_000
"""Pairs of recordings to compare; at most a few minutes."""
MAX_KEPT = 2_000_000
"""Candidates to choose those from; bounds the memory where a jingle is in half of a corpus."""
BLOCK = (2000, 2000)
"""Rows and columns of cosines at once: as many as the cache of a core holds."""
NUM_CACHED = 16


def near(rows: Floats, heldout: Floats) -> Iterator[tuple[Indices, Indices, Floats]]:
    """Rows and held-out rows whose cosine is at least MIN_COSINE, and it; block by block.

    rows: float32 [num, dimensions], heldout: float32 [num_heldout, dimensions], of length 1.
    """
    from threadpoolctl import threadpool_limits

    height, width = BLOCK
    corners = product(range(0, len(rows), height), range(0, len(heldout), width))
    # A block to each core: threads of the linear algebra that share a block wait for each other, and where other
    # work takes one of their cores, they wait most of the time.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from filter(None, pool.map(lambda corner: _near(rows, heldout, *corner), corners))


def _near(rows: Floats, heldout: Floats, top: int, left: int) -> tuple[Indices, Indices, Floats] | None:
    """`near` in one block; None where there is none."""
    import numpy as np

    height, width = BLOCK
    cosines = rows[top : top + height] @ heldout[left : left + width].T
    # A maximum is the cheapest way to see that there is none, as nearly always.
    if cosines.max() < MIN_COSINE:
        return None
    found, other = np.nonzero(cosines >= MIN_COSINE)
    return found + top, other + left, cosines[found, other]


class Candidates:
    """Pairs that look alike, with bounded memory and a bounded choice of which to compare."""

    def __init__(self) -> None:
        self._parts: list[tuple[Indices, Indices, Floats]] = []
        self._num_kept = 0
        self.num_found = 0

    def add(self, rows: Indices, heldout: Indices, cosines: Floats) -> None:
        """rows: of whatever is compared with the held-out sets, numbered through."""
        self._parts.append((rows, heldout, cosines))
        self.num_found += len(rows)
        self._num_kept += len(rows)
        if self._num_kept > MAX_KEPT:
            rows, heldout, cosines = self._joined()
            best = cosines.argsort(kind="stable")[-MAX_KEPT // 2 :]
            self._parts = [(rows[best], heldout[best], cosines[best])]
            self._num_kept = len(best)

    def chosen(self) -> tuple[Indices, Indices]:
        """Rows and held-out rows of up to MAX_VERIFIED pairs, by held-out row.

        Of each held-out recording its most alike first, so that one that looks like thousands takes no other's place.
        """
        import numpy as np

        if not self._parts:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        rows, heldout, cosines = self._joined()
        order = np.lexsort((rows, -cosines, heldout))
        heldout, cosines = heldout[order], cosines[order]
        turn = np.arange(len(order)) - np.searchsorted(heldout, heldout, side="left")
        best = np.sort(np.lexsort((-cosines, turn))[:MAX_VERIFIED])
        return rows[order][best], heldout[best]

    def _joined(self) -> tuple[Indices, Indices, Floats]:
        import numpy as np

        rows, heldout, cosines = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        return rows, heldout, cosines


def matches(pairs: Iterable[tuple[Path, Path]]) -> Iterator[float | None]:
    """`match` of each pair of prepared recordings, in order; quickest where equal second ones are neighbours."""
    read = lru_cache(NUM_CACHED)(read_samples)
    # Threads suffice: libsndfile and the Fourier transforms let go of the interpreter's lock.
    with ThreadPoolExecutor() as pool:
        yield from pool.map(lambda pair: match(read_samples(pair[0]), read(pair[1])), pairs)


def match(one: Floats, other: Floats) -> float | None:
    """`correlation` if it is that of two forms of one recording, else None.

    one, other: float32 [num_samples], 16 kHz mono, long enough for a fingerprint.
    """
    score = correlation(one, other)
    short = min(len(one), len(other)) < SHORT_S * SAMPLE_RATE_HZ
    return score if score >= (MIN_CORRELATION_SHORT if short else MIN_CORRELATION) else None


def correlation(one: Floats, other: Floats) -> float:
    """How much of the same waveform two recordings are, from 0 to 1, whatever their gain, shift, padding and tone.

    The peak of their cross-correlation between 200 and 3,400 Hz, each first flattened to the same energy in every
    sub-band: otherwise two vowels of one voice, which are little more than a pitch, would correlate.
    """
    import numpy as np
    from scipy import fft

    num = fft.next_fast_len(len(one) + len(other), real=True)
    edges = np.searchsorted(fft.rfftfreq(num, 1 / SAMPLE_RATE_HZ), np.linspace(*BAND_HZ, NUM_SUBBANDS + 1))
    first, second = (_flattened(fft.rfft(samples, num), edges=edges) for samples in (one, other))
    # Not numpy's norm: its linear algebra has threads of its own, which get in the way of those of `matches`.
    energies = [float((bins.real**2 + bins.imag**2).sum()) for bins in (first, second)]
    if not all(energies):
        return 0.0
    product = np.zeros(num // 2 + 1, np.complex64)
    product[edges[0] : edges[-1]] = first * second.conj()
    # Either sign: a polarity may be turned round. Half, for one half of a real signal's spectrum.
    peak = float(np.abs(fft.irfft(product, num)).max())
    return float(peak * num / 2 / np.sqrt(energies[0] * energies[1]))


def _flattened(spectrum: npt.NDArray[np.complex64], *, edges: Indices) -> npt.NDArray[np.complex64]:
    """The bins between the first edge and the last, with the same energy between each edge and the next."""
    import numpy as np

    bins, widths = spectrum[edges[0] : edges[-1]], np.diff(edges)
    energies = np.add.reduceat(bins.real**2 + bins.imag**2, edges[:-1] - edges[0]) / widths
    # The floor keeps a sub-band that a codec has emptied from being nothing but its noise.
    floor = energies.mean() * 1e-3 + np.finfo(np.float32).tiny
    flattened: npt.NDArray[np.complex64] = bins * np.repeat(1 / np.sqrt(energies + floor), widths)
    return flattened
