"""Any dataset of the Hugging Face hub with recordings and texts in columns; or one that was saved to disk."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from harness.core.artifact import Resources
from harness.core.files import beside, parse_json_file
from harness.data.archives import Member
from harness.data.corpus import CorpusSpec
from harness.data.index import Refusal, Row
from harness.data.preparation import open_index, prepare
from harness.errors import DataError, MissingError, first_line
from harness.suite.wording import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa

    from harness.core.artifact import Inputs, Work
    from harness.data.index import Place
    from harness.data.preparation import Share
    from harness.data.storage import Content

VERSION = 1
RESOURCES = Resources(whole_machine=True)

PAGE = "https://huggingface.co/datasets"
HUB_TIMEOUT_S = 20
BATCH = 10_000
USUAL = {"validation": "dev", "valid": "dev", "val": "dev", "eval": "dev"}
"""How the hub calls splits → how a suite does."""
SPLIT_FILE = re.compile(r"(?P<split>train|validation|valid|val|dev|test)(?![a-z])")
"""How the name of a Parquet file tells its split: `train-00000-of-00002.parquet`."""
SAVED, STATE = "dataset_dict.json", "state.json"
"""What `save_to_disk` leaves, of several splits or of one."""
NAME = re.compile(r"\w[\w.-]*")
ROWS = 100
"""Of Parquet that are in memory at once: recordings."""


class Spec(CorpusSpec):
    """A dataset's id on the hub, or a `path`."""

    kind: Literal["hub"] = "hub"
    id: str | None = Field(
        default=None, pattern=r"^[\w.-]+(/[\w.-]+)?$", description="On the hub: bond005/sberdevices_golos_10h_crowd."
    )
    path: str = Field(
        default="", description="In place of `id`: a folder of `save_to_disk`, a Parquet file, or a folder of them."
    )
    config: str | None = Field(default=None, description="Of a dataset that has several.")
    revision: str = Field(default="main", description="Branch, tag or commit.")
    splits: dict[str, str] = Field(
        default={}, description="Split → what the dataset calls it; all, with validation as dev, by default."
    )
    audio: str = Field(default="audio", description="Column of the recordings.")
    text: str = Field(default="text", description="Column of the transcripts.")
    speaker: str | None = Field(default=None, description="Column of the speakers.")
    duration: str | None = Field(default=None, description="Column of the seconds.")
    tags: list[str] = Field(default=[], description="Columns to keep as tags.")

    @model_validator(mode="after")
    def _have_one_place(self) -> Self:
        if bool(self.id) == bool(self.path):
            raise ValueError("give either `id`, a dataset of the hub, or `path`, what lies on this machine")
        if self.id and self.tasks > 1:
            raise ValueError(
                f"tasks is {self.tasks}, but each machine would ask the hub for `id` itself; save the dataset into a "
                "folder that all machines see (save_to_disk) and give its `path`, or leave `tasks` out"
            )
        return self

    def outside(self) -> list[Path]:
        """The files of a dataset on disk; what the hub has, id and revision say."""
        path = Path(self.path)
        if self.id or not path.is_dir():
            return [] if self.id else [path]
        patterns = ("*.json", "*.arrow", "*.parquet")
        return sorted(item for above in ("", "*/") for pattern in patterns for item in path.glob(f"{above}{pattern}"))


def run(spec: Spec, inputs: Inputs, work: Work, *, share: Share | None = None) -> dict[str, Any]:
    """Write the recordings (16 kHz mono), the manifests, and a report with what became of each row.

    Raises DataError if the dataset is not what the columns say or has nothing to use, MissingError if it is out of
    reach: no network, or terms to accept first.
    """
    work.progress(0, 1, spec.id or spec.path)
    loaded, revision = _from_hub(spec.id, spec=spec) if spec.id else (_from_disk(spec, scratch=work.scratch), None)
    corpus = HubCorpus(spec, _chosen(spec, loaded))
    with open_index(inputs, work, share=share) as index:
        if not index.complete:
            for number in range(len(corpus.splits)):
                index.add_members(corpus.members(number), place=number)
        meta = prepare(spec, corpus=corpus, index=index, inputs=inputs, work=work, share=share, rows=corpus.rows)
    licence = spec.licence or (f"see {PAGE}/{spec.id}" if spec.id else "")
    return {**meta, "licence": licence, **({"revision": revision} if revision else {})}


