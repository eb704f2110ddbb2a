"""What becomes of recordings on their way from corpus to corpus, and what only sounds alike. Real clips throughout."""

from __future__ import annotations

import io
import json
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr

from harness.core.manifests import BATCH, ManifestWriter, utterance_table
from harness.core.records import Utterance
from harness.data.fingerprint import fingerprint
from tests.conftest import AELITA, artifact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import numpy.typing as npt

    from harness.core.artifact import Artifact

    Samples = npt.NDArray[np.int16]
    Copy = Callable[[Samples, np.random.Generator], Samples]

RATE_HZ = 16_000


@cache
def clips() -> dict[int, tuple[Samples, str]]:
    """Number in the file's name → samples and text of the 190 shipped recordings."""
    rows = [json.loads(line) for line in (AELITA / "manifest.jsonl").read_text("utf-8").splitlines()]
    return {int(row["audio_filepath"][-9:-5]): (decode(AELITA / row["audio_filepath"]), row["text"]) for row in rows}


def decode(source: Path | io.BytesIO) -> Samples:
    floats, rate_hz = soundfile.read(source, dtype="float32")
    return pcm(floats if rate_hz == RATE_HZ else soxr.resample(floats, rate_hz, RATE_HZ, quality="HQ"))


def pcm(floats: np.ndarray) -> Samples:
    """Full scale is 1; what is louder is clipped."""
    return np.clip(np.rint(floats * 32768), -32768, 32767).astype(np.int16)


def encoded(samples: Samples, container: str, codec: str, *, rate_hz: int = RATE_HZ, level: float) -> Samples:
    """Through a lossy codec and back. level: 0 is the best quality, 1 the fewest bits."""
    floats = soxr.resample(samples / np.float32(32768), RATE_HZ, rate_hz, quality="HQ")
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate_hz, 1, format=container, subtype=codec, compression_level=level) as sink:
        sink.write(floats)
    file.seek(0)
    return decode(file)


def opus(samples: Samples, *, rate_hz: int = RATE_HZ, level: float) -> Samples:
    return encoded(samples, "OGG", "OPUS", rate_hz=rate_hz, level=level)


def mp3(samples: Samples, *, rate_hz: int = RATE_HZ, level: float = 0.9) -> Samples:
    return encoded(samples, "MP3", "MPEG_LAYER_III", rate_hz=rate_hz, level=level)


def louder(samples: Samples, db: float) -> Samples:
    return pcm(samples / np.float32(32768) * 10 ** (db / 20))


def padded(samples: Samples, rng: np.random.Generator, *, noise: float = 0) -> Samples:
    """With 0.3 to 2 s before and after. noise: its standard deviation, of 32768."""
    before, after = (rng.normal(0, 1, rng.integers(int(0.3 * RATE_HZ), 2 * RATE_HZ)) * noise for _ in range(2))
    return np.concatenate([before, samples, after]).round().astype(np.int16)


def narrowband(samples: Samples) -> Samples:
    """At 8 kHz and back."""
    floats = samples / np.float32(32768)
    return pcm(soxr.resample(soxr.resample(floats, RATE_HZ, 8000, quality="HQ"), 8000, RATE_HZ, quality="HQ"))


COPIES: dict[str, Copy] = {
    "Opus 130 kbit/s": lambda samples, _: opus(samples, level=0.5),
    "Opus 30 kbit/s": lambda samples, _: opus(samples, level=0.9),
    "Opus 18 kbit/s": lambda samples, _: opus(samples, level=0.95),
    "Opus 6 kbit/s": lambda samples, _: opus(samples, level=1.0),
    "Opus 6 kbit/s at 8 kHz": lambda samples, _: opus(samples, rate_hz=8000, level=1.0),
    "Opus 30 kbit/s at 24 kHz": lambda samples, _: opus(samples, rate_hz=24_000, level=0.9),
    "mp3": lambda samples, _: mp3(samples),
    "mp3 at 44.1 kHz": lambda samples, _: mp3(samples, rate_hz=44_100, level=0.8),
    "12 dB louder, clipped": lambda samples, _: louder(samples, 12),
    "12 dB softer": lambda samples, _: louder(samples, -12),
    "padded with silence": padded,
    "padded with noise": lambda samples, rng: padded(samples, rng, noise=30),
    "8 kHz and back": lambda samples, _: narrowband(samples),
    "turned round": lambda samples, _: pcm(-samples / np.float32(32768)),
    "softer, padded, Opus 6 kbit/s": lambda samples, rng: opus(padded(louder(samples, -12), rng, noise=10), level=1.0),
    "louder, padded, 8 kHz, mp3": lambda samples, rng: mp3(narrowband(padded(louder(samples, 12), rng))),
    "padded, mp3, Opus 18 kbit/s": lambda samples, rng: opus(mp3(padded(samples, rng, noise=30)), level=0.95),
}
"""Every way in which one corpus has taken a recording from another."""

