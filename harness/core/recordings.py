"""Reading recordings that a dataset's step has prepared."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from harness.core.manifests import SAMPLE_RATE_HZ, SHARDED
from harness.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np


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
