"""Whisper's mel filter bank: triangles on Slaney's mel scale, as OpenAI took them from librosa."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
FFT_SIZE = 400
NUM_BINS = FFT_SIZE // 2 + 1

LINEAR_HZ_PER_MEL = 200.0 / 3.0
BREAK_HZ = 1000.0
"""Below it Slaney's scale is linear, above it logarithmic."""
BREAK_MEL = BREAK_HZ / LINEAR_HZ_PER_MEL
LOG_RANGE, LOG_STEPS = 6.4, 27.0
"""27 mels above the break lie a factor of 6.4 apart."""


def filter_bank(num_mels: int) -> NDArray[np.float32]:
    """Compute the weights that turn a power spectrum into mel bands.

    Returns float32 [num_mels, 201]: a triangle per row, of equal area (Slaney's normalisation), 0 to 8 kHz.
    Source: `librosa.filters.mel(sr=16000, n_fft=400, n_mels=num_mels)`, which made OpenAI's `mel_filters.npz`.
    """
    import numpy as np

    bins_hz = np.linspace(0, SAMPLE_RATE_HZ / 2, NUM_BINS)
    edges_hz = _hz(np.linspace(0.0, _mel(SAMPLE_RATE_HZ / 2), num_mels + 2))
    distance = edges_hz[:, None] - bins_hz
    width = np.diff(edges_hz)[:, None]
    rising = -distance[:-2] / width[:-1]
    falling = distance[2:] / width[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    area = 2.0 / (edges_hz[2:] - edges_hz[:-2])
    return (triangles * area[:, None]).astype(np.float32)


def _mel(frequency_hz: float) -> float:
    """On Slaney's scale, of a frequency above the break."""
    import numpy as np

    return float(BREAK_MEL + LOG_STEPS * np.log(frequency_hz / BREAK_HZ) / np.log(LOG_RANGE))


def _hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    above = BREAK_HZ * np.exp(np.log(LOG_RANGE) / LOG_STEPS * (mel - BREAK_MEL))
    return np.where(mel < BREAK_MEL, mel * LINEAR_HZ_PER_MEL, above)
