"""Held-out utterances end to end in windows of up to 30 s, with what is known of where each one begins and ends."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.core.manifests import SAMPLE_RATE_HZ, read_manifest
from harness.core.recordings import read_samples
from harness.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np

    from harness.core.artifact import Artifact

WINDOW_S = 29.5
"""A little less than Whisper's 30 s: a timestamp must fit behind the last word."""
SEED = 17
"""Of the utterances that are taken, and their order."""
FRAME_S = 0.02
QUIET_DB = 40.0
"""So much below an utterance's loudest frame is taken for silence."""


@dataclass(frozen=True, slots=True)
class Window:
    """Several utterances in one recording."""

    samples: np.ndarray
    """float32 [num_samples], 16 kHz mono."""
    pauses_s: tuple[tuple[float, float], ...]
    """After each utterance: where its speech ends, and where the next one's begins, or the window ends."""

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SAMPLE_RATE_HZ

    @property
    def speech_end_s(self) -> float:
        return self.pauses_s[-1][0]


def windows(sets: Sequence[Artifact], *, count: int) -> Iterator[Window]:
    """At most `count` windows of utterances of the sets, in a random order that is always the same.

    Raises DataError if the sets have no utterance that fits a window.
    """
    clips = [
        (item.path / utterance.audio, utterance.duration_s)
        for item in sets
        for utterance in read_manifest(item.path)
        if utterance.duration_s <= WINDOW_S
    ]
    if not clips:
        raise DataError(f"the dev sets have no utterance of at most {WINDOW_S:g} s; a probe needs at least 1")
    random.Random(SEED).shuffle(clips)  # noqa: S311  # an order of clips, not a secret
    for paths in _filled(clips)[:count]:
        yield joined([read_samples(path) for path in paths])


def joined(utterances: Sequence[np.ndarray]) -> Window:
    """One window of utterances of at least a frame each."""
    import numpy as np

    starts_s = np.cumsum([0, *map(len, utterances)]) / SAMPLE_RATE_HZ
    spans = [speech_span(samples) for samples in utterances]
    begins = [start + begin for start, (begin, _) in zip(starts_s[:-1], spans, strict=True)]
    ends = [start + end for start, (_, end) in zip(starts_s[:-1], spans, strict=True)]
    pauses = zip(map(float, ends), map(float, [*begins[1:], starts_s[-1]]), strict=True)
    return Window(np.concatenate(utterances), tuple(pauses))


def speech_span(samples: np.ndarray) -> tuple[float, float]:
    """Seconds at which an utterance begins and ends, without the silence around it."""
    import numpy as np

    size = int(FRAME_S * SAMPLE_RATE_HZ)
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    power = np.mean(np.square(frames, dtype=np.float64), axis=1)
    loud = np.flatnonzero(power >= power.max(initial=0.0) / 10 ** (QUIET_DB / 10))
    if not len(loud):
        return 0.0, len(samples) / SAMPLE_RATE_HZ
    return float(loud[0] * FRAME_S), float((loud[-1] + 1) * FRAME_S)


def _filled(clips: Sequence[tuple[Path, float]]) -> list[list[Path]]:
    found: list[list[Path]] = []
    room_s = 0.0
    for path, duration_s in clips:
        if duration_s > room_s:
            found.append([])
            room_s = WINDOW_S
        found[-1].append(path)
        room_s -= duration_s
    return found
