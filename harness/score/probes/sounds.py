"""Recordings without a word in them: silence, noise, and what sounds like music. Made up, the same every time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Literal

from harness.core.manifests import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

VERSION = 1
"""Goes up whenever a sound changes."""

Class = Literal["silence", "noise", "music"]
SLOPES = {"white": 0.0, "pink": 0.5, "brown": 1.0}
"""Amplitude falls with frequency to this power."""
ROOM_DB, NOISE_DB, MUSIC_DB = (-75.0, -60.0), (-45.0, -25.0), -20.0
"""Levels (RMS, full scale is 0): of a quiet room through a good and a poor microphone, of a fan and a street."""
PROGRESSION = ((0, 4, 7), (9, 12, 16), (5, 9, 12), (7, 11, 14))
"""Semitones above C: C, Am, F, G."""
PENTATONIC = (0, 2, 4, 7, 9, 12, 14, 16)
MIDDLE_C_HZ = 261.63
PARTIALS = 8
VIBRATO_HZ, VIBRATO_DEPTH = 5.5, 0.006
"""As singers and violins have it: 5 to 6 times a second, about a tenth of a tone."""


@dataclass(frozen=True, slots=True)
class Sound:
    """One recording."""

    name: str
    category: Class
    samples: np.ndarray
    """float32 [num_samples], 16 kHz mono in [-1, 1]."""

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SAMPLE_RATE_HZ


def sounds(lengths_s: Sequence[float]) -> Iterator[Sound]:
    """Of each length: three of silence, six of noise, three of music."""
    for length_s in lengths_s:
        yield from (
            Sound(f"{name}-{length_s:g}s", category, samples) for name, category, samples in _of_length(length_s)
        )


def _of_length(length_s: float) -> Iterator[tuple[str, Class, np.ndarray]]:
    import numpy as np

    size = round(length_s * SAMPLE_RATE_HZ)
    yield "digital-silence", "silence", np.zeros(size, np.float32)
    for level_db in ROOM_DB:
        yield f"room{level_db:+g}dB", "silence", _noise(size, colour="pink", level_db=level_db)
    for colour, level_db in product(SLOPES, NOISE_DB):
        yield f"{colour}{level_db:+g}dB", "noise", _noise(size, colour=colour, level_db=level_db)
    yield (
        "chords",
        "music",
        _music(size, [(bar * 2.0, 2.2, PROGRESSION[bar % 4]) for bar in range(_count(length_s, 2))]),
    )
    notes = [(n * 0.25, 0.4, (PROGRESSION[n // 8 % 4][n % 3] + 12 * (n % 2),)) for n in range(_count(length_s, 0.25))]
    yield "arpeggio", "music", _music(size, notes)
    yield "melody", "music", _music(size, _melody(length_s), vibrato=VIBRATO_DEPTH)


def _count(length_s: float, each_s: float) -> int:
    return int(length_s / each_s) + 1


def _noise(size: int, *, colour: str, level_db: float) -> np.ndarray:
    import numpy as np

    random = np.random.default_rng([size, list(SLOPES).index(colour), round(-level_db)])
    spectrum = np.fft.rfft(random.standard_normal(size))
    # Below 20 Hz there is nothing to hear, and brown noise would be all drift.
    frequencies = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE_HZ), 20.0)
    return _levelled(np.fft.irfft(spectrum / frequencies ** SLOPES[colour], size), level_db)


def _melody(length_s: float) -> list[tuple[float, float, tuple[int, ...]]]:
    import numpy as np

    random = np.random.default_rng(17)
    tones = random.choice(PENTATONIC, size=_count(length_s, 0.5))
    return [(number * 0.5, 0.55, (int(tone),)) for number, tone in enumerate(tones)]


def _music(size: int, notes: Sequence[tuple[float, float, tuple[int, ...]]], *, vibrato: float = 0.0) -> np.ndarray:
    """notes: start and length in seconds, and the semitones above middle C that sound together."""
    import numpy as np

    track = np.zeros(size)
    for start_s, length_s, semitones in notes:
        start = int(start_s * SAMPLE_RATE_HZ)
        time_s = np.arange(max(0, min(int(length_s * SAMPLE_RATE_HZ), size - start))) / SAMPLE_RATE_HZ
        # Struck, then fading, and let go without a click.
        envelope = np.minimum(time_s / 0.02, 1) * np.exp(-1.5 * time_s) * np.clip((length_s - time_s) / 0.05, 0, 1)
        bend_s = vibrato * np.sin(2 * np.pi * VIBRATO_HZ * time_s) / (2 * np.pi * VIBRATO_HZ)
        for semitone, partial in product(semitones, range(1, PARTIALS + 1)):
            frequency_hz = MIDDLE_C_HZ * 2 ** (semitone / 12) * partial
            track[start : start + len(time_s)] += (
                envelope / partial * np.sin(2 * np.pi * frequency_hz * (time_s + bend_s))
            )
    return _levelled(track, MUSIC_DB)


def _levelled(samples: np.ndarray, level_db: float) -> np.ndarray:
    import numpy as np

    loudness = np.sqrt(np.mean(np.square(samples)))
    levelled: np.ndarray = np.clip(samples / loudness * 10 ** (level_db / 20), -1, 1).astype(np.float32)
    return levelled
