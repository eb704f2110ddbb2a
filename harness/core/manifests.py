"""Manifests: Parquet inside, NeMo's and Hugging Face's JSON lines beside it.

A set of a million clips is streamed in batches of columns; nothing here holds more than one batch.
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

from harness.core.records import Utterance
from harness.errors import DataError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import pyarrow as pa
    import pyarrow.parquet as pq

SAMPLE_RATE_HZ = 16_000
UTTERANCES_FILE = "utterances.parquet"
NEMO_FILE = "manifest.jsonl"
HUGGING_FACE_FILE = "manifest.hf.jsonl"
EXTRA = ("id", "sha256", "speaker", "split", "source", "tags")
"""Fields beside NeMo's three; NeMo's and Hugging Face's loaders pass over what they do not know."""
BATCH = 10_000
"""Utterances in a batch, and in a row group."""
SHARDED = re.compile(r"^(?P<shard>.*?(?P<number>\d+)\.tar)/(?P<member>[^/]+)@(?P<offset>\d+)\+(?P<size>\d+)$")
"""`audio` of a recording inside a shard: `audio/00012.tar/ru_0001.flac@1536+48211`, its first byte and its size."""


@cache
def utterance_schema() -> pa.Schema:
    """The columns of `utterances.parquet`: those of `Utterance`, and the recording's fingerprint."""
    import pyarrow as pa

    return pa.schema(
        {
            "id": pa.string(),
            "audio": pa.string(),
            "sha256": pa.binary(32),
            "text": pa.string(),
            "duration_s": pa.float64(),
            "speaker": pa.string(),
            "split": pa.string(),
            "source": pa.string(),
            "tags": pa.map_(pa.string(), pa.string()),
            "fingerprint": pa.binary(),
        }
    )


class ManifestWriter:
    """Writes the three manifests of a folder, batch by batch. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_utterances = 0
        self.audio_s = 0.0

    def __enter__(self) -> Self:
        import pyarrow.parquet as pq

        self._parquet = pq.ParquetWriter(self.folder / UTTERANCES_FILE, utterance_schema(), compression="zstd")
        self._nemo = (self.folder / NEMO_FILE).open("w", encoding="utf-8", newline="\n")
        self._hugging_face = (self.folder / HUGGING_FACE_FILE).open("w", encoding="utf-8", newline="\n")
        return self

    def __exit__(self, *_: object) -> None:
        self._parquet.close()
        self._nemo.close()
        self._hugging_face.close()

    def write(self, batch: pa.RecordBatch | pa.Table) -> None:
        """batch: of `utterance_schema()`."""
        import pyarrow as pa

        table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
        self._parquet.write_table(table.select(utterance_schema().names), row_group_size=BATCH)
        for start in range(0, table.num_rows, BATCH):
            for item in _utterances(table.slice(start, BATCH)):
                self._write_lines(item)
                self.num_utterances += 1
                self.audio_s += item.duration_s

    def _write_lines(self, item: Utterance) -> None:
        extra = {name: getattr(item, name) for name in EXTRA}
        nemo = {"audio_filepath": item.audio, "text": item.text, "duration": item.duration_s, **extra}
        sharded = SHARDED.match(item.audio)
        if sharded:
            # As NeMo's tarred datasets have it: the member's name, and the number of its shard.
            nemo |= {"audio_filepath": sharded["member"], "shard_id": int(sharded["number"])}
        audio = {"path": item.audio, "sampling_rate": SAMPLE_RATE_HZ}
        hugging_face = {"audio": audio, "sentence": item.text, "duration": item.duration_s, **extra}
        self._nemo.write(json.dumps(nemo, ensure_ascii=False) + "\n")
        self._hugging_face.write(json.dumps(hugging_face, ensure_ascii=False) + "\n")


def utterance_table(utterances: Sequence[Utterance], *, fingerprints: Sequence[bytes | None] | None = None) -> pa.Table:
    """Utterances as columns."""
    import pyarrow as pa

    columns = {name: [getattr(item, name) for item in utterances] for name in Utterance.__dataclass_fields__}
    columns["sha256"] = [bytes.fromhex(digest) for digest in columns["sha256"]]
    columns["tags"] = [list(tags.items()) for tags in columns["tags"]]
    columns["fingerprint"] = [None] * len(utterances) if fingerprints is None else list(fingerprints)
    return pa.table(columns, schema=utterance_schema())


def write_manifests(folder: Path, utterances: Iterable[Utterance]) -> None:
    """Write all three manifests into `folder`; without fingerprints."""
    rest = iter(utterances)
    with ManifestWriter(folder) as writer:
        while batch := list(islice(rest, BATCH)):
            writer.write(utterance_table(batch))


def iterate_utterances(folder: Path, *, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The utterances of a folder that this module wrote, in batches of columns; of all columns if none are named."""
    if (folder / UTTERANCES_FILE).is_file():
        with _opened(folder) as file:
            names = list(file.schema_arrow.names if columns is None else columns)
            for field in map(utterance_schema().field, names):
                if file.schema_arrow.field(field.name).type != field.type:
                    raise TypeError(f"its column '{field.name}' is not {field.type}")
            for batch in file.iter_batches(BATCH, columns=names):
                batch.validate(full=True)  # texts that are no UTF-8
                yield batch
        return
    # Schema 1 of the store had JSON lines only.
    rows = read_jsonl(folder / NEMO_FILE)
    while batch := list(islice(rows, BATCH)):
        table = utterance_table([_from_nemo(row) for row in batch])
        yield from (table if columns is None else table.select(list(columns))).to_batches()


@contextmanager
def _opened(folder: Path) -> Iterator[pq.ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / UTTERANCES_FILE
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}); remove {folder} and run again") from error


def count_utterances(folder: Path) -> int:
    """How many utterances a folder lists, without reading them."""
    if (folder / UTTERANCES_FILE).is_file():
        with _opened(folder) as file:
            return int(file.metadata.num_rows)
    return sum(1 for _ in read_jsonl(folder / NEMO_FILE))


def read_manifest(folder: Path) -> list[Utterance]:
    """The utterances of a folder that this module wrote, all at once: for held-out sets, not for training sets."""
    names = list(Utterance.__dataclass_fields__)
    return [item for batch in iterate_utterances(folder, columns=names) for item in _utterances(batch)]


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One compact JSON object a line, UTF-8, Unix line ends on every system."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _utterances(batch: pa.RecordBatch | pa.Table) -> Iterator[Utterance]:
    names = list(Utterance.__dataclass_fields__)
    columns = [batch.column(name).to_pylist() for name in names]
    for values in zip(*columns, strict=True):
        row = dict(zip(names, values, strict=True))
        yield Utterance(**{**row, "sha256": row["sha256"].hex(), "tags": dict(row["tags"] or ())})


def _from_nemo(row: dict[str, Any]) -> Utterance:
    named = {name: row[name] for name in EXTRA}
    return Utterance(audio=row["audio_filepath"], text=row["text"], duration_s=row["duration"], **named)
