from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from harness.data.audio import Recording, read_recording
from harness.data.report import RefusedError

if TYPE_CHECKING:
    from pathlib import Path

RATE_HZ = 16_000
FORMATS = [
    ("wav", "WAV", "PCM_16"),
    ("wav", "WAV", "FLOAT"),
    ("flac", "FLAC", "PCM_16"),
    ("mp3", "MP3", None),
    ("ogg", "OGG", "VORBIS"),
    ("opus", "OGG", "OPUS"),
    ("aiff", "AIFF", "PCM_16"),
    ("au", "AU", "PCM_16"),
]


def tone(*, duration_s: float = 2.0, rate_hz: int = RATE_HZ, frequency_hz: float = 440.0) -> np.ndarray:
    """float32 [num_samples], a rising sine."""
    time_s = np.arange(int(duration_s * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * frequency_hz * time_s) * time_s / duration_s).astype(np.float32)


@pytest.mark.parametrize(("suffix", "form", "subtype"), FORMATS)
def test_formats(tmp_path: Path, suffix: str, form: str, subtype: str | None) -> None:
    path = tmp_path / f"запись.{suffix}"
    soundfile.write(path, tone(), RATE_HZ, format=form, subtype=subtype)
    recording = read_recording(path, name="a.wav", duration_s=2.0)
    assert recording.samples.dtype == np.int16
    assert recording.duration_s == 2.0
    assert recording.notes == ()
    # Codecs shift and round; the loudness stays.
    assert recording.samples.std() == pytest.approx(32768 * tone().std(), rel=0.02)


@pytest.mark.parametrize(("suffix", "form", "subtype"), FORMATS)
def test_a_file_that_was_cut_off(tmp_path: Path, suffix: str, form: str, subtype: str | None) -> None:
    path = tmp_path / f"cut.{suffix}"
    soundfile.write(path, tone(duration_s=8), RATE_HZ, format=form, subtype=subtype)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    for duration_s in (None, 8.0):
        with pytest.raises(RefusedError, match="cut off") as caught:
            read_recording(path, name="a.wav", duration_s=duration_s)
        assert caught.value.reason in {"truncated", "unreadable", "empty audio"}


@pytest.mark.parametrize(
    ("there_s", "listed_s", "refused"),
    [(2.0, 2.0, False), (2.0, 2.04, False), (2.0, 2.07, True), (1.0, 1.05, False), (10.0, 10.11, True), (2, 1, False)],
)
def test_listed_duration(tmp_path: Path, there_s: float, listed_s: float, refused: bool) -> None:
    soundfile.write(tmp_path / "a.wav", tone(duration_s=there_s), RATE_HZ)
    if refused:
        with pytest.raises(RefusedError, match=rf"{there_s:.2f} s decoded, manifest says {listed_s:.2f} s"):
            read_recording(tmp_path / "a.wav", name="a.wav", duration_s=listed_s)
    else:
        notes = read_recording(tmp_path / "a.wav", name="a.wav", duration_s=listed_s).notes
        assert notes == (("longer than its listed duration",) if listed_s < there_s else ())


def test_a_streamed_header_is_not_a_cut_file(tmp_path: Path) -> None:
    path = tmp_path / "streamed.wav"
    soundfile.write(path, tone(), RATE_HZ)
    content = bytearray(path.read_bytes())
    # What a program writes that cannot go back to fill in the sizes.
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert read_recording(path, name="a").duration_s == 2.0


def test_stereo_at_44_khz_becomes_mono_at_16(tmp_path: Path) -> None:
    left, right = tone(rate_hz=44_100), tone(rate_hz=44_100, frequency_hz=300)
    soundfile.write(tmp_path / "a.flac", np.stack([left, right], axis=1), 44_100)
    recording = read_recording(tmp_path / "a.flac", name="a.flac")
    assert recording.notes == ("downmixed from 2 channels", "resampled from 44100 Hz")
    assert recording.duration_s == 2.0
    expected = (tone() + tone(frequency_hz=300)) / 2
    assert np.abs(recording.samples / 32768 - expected)[100:-100].max() < 0.002


def test_16_khz_mono_pcm_stays_as_it_is(tmp_path: Path) -> None:
    samples = np.random.default_rng(17).integers(-32768, 32768, 4000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, RATE_HZ)
    recording = read_recording(tmp_path / "a.wav", name="a.wav")
    assert np.array_equal(recording.samples, samples)
    assert recording.sha256 == hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()
    soundfile.write(tmp_path / "b.flac", samples, RATE_HZ)
    assert read_recording(tmp_path / "b.flac", name="b.flac").sha256 == recording.sha256


@pytest.mark.parametrize("samples", [[2.0, -2.0, 0.1], [1.0] * 3 + [0.1] * 2000])
def test_clipping_is_noted(tmp_path: Path, samples: list[float]) -> None:
    soundfile.write(tmp_path / "a.wav", np.array(samples, np.float32), RATE_HZ, subtype="FLOAT")
    recording = read_recording(tmp_path / "a.wav", name="a.wav")
    assert recording.notes == ("clipped at full scale",)
    assert isinstance(recording, Recording)
    assert np.abs(recording.samples.astype(int)).max() >= 32767


@pytest.mark.parametrize("form", ["WAV", "MP3", "OPUS"])
def test_content_in_memory_is_read_as_a_file_is(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a.bin"
    container, subtype = ("OGG", "OPUS") if form == "OPUS" else (form, None)
    soundfile.write(path, tone(), RATE_HZ, format=container, subtype=subtype)
    assert read_recording(path.read_bytes(), name="a").sha256 == read_recording(path, name="a").sha256


def broken(tmp_path: Path, what: str) -> Path:
    path = tmp_path / f"{what}.wav"
    samples = tone()
    if what == "nan":
        samples[7] = np.nan
    elif what == "infinite":
        samples[7:9] = np.inf
    elif what == "empty":
        samples = samples[:0]
    elif what == "silent":
        samples *= 32 / 32768
    if what == "noise":
        path.write_bytes(b"RIFF but not really")
    elif what == "page":
        path.write_bytes(b"\n<!DOCTYPE html><html><body>429 Too Many Requests</body></html>" * 50)
    else:
        soundfile.write(path, samples, RATE_HZ, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("what", "reason", "message"),
    [
        ("nan", "NaN samples", "1 of 32000 samples of nan are NaN or infinite"),
        ("infinite", "NaN samples", "2 of 32000 samples"),
        ("empty", "empty audio", "empty holds no samples"),
        ("noise", "unreadable", "noise cannot be decoded"),
        ("page", "not audio", "page is a web page or a message in place of a recording"),
        ("silent", "silent", "silent is silent: its highest sample is 16 of 32768"),
    ],
)
def test_refused(tmp_path: Path, what: str, reason: str, message: str) -> None:
    with pytest.raises(RefusedError, match=message) as caught:
        read_recording(broken(tmp_path, what), name=what)
    assert caught.value.reason == reason
