"""What a run looks like: bars in a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from rich.console import Console
    from rich.progress import TaskID

    from harness.board.leaderboard import Line
    from harness.engine.local import Outcome
    from harness.engine.plan import Step
    from harness.promote.gate import Condition

STYLE = {"done": "green", "cached": "dim", "failed": "bold red", "skipped": "yellow", "stopped": "yellow"}
NOTE_EVERY_S = 30.0


class Watch:
    """A `Listener` of the engine that draws on a console; a context manager."""

    def __init__(
        self, console: Console, *, total: int, on_end: Callable[[Step, Outcome], None] = lambda _step, _outcome: None
    ) -> None:
        self.console = console
        self.on_end = on_end
        self.total = total
        self.ended = 0
        self._told: dict[str, tuple[float, int]] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars: Progress | None = None
        self._all: TaskID | None = None
        if console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24))
            more = (MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("[dim]{task.fields[note]}"))
            self._bars = Progress(*columns, *more, console=console, transient=True)
            self._all = self._bars.add_task("all steps", total=total, note="")

    def __enter__(self) -> Self:
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
        elif not self._bars and self._worth_telling(step.key, done):
            self._line(f"        {step.name}: {done}/{total} {note}".rstrip())

    def finished(self, step: Step, outcome: Outcome) -> None:
        self.ended += 1
        self.on_end(step, outcome)
        if self._bars and self._all is not None:
            self._bars.update(self._all, completed=self.ended)
            if step.key in self._tasks:
                self._bars.remove_task(self._tasks.pop(step.key))
        if outcome.state == "cached":
            return
        took = f"  {outcome.wall_s:.1f} s" if outcome.wall_s else ""
        self._line(f"{outcome.state:<7} {step.name}{took}", style=STYLE[outcome.state])

    def _worth_telling(self, key: str, done: int) -> bool:
        """A log gets a line now and then, and only when something has moved."""
        told_at, told = self._told.get(key, (time.monotonic(), 0))
        worth = done != told and time.monotonic() - told_at > NOTE_EVERY_S
        self._told[key] = (time.monotonic(), done) if worth else (told_at, told)
        return worth

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


def leaderboard(lines: Sequence[Line]) -> list[Table]:
    """One table per held-out set, best first; a dot marks what cannot be told apart from the best."""
    tables = []
    for heldout in dict.fromkeys(line["heldout"] for line in lines):
        group = [line for line in lines if line["heldout"] == heldout]
        first = group[0]
        size = f"{first['num_utterances']} utterances, {first['audio_s'] / 60:.1f} min"
        table = Table(
            title=f"{heldout} ({first['split_role']}): {size}",
            title_justify="left",
            caption=f"95 % intervals in brackets · = tied with the best (difference can be chance) · {first['device']}",
            caption_justify="left",
        )
        names = ("#", "row", "WER", "CER", "RTF", "p50 ms", "p95 ms", "RAM MiB", "VRAM MiB", "size MiB", "failed")
        for name in names:
            table.add_column(name, justify="left" if name == "row" else "right", no_wrap=True)
        for line in group:
            table.add_row(
                f"{line['rank']}{' ·' if line['tied_with_best'] else '  '}",
                line["row"],
                _interval(line, "wer"),
                _interval(line, "cer"),
                _number(line["rtf"], 3),
                *(_number(line[name], 0) for name in NUMBERS),
                style="dim" if line["variant"] == "zero-shot" else "",
            )
        tables.append(table)
    return tables


NUMBERS = ("latency_p50_ms", "latency_p95_ms", "peak_ram_mib", "peak_vram_mib", "size_mib", "num_failed")


def _interval(line: Line, name: str) -> str:
    value, low, high = line[name], line[f"{name}_lo"], line[f"{name}_hi"]
    if value is None:
        return ""
    return f"{value:.3f}" if low is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def gate_table(row: str, conditions: Sequence[Condition]) -> Table:
    """Every condition with its value, its limit and the verdict."""
    table = Table(title=f"Gate: {row}", title_justify="left")
    for name in ("condition", "held-out", "value", "limit", "verdict"):
        table.add_column(name, justify="right" if name in ("value", "limit") else "left")
    for item in conditions:
        value = "not measured" if item.value is None else f"{item.value:.4g}"
        verdict = "[green]met[/green]" if item.met else "[bold red]not met[/bold red]"
        table.add_row(item.what, item.heldout, value, item.limit, verdict)
    return table
