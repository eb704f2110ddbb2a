"""Datasets of the Hugging Face hub on disk: Parquet files, and what `save_to_disk` leaves."""

from __future__ import annotations

import io
import json
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from harness.data import hub
from tests.fuzz.corpora import WORDS, clip, json_lines, prepared, put
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})
COLUMNS = {"speaker": "client", "duration": "seconds", "tags": ["topic", "nested"]}
SHARD = "data-00000-of-00001.arrow"


@cache
def table() -> pa.Table:
    count = len(WORDS)
    audio = [{"bytes": clip(n), "path": f"{n}.wav"} for n in range(count - 1)]
    return pa.table(
        {
            "audio": pa.array([*audio, {"bytes": None, "path": "../outside/secret"}], STRUCT),
            "text": pa.array(WORDS),
            "client": pa.array(["a", None, "b", "b"]),
            "seconds": pa.array([0.25] * count),
            "topic": pa.array([1, 2, None, 3]),
            "nested": pa.array([[{"a": [n]}] for n in range(count)]),
        }
    )


def others() -> list[pa.Table]:
    """Columns of other types under the same names."""
    whole = table()
    recordings = whole.column("audio").combine_chunks()
    extension = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": b"\x80\x04cos\nsystem\n.",
    }
    pickled = pa.field("topic", pa.binary(), metadata=extension)
    return [
        changed(audio=recordings.field("bytes")),
        changed(audio=pa.array([[item] for item in recordings.to_pylist()], pa.list_(STRUCT))),
        changed(text=whole.column("text").cast(pa.large_string()), seconds=pa.array([300, None, 0, -1])),
        changed(text=pa.array([{"ru": word} for word in WORDS]), client=pa.nulls(len(WORDS))),
        changed(text=whole.column("text").dictionary_encode(), seconds=pa.array([[0.25]] * len(WORDS))),
        changed(topic=pa.nulls(len(WORDS), pa.binary())).cast(
            pa.schema(
                [
                    pickled if field.name == "topic" else field
                    for field in changed(topic=pa.nulls(len(WORDS), pa.binary())).schema
                ]
            )
        ),
    ]


def changed(**columns: Any) -> pa.Table:
    whole = table()
    return pa.table({name: columns.get(name, whole.column(name)) for name in whole.column_names})


def parquet(content: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(content, buffer, **options)
    return buffer.getvalue()


@cache
def parquets() -> list[bytes]:
    features = json.dumps({"info": {"features": {"text": {"names_file": "../outside/secret", "_type": "ClassLabel"}}}})
    named = table().replace_schema_metadata({"huggingface": features})
    forms: tuple[dict[str, Any], ...] = (
        {},
        {"compression": "zstd"},
        {"data_page_version": "2.0", "use_dictionary": False},
    )
    return [*(parquet(table(), **form) for form in forms), parquet(named), *map(parquet, others())]


def parquet_places(data: bytes) -> Sequence[int]:
    """The footer, and the header of each page of the small columns."""
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    return [*range(max(0, footer), len(data)), *range(max(0, footer - 600), max(0, footer))]


def read_parquet(data: bytes, folder: Path) -> None:
    put(folder / "in", {"train.parquet": data, "test.parquet": parquets()[0]})
    prepared(hub, hub.Spec(path=str(folder / "in"), **COLUMNS), folder)


def arrow(content: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, content.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(content, max_chunksize=2)
    return sink.getvalue().to_pybytes()


@cache
def saved() -> dict[str, bytes]:
    """Of two splits, by name."""
    import datasets

    with tempfile.TemporaryDirectory() as folder:
        whole = datasets.Dataset(table())
        datasets.DatasetDict({"train": whole, "validation": whole.select(range(2))}).save_to_disk(folder)
        root = Path(folder)
        return {item.relative_to(root).as_posix(): item.read_bytes() for item in root.rglob("*") if item.is_file()}


@cache
def arrows() -> list[bytes]:
    return [
        saved()[f"train/{SHARD}"],
        arrow(table(), compression="zstd"),
        arrow(table(), compression="lz4"),
        *map(arrow, others()),
    ]


def arrow_places(data: bytes) -> list[int]:
    """What is no recording: the schema, and what stands before each batch's buffers."""
    marks = [0]
    while (place := data.find(b"\xff\xff\xff\xff", marks[-1] + 4)) >= 0:
        marks.append(place)
    return [offset for mark in marks for offset in range(mark, min(mark + 700, len(data)), 2)]


def read_saved(data: bytes, folder: Path, *, name: str) -> None:
    put(folder / "in", saved() | {name: data})
    prepared(hub, hub.Spec(path=str(folder / "in"), **COLUMNS), folder)


def jsons(name: str) -> Sequence[bytes]:
    return [saved()[name], json_lines([json.loads(saved()[name])])]


TARGETS = (
    Target("hub-parquet", parquets, read_parquet, weight=1.0, places=parquet_places),
    Target("hub-arrow", arrows, partial(read_saved, name=f"train/{SHARD}"), weight=1.0, places=arrow_places),
    *(
        Target(f"hub-{kind}", partial(jsons, name), partial(read_saved, name=name), weight=0.3)
        for kind, name in {
            "splits": hub.SAVED,
            "state": f"train/{hub.STATE}",
            "info": "train/dataset_info.json",
        }.items()
    ),
)
