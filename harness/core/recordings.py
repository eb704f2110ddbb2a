"""Reading recordings that a dataset's step has prepared."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from harness.core.manifests import SAMPLE_RATE_HZ, SHARDED
from harness.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

RATES_HZ = range(1_000, 1_000_001)
BLOCK = 1 << 20
"""Frames that are decoded at once."""
MAX_VALUES = 1 << 28
"""Samples of all channels that are read at once, 1 GiB: 4.6 hours at 16 kHz, 1.5 hours of stereo at CD quality."""


def read_all(file: Any) -> np.ndarray:
    """The whole of a recording from anywhere, whose header may promise what the file does not hold.

    file: an open soundfile.SoundFile. Returns float32 [num_frames, num_channels].
    Raises ValueError for a sampling rate that no recording has, and for one that is too long to be read at once.
    """
    import numpy as np

    check_rate(file)
    blocks: list[np.ndarray] = []
    # As a stream: a header that knows no length, or a false one, must not decide how much memory is taken.
    while sum(block.size for block in blocks) < MAX_VALUES:
        blocks.append(file.read(BLOCK, dtype="float32", always_2d=True))
        if len(blocks[-1]) < BLOCK:
            whole: np.ndarray = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
            return whole
    raise ValueError(f"over {MAX_VALUES:,} samples; cut it into pieces")


def check_rate(file: Any) -> None:
    """Raises ValueError for a sampling rate that no recording has: from 1 Hz, a second would become 16,000."""
    if file.samplerate not in RATES_HZ:
        raise ValueError(f"{file.samplerate} Hz, not one of {RATES_HZ.start:,} to {RATES_HZ.stop - 1:,}")


def read_samples(path: Path) -> np.ndarray:
    """The samples of a 16 kHz mono recording: float32 [num_samples] in [-1, 1].

    path: a file, or a place in a shard as manifests write it (`audio/00012.tar/ru_0001.flac@1536+48211`).
    Raises DataError for another sampling rate or more channels.
    """
    import soundfile

    sharded = SHARDED.match(path.as_posix())
    if sharded:
        with path.parent.open("rb") as shard:
            shard.seek(int(sharded["offset"]))
            source: Path | io.BytesIO = io.BytesIO(shard.read(int(sharded["size"])))
    else:
        source = path
    samples, rate_hz = soundfile.read(source, dtype="float32", always_2d=True)
    if (rate_hz, samples.shape[1]) != (SAMPLE_RATE_HZ, 1):
        raise DataError(
            f"{path}: {rate_hz} Hz with {samples.shape[1]} channels, not {SAMPLE_RATE_HZ} Hz mono; "
            "run the dataset's step again, it writes recordings in this form"
        )
    mono: np.ndarray = samples[:, 0]
    return mono
