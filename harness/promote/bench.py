"""What a bundle's model takes on the machine at hand, by the protocol of the board.

Inside the clock: features, encoder, decoder, detokenising. Outside: loading the model, reading the file, one warm-up.
One clip after the other; memory is that of this process, so it takes a fresh one for each device.
"""

from __future__ import annotations

import platform
import re
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from harness.board.devices import Measurement, model_digest
from harness.core.files import parse_json
from harness.core.manifests import SAMPLE_RATE_HZ
from harness.core.recordings import read_all
from harness.errors import DataError, SuiteError, first_line
from harness.promote import runtime
from harness.promote.payload import copy_model, needed, room
from harness.promote.swap import Place
from harness.promote.targets import target
from harness.score.memory import VramMeter, peak_ram_mib
from harness.score.speed import buckets, figures
from harness.score.transcribe import clocked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

    from harness.core.records import Transcript
    from harness.promote.parcel import Parcel
    from harness.promote.runtime import Device, Loaded

AUDIO = (".wav", ".flac", ".opus", ".ogg", ".mp3")


@dataclass(frozen=True, slots=True)
class Sound:
    """A recording to measure with."""

    id: str
    path: Path


@contextmanager
def unpacked(parcel: Parcel) -> Iterator[Path]:
    """The model's files in a folder of their own, verified; gone afterwards."""
    slot = target("folder").slot(parcel.manifest.export_kind)
    with tempfile.TemporaryDirectory(prefix="harness-bench-") as folder:
        place = Place(Path(folder), slot.name)
        place.home.mkdir(parents=True)
        room(place.folder, wanted=needed(parcel, slot=slot, place=place))
        copy_model(parcel, slot=slot, place=place)
        (place.home / "smoke.wav").write_bytes(parcel.read(parcel.manifest.smoke.audio))
        yield place.home


def sounds(path: Path | None, *, smoke: Path) -> list[Sound]:
    """What to measure with: a folder of recordings, a manifest in JSON lines, or the bundle's own clip.

    Raises SuiteError if there is nothing to hear.
    """
    if path is None:
        return [Sound("smoke", smoke)]
    if path.is_dir():
        found = sorted(item for item in path.rglob("*") if item.suffix.lower() in AUDIO)
    elif path.is_file():
        found = [
            path.parent / _audio_of(line, path=path) for line in path.read_text("utf-8").split("\n") if line.strip()
        ]
    else:
        raise SuiteError(f"{path}: there is no such folder or manifest; give one: --audio DIR|MANIFEST")
    if not found:
        raise SuiteError(f"{path}: holds no recordings ({', '.join(AUDIO)}); give others: --audio DIR|MANIFEST")
    return [Sound(item.name, item) for item in found]


def measure(
    parcel: Parcel,
    *,
    home: Path,
    clips: Sequence[Sound],
    device: Device,
    host: str | None = None,
    load: Callable[..., Loaded] | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Measurement:
    """Load the model and transcribe every clip.

    home: of `unpacked`. load: what loads the model, `runtime.load` unless given. Raises DataError if every clip fails.
    """
    manifest = parcel.manifest
    with VramMeter() as meter:
        start = time.perf_counter()
        loaded = (load or runtime.load)(home / "incoming", manifest=manifest, device=device)
        load_s = time.perf_counter() - start
        # The first call allocates and compiles; it says nothing about the ones that follow.
        warm_up = clocked(loaded.recogniser, read_any(clips[0].path), name="warm-up")
        heard: list[tuple[float, Transcript]] = []
        for number, clip in enumerate(clips):
            samples = read_any(clip.path)
            transcript = clocked(loaded.recogniser, samples, name=f"{number} {clip.id}")
            heard.append((len(samples) / SAMPLE_RATE_HZ, transcript))
            progress(number + 1, len(clips))
    failed = [item for _, item in heard if item.error is not None]
    if len(failed) == len(heard):
        raise DataError(f"{parcel.path}: all {len(heard)} clips failed, the first with: {failed[0].error}")
    return Measurement(
        host=host or host_name(),
        asked=device,
        device=loaded.device,
        row=manifest.name,
        bundle=parcel.name,
        model_sha256=model_digest({name: manifest.files[name].sha256 for name in manifest.model}),
        runtime=loaded.runtime,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        num_clips=len(heard),
        num_failed=len(failed),
        audio_s=sum(duration_s for duration_s, _ in heard),
        load_s=load_s,
        warm_up_s=warm_up.wall_s,
        **figures(heard),
        peak_ram_mib=peak_ram_mib(),
        peak_vram_mib=meter.peak_mib,
        buckets=buckets(heard),
    )


def host_name() -> str:
    """Of this machine, fit for a file name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", platform.node().removesuffix(".local")).strip("-._")
    return name or "unnamed"


def read_any(path: Path) -> np.ndarray:
    """float32 [num_samples], 16 kHz mono, of any recording that libsndfile reads."""
    import numpy as np
    import soundfile
    import soxr

    try:
        with soundfile.SoundFile(path) as file:
            samples, rate_hz = read_all(file), file.samplerate
    except (OSError, soundfile.SoundFileError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); leave it out") from error
    mono = samples.mean(axis=1)
    if rate_hz != SAMPLE_RATE_HZ:
        mono = soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ, quality="HQ")
    return np.ascontiguousarray(mono, dtype=np.float32)


def _audio_of(line: str, *, path: Path) -> str:
    """The recording that a line of NeMo's or Hugging Face's manifest names."""
    try:
        row = parse_json(line)
        audio = row["audio_filepath"] if "audio_filepath" in row else row["audio"]["path"]
    except (ValueError, KeyError, TypeError) as error:
        raise SuiteError(f"{path}: a line names no recording ({first_line(error)}); it needs audio_filepath") from error
    return str(audio)
