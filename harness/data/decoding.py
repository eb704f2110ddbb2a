"""One part of a corpus, from content to prepared recordings and a table: the work of one process."""

from __future__ import annotations

import os
import re
import shutil
import threading
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from harness.core.manifests import utterance_schema, utterance_table
from harness.core.records import Utterance
from harness.core.text import normalise
from harness.data.audio import read_recording
from harness.data.entries import file_names
from harness.data.fingerprint import fingerprint
from harness.data.report import RefusedError
from harness.data.storage import Content, PartWriter, Span, part_path, read_content

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from harness.data.index import Row

ROWS_FOLDER = "rows"
NOTED = {"Latin letters in the text": re.compile(r"[A-Za-z]"), "digits in the text": re.compile(r"\d")}


@dataclass(frozen=True, slots=True)
class Part:
    """What a process is given: rows of the corpus, and where their recordings and texts are."""

    number: int
    scratch: Path
    """Its recordings go to `audio/` here, its table to `rows/`."""
    storage: str
    root: Path | None
    """The corpus's folder: files outside it are refused."""
    rows: list[tuple[Row, Content, str | Content]]


def rows_path(scratch: Path, *, number: int) -> Path:
    """The table of a part; where it is, the part is done."""
    return scratch / ROWS_FOLDER / f"{number:05}.parquet"


@cache
def decoded_schema() -> pa.Schema:
    """An utterance's columns, the corpus's line, notes on the recording, and why it was refused, if it was."""
    import pyarrow as pa

    more = {"line": pa.int64(), "notes": pa.list_(pa.string()), "reason": pa.string(), "message": pa.string()}
    return pa.schema([*utterance_schema(), *(pa.field(name, kind) for name, kind in more.items())])


def start_process() -> None:
    """One thread for linear algebra, since every core has a process; and an end when the parent ends, however."""
    from multiprocessing import parent_process

    # Read when numpy is first imported, which is later.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    parent = parent_process()
    if parent is not None:

        def wait() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=wait, daemon=True).start()


def decode_part(part: Part) -> int:
    """Prepare all recordings of a part; its table is published last. Returns the number of rows.

    Raises OSError if the disk is full.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    target = part.scratch / part_path(part.number, storage=part.storage)
    if target.is_dir():
        shutil.rmtree(target)  # of an attempt that was killed
    names = file_names(row.id for row, _, _ in part.rows)
    utterances, more = [], []
    with PartWriter(part.scratch, number=part.number, storage=part.storage) as writer:
        for (row, content, text), name in zip(part.rows, names, strict=True):
            utterance, extra = _prepare(row, content, text, name=name, root=part.root, writer=writer)
            utterances.append(utterance)
            more.append(extra)
    table = utterance_table(utterances, fingerprints=[extra["fingerprint"] for extra in more])
    for field in list(decoded_schema())[len(utterance_schema()) :]:
        table = table.append_column(field, pa.array([extra[field.name] for extra in more], field.type))
    path = rows_path(part.scratch, number=part.number)
    temporary = path.with_suffix(".tmp")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)
    return len(part.rows)


def _prepare(  # one row, spread out
    row: Row, content: Content, text: str | Content, *, name: str, root: Path | None, writer: PartWriter
) -> tuple[Utterance, dict[str, Any]]:
    extra: dict[str, Any] = {"line": row.line, "notes": [], "reason": None, "message": None, "fingerprint": None}
    audio, sha256, transcript, duration_s = "", "00" * 32, "", 0.0
    try:
        transcript = _transcript(text, row=row, root=root)
        source = _inside(content, name=row.audio, root=root)
        recording = read_recording(source, name=row.audio, duration_s=row.duration_s)
        audio, sha256, duration_s = writer.add(name, samples=recording.samples), recording.sha256, recording.duration_s
        extra["notes"] = [*recording.notes, *(what for what, pattern in NOTED.items() if pattern.search(transcript))]
        extra["fingerprint"] = fingerprint(recording.samples)
    except RefusedError as error:
        extra |= {"reason": error.reason, "message": str(error)}
    utterance = Utterance(
        id=row.id,
        audio=audio,
        sha256=sha256,
        text=transcript,
        duration_s=duration_s,
        speaker=row.speaker,
        split=row.split,
        tags=row.tags,
    )
    return utterance, extra


def _inside(content: Content, *, name: str, root: Path | None) -> Path | bytes:
    """What soundfile reads. Raises RefusedError for a file that is missing or, links followed, outside `root`."""
    if isinstance(content, bytes):
        if not content:
            raise RefusedError("missing file", f"there is nothing of {name}: cut off, or left out when it was packed")
        return content
    if isinstance(content, Span):
        return content.read()
    try:
        path = content.resolve(strict=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise RefusedError(
            "missing file", f"there is no file {name} in {root}; put it there or leave the line out"
        ) from error
    if root is None or not path.is_relative_to(root):
        raise RefusedError("outside the folder", f"{name} leads out of {root}; move the recording, or leave it out")
    if not path.is_file():
        raise RefusedError("missing file", f"{name} in {root} is no file; put the recording there")
    return path


def _transcript(text: str | Content, *, row: Row, root: Path | None) -> str:
    if not isinstance(text, str):
        try:
            source = _inside(text, name=row.text_file, root=root) if text else b""
        except RefusedError as error:
            raise RefusedError(
                "missing text" if error.reason == "missing file" else error.reason, str(error)
            ) from error
        try:
            text = (source if isinstance(source, bytes) else read_content(source)).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise RefusedError(
                "not UTF-8", f"byte {error.start} of {row.text_file} is not UTF-8; save it as UTF-8"
            ) from error
    transcript = " ".join(unicodedata.normalize("NFC", text).split())
    if not normalise(transcript):
        raise RefusedError(
            "empty transcript", f"the transcript of {row.audio} has no words: {transcript!r}; leave it out"
        )
    return transcript