WORDS = {
    "лось": (
        (43, 0, 0.76),
        (53, 0, 0.7),
        (71, 0, 0.74),
        (74, 0, 0.74),
        (77, 0, 0.76),
        (78, 0, 0.78),
        (80, 11.18, 11.52),
    ),
    "гусев": ((61, 0, 0.82), (89, 3.94, 4.28), (93, 0, 0.86), (110, 7.08, 8.16), (122, 0, 1.06), (140, 0, 0.9)),
    "они": ((77, 3.92, 4.52), (99, 0, 0.7), (144, 1.84, 2.16), (180, 0, 0.64), (182, 0, 0.66), (186, 1.08, 1.46)),
    "земли": ((45, 4.04, 5.14), (113, 2.16, 3.04), (114, 2.92, 3.86), (115, 14.28, 15.36), (179, 4.28, 4.84)),
    "сквозь": ((16, 0, 0.86), (17, 0, 0.86), (67, 6.78, 7.16), (70, 4.22, 4.64), (100, 1.84, 2.34), (142, 0, 0.86)),
    "теперь": ((8, 1.68, 2.08), (25, 4.72, 5.08), (69, 1.08, 1.56), (75, 0, 0.68), (79, 2.82, 3.18), (146, 0, 0.78)),
    "через": ((32, 0, 0.74), (41, 0, 0.7), (59, 2.74, 3.06), (75, 6.34, 6.72), (89, 8.14, 8.5), (168, 0.7, 1.1)),
    "марсианин": ((112, 1.62, 2.32), (130, 12.68, 13.38), (132, 0, 1.16), (236, 3.88, 5.04)),
}
"""Where one voice says one word in several recordings: number, from and to in seconds, within a tenth."""


def same_words(*, margin_s: float) -> dict[str, list[tuple[int, Samples]]]:
    """Cuts of each of WORDS, each from another recording, with its number."""
    return {
        word: [(number, cut(number, start - margin_s, end + margin_s)) for number, start, end in places]
        for word, places in WORDS.items()
    }


def cut(number: int, start_s: float, end_s: float) -> Samples:
    return clips()[number][0][max(0, round(start_s * RATE_HZ)) : round(end_s * RATE_HZ)]


def prepared(folder: Path, recordings: Iterable[tuple[str, str, Samples]]) -> Artifact:
    """A set as `select` leaves it: id, text and samples of each recording, with fingerprints."""
    folder.mkdir()
    utterances, fingerprints = [], []
    for number, (name, text, samples) in enumerate(recordings):
        soundfile.write(folder / f"{number}.wav", samples, RATE_HZ, subtype="PCM_16")
        utterances.append(
            Utterance(
                id=name,
                audio=f"{number}.wav",
                sha256=sha256(samples.tobytes()).hexdigest(),
                text=text,
                duration_s=len(samples) / RATE_HZ,
            )
        )
        fingerprints.append(fingerprint(samples))
    with ManifestWriter(folder) as writer:
        for start in range(0, len(utterances), BATCH):
            part = slice(start, start + BATCH)
            writer.write(utterance_table(utterances[part], fingerprints=fingerprints[part]))
    return artifact(folder, "select", parts={f"d/{folder.name}": len(utterances)})
