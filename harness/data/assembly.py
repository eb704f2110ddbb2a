"""The parts of a prepared corpus put together: duplicates settled, hours cut to size, manifests and card written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.manifests import ManifestWriter, utterance_schema
from harness.data.card import write_card
from harness.data.decoding import rows_path
from harness.data.index import Refusal, stable_order
from harness.data.report import LINES_FILE, Report
from harness.data.storage import AUDIO_FOLDER
from harness.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from harness.core.artifact import Work
    from harness.data.corpus import CorpusSpec
    from harness.data.index import Index

TRAINED = (None, "train")
"""Splits that `max_hours` cuts; a corpus's held-out splits stay whole."""


def assemble(spec: CorpusSpec, *, index: Index, work: Work) -> dict[str, Any]:
    """Write the manifests and the report, and hand over the recordings. Returns the artifact's meta.

    Raises DataError if lines cannot be used (`on_bad: refuse`), or if none can.
    """
    parts = [rows_path(work.scratch, number=number) for number in range(index.num_parts)]
    keys = _keys(parts)
    firsts = _first_of_equal(parts, keys=keys)
    surplus = _surplus(keys, firsts=firsts, max_hours=spec.max_hours)
    speakers: set[str] = set()
    with Report(work.path) as report, ManifestWriter(work.path) as writer:
        report.num_lines = index.num_lines
        for table, start in _tables(parts):
            kept = _keep(
                table, start=start, firsts=firsts, surplus=surplus, report=report, index=index, scratch=work.scratch
            )
            writer.write(kept.select(utterance_schema().names))
            speakers.update(speaker for speaker in kept.column("speaker").unique().to_pylist() if speaker is not None)
        for refusal in index.refusals():
            report.refuse(refusal)
    _refuse_bad(spec, report=report, num_utterances=writer.num_utterances, work=work)
    work.adopt(AUDIO_FOLDER)
    cut = [f"{len(surplus)} clips beyond max_hours ({spec.max_hours:g}) were left out"] if surplus else []
    notes = [*index.notes, *report.sentences(), *cut]
    title = f"{spec.kind}: {Path(spec.path).name}"
    write_card(work.path, title=title, licences={title: spec.licence}, rejected=report.refused, notes=notes)
    return {
        "num_utterances": writer.num_utterances,
        "audio_s": round(writer.audio_s, 3),
        "num_speakers": len(speakers),
        "licence": spec.licence,
        "notes": notes,
        **report.counts,
    }


def _tables(parts: Sequence[Path], *, columns: list[str] | None = None) -> Iterator[tuple[pa.Table, int]]:
    """The table of each part, and the number of rows before it."""
    import pyarrow.parquet as pq

    start = 0
    for path in parts:
        table = pq.read_table(path, columns=columns)
        yield table, start
        start += table.num_rows


def _keys(parts: Sequence[Path]) -> npt.NDArray[np.void]:
    """A record of 33 bytes for each row: enough to find equal recordings, and to cut hours."""
    import numpy as np

    kind = np.dtype([("sha256", "V16"), ("order", "<u8"), ("duration_s", "<f4"), ("used", "?"), ("trained", "?")])
    chunks = [np.empty(0, kind)]
    for table, _ in _tables(parts, columns=["sha256", "id", "duration_s", "split", "reason"]):
        chunk = np.zeros(table.num_rows, kind)
        chunk["sha256"] = np.frombuffer(b"".join(value[:16] for value in table["sha256"].to_pylist()), "V16")
        chunk["order"] = [stable_order(name) for name in table["id"].to_pylist()]
        chunk["duration_s"] = table["duration_s"].to_numpy()
        chunk["used"] = [reason is None for reason in table["reason"].to_pylist()]
        chunk["trained"] = [split in TRAINED for split in table["split"].to_pylist()]
        chunks.append(chunk)
    return np.concatenate(chunks)


