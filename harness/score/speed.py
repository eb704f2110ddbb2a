"""Real-time factor and latency, from transcripts that did not fail."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from harness.core.records import Transcript


def rtf(transcripts: Iterable[Transcript], *, duration_s: Mapping[str, float]) -> float | None:
    """Real-time factor: processing seconds per audio second, over the whole set. Lower is better.

    duration_s: utterance id → seconds of audio.
    Returns None when no utterance was transcribed.
    """
    done = [item for item in transcripts if item.error is None]
    audio_s = math.fsum(duration_s[item.id] for item in done)
    return math.fsum(item.wall_s for item in done) / audio_s if audio_s else None


def latency_ms(transcripts: Iterable[Transcript], *, percentile: float) -> float | None:
    """Milliseconds within which `percentile` (0 to 100) of the utterances were transcribed, interpolated linearly.

    Returns None when no utterance was transcribed.
    """
    walls_s = sorted(item.wall_s for item in transcripts if item.error is None)
    if not walls_s:
        return None
    place = (len(walls_s) - 1) * percentile / 100
    low, high = walls_s[math.floor(place)], walls_s[math.ceil(place)]
    return 1000 * (low + (high - low) * (place % 1))
