from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.core.manifests import read_jsonl
from harness.errors import DataError
from harness.train import augmentation
from harness.train.augmentation import Augmentation, Augmenter, Codec, Gain, Noise, Speed, augmenter
from tests.conftest import AELITA

RATE_HZ = 16_000
GRID, WINDOW = 320, 30 * RATE_HZ
ALL = Augmentation(
    speed=Speed(p=0.5), noise=Noise(p=0.5), gain=Gain(p=0.5), codec=Codec(p=0.3, kinds=["mp3", "ogg", "telephone"])
)


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """A real clip, cut to three seconds."""
    name = next(read_jsonl(AELITA / "manifest.jsonl"))["audio_filepath"]
    samples, _ = soundfile.read(AELITA / name, dtype="float32", frames=3 * RATE_HZ)
    return samples


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))


def tone(seconds: float, *, hz: float = 440.0, loud: float = 0.3) -> np.ndarray:
    return (loud * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)).astype(np.float32)


def pitch_hz(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * RATE_HZ / len(samples))


def lag(before: np.ndarray, after: np.ndarray) -> int:
    """By how many samples the second is later than the first."""
    size = 2 * len(before)
    product = np.fft.rfft(after, size) * np.conj(np.fft.rfft(before, size))
    place = int(np.fft.irfft(product, size).argmax())
    return place - size if place > size // 2 else place


def draw(arguments: tuple[Augmenter, np.ndarray, int]) -> np.ndarray:
    what, samples, place = arguments
    return what.clip(samples, place=place, index=7)


def test_what_becomes_of_a_clip_depends_on_seed_place_and_clip_alone(speech: np.ndarray) -> None:
    what = Augmenter(ALL, seed=1)
    first = [what.clip(speech, place=place, index=7) for place in range(6)]
    np.random.seed(5)  # noqa: NPY002  # the global generator, which must not matter
    for place in reversed(range(6)):
        np.testing.assert_array_equal(what.clip(speech, place=place, index=7), first[place])
    others = [
        what.clip(speech, place=0, index=8),
        Augmenter(ALL, seed=2).clip(speech, place=0, index=7),
    ]
    distinct = {samples.tobytes() for samples in [*first, *others]}
    assert len(distinct) > 4


def test_another_process_draws_the_same(speech: np.ndarray) -> None:
    what = Augmenter(ALL, seed=1)
    jobs = [(what, speech, place) for place in range(3)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        elsewhere = pool.map(draw, jobs)
    for job, samples in zip(jobs, elsewhere, strict=True):
        np.testing.assert_array_equal(draw(job), samples)


def test_one_effect_does_not_change_what_another_draws() -> None:
    """With noise dropped the gain of each clip is the same: each draws from a generator of its own."""
    quiet = tone(0.5, loud=0.01)
    gain = {"gain": Gain(p=0.5, db=[-6, 6])}
    alone, beside = (
        Augmenter(Augmentation(**gain), 3),
        Augmenter(Augmentation(noise=Noise(p=1, snr_db=[90, 90]), **gain), 3),
    )
    for place in range(10):
        ratio = rms(beside.clip(quiet, place=place, index=0)) / rms(alone.clip(quiet, place=place, index=0))
        assert ratio == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("effect", ["speed", "noise", "gain", "codec"])
def test_an_effect_happens_as_often_as_declared(effect: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "through_codec", lambda samples, _kind, *, level: samples + level)
    kinds = {"speed": Speed, "noise": Noise, "gain": Gain, "codec": Codec}
    what = Augmenter(Augmentation(**{effect: kinds[effect](p=0.3)}), seed=0)
    clip = tone(0.05)
    changed = sum(not np.array_equal(what.clip(clip, place=place, index=0)[: len(clip)], clip) for place in range(1000))
    assert 250 < changed < 350  # 3.5 standard deviations


@pytest.mark.parametrize("factor", [0.8, 0.93, 1.07, 1.25])
def test_speed_changes_length_and_pitch_together(factor: float) -> None:
    faster = augmentation.at_speed(tone(2.0), factor)
    assert len(faster) == pytest.approx(2 * RATE_HZ / factor, abs=1)
    assert pitch_hz(faster) == pytest.approx(440 * factor, rel=0.005)


@settings(max_examples=30, deadline=None)
@given(
    seconds=st.lists(st.floats(0.05, 12), min_size=1, max_size=8),
    fill=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_window_keeps_its_grid_and_its_30_seconds(seconds: list[float], fill: float, seed: int) -> None:
    pieces = [tone(length) for length in seconds]
    pieces = [np.pad(piece, (0, -len(piece) % GRID)) for piece in pieces]
    total = sum(map(len, pieces))
    longest = total + round(fill * 0.2 * total) // GRID * GRID
    what = Augmenter(Augmentation(speed=Speed(p=1, range=[0.7, 1.1])), seed=seed)
    changed = what.window(pieces, place=seed % 1000, indices=range(len(pieces)), grid=GRID, longest=longest)
    assert len(changed) == len(pieces)
    assert all(len(piece) % GRID == 0 for piece in changed)
    assert sum(map(len, changed)) <= longest


def test_a_full_window_is_sped_up_but_not_slowed_down() -> None:
    pieces = [tone(10.0)] * 3
    slow = Augmenter(Augmentation(speed=Speed(p=1, range=[0.8, 0.9])), seed=0)
    assert [len(piece) for piece in slow.window(pieces, place=0, indices=range(3), grid=GRID, longest=WINDOW)] == [
        10 * RATE_HZ
    ] * 3
    room = slow.window(pieces[:2], place=0, indices=range(2), grid=GRID, longest=WINDOW)
    assert all(len(piece) > 11 * RATE_HZ for piece in room)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 25.0])
