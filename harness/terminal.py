"""What a run looks like: bars in a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from rich.progress import TaskID

    from harness.engine.local import Outcome
    from harness.engine.plan import Step

STYLE = {"done": "green", "cached": "dim", "failed": "bold red", "skipped": "yellow", "stopped": "yellow"}
NOTE_EVERY_S = 30.0


class Watch:
    """A `Listener` of the engine that draws on a console; a context manager."""

    def __init__(self, console: Console, *, total: int) -> None:
        self.console = console
        self.total = total
        self.ended = 0
        self._told: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars: Progress | None = None
        self._all: TaskID | None = None
        if console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24))
            more = (MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("[dim]{task.fields[note]}"))
            self._bars = Progress(*columns, *more, console=console, transient=True)
            self._all = self._bars.add_task("all steps", total=total, note="")

    def __enter__(self) -> Watch:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def started(self, step: Step) -> None:
        if self._bars:
            self._tasks[step.key] = self._bars.add_task(escape(step.name), total=None, note="")
        else:
            self._line(f"start   {step.name}")

    def progressed(self, step: Step, *, done: int, total: int, note: str) -> None:
        if self._bars and step.key in self._tasks:
            self._bars.update(self._tasks[step.key], completed=done, total=total, note=note)
        elif time.monotonic() - self._told.get(step.key, 0.0) > NOTE_EVERY_S:
            self._told[step.key] = time.monotonic()
            self._line(f"        {step.name}: {done}/{total} {note}".rstrip())

    def finished(self, step: Step, outcome: Outcome) -> None:
        self.ended += 1
        if self._bars and self._all is not None:
            self._bars.update(self._all, completed=self.ended)
            if step.key in self._tasks:
                self._bars.remove_task(self._tasks.pop(step.key))
        if outcome.state == "cached":
            return
        took = f"  {outcome.wall_s:.1f} s" if outcome.wall_s else ""
        self._line(f"{outcome.state:<7} {step.name}{took}", style=STYLE[outcome.state])

    def _line(self, text: str, *, style: str = "") -> None:
        self.console.print(f"[{self.ended:>3}/{self.total}] {text}", style=style, markup=False, highlight=False)


def summary(steps: Sequence[Step], outcomes: dict[str, Outcome]) -> Table:
    """Stage by stage, how many steps ended how; every step that did not succeed on a line of its own."""
    table = Table(title="What happened", title_justify="left")
    for name in ("stage", "cached", "done", "failed", "skipped", "seconds"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage in dict.fromkeys(step.stage for step in steps):
        ends = [outcomes[step.key] for step in steps if step.stage == stage and step.key in outcomes]
        counts = [
            str(sum(end.state == state for end in ends) or "") for state in ("cached", "done", "failed", "skipped")
        ]
        wall_s = sum(end.wall_s for end in ends)
        table.add_row(stage, *counts, f"{wall_s:.1f}" if wall_s else "")
    return table