class HubCorpus:
    """The rows of a dataset as a corpus; a recording's name is its split and its number there."""

    folder: Path | None = None

    def __init__(self, spec: Spec, splits: Mapping[str, pa.Table]) -> None:
        """Raises DataError if a column is not there or holds something else."""
        self.spec = spec
        self.splits = list(splits)
        self._tables = list(splits.values())
        self._roots = _roots(spec)
        for split, table in zip(self.splits, self._tables, strict=True):
            _refuse_columns(spec, split=split, schema=table.schema)

    def members(self, number: int) -> Iterator[Member]:
        """Where the recordings of a split are, with their sizes in bytes."""
        import pyarrow.compute as pc

        column = self._tables[number].column(self.spec.audio)
        position = 0
        for chunk in column.chunks:
            for size in pc.binary_length(_bytes_of(chunk)).to_pylist():
                yield Member(_name(self.splits[number], position), position, size or 0)
                position += 1

    def rows(self) -> Iterator[Row | Refusal]:
        columns = [self.spec.text, self.spec.speaker, self.spec.duration, *self.spec.tags]
        wanted = list(dict.fromkeys(name for name in columns if name is not None))
        line = 0
        for split, table in zip(self.splits, self._tables, strict=True):
            position = 0
            for batch in table.select(wanted).to_batches(BATCH):
                for values in batch.to_pylist():
                    line += 1
                    yield self._row(values, line=line, name=_name(split, position), split=split)
                    position += 1

    def contents(self, part: Sequence[tuple[Row, Place]]) -> list[tuple[Content, str | Content]]:
        """All rows of a part are of one split."""
        column = self._tables[part[0][1].number or 0].column(self.spec.audio)
        values = [column[place.offset].as_py() for _, place in part]
        return [(self._content(value), row.text or "") for (row, _), value in zip(part, values, strict=True)]

    def size_of(self, audio: str) -> int:
        del audio
        return 0

    def tables(self, pattern: str) -> list[str]:
        del pattern
        return []

    def lines(self, name: str) -> Iterator[tuple[int, bytes]]:
        raise DataError(f"{name}: a dataset of the hub has no tables")

    def recordings(self) -> Iterator[str]:
        return (
            _name(split, n)
            for split, table in zip(self.splits, self._tables, strict=True)
            for n in range(table.num_rows)
        )

    def _row(self, values: Mapping[str, Any], *, line: int, name: str, split: str) -> Row | Refusal:
        text = values[self.spec.text]
        if text is None or not text.strip():
            return Refusal(line, name, "missing text", f"row {line} has nothing in column '{self.spec.text}'")
        speaker = values[self.spec.speaker] if self.spec.speaker else None
        duration_s = values[self.spec.duration] if self.spec.duration else None
        return Row(
            line=line,
            audio=name,
            text=text,
            id=name,
            duration_s=float(duration_s) if duration_s else None,
            speaker=None if speaker is None else str(speaker),
            split=split,
            tags={tag: str(values[tag]) for tag in self.spec.tags if values[tag] is not None},
        )

    def _content(self, value: bytes | dict[str, Any] | None) -> bytes:
        """The recording's file; empty if it is not there, or where the dataset has no business."""
        if isinstance(value, bytes) or value is None:
            return value or b""
        if value["bytes"] or not value.get("path"):
            return value["bytes"] or b""
        path = Path(value["path"]).resolve()
        return path.read_bytes() if any(map(path.is_relative_to, self._roots)) and path.is_file() else b""


def _name(split: str, position: int) -> str:
    return f"{split}/{position:08}"


def _bytes_of(chunk: pa.Array) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.struct_field(chunk, "bytes") if pa.types.is_struct(chunk.type) else chunk


def _refuse_columns(spec: Spec, *, split: str, schema: pa.Schema) -> None:
    import pyarrow as pa

    def is_audio(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and is_audio(field.type) for field in kind)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def is_text(kind: pa.DataType) -> bool:
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

    def is_number(kind: pa.DataType) -> bool:
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind))

    where = f"{spec.id or spec.path}, split {split}"
    named = {"audio": spec.audio, "text": spec.text, "speaker": spec.speaker, "duration": spec.duration}
    for field, column in [*named.items(), *(("tags", column) for column in spec.tags)]:
        if column is not None and column not in schema.names:
            hint = did_you_mean(column, schema.names)
            raise DataError(f"{where}: no column '{column}' for `{field}`{hint} (it has: {', '.join(schema.names)})")
    if not is_audio(schema.field(spec.audio).type):
        raise DataError(f"{where}: column '{spec.audio}' holds {schema.field(spec.audio).type}, not recordings")
    if spec.duration is not None and not is_number(schema.field(spec.duration).type):
        raise DataError(f"{where}: column '{spec.duration}' holds {schema.field(spec.duration).type}, not seconds")
    if not is_text(schema.field(spec.text).type):
        raise DataError(f"{where}: column '{spec.text}' holds {schema.field(spec.text).type}, not texts")