def _first_of_equal(parts: Sequence[Path], *, keys: npt.NDArray[np.void]) -> dict[int, tuple[int, str]]:
    """For each row whose recording came before: line and text of the first one."""
    import numpy as np

    used = np.flatnonzero(keys["used"])
    _, first, inverse = np.unique(keys["sha256"][used], return_index=True, return_inverse=True)
    firsts = used[first][inverse]
    again = used[firsts != used]
    if not len(again):
        return {}
    origin = dict(zip(again.tolist(), firsts[firsts != used].tolist(), strict=True))
    wanted = set(origin.values())
    told: dict[int, tuple[int, str]] = {}
    for table, start in _tables(parts, columns=["line", "text"]):
        here = [row for row in range(table.num_rows) if start + row in wanted]
        for row in here:
            told[start + row] = (table["line"][row].as_py(), table["text"][row].as_py())
    return {row: told[first] for row, first in origin.items()}


def _surplus(keys: npt.NDArray[np.void], *, firsts: dict[int, tuple[int, str]], max_hours: float | None) -> set[int]:
    """Rows of the training part that the hours have no room for, in the order of the stable sample."""
    import numpy as np

    if max_hours is None:
        return set()
    candidates = keys["used"] & keys["trained"]
    candidates[list(firsts)] = False
    rows = np.flatnonzero(candidates)
    rows = rows[np.argsort(keys["order"][rows], kind="stable")]
    before_s = np.cumsum(keys["duration_s"][rows], dtype=np.float64) - keys["duration_s"][rows]
    return set(rows[before_s >= max_hours * 3600].tolist())


def _keep(
    table: pa.Table,
    *,
    start: int,
    firsts: dict[int, tuple[int, str]],
    surplus: set[int],
    report: Report,
    index: Index,
    scratch: Path,
) -> pa.Table:
    """The rows that stay; what becomes of the others goes into the report."""
    import pyarrow as pa

    kept = []
    columns = {name: table[name].to_pylist() for name in ("line", "id", "text", "audio", "reason", "message", "notes")}
    for row, (line, name, text, audio, reason, message, notes) in enumerate(zip(*columns.values(), strict=True)):
        stays = reason is None and start + row not in firsts and start + row not in surplus
        if reason is not None:
            index.refuse_decoded(Refusal(line, name, reason, message))
        elif start + row in firsts:
            _settle_duplicate(line, name, text, first=firsts[start + row], report=report, index=index)
        elif stays:
            for what in notes:
                report.note(line, what=what)
        if stays:
            kept.append(row)
        elif audio and "@" not in audio:  # a shard keeps what it has
            (scratch / audio).unlink(missing_ok=True)
    return table.take(pa.array(kept, pa.int64()))


def _settle_duplicate(line: int, name: str, text: str, *, first: tuple[int, str], report: Report, index: Index) -> None:
    first_line, first_text = first
    if text == first_text:
        report.drop(line, of_line=first_line)
        return
    message = (
        f"{name} is the recording of line {first_line} with another text: {text!r}, there {first_text!r}; "
        "leave out the wrong one"
    )
    index.refuse_decoded(Refusal(line, name, "two texts", message))


def _refuse_bad(spec: CorpusSpec, *, report: Report, num_utterances: int, work: Work) -> None:
    if not report.num_lines:
        raise DataError(f"{spec.path}: nothing is listed there; the corpus must have at least one recording")
    if num_utterances and (spec.on_bad == "skip" or not report.num_refused):
        return
    kept = work.scratch / LINES_FILE
    (work.path / LINES_FILE).replace(kept)
    advice = "mend them, or leave them out with `on_bad: skip`" if spec.on_bad == "refuse" else "none is left"
    raise DataError(
        f"{spec.path}: {report.num_refused} of {report.num_lines} lines cannot be used; {advice}\n"
        f"{report.summary()}\nThe whole report: {kept}"
    )
