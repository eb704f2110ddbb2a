"""The made-up recordings are what they are called, the same every time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from harness.score.probes.sounds import MUSIC_DB, NOISE_DB, ROOM_DB, Sound, sounds

LENGTHS_S = [1.0, 3.5]


@pytest.fixture(scope="module")
def made() -> dict[str, Sound]:
    return {sound.name: sound for sound in sounds(LENGTHS_S)}


def level_db(sound: Sound) -> float:
    return 10 * np.log10(np.mean(np.square(sound.samples, dtype=np.float64)))


def test_names_categories_and_form(made: dict[str, Sound]) -> None:
    assert Counter(sound.category for sound in made.values()) == {"silence": 6, "noise": 12, "music": 6}
    for sound in made.values():
        assert sound.samples.dtype == np.float32
        assert np.isfinite(sound.samples).all()
        assert np.abs(sound.samples).max() <= 1
    assert Counter(sound.duration_s for sound in made.values()) == {1.0: 12, 3.5: 12}


def test_the_same_every_time_and_all_different(made: dict[str, Sound]) -> None:
    again = {sound.name: sound.samples for sound in sounds(LENGTHS_S)}
    assert all(np.array_equal(again[name], sound.samples) for name, sound in made.items())
    assert len({sound.samples.tobytes() for sound in made.values()}) == len(made)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((f"room{level:+g}dB", level) for level in ROOM_DB),
        *((f"{colour}{level:+g}dB", level) for colour in ("white", "pink", "brown") for level in NOISE_DB),
        *((name, MUSIC_DB) for name in ("chords", "arpeggio", "melody")),
    ],
)
def test_levels(made: dict[str, Sound], name: str, expected: float) -> None:
    for length_s in LENGTHS_S:
        assert level_db(made[f"{name}-{length_s:g}s"]) == pytest.approx(expected, abs=0.1)


def test_digital_silence_is_silent(made: dict[str, Sound]) -> None:
    assert not made["digital-silence-1s"].samples.any()


@pytest.mark.parametrize(("colour", "slope_db"), [("white", 0), ("pink", -3), ("brown", -6)])
def test_colours_of_noise(made: dict[str, Sound], colour: str, slope_db: float) -> None:
    """Power by octave, from 125 Hz to 8 kHz, falls by so many decibels a hertz."""
    samples = made[f"{colour}-25dB-3.5s"].samples
    power = np.abs(np.fft.rfft(samples)) ** 2
    hertz = np.fft.rfftfreq(len(samples), 1 / 16_000)
    edges = 125 * 2.0 ** np.arange(7)
    densities = [power[(hertz >= low) & (hertz < 2 * low)].mean() for low in edges[:-1]]
    slope = np.polyfit(np.arange(6), 10 * np.log10(densities), 1)[0]
    assert slope == pytest.approx(slope_db, abs=0.5)


def test_music_has_notes_that_last(made: dict[str, Sound]) -> None:
    """The first chord is C major: its three strongest low tones are C, E and G."""
    samples = made["chords-3.5s"].samples[: 2 * 16_000]
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    hertz = np.fft.rfftfreq(len(samples), 1 / 16_000)
    low = hertz < 450
    found = []
    while len(found) < 3:
        strongest = hertz[low][power[low].argmax()]
        found.append(round(12 * np.log2(strongest / 261.63)))
        power[np.abs(hertz - strongest) < 8] = 0
    assert sorted(found) == [0, 4, 7]