def _chosen(spec: Spec, loaded: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    """The wanted splits, under the names that the suite gives them."""
    lacking = [name for name in spec.splits.values() if name not in loaded]
    if lacking:
        raise DataError(
            f"{spec.id or spec.path}: no split '{lacking[0]}'{did_you_mean(lacking[0], loaded)} "
            f"(it has: {', '.join(loaded)})"
        )
    if spec.splits:
        return {split: loaded[name] for split, name in spec.splits.items()}
    return {name if USUAL.get(name) in loaded else USUAL.get(name, name): item for name, item in loaded.items()}


def _roots(spec: Spec) -> list[Path]:
    """Where files may lie that a dataset names in place of holding them."""
    if spec.path:
        path = Path(spec.path).resolve()
        return [path if path.is_dir() else path.parent]
    import datasets
    from huggingface_hub import constants

    return [Path(constants.HF_HUB_CACHE).resolve(), Path(datasets.config.HF_DATASETS_CACHE).resolve()]


def _from_disk(spec: Spec, *, scratch: Path) -> dict[str, pa.Table]:
    """Split → its rows. Read without `datasets`, which follows whatever paths the files name."""
    import pyarrow as pa

    path = Path(spec.path)
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder; `path` must name a saved dataset, or Parquet files")
    try:
        if (path / SAVED).is_file():
            splits = _plain(parse_json_file(path / SAVED)["splits"])
            return {split: _saved(path / split)[1] for split in splits}
        if (path / STATE).is_file():
            return dict([_saved(path)])
        return {
            split: _as_arrow(files, copy=scratch / f"{number}.arrow")
            for number, (split, files) in enumerate(_parquet_files(path).items())
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError, MemoryError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}); save or fetch the dataset again") from error


def _saved(folder: Path) -> tuple[str, pa.Table]:
    """What `save_to_disk` has left of one split, and what it calls it."""
    import pyarrow as pa

    state = parse_json_file(folder / STATE)
    names = _plain([file["filename"] for file in state["_data_files"]])
    return _plain([state["_split"] or "train"])[0], pa.concat_tables([_mapped(folder / name) for name in names])


def _plain(names: list[str]) -> list[str]:
    """Names of splits or files. Raises ValueError for a path."""
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"it names {name!r:.100}, which is no plain name")
    return names


def _mapped(path: Path) -> pa.Table:
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_stream(file).read_all()
    # Offsets that point beyond the file would end the process.
    table.validate(full=True)
    return table


def _as_arrow(files: list[str], *, copy: Path) -> pa.Table:
    """The rows of Parquet files as one Arrow file, which need not fit into memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if copy.is_file():
        return _mapped(copy)
    with pq.ParquetFile(files[0]) as first:
        schema = first.schema_arrow.remove_metadata()
    with pa.OSFile(str(beside(copy)), "wb") as target, pa.ipc.new_stream(target, schema) as writer:
        for name in files:
            with pq.ParquetFile(name) as file:
                num_rows, num_bytes = file.metadata.num_rows, Path(name).stat().st_size
                if num_rows > num_bytes:
                    raise ValueError(f"{Path(name).name} claims {num_rows} rows in {num_bytes} bytes")
                for batch in file.iter_batches(ROWS):
                    writer.write_batch(batch.cast(schema))
    beside(copy).replace(copy)
    return _mapped(copy)


def _parquet_files(path: Path) -> dict[str, list[str]]:
    """Split → its files."""
    places = [item for above in ("", "*/") for item in path.glob(f"{above}*.parquet")]
    files = [path] if path.suffix == ".parquet" and path.is_file() else sorted(places)
    if not files:
        raise DataError(
            f"{path}: neither a folder of `save_to_disk` nor Parquet files; save the dataset as one of them"
        )
    by_split: dict[str, list[str]] = {}
    for file in files:
        found = SPLIT_FILE.match(file.name)
        by_split.setdefault(found["split"] if found else "train", []).append(str(file))
    return by_split


def _from_hub(name: str, *, spec: Spec) -> tuple[dict[str, pa.Table], str | None]:
    """All splits, and the commit that they are of, where the hub could be asked."""
    from huggingface_hub import HfApi, errors

    revision = None
    try:
        # Asked first: `load_dataset` tries again and again before it says that there is no network.
        revision = HfApi().dataset_info(name, revision=spec.revision, timeout=HUB_TIMEOUT_S).sha
    except errors.GatedRepoError as error:
        raise _gated(name) from error
    except errors.RevisionNotFoundError as error:
        raise DataError(f"{name}: the hub has no revision '{spec.revision}' of it; see {PAGE}/{name}") from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(
            f"{name}: the hub has no such dataset, or it is private; check `id`, or log in with `hf auth login`"
        ) from error
    except Exception:  # noqa: BLE001  # whatever keeps the hub away, the cache may have it
        revision = None
    import datasets

    try:
        loaded = datasets.load_dataset(name, spec.config, revision=revision or spec.revision)
    except ConnectionError as error:
        raise MissingError(
            f"{name}: the hub is out of reach ({first_line(error)}), and there is no copy on this machine; on one "
            f"with a network run datasets.load_dataset('{name}').save_to_disk('FOLDER'), and give `path: FOLDER`"
        ) from error
    except Exception as error:
        if "gated dataset" in str(error):
            raise _gated(name) from error
        raise DataError(f"{name}: cannot be loaded: {first_line(error)}{_advice(error)}") from error
    return {split: item.data.table for split, item in loaded.items()}, revision


def _gated(name: str) -> MissingError:
    return MissingError(
        f"{name}: its authors want their terms accepted first: do so at {PAGE}/{name}, log in with `hf auth login`, "
        "and run again"
    )


def _advice(error: Exception) -> str:
    said = str(error)
    if "scripts are no longer supported" in said:
        return "; nobody runs such scripts any more: look for a copy of the dataset in Parquet"
    return "; name one in `config`" if "onfig" in said else ""
