"""Finished scores → the leaderboard: ranked, with ties said, as CSV, JSON, Markdown or a table."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from harness.board.behaviour import BEHAVIOUR, behaviour, publish_probes
from harness.board.comparison import COMPARED, SMALLEST_TEST, compare_set
from harness.board.ledger import told_if_reread
from harness.board.markdown import markdown_table
from harness.board.profiles import beside, flips, rates_beside
from harness.board.verdict import to_tell_apart
from harness.core.files import replace_copy, replace_text
from harness.score.significance import FEWEST_SPEAKERS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.engine.plan import Plan, Row
    from harness.engine.store import Store

COLUMNS = (
    *("rank", "row", "family", "variant", "export", "runtime", "heldout", "split_role"),
    *("wer", "wer_lo", "wer_hi", "cer", "cer_lo", "cer_hi", "interval_over", "num_utterances", "num_failed", "audio_s"),
    *("rtf", "latency_p50_ms", "latency_p95_ms", "load_s", "peak_vram_mib", "peak_ram_mib", "size_mib"),
    *BEHAVIOUR,
    *COMPARED,
    *("sealed_readings", "leakage", "note", "device", "run_id"),
)
ROLES = {"test": 0, "dev": 1, "probe": 2}
"""The verdict is read on test, so it comes first."""
Line = dict[str, Any]


def lines(plan: Plan, store: Store, *, run_ids: dict[str, str]) -> list[Line]:
    """One line per finished row, best first within its held-out set, test sets first.

    run_ids: score step's key → MLflow run.
    """
    found = [(row, store.find(row.scored.folder, key=row.scored.key)) for row in plan.rows]
    behaviours = behaviour(plan, store)
    board: list[Line] = []
    sets = {row.heldout: (ROLES[row.split_role], number) for number, row in enumerate(plan.rows)}
    for heldout in sorted(sets, key=lambda name: sets[name]):
        group = [(row, score) for row, score in found if score is not None and row.heldout == heldout]
        group.sort(key=lambda pair: (_or_last(pair[1].meta["wer"]), _or_last(pair[1].meta["cer"]), pair[0].row))
        compared = compare_set(group, plan)
        for rank, (row, score) in enumerate(group, start=1):
            run_id = run_ids.get(row.scored.key, "")
            marks: Line = {"leakage": _allowed_leakage(plan), "note": _note(row, store), "run_id": run_id}
            marks |= behaviours[row.row] | compared[row.row]
            board.append(_line(row, score.meta, rank=rank, marks=marks))
    return board


def _or_last(value: float | None) -> float:
    return float("inf") if value is None else value


def _allowed_leakage(plan: Plan) -> str | None:
    """Why held-out sets may leak into training, on one line; None where they may not."""
    allowed = plan.suite.allow_leakage
    return " ".join(allowed.reason.split()) if allowed else None


def _note(row: Row, store: Store) -> str | None:
    """What a reader must know of the base model, such as letters that it cannot write; None if nothing."""
    placed = store.find(row.placed.folder, key=row.placed.key)
    return "; ".join(placed.meta.get("notes", [])) or None if placed else None


def _line(row: Row, meta: Any, *, rank: int, marks: Line) -> Line:
    own = {
        "rank": rank,
        "row": row.row,
        "family": row.family,
        "variant": row.variant,
        "export": row.export,
        "runtime": row.runtime,
        "heldout": row.heldout,
        "split_role": row.split_role,
        **marks,
    }
    return {name: own[name] if name in own else meta.get(name) for name in COLUMNS} | beside(meta)


def publish(board: list[Line], plan: Plan, store: Store, *, folder: Path) -> None:
    """Write `leaderboard.csv`, `hypotheses/<row>__<heldout>.jsonl` and `probes/<row>__<probe>.jsonl` into `folder`.

    Each by one rename.
    """
    hypotheses = folder / "hypotheses"
    current = set()
    for row in plan.rows:
        score = store.find(row.scored.folder, key=row.scored.key)
        if score is not None:
            name = f"{row.row}__{row.heldout}.jsonl"
            current.add(name)
            replace_copy(score.path / "hypotheses.jsonl", hypotheses / name)
    for path in hypotheses.glob("*.jsonl"):
        if path.name not in current:
            path.unlink()  # a row that the suite no longer has; the store still holds it
    publish_probes(plan, store, folder=folder / "probes")
    replace_text(folder / "leaderboard.csv", render(board, form="csv"))


def render(board: list[Line], *, form: str) -> str:
    """The board as `csv`, `json` or `md`. What was not measured is empty (csv, md) or null (json), never 0.

    Under the table of `md` stands what must be told beside it.
    """
    if form == "json":
        return json.dumps(board, ensure_ascii=False, indent=1) + "\n"
    import pandas as pd

    # Beside them stand the columns of machines where models were measured.
    names = [*COLUMNS, *(name for line in board[:1] for name in line if name not in COLUMNS)]
    frame = pd.DataFrame(board, columns=names, dtype=object)
    if form == "csv":
        return str(frame.to_csv(index=False, lineterminator="\n"))
    # A suite without probes has no columns for them.
    titles = MARKDOWN | {name: name for name in BEHAVIOUR if any(line.get(name) is not None for line in board)}
    if len({line["device"] for line in board if line["device"]}) > 1:
        titles["device"] = "device"
    titles |= {name: name.upper()[:3] + name[3:] for name in rates_beside(board)}
    shown = [[_cell(line[name]) for name in titles] for line in board]
    table = markdown_table(list(titles.values()), shown)
    facts = [
        f"{heldout}: {fact}"
        for heldout in dict.fromkeys(line["heldout"] for line in board)
        for fact in explained([line for line in board if line["heldout"] == heldout])
    ]
    return table + "".join(f"\n{fact}\n" for fact in facts) + "".join(f"\n**{told}**\n" for told in told_beside(board))


def told_beside(board: Sequence[Line]) -> list[str]:
    """What must stand beside the figures of a board, or of a part of it."""
    reasons = dict.fromkeys(line["leakage"] for line in board if line["leakage"])
    notes = dict.fromkeys(line["note"] for line in board if line["note"])
    leaks = [f"Leakage allowed, the figures may be too good: {reason}" for reason in reasons]
    return [*leaks, *notes, *told_if_reread(board), *flips(board), *_not_numbers(board)]


def _not_numbers(board: Sequence[Line]) -> list[str]:
    return [
        f"{line['row']} on {line['heldout']}: {name} is {value}; measure it again"
        for line in board
        for name, value in line.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]


def explained(group: Sequence[Line]) -> list[str]:
    """What the figures of one held-out set, best first, rest on, and how many utterances would say more."""
    devices = {line["device"] for line in group if line["device"]}
    apart = ["Rows of different devices are not comparable in speed."] if len(devices) > 1 else []
    return [*intervals_told(group), *to_tell_apart(group), *apart]


def intervals_told(group: Sequence[Line]) -> list[str]:
    """What the intervals of one held-out set are over; nothing where no rate was asked for."""
    line = group[0]
    if line["wer"] is None and line["cer"] is None:
        return []
    if line["num_utterances"] < SMALLEST_TEST:
        return ["One utterance has no interval."]
    why = f": fewer than {FEWEST_SPEAKERS} speakers are known" if line["interval_over"] == "utterances" else ""
    return [f"95 % intervals by bootstrap over {line['interval_over']}{why}."] if line["interval_over"] else []


MARKDOWN = {
    "rank": "#",
    "row": "row",
    "heldout": "held-out",
    "wer": "WER",
    "wer_lo": "95 % from",
    "wer_hi": "to",
    "cer": "CER",
    "cer_lo": "95 % from",
    "cer_hi": "to",
    "rtf": "RTF",
    "latency_p50_ms": "p50 ms",
    "latency_p95_ms": "p95 ms",
    "peak_ram_mib": "RAM MiB",
    "peak_vram_mib": "VRAM MiB",
    "size_mib": "size MiB",
    "num_failed": "failed",
}


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3f}"  # no decimals for milliseconds
    return str(value)


def read_csv(path: Path) -> list[Line]:
    """A published board; empty cells are None."""
    import pandas as pd

    # Only an empty cell is empty: a variant may be called "NA", and a run's name may look like a number.
    named = ("row", "family", "variant", "export", "runtime", "heldout", "leakage", "note", "device", "run_id")
    words = dict.fromkeys(named, str) | dict.fromkeys(("num_needed", "sealed_readings"), "Int64")
    frame = pd.read_csv(path, dtype=words, keep_default_na=False, na_values=[""], float_precision="round_trip")
    return [
        {str(name): None if pd.isna(value) else value for name, value in record.items()}
        for record in frame.astype(object).to_dict("records")
    ]
