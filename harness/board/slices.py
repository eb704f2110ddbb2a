"""The rows of a board on parts of their held-out sets, and their errors by cause."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.board.markdown import markdown_table
from harness.core.files import replace_text
from harness.score.error_classes import CLASSES
from harness.score.scores import SLICES_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from harness.board.leaderboard import Line
    from harness.engine.plan import Plan
    from harness.engine.store import Store

    Slice = dict[str, Any]
    """What `harness.score.slices.Slice` holds."""

CSV_FILE = "slices.csv"
CLASSES_FILE = "error_classes.csv"
COLUMNS = (*("row", "heldout", "by", "value", "wer", "wer_lo", "wer_hi", "num_utterances", "num_words", "is_small"),)


@dataclass(frozen=True, slots=True)
class Sliced:
    """One row on one held-out set."""

    row: str
    heldout: str
    wer: float | None
    slices: Sequence[Slice]
    """The worst first; those that are too small to judge by come last."""
    classes: Mapping[str, int]
    """Class → word errors, and `num_words` that they are counted over."""


def sliced(board: Sequence[Line], plan: Plan, store: Store) -> list[Sliced]:
    """In the order of the board."""
    rows = {(row.row, row.heldout): row for row in plan.rows}
    found = []
    for line in board:
        row = rows.get((line["row"], line["heldout"]))
        score = store.find(row.scored.folder, key=row.scored.key) if row else None
        if row and score:
            slices = json.loads((score.path / SLICES_FILE).read_text(encoding="utf-8"))
            found.append(Sliced(row.row, row.heldout, score.meta["wer"], slices, score.meta["error_classes"]))
    return found


def publish_slices(found: Sequence[Sliced], *, folder: Path) -> None:
    """Write `slices.csv` and `error_classes.csv` into `folder`, each by one rename."""
    replace_text(folder / CSV_FILE, render_slices(found, form="csv"))
    replace_text(folder / CLASSES_FILE, _csv(_class_lines(found), columns=("row", "heldout", "num_words", *CLASSES)))


def render_slices(found: Sequence[Sliced], *, form: str) -> str:
    """All slices of all rows as `csv`, `json` or `md`."""
    lines = [{"row": item.row, "heldout": item.heldout, **own} for item in found for own in item.slices]
    if form == "json":
        return json.dumps(lines, ensure_ascii=False, indent=1) + "\n"
    if form == "csv":
        return _csv(lines, columns=COLUMNS)
    text = ""
    for item in found:
        if item.slices:
            shown = [cells(own) for own in item.slices]
            table = markdown_table(list(shown[0]), (row.values() for row in shown))
            text += f"\n**{item.row} on {item.heldout}, worst first**\n\n{table}"
    return text


def cells(own: Slice) -> dict[str, str]:
    """A slice as people read it."""
    no_interval = own["wer_lo"] is None
    return {
        "slice": f"{own['by']}: {own['value']}",
        "WER": "" if own["wer"] is None else f"{own['wer']:.3f}",
        "95 %": "" if no_interval else f"{own['wer_lo']:.3f} - {own['wer_hi']:.3f}",
        "utterances": str(own["num_utterances"]),
        "words": str(own["num_words"]),
        "": "few" if own["is_small"] else "",
    }


def class_cells(item: Sliced) -> dict[str, str]:
    """Errors by cause, each per 100 reference words, as people read them."""
    words = item.classes["num_words"]
    rates = {name: f"{100 * item.classes[name] / words:.2f}" if words else "" for name in CLASSES if name != "silence"}
    # Where nobody speaks there are no words to count by.
    return {"row": item.row, **rates, "silence": str(item.classes["silence"])}


def worst_gap(chosen: Sequence[Slice], baseline: Sequence[Slice]) -> tuple[float, Slice] | None:
    """How much higher the WER of `chosen` is on the slice where that is most, and the slice; None without a slice
    that is large enough in both.
    """
    before = {(own["by"], own["value"]): own["wer"] for own in baseline if not own["is_small"]}
    gaps = [
        (own["wer"] - before[own["by"], own["value"]], own)
        for own in chosen
        if not own["is_small"] and (own["by"], own["value"]) in before
    ]
    return max(gaps, key=lambda pair: pair[0], default=None)


def _class_lines(found: Sequence[Sliced]) -> list[dict[str, Any]]:
    return [{"row": item.row, "heldout": item.heldout, **item.classes} for item in found]


def _csv(lines: Sequence[dict[str, Any]], *, columns: Sequence[str]) -> str:
    import pandas as pd

    return str(pd.DataFrame(lines, columns=list(columns), dtype=object).to_csv(index=False, lineterminator="\n"))
