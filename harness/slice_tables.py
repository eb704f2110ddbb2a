"""Slices and errors by cause in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from harness.board.slices import cells, class_cells
from harness.score.error_classes import CLASSES
from harness.terminal import plain_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from harness.board.slices import Sliced


def slice_tables(found: Sequence[Sliced]) -> list[Table]:
    """Of every held-out set the slices of its best row, the worst first, then the errors of all rows by cause."""
    tables = []
    for heldout in dict.fromkeys(item.heldout for item in found):
        group = [item for item in found if item.heldout == heldout]
        best = group[0]
        if best.slices:
            shown = [cells(own) for own in best.slices]
            title = f"{heldout}: slices of {best.row}, the worst first"
            table = plain_table(title, "slice", right=[name for name in shown[0] if name != "slice"])
            for row in shown:
                table.add_row(*map(Text, row.values()))
            if len(group) > 1:
                table.caption = "the other rows: --slices --format csv"
            tables.append(table)
        table = plain_table(f"{heldout}: errors by cause, per 100 words", "row", right=list(CLASSES))
        for item in group:
            table.add_row(*map(Text, class_cells(item).values()))
        table.caption = "; ".join(f"{name}: {meaning}" for name, meaning in CLASSES.items())
        tables.append(table)
    return tables
