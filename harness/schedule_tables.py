"""A simulated schedule, for the terminal."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.text import Text

from harness.terminal import about, amount, plain_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from harness.engine.schedule import Schedule


def schedule_table(found: Schedule) -> Table:
    """The critical path: whoever shortens none of its steps shortens nothing."""
    table = plain_table("Critical path", "step", right=("from", "takes", "node"))
    for _, group in groupby(found.critical, key=lambda slot: (slot.step.stage, slot.node)):
        first, *more = group
        last = more[-1] if more else first
        name = first.step.name + (f" and {len(more)} more" if more else "")
        table.add_row(name, about(first.start_s), about(last.end_s - first.start_s), str(first.node + 1))
    return table


def schedule_totals(found: Schedule) -> Iterator[Text]:
    """The lines below it."""
    yield Text(f"makespan: ~{about(found.makespan_s)} for {len(found.slots)} steps", style="bold")
    if found.num_gpus:
        share = found.gpu_s / (found.makespan_s * found.num_gpus) if found.makespan_s else 0.0
        yield Text(f"GPUs: ~{found.gpu_s / 3600:,.1f} GPU-hours on {found.num_gpus:g}, {share:.0%} of the time busy")
    yield Text(f"disk: ~{amount(found.disk_b)} of new artifacts; steps read ~{amount(found.read_b)} of the store")
    if found.assumed:
        yield Text(f"by `step_s` of the cluster's file, not measured: {', '.join(found.assumed)}")
    if found.unknown:
        yield Text(f"not known, counted as 0 s; give `step_s`: {', '.join(found.unknown)}", style="yellow")