def test_noise_is_as_loud_as_declared(speech: np.ndarray, snr_db: float) -> None:
    rng = np.random.default_rng(0)
    noise = augmentation.coloured_noise(len(speech), exponent=1.0, rng=rng)
    added = augmentation.with_noise(speech, noise, snr_db=snr_db) - speech
    assert 20 * np.log10(rms(speech) / rms(added)) == pytest.approx(snr_db, abs=0.01)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_noise_falls_with_frequency_as_its_colour_says(exponent: float) -> None:
    noise = augmentation.coloured_noise(2**18, exponent=exponent, rng=np.random.default_rng(0))
    power = np.abs(np.fft.rfft(noise)) ** 2
    octaves = [float(power[2**begin : 2 ** (begin + 1)].mean()) for begin in range(8, 16)]
    slopes = np.diff(np.log2(octaves))
    np.testing.assert_allclose(slopes, -exponent, atol=0.25)
    assert abs(float(noise.mean())) < 1e-6


def test_silence_stays_silent() -> None:
    what = Augmenter(Augmentation(noise=Noise(p=1), gain=Gain(p=1), speed=Speed(p=1)), seed=0)
    assert not what.clip(np.zeros(RATE_HZ, np.float32), place=0, index=0).any()


@pytest.mark.parametrize("loud", [0.01, 0.6, 1.0])
def test_nothing_is_clipped(loud: float) -> None:
    """A loud clip is no louder than before; its form stays that of a sine, without cut-off peaks."""
    what = Augmenter(Augmentation(gain=Gain(p=1, db=[20, 20])), seed=0)
    clip = tone(0.5, loud=loud)
    after = what.clip(clip, place=0, index=0)
    assert np.abs(after).max() <= max(0.99, loud) + 1e-6
    np.testing.assert_allclose(after / np.abs(after).max(), clip / np.abs(clip).max(), atol=1e-5)
    quiet = what.clip(tone(0.5, loud=0.01), place=0, index=0)
    assert rms(quiet) / rms(tone(0.5, loud=0.01)) == pytest.approx(10, rel=1e-4)


@pytest.mark.parametrize("level", augmentation.COMPRESSION)
@pytest.mark.parametrize("kind", ["mp3", "ogg", "opus", "telephone"])
def test_a_codec_changes_the_sound_but_not_its_length_or_place(speech: np.ndarray, kind: str, level: float) -> None:
    after = augmentation.through_codec(speech, kind, level=level)
    assert len(after) == len(speech)
    assert lag(speech, after) == 0
    error = rms(after - speech) / rms(speech)
    assert 0.001 < error < 0.5


def test_a_telephone_passes_nothing_over_4_khz() -> None:
    high, low = (rms(augmentation.through_codec(tone(1.0, hz=hz), "telephone", level=0)) for hz in (6000, 1000))
    assert high < 0.01 * low
    assert low == pytest.approx(rms(tone(1.0)), rel=0.02)


