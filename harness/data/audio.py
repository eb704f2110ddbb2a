"""Recordings: any format that libsndfile reads → 16 kHz mono PCM-16."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from harness.core.manifests import SAMPLE_RATE_HZ
from harness.core.recordings import read_all
from harness.data.report import RefusedError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Samples = npt.NDArray[np.int16]

MAX_SHORT_S = 0.1
MAX_SHORT_FRACTION = 0.02
ROUNDING_S = 0.06
"""Manifests give durations with as little as one decimal."""
STREAMED = 0x7FFF_0000
"""A header that promises this many bytes was written before the end was known; it says nothing about truncation."""
SILENT = 33
"""Highest sample, of 32,768, of a recording that holds nothing to hear: -60 dB."""
CLIPPED_FRACTION = 0.001
"""So many samples at full scale are heard as distortion."""
PAGE = (b"<!doctype", b"<html", b"<?xml", b"{")
"""How the page begins that a server sends in place of a recording."""

_CHUNK_SIZE = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
"""How libsndfile's log of a WAV, AIFF or AU tells that the file ends before its samples should."""
_NO_END_OF_STREAM = re.compile(r"lacks an end-of-stream bit|without an End-Of-Stream flag")


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """What was decoded, and what had to be done to it."""

    samples: Samples
    """int16 [num_samples], 16 kHz mono."""
    notes: tuple[str, ...]
    """What was done or noticed: "resampled from 44100 Hz"."""

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SAMPLE_RATE_HZ

    @property
    def sha256(self) -> str:
        """Of the samples as little-endian PCM-16, whatever the file around them."""
        return sha256(self.samples.astype("<i2", copy=False).tobytes()).hexdigest()


def read_recording(source: Path | bytes, *, name: str, duration_s: float | None = None) -> Recording:
    """Decode, average the channels, resample (soxr HQ), round to PCM-16.

    source: a file, or its content. name: what to call it in messages.
    duration_s: what a manifest says; a recording that is notably shorter counts as truncated.
    Raises RefusedError for a file that is unreadable, truncated, empty, silent, or holds NaN or infinity.
    """
    import numpy as np
    import soxr

    floats, rate_hz, notes = _decode(source, name=name, duration_s=duration_s)
    if not floats.size:
        raise RefusedError("empty audio", f"{name} holds no samples: empty, or cut off; leave it out")
    num_broken = floats.size - int(np.isfinite(floats).sum())
    if num_broken:
        raise RefusedError(
            "NaN samples", f"{num_broken} of {floats.size} samples of {name} are NaN or infinite; write it anew"
        )
    if floats.shape[1] > 1:
        notes.append(f"downmixed from {floats.shape[1]} channels")
    mono = floats.mean(axis=1, dtype=np.float32)
    if rate_hz != SAMPLE_RATE_HZ:
        notes.append(f"resampled from {rate_hz} Hz")
        mono = soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    scaled = np.rint(mono * 32768.0)
    peak = np.abs(scaled).max(initial=0.0)
    if not scaled.size:
        raise RefusedError("empty audio", f"{name} is shorter than one sample at 16 kHz; leave it out")
    if peak < SILENT:
        raise RefusedError("silent", f"{name} is silent: its highest sample is {peak:g} of 32768; leave it out")
    if peak > 32768 or np.mean(np.abs(scaled) >= 32767) > CLIPPED_FRACTION:
        notes.append("clipped at full scale")
    samples = np.clip(scaled, -32768, 32767).astype(np.int16)
    return Recording(samples=samples, notes=tuple(notes))


def _decode(source: Path | bytes, *, name: str, duration_s: float | None) -> tuple[Floats, int, list[str]]:
    """float32 [num_frames, num_channels], its sample rate in Hz, and notes."""
    import soundfile

    _refuse_page(source, name=name)
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            floats = read_all(file)
            _refuse_truncated(file, name=name, num_frames=len(floats), duration_s=duration_s)
            rate_hz = int(file.samplerate)
    except (soundfile.SoundFileError, ValueError, TypeError) as error:
        # TypeError: a name that ends with .raw, of samples without a header.
        raise RefusedError(
            "unreadable", f"{name} cannot be decoded ({str(error) or 'no frames'}): damaged, cut off or no audio"
        ) from error
    notes = []
    if duration_s is not None and _is_short(duration_s, than_s=len(floats) / rate_hz):
        notes.append("longer than its listed duration")
    return floats, rate_hz, notes


def _refuse_page(source: Path | bytes, *, name: str) -> None:
    if isinstance(source, bytes):
        start = source[:64]
    else:
        with source.open("rb") as file:
            start = file.read(64)
    if start.lstrip().lower().startswith(PAGE):
        raise RefusedError("not audio", f"{name} is a web page or a message in place of a recording; fetch it again")


def _refuse_truncated(file: Any, *, name: str, num_frames: int, duration_s: float | None) -> None:
    """Compare what was decoded with what the container and the manifest promise.

    file: an open soundfile.SoundFile.
    """
    log = file.extra_info
    chunk = _CHUNK_SIZE.search(log)
    if chunk:
        promised, there = int(chunk[1]), int(chunk[2])
        if there < promised < STREAMED:
            raise RefusedError(
                "truncated", f"{name} is cut off: its header promises {promised} bytes, {there} are there"
            )
    decoded_s = num_frames / file.samplerate
    # An MP3 header's length may be an estimate, and streams are written without an end mark: a manifest knows better.
    if duration_s is None and _NO_END_OF_STREAM.search(log):
        raise RefusedError(
            "truncated",
            f"{name} is cut off: the Ogg stream has no end after {decoded_s:.2f} s; if that is all, list its duration",
        )
    expected_s, by = (file.frames / file.samplerate, "header") if duration_s is None else (duration_s, "manifest")
    if num_frames and _is_short(decoded_s, than_s=expected_s):
        raise RefusedError("truncated", f"{name} is cut off: {decoded_s:.2f} s decoded, {by} says {expected_s:.2f} s")


def _is_short(duration_s: float, *, than_s: float) -> bool:
    missing_s = than_s - duration_s
    return missing_s > MAX_SHORT_S or missing_s > max(MAX_SHORT_FRACTION * than_s, ROUNDING_S)
