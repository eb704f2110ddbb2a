"""Who has looked at sealed sets: `ledger.jsonl`, a line for each reading of a test set's figures, never changed again.

Whoever reads a test set, changes the rows or the choice, and reads it again, chooses by it; its figures are then too
good. The ledger does not hinder that. It counts.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock

from harness.board.comparison import best_on_dev
from harness.core.files import append_line, parse_json
from harness.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from harness.board.leaderboard import Line
    from harness.engine.plan import Plan

SCHEMA = 1
LEDGER_FILE = "ledger.jsonl"
"""In `results/<suite>/`."""
PARTS = ("rows", "normalise", "selection")
"""Of an entry, what makes it another reading when it changes."""
SHOWN = 16
"""Letters of a key, as in the names of the store's folders."""

Entry = dict[str, Any]
"""`schema`, `when`, `command`, `heldout`, `why`, `suite_sha256`, `normalise`, `selection`, `rows`."""


class Readings(NamedTuple):
    """How often each sealed set has been read with other rows, or with another row chosen on dev."""

    counts: Mapping[str, int]
    num_damaged: int
    """Lines that cannot be read, and are not counted."""


def record(plan: Plan, board: Sequence[Line], *, folder: Path, command: str, suite: Path) -> Readings:
    """Add this reading of every test set on the board, unless the same has been read before.

    The same is: the same rows with the same transcripts, under the same normaliser, and the same row chosen on dev.

    folder: `results/<suite>`. command: what shows the figures. suite: its file.
    Raises HarnessError if the ledger cannot be read or written: figures of a sealed set are not shown in secret.
    """
    path = folder / LEDGER_FILE
    found = list(_readings(plan, board))
    if not found and not path.is_file():
        return Readings({}, 0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{LEDGER_FILE}.lock")):
            entries, num_damaged = read(path)
            digest = hashlib.sha256(suite.read_bytes()).hexdigest()
            for reading in found:
                known = [entry for entry in entries if entry["heldout"] == reading["heldout"]]
                if all(_identity(entry) != _identity(reading) for entry in known):
                    own = {"schema": SCHEMA, "when": datetime.now(UTC).isoformat(timespec="milliseconds")}
                    own |= {"command": command, "why": _why(known, reading), "suite_sha256": digest}
                    entries.append(own | reading)
                    append_line(path, json.dumps(entries[-1], ensure_ascii=False))
    except OSError as error:
        raise HarnessError(
            f"{path}: this reading of sealed sets cannot be recorded ({error}), so it is not shown; make the file "
            "writable"
        ) from error
    counts: dict[str, int] = {}
    for heldout, _ in {_identity(entry): entry for entry in entries}:
        counts[heldout] = counts.get(heldout, 0) + 1
    return Readings(counts, num_damaged)


def with_readings(board: Sequence[Line], readings: Readings) -> list[Line]:
    """The board with `sealed_readings` of its test sets."""
    return [
        {**line, "sealed_readings": readings.counts.get(line["heldout"]) if line["split_role"] == "test" else None}
        for line in board
    ]


def read(path: Path) -> tuple[list[Entry], int]:
    """All sound lines, oldest first, and the number of damaged ones.

    Raises HarnessError for lines of a newer version.
    """
    if not path.is_file():
        return [], 0
    entries: list[Entry] = []
    num_damaged = 0
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
            newer = entry["schema"] > SCHEMA
            _identity(entry)
        except (ValueError, KeyError, TypeError):
            num_damaged += 1  # half a line that a kill left, or something else than a reading
            continue
        if newer:
            raise HarnessError(f"{path}: schema {entry['schema']} is newer than {SCHEMA}; update harness")
        entries.append(entry)
    return entries, num_damaged


def _readings(plan: Plan, board: Sequence[Line]) -> Iterator[Entry]:
    steps = {(row.row, row.heldout): row.scored for row in plan.rows}
    selection = best_on_dev(plan, board)
    for heldout in dict.fromkeys(line["heldout"] for line in board if line["split_role"] == "test"):
        rows = []
        for name in sorted(line["row"] for line in board if line["heldout"] == heldout):
            scored = steps[name, heldout]
            heard = scored.inputs["transcripts"][0]
            rows.append({"row": name, "score": scored.key[:SHOWN], "transcripts": heard.key[:SHOWN]})
        yield {"heldout": heldout, "normalise": plan.suite.score.normalise, "selection": selection, "rows": rows}


def _identity(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Held-out set, and what was read: a score that only a newer version of the board has changed is no other one."""
    return str(entry["heldout"]), json.dumps([_part(entry, name) for name in PARTS])


def _why(known: Sequence[Entry], reading: Entry) -> str:
    if not known:
        return "first reading"
    last = known[-1]
    changed = [name for name in PARTS if _part(last, name) != _part(reading, name)]
    return f"another reading: {', '.join(changed)} changed"


def _part(entry: Mapping[str, Any], name: str) -> Any:
    return [[row["row"], row["transcripts"]] for row in entry["rows"]] if name == "rows" else entry[name]


def told_of_readings(board: Sequence[Line]) -> list[str]:
    """How often each sealed set has been read: every set, for a gate; `told_if_reread` has what a board must say."""
    counts = {line["heldout"]: line.get("sealed_readings") for line in board if line["split_role"] == "test"}
    return [_told(heldout, int(count)) for heldout, count in counts.items() if count]


def told_if_reread(board: Sequence[Line]) -> list[str]:
    """The same of sets that were read more than once."""
    return told_of_readings([line for line in board if (line.get("sealed_readings") or 0) > 1])


def _told(heldout: str, count: int) -> str:
    if count == 1:
        return f"{heldout} is sealed and was read once"
    return (
        f"{heldout} is sealed, but was read {count} times with changing rows or selections: whoever chooses by it gets "
        "figures that are too good"
    )