@pytest.mark.parametrize("num_samples", [0, 1, 50, 1599])
def test_the_shortest_clips_pass_through_everything(num_samples: int) -> None:
    what = Augmenter(Augmentation(speed=Speed(p=1), noise=Noise(p=1), gain=Gain(p=1), codec=Codec(p=1)), seed=0)
    for place in range(8):
        after = what.clip(tone(1.0)[:num_samples], place=place, index=0, longest=num_samples or None)
        assert after.dtype == np.float32
        assert len(after) <= num_samples


def test_a_damaged_clip_stays_as_it_is() -> None:
    clip = np.array([0.1, np.inf, np.nan], np.float32)
    what = Augmenter(Augmentation(noise=Noise(p=1), codec=Codec(p=1)), seed=0)
    np.testing.assert_array_equal(what.clip(clip, place=0, index=0), clip)


def test_recorded_noise_comes_from_the_folder(tmp_path: Path) -> None:
    hum = np.tile(tone(0.5, hz=1000), 2)
    soundfile.write(tmp_path / "hum.wav", np.stack([hum, hum], axis=1), RATE_HZ)
    (tmp_path / "notes.txt").write_text("not a recording", encoding="utf-8")
    what = augmenter(Augmentation(noise=Noise(p=1, snr_db=[0, 0], recordings=str(tmp_path))), seed=0)
    assert what is not None
    assert what.noises == (tmp_path / "hum.wav",)
    clip = tone(3.0, hz=300, loud=0.1)
    added = what.clip(clip, place=0, index=0) - clip
    assert pitch_hz(added) == pytest.approx(1000, abs=5)
    assert rms(added[: RATE_HZ // 2]) == pytest.approx(rms(added[-RATE_HZ // 2 :]), rel=0.1)


def test_noise_of_another_rate_is_resampled(tmp_path: Path) -> None:
    path = tmp_path / "hum.wav"
    times = np.arange(44_100 * 2) / 44_100
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 1000 * times), 44_100)
    noise = augmentation.recorded_noise(path, RATE_HZ, rng=np.random.default_rng(0))
    assert len(noise) == RATE_HZ
    assert pitch_hz(noise) == pytest.approx(1000, abs=5)


@pytest.mark.parametrize(("made", "found"), [(True, "has no recordings"), (False, "is no folder")])
def test_a_folder_without_noise_is_refused(tmp_path: Path, made: bool, found: str) -> None:
    folder = tmp_path / "noise"
    if made:
        folder.mkdir()
    with pytest.raises(
        DataError, match=rf"augment\.noise\.recordings: .*noise {found} \(\.flac.*noise is then generated"
    ):
        augmenter(Augmentation(noise=Noise(p=1, recordings=str(folder))), seed=0)


def test_damaged_noise_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"broken\.wav: this noise cannot be read: LibsndfileError"):
        augmentation.recorded_noise(tmp_path / "broken.wav", 100, rng=np.random.default_rng(0))


def test_no_augmentation_is_none() -> None:
    assert augmenter(None, seed=0) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "expected at least one of speed, noise, gain, codec"),
        ({"speed": {"p": 0.5, "range": [1.1, 0.9]}}, r"expected \[smallest, largest\], found \[1.1, 0.9\]"),
        ({"gain": {"p": 0.5, "db": [1.0]}}, r"expected \[smallest, largest\], found \[1.0\]"),
        ({"speed": {"p": 0.5, "range": [0.1, 1.0]}}, "greater than or equal to 0.5"),
        ({"noise": {"p": 1.5}}, "less than or equal to 1"),
        ({"noise": {}}, "Field required"),
        ({"codec": {"p": 0.1, "kinds": ["aac"]}}, "'mp3', 'ogg', 'opus' or 'telephone'"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Augmentation.model_validate(fields)


def test_a_folder_of_noise_counts_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    here, there = (Augmentation(noise=Noise(p=1, recordings=str(tmp_path / name))) for name in "ab")
    assert here.identity() == there.identity()
    assert here.identity() != Augmentation(noise=Noise(p=1)).identity()
    assert here.outside() == [tmp_path / "a"]
    assert Augmentation(gain=Gain(p=1)).outside() == []
