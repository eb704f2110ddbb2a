"""Cutting long recordings for models that see 30 s at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.core.manifests import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    import numpy as np

WINDOW_S = 30.0
"""What Whisper sees at once."""
PAUSE_S = 0.2
"""Longer than the closure of a stop consonant, which is silent too."""
HOP_S = 0.01


def split(samples: np.ndarray, *, max_s: float = WINDOW_S) -> list[np.ndarray]:
    """Pieces of at most `max_s` seconds, cut at the quietest place of each piece's last third.

    samples: float32 [num_samples], 16 kHz mono.
    Returns views that together are `samples`: every sample is in exactly one piece.
    """
    max_samples = int(max_s * SAMPLE_RATE_HZ)
    pieces = []
    while len(samples) > max_samples:
        earliest = max_samples * 2 // 3
        cut = earliest + _quietest(samples[earliest:max_samples])
        pieces.append(samples[:cut])
        samples = samples[cut:]
    return [*pieces, samples]


def _quietest(samples: np.ndarray) -> int:
    """The middle of the stretch of `PAUSE_S` with the least energy."""
    import numpy as np

    width = min(int(PAUSE_S * SAMPLE_RATE_HZ), len(samples))
    # Float64, since differences of a long float32 sum would lose a quiet stretch after a loud one.
    total = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    starts = np.arange(0, len(samples) - width + 1, int(HOP_S * SAMPLE_RATE_HZ))
    return int(starts[np.argmin(total[starts + width] - total[starts])]) + width // 2
