"""A recording in 200 bytes that survive re-encoding, gain, resampling and padding: near copies have near fingerprints.

The envelopes of eleven bands between 200 and 3,400 Hz are Fourier-transformed at fixed rates of modulation. The product
of a band's spectrum with the conjugate of its neighbour's keeps its size and phase when the recording is shifted or
padded with silence. What all speech has in common (the slope of the spectrum, bands that rise and fall together) is
divided out and subtracted, so that the cosine of two unrelated recordings is near 0.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from harness.core.manifests import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Complexes = npt.NDArray[np.complex64]

VERSION = 1
"""Goes up whenever a recording gets other bytes; it is part of the key of whatever holds fingerprints."""

MIN_DURATION_S = 0.3
WINDOW = 512
HOP = 320
BLOCK = 1500
"""Frames at once: 30 s, so that an hour takes no more memory."""
BANDS_HZ = (200.0, 3400.0)
"""What telephony and the lowest bitrates leave."""
NUM_BANDS = 11
MODULATION_HZ = (0.5, 8.0)
"""From phrases to syllables."""
NUM_MODULATIONS = 10
NUM_DIMENSIONS = (NUM_BANDS - 1) * NUM_MODULATIONS * 2
COMPRESSION = 0.35
"""Exponent on power: loud syllables do not drown the others, and the noise of a padding weighs little."""


def fingerprint(samples: npt.NDArray[np.int16]) -> bytes | None:
    """int8 [NUM_DIMENSIONS] as bytes; None where there is too little to tell recordings apart: silence, or a click.

    samples: int16 [num_samples], 16 kHz mono.
    """
    import numpy as np

    if len(samples) < MIN_DURATION_S * SAMPLE_RATE_HZ or not samples.any():
        return None
    spectra = _modulation_spectra(samples)
    size = np.abs(spectra)
    spectra /= np.maximum(size.mean(axis=1, keepdims=True), 1e-9)
    spectra /= np.maximum(np.abs(spectra).mean(axis=0), 1e-9)
    products = spectra[1:] * spectra[:-1].conj()
    products /= np.sqrt(np.maximum(np.abs(products), 1e-9))
    products -= products.mean(axis=0)
    vector = np.concatenate([products.real.ravel(), products.imag.ravel()])
    largest = np.abs(vector).max()
    if largest < 1e-3:
        return None
    return bytes(np.rint(vector * (127 / largest)).astype(np.int8).tobytes())


def vectors(fingerprints: list[bytes]) -> Floats:
    """Fingerprints as rows of length 1, float32 [num, NUM_DIMENSIONS]: the product of two is their cosine."""
    import numpy as np

    rows = np.frombuffer(b"".join(fingerprints), np.int8).reshape(-1, NUM_DIMENSIONS).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def _modulation_spectra(samples: npt.NDArray[np.int16]) -> Complexes:
    """complex64 [NUM_BANDS, NUM_MODULATIONS]: how much of each rate there is in each band's envelope."""
    import numpy as np
    from scipy import fft

    window, bins, bands, turns = _tables()
    # Whole windows of silence at both ends: every sample counts alike, wherever the frames fall.
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(samples, WINDOW), WINDOW)[::HOP]
    spectra = np.zeros((NUM_BANDS, NUM_MODULATIONS), np.complex64)
    for start in range(0, len(frames), BLOCK):
        short_time = fft.rfft(frames[start : start + BLOCK] * window, axis=1)[:, bins]
        envelopes = ((short_time.real**2 + short_time.imag**2) @ bands) ** COMPRESSION
        spectra += (envelopes.T @ turns[: len(envelopes)]) * turns[1] ** start
    return spectra


@cache
def _tables() -> tuple[Floats, slice, Floats, Complexes]:
    """Hann window; the bins that the bands use; triangles on the mel scale [bins, bands]; e^-iωt [BLOCK, rates]."""
    import numpy as np

    low, high = (2595 * np.log10(1 + np.array(BANDS_HZ) / 700)).tolist()
    edges_hz = 700 * (10 ** (np.linspace(low, high, NUM_BANDS + 2) / 2595) - 1)
    hz = np.arange(WINDOW // 2 + 1)[:, None] * (SAMPLE_RATE_HZ / WINDOW)
    rising = (hz - edges_hz[:-2]) / np.diff(edges_hz)[:-1]
    falling = (edges_hz[2:] - hz) / np.diff(edges_hz)[1:]
    bands = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    used = np.flatnonzero(bands.any(axis=1))
    bins = slice(int(used[0]), int(used[-1]) + 1)
    window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    rates_hz = np.geomspace(*MODULATION_HZ, NUM_MODULATIONS)
    angles = np.arange(BLOCK)[:, None] * (-2j * np.pi * HOP / SAMPLE_RATE_HZ * rates_hz)
    return window, bins, bands[bins], np.exp(angles).astype(np.complex64)
