"""Where recordings come from, and how prepared ones are kept: as WAV or FLAC files, or as FLAC in tar shards."""

from __future__ import annotations

import io
import tarfile
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from harness.core.manifests import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Samples = npt.NDArray[np.int16]

AUDIO_FOLDER = "audio"
TAR_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a file: a member of an archive that is not compressed."""

    path: Path
    offset: int
    size: int

    def open(self) -> IO[bytes]:
        """The piece as a file of its own."""
        return io.BufferedReader(_Window(self), buffer_size=1 << 16)

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


Content = Path | Span | bytes
"""A file of a corpus, wherever it lies."""


def read_content(content: Content) -> bytes:
    """Raises OSError."""
    if isinstance(content, bytes):
        return content
    return content.read() if isinstance(content, Span) else content.read_bytes()


class PartWriter:
    """Keeps the recordings of one part: in the folder `audio/00012`, or in `audio/00012.tar`. A context manager."""

    def __init__(self, folder: Path, *, number: int, storage: str) -> None:
        """folder: that `audio/` lies in."""
        self._form = "WAV" if storage == "wav" else "FLAC"
        self._path = folder / part_path(number, storage=storage)
        self._shard: tarfile.TarFile | None = None
        self._reference = part_path(number, storage=storage)
        if storage == "shards":
            self._shard = tarfile.open(self._path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115  # closed on exit
        else:
            self._path.mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shard is not None:
            self._shard.close()

    def add(self, name: str, *, samples: Samples) -> str:
        """Keep int16 [num_samples], 16 kHz mono, as `name`, fit for a file name; returns what manifests call it.

        Equal samples give equal files.
        """
        file = f"{name}.{self._form.lower()}"
        if self._shard is None:
            with (self._path / file).open("wb") as target:
                self._encode(samples, target)
            return f"{self._reference}/{file}"
        buffer = io.BytesIO()
        self._encode(samples, buffer)
        member = tarfile.TarInfo(file)
        member.size = buffer.seek(0, io.SEEK_END)
        buffer.seek(0)
        self._shard.addfile(member, buffer)
        offset = self._shard.offset - -(-member.size // TAR_BLOCK) * TAR_BLOCK
        return f"{self._reference}/{file}@{offset}+{member.size}"

    def _encode(self, samples: Samples, target: IO[bytes]) -> None:
        if self._form == "WAV":
            # A tenth of the time that libsndfile takes to write through a header and samples.
            with wave.open(target, "wb") as file:
                file.setparams((1, 2, SAMPLE_RATE_HZ, len(samples), "NONE", ""))
                file.writeframesraw(samples.astype("<i2", copy=False).tobytes())
            return
        import soundfile

        soundfile.write(target, samples, SAMPLE_RATE_HZ, format=self._form, subtype="PCM_16")


def part_path(number: int, *, storage: str) -> str:
    """Of a part's recordings, relative to the artifact."""
    return f"{AUDIO_FOLDER}/{number:05}" + (".tar" if storage == "shards" else "")


class _Window(io.RawIOBase):
    def __init__(self, span: Span) -> None:
        self._file = span.path.open("rb")
        self._file.seek(span.offset)
        self._left = span.size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        content = self._file.read(min(len(buffer), self._left))
        buffer[: len(content)] = content
        self._left -= len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()
