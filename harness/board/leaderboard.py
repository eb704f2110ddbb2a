"""Finished scores → the leaderboard: ranked, with ties said, as CSV, JSON, Markdown or a table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from harness.core.files import replace_copy, replace_text
from harness.core.manifests import read_jsonl
from harness.core.wer import count_errors
from harness.score.significance import paired_difference

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.core.artifact import Artifact
    from harness.engine.plan import Plan, Row
    from harness.engine.store import Store

COLUMNS = (
    *("rank", "row", "family", "variant", "export", "runtime", "heldout", "split_role"),
    *("wer", "wer_lo", "wer_hi", "cer", "cer_lo", "cer_hi", "num_utterances", "num_failed", "audio_s"),
    *("rtf", "latency_p50_ms", "latency_p95_ms", "load_s", "peak_vram_mib", "peak_ram_mib", "size_mib"),
    *("tied_with_best", "leakage", "note", "device", "run_id"),
)
ROLES = {"test": 0, "dev": 1}
"""The verdict is read on test, so it comes first."""
SMALLEST_TEST = 2
"""Utterances below which a bootstrap says nothing."""

Line = dict[str, Any]


def lines(plan: Plan, store: Store, *, run_ids: dict[str, str]) -> list[Line]:
    """One line per finished row, best first within its held-out set, test sets first.

    run_ids: score step's key → MLflow run.
    """
    found = [(row, store.find(row.scored.folder, key=row.scored.key)) for row in plan.rows]
    board: list[Line] = []
    sets = {row.heldout: (ROLES[row.split_role], number) for number, row in enumerate(plan.rows)}
    for heldout in sorted(sets, key=lambda name: sets[name]):
        group = [(row, score) for row, score in found if score is not None and row.heldout == heldout]
        group.sort(key=lambda pair: (_or_last(pair[1].meta["wer"]), _or_last(pair[1].meta["cer"]), pair[0].row))
        tied = _tied([score for _, score in group], plan)
        for rank, ((row, score), tie) in enumerate(zip(group, tied, strict=True), start=1):
            run_id = run_ids.get(row.scored.key, "")
            marks = {"leakage": _allowed_leakage(plan), "note": _note(row, store), "run_id": run_id}
            board.append(_line(row, score.meta, rank=rank, tied=tie, marks=marks))
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


def _line(row: Row, meta: Any, *, rank: int, tied: bool | None, marks: Line) -> Line:
    own = {
        "rank": rank,
        "row": row.row,
        "family": row.family,
        "variant": row.variant,
        "export": row.export,
        "runtime": row.runtime,
        "heldout": row.heldout,
        "split_role": row.split_role,
        "tied_with_best": tied,
        **marks,
    }
    return {name: own[name] if name in own else meta.get(name) for name in COLUMNS}


def _tied(scores: list[Artifact], plan: Plan) -> list[bool | None]:
    """Whether each row's difference in WER to the first one can be chance: its paired 95 % interval holds zero."""
    if any(score.meta["wer"] is None or score.meta["num_utterances"] < SMALLEST_TEST for score in scores):
        return [None] * len(scores)
    counts = [_counts(score) for score in scores]
    if not counts:
        return []
    best_errors, references = counts[0]
    tied: list[bool | None] = []
    for errors, _ in counts:
        difference = paired_difference(
            errors, best_errors, references, resamples=plan.suite.score.resamples, seed=plan.suite.seed
        )
        tied.append(difference.lo <= 0 <= difference.hi)
    return tied


def _counts(score: Artifact) -> tuple[list[int], list[int]]:
    """Errors and reference words of each utterance."""
    rows = list(read_jsonl(score.path / "hypotheses.jsonl"))
    heard = [None if row["error"] else row["hypothesis_norm"] for row in rows]
    counts = count_errors([row["reference_norm"] for row in rows], heard, unit="word")
    return [count.errors for count in counts], [count.num_reference for count in counts]


def publish(board: list[Line], plan: Plan, store: Store, *, folder: Path) -> None:
    """Write `leaderboard.csv` and `hypotheses/<row>__<heldout>.jsonl` into `folder`, each by one rename."""
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
    replace_text(folder / "leaderboard.csv", render(board, form="csv"))


def render(board: list[Line], *, form: str) -> str:
    """The board as `csv`, `json` or `md`. What was not measured is empty (csv, md) or null (json), never 0.

    Under the table of `md` stands what must be told beside it.
    """
    if form == "json":
        return json.dumps(board, ensure_ascii=False, indent=1) + "\n"
    import pandas as pd

    frame = pd.DataFrame(board, columns=list(COLUMNS), dtype=object)
    if form == "csv":
        return str(frame.to_csv(index=False, lineterminator="\n"))
    shown = [[_cell(line[name]) for name in MARKDOWN] for line in board]
    head = [" | ".join(MARKDOWN.values()), " | ".join("---" for _ in MARKDOWN)]
    table = "".join(f"| {text} |\n" for text in [*head, *(" | ".join(cells) for cells in shown)])
    return table + "".join(f"\n**{told}**\n" for told in told_beside(board))


def told_beside(board: Sequence[Line]) -> list[str]:
    """What must stand beside the figures of a board, or of a part of it."""
    reasons = dict.fromkeys(line["leakage"] for line in board if line["leakage"])
    notes = dict.fromkeys(line["note"] for line in board if line["note"])
    return [*(f"Leakage allowed, the figures may be too good: {reason}" for reason in reasons), *notes]


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
    words = dict.fromkeys(named, str)
    frame = pd.read_csv(path, dtype=words, keep_default_na=False, na_values=[""], float_precision="round_trip")
    return [
        {str(name): None if pd.isna(value) else value for name, value in record.items()}
        for record in frame.astype(object).to_dict("records")
    ]
