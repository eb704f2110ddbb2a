"""Real-time factor, latency and throughput, from transcripts that did not fail."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from harness.core.records import Transcript

    Heard = Sequence[tuple[float, Transcript]]
    """Seconds of audio, and what came of it."""

BUCKETS_S = (0.0, 3.0, 10.0, 30.0, math.inf)
"""Commands, sentences, dictation, and what Whisper hears in several windows."""
MIN_GAIN = 0.05
"""A batch twice as large that gains less throughput is the last one that is tried."""


def rtf(transcripts: Iterable[Transcript], *, duration_s: Mapping[str, float]) -> float | None:
    """Real-time factor: processing seconds per audio second, over the whole set. Lower is better.

    duration_s: utterance id → seconds of audio.
    Returns None when no utterance was transcribed.
    """
    return pooled_rtf([(duration_s[item.id], item) for item in transcripts if item.error is None])


def pooled_rtf(heard: Heard) -> float | None:
    """As `rtf`, of utterances that may share their ids."""
    done = [(duration_s, item) for duration_s, item in heard if item.error is None]
    audio_s = math.fsum(duration_s for duration_s, _ in done)
    return math.fsum(item.wall_s for _, item in done) / audio_s if audio_s else None


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


def figures(heard: Heard) -> dict[str, float | None]:
    """`rtf`, `latency_p50_ms`, `latency_p95_ms` and `latency_p99_ms`."""
    transcripts = [item for _, item in heard]
    latencies = {f"latency_p{each}_ms": latency_ms(transcripts, percentile=each) for each in (50, 95, 99)}
    return {"rtf": pooled_rtf(heard), **latencies}


def bucket(duration_s: float) -> int:
    """The number of the bucket of BUCKETS_S that a duration falls into; its lower edge belongs to it."""
    return bisect_right(BUCKETS_S, duration_s) - 1


def buckets(heard: Heard) -> list[dict[str, Any]]:
    """Speed by duration: `from_s`, `to_s` (None: no limit), `num_clips` and `figures` of each bucket with clips."""
    found = []
    for number, (low, high) in enumerate(pairwise(BUCKETS_S)):
        inside = [item for item in heard if bucket(item[0]) == number]
        if inside:
            upper = None if high == math.inf else high
            found.append({"from_s": low, "to_s": upper, "num_clips": len(inside), **figures(inside)})
    return found


def spread(values: Sequence[float]) -> float | None:
    """The highest less the lowest of repeated measurements, relative to their median; None of a single one."""
    return (max(values) - min(values)) / statistics.median(values) if len(values) > 1 else None


def sweep(measure: Callable[[int], dict[str, Any]], *, single_x: float | None, largest: int) -> list[dict[str, Any]]:
    """Throughput in batches of 1, 2, 4, … up to `largest`, for as long as each gains MIN_GAIN, and fits.

    measure: size of the batch → figures with `throughput_x`. Whatever it raises ends the sweep: that a batch does not
    fit into memory is said in a different way by every library. single_x: of batch 1, which is measured already.
    Returns the figures with their `batch`; the last one may have an `error`, and then no throughput.
    """
    found: list[dict[str, Any]] = [{"batch": 1, "throughput_x": single_x}]
    size = 2
    while size <= largest:
        try:
            found.append({"batch": size, **measure(size)})
        except Exception as error:  # noqa: BLE001  # see above
            return [*found, {"batch": size, "throughput_x": None, "error": f"{type(error).__name__}: {error}"}]
        if found[-1]["throughput_x"] < found[-2]["throughput_x"] * (1 + MIN_GAIN):
            return found
        size *= 2
    return found
