"""What a run looks like: bars in a terminal, plain lines anywhere else."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from harness.board.behaviour import BEHAVIOUR
from harness.board.leaderboard import explained, told_beside
from harness.board.profiles import rates_beside
from harness.board.waterfall import cells
from harness.engine.estimates import Estimate
from harness.suite.model import ZERO_SHOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from rich.console import Console
    from rich.progress import TaskID

    from harness.board.leaderboard import Line
    from harness.board.waterfall import Waterfall
    from harness.engine.estimates import Outlook
    from harness.engine.plan import Plan, Step
    from harness.engine.walk import Outcome
    from harness.promote.gate import Condition

STYLE = {
    "done": "green",
    "cached": "dim",
    "pruned": "dim",
    "failed": "bold red",
    "skipped": "yellow",
    "stopped": "yellow",
}
NOTE_EVERY_S = 30.0
GAP = 2
"""Spaces between columns."""


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
        if outcome.state in {"cached", "pruned"}:
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


def plan_table(planned: Plan, outlook: Outlook) -> Table:
    """Every step, cached or to do, with what it took or will take: `~` marks an estimate, empty is unknown."""
    title = f"{planned.suite.suite}: {len(planned.steps)} steps"
    estimates = [outlook.steps[step.key] for step in planned.steps]
    amounts = [
        _amounts(item) | {"VRAM": _vram(outlook, step.key)} for step, item in zip(planned.steps, estimates, strict=True)
    ]
    names = [name for name in amounts[0] if any(row[name] for row in amounts)]
    table = plain_table(title, "stage", "step", "state", right=names)
    previous = ""
    for step, estimate, row in zip(planned.steps, estimates, amounts, strict=True):
        state = Text("cached", style="dim") if estimate.is_measured else Text("to do", style="bold")
        name = step.name.removeprefix(f"{step.stage} ")
        if step.stage == "prepare" and name in outlook.missing:
            state = Text("missing", style="bold red")
        table.add_row(step.stage if step.stage != previous else "", name, state, *(row[name] for name in names))
        previous = step.stage
    return table


def _amounts(estimate: Estimate) -> dict[str, str]:
    shown = {
        "clips": _clips(estimate.num_clips, exact=estimate.is_measured),
        "hours": _hours(estimate.audio_s),
        "disk": amount(estimate.disk_b),
        "time": _seconds(estimate.wall_s) if estimate.is_measured else about(estimate.wall_s),
    }
    return {name: text if estimate.is_measured or not text else f"~{text}" for name, text in shown.items()}


def _vram(outlook: Outlook, key: str) -> str:
    """What a training will take of the GPU, and of `batch_size: auto` with how many windows at once."""
    if key not in outlook.memories:
        return ""
    memory = outlook.memories[key]
    if memory is None:
        return "unknown"
    batch = f" at {memory.micro_batch}" if memory.micro_batch else ""
    return f"{'≥' if memory.is_least else '~'}{memory.total_b / 2**30:.1f} GiB{batch}"


def plan_totals(planned: Plan, outlook: Outlook, *, free_b: int) -> Iterator[Text]:
    """The lines below the table. free_b: room where the store lies."""
    cached = sum(item.is_measured for item in outlook.steps.values())
    rows = len({row.row for row in planned.rows})
    trainings = len({row.trained.key for row in planned.rows if row.trained})
    yield Text(
        f"{len(planned.steps) - cached} to do, {cached} cached; {trainings} trainings, {rows} models on the board, "
        f"on {len(planned.suite.heldout)} held-out sets"
    )
    disk_b = outlook.total("disk_b")
    if disk_b is not None:
        told = f"disk: ~{amount(disk_b)} for datasets and sets, {amount(free_b)} free"
        yield Text(f"{told}: too little", style="bold red") if disk_b > free_b else Text(told)
    wall_s = outlook.total("wall_s")
    if wall_s is not None:
        unknown = [step.stage for step in planned.steps if outlook.steps[step.key] == Estimate()]
        without = ", ".join(dict.fromkeys(unknown))
        yield Text(f"time: ~{about(wall_s)}" + (f", and what is not known yet: {without}" if without else ""))
        hours = planned.suite.budget.hours
        if hours is not None and wall_s > hours * 3600:
            yield Text(f"budget.hours is {hours:g}: this takes longer", style="bold yellow")
    if outlook.memories:
        card = planned.suite.budget.vram_gib
        auto = any(memory and memory.micro_batch for memory in outlook.memories.values())
        yield Text(
            "VRAM: predicted, not measured on a card"
            + (f"; budget.vram_gib is {card:g}" if card else "")
            + ("; `at N`: windows at once with batch_size: auto" if auto else "")
        )
    for name, (path, count) in outlook.missing.items():
        more = f" and {count - 1:,} more files" if count > 1 else ""
        yield Text(f"missing: {path}{more} (dataset {name})", style="bold red")


def summary(steps: Sequence[Step], outcomes: dict[str, Outcome]) -> Table:
    """Stage by stage, how many steps ended how."""
    states = [state for state in STYLE if any(end.state == state for end in outcomes.values())]
    table = plain_table("What happened", "stage", right=(*states, "took"))
    for stage in dict.fromkeys(step.stage for step in steps):
        ends = [outcomes[step.key] for step in steps if step.stage == stage and step.key in outcomes]
        counts = [sum(end.state == state for end in ends) for state in states]
        cells = [
            Text(str(count), style=STYLE[state]) if count else "" for state, count in zip(states, counts, strict=True)
        ]
        table.add_row(stage, *cells, _seconds(sum(end.wall_s for end in ends) or None))
    return table


def leaderboard(lines: Sequence[Line], *, width: int) -> list[Table]:
    """One table per held-out set, best first; a dot marks what cannot be told apart from the best.

    width: letters that fit; columns that say less make room for the others.
    """
    tables = []
    for heldout in dict.fromkeys(line["heldout"] for line in lines):
        group = [line for line in lines if line["heldout"] == heldout]
        cells = [_cells(line) for line in group]
        names = [name for name in cells[0] if any(row[name] for row in cells)]
        hidden = []
        for name in (*rates_beside(group), *FIRST_TO_GO):
            if name in names and _width(names, cells) > width:
                names.remove(name)
                hidden.append(name)
        table = plain_table(_title(group), *names[:2], right=names[2:])
        table.columns[1].overflow = "fold"
        table.caption = _caption(group, hidden=hidden)
        for line, row in zip(group, cells, strict=True):
            table.add_row(*(row[name] for name in names), style="dim" if line["variant"] == ZERO_SHOT else "")
        tables.append(table)
    return tables


def waterfall_tables(found: Sequence[Waterfall], *, width: int) -> list[Table]:
    """One table per held-out set: what each export of a variant changes. width: letters that fit."""
    tables = []
    for heldout in dict.fromkeys(item.heldout for item in found):
        rows = [row for item in found if item.heldout == heldout for row in cells(item)]
        names = list(rows[0])
        for name in ("for instance", "size MiB", "95 %"):
            if _width(names, rows) > width:
                names.remove(name)
        left = [name for name in names if name in {"variant", "export"}]
        table = plain_table(f"{heldout}: what each export changes", *left, right=[n for n in names if n not in left])
        for row in rows:
            table.add_row(*(Text(row[name]) for name in names))
        tables.append(table)
    return tables


def device_tables(lines: Sequence[Line]) -> list[Table]:
    """What was measured where models shall run: a table for each machine and device, fastest first."""
    units = {"rtf": ("RTF", 3), "latency_p50_ms": ("p50 ms", 0), "latency_p95_ms": ("p95 ms", 0)}
    units |= {"load_s": ("load s", 1), "peak_ram_mib": ("RAM MiB", 0)}
    tables = []
    for place in dict.fromkeys(name.partition("/")[2] for line in lines[:1] for name in line if "/" in name):
        rows = {line["row"]: line for line in lines if line.get(f"load_s/{place}") is not None}
        table = plain_table(f"On {place}", "row", right=[title for title, _ in units.values()])
        for row in sorted(rows.values(), key=lambda line: line[f"rtf/{place}"] or math.inf):
            cells = [_number(row[f"{name}/{place}"], digits) for name, (_, digits) in units.items()]
            table.add_row(Text(row["row"]), *cells)
        tables.append(table)
    return tables


FIRST_TO_GO = (
    *BEHAVIOUR,
    "load s",
    "RAM MiB",
    "p50 ms",
    "VRAM MiB",
    "p95 ms",
    "CER 95 %",
    "size MiB",
    "RTF",
    "WER 95 %",
)


def _cells(line: Line) -> dict[str, str]:
    return {
        "#": f"{line['rank']}{' ·' if line['tied_with_best'] else '  '}",
        "row": line["row"],
        "WER": _number(line["wer"], 3),
        "WER 95 %": _interval(line, "wer"),
        "CER": _number(line["cer"], 3),
        "CER 95 %": _interval(line, "cer"),
        "RTF": _number(line["rtf"], 3),
        "p50 ms": _number(line["latency_p50_ms"], 0),
        "p95 ms": _number(line["latency_p95_ms"], 0),
        "load s": _number(line["load_s"], 1),
        "RAM MiB": _number(line["peak_ram_mib"], 0),
        "VRAM MiB": _number(line["peak_vram_mib"], 0),
        "size MiB": _number(line["size_mib"], 1),
        **{name: _number(line.get(name), 3 if "rtf" in name else 2) for name in BEHAVIOUR},
        **{name: _number(line.get(name), 3) for name in rates_beside([line])},
        "failed": str(line["num_failed"]) if line["num_failed"] else "",
    }


def _width(names: Sequence[str], cells: Sequence[dict[str, str]]) -> int:
    return sum(max(len(name), *(len(row[name]) for row in cells)) + GAP for name in names) - 1


def _title(group: Sequence[Line]) -> str:
    line = group[0]
    size = f"{line['num_utterances']} utterances, {line['audio_s'] / 60:.1f} min"
    return f"{line['heldout']} ({line['split_role']} set): {size}"


def _caption(group: Sequence[Line], *, hidden: Sequence[str]) -> Text:
    parts = ["· the difference to the best can be chance"] if any(line["tied_with_best"] for line in group[1:]) else []
    parts += explained(group)
    parts.append("measured on " + "; ".join(dict.fromkeys(str(line["device"]) for line in group if line["device"])))
    if hidden:
        parts.append(f"not shown here: {', '.join(hidden)} (--format csv has them)")
    caption = Text("\n".join(parts))
    for told in told_beside(group):
        caption.append(f"\n{told}", style="bold not dim not italic yellow")
    return caption


def _interval(line: Line, name: str) -> str:
    low, high = line[f"{name}_lo"], line[f"{name}_hi"]
    return "" if low is None else f"{low:.3f} - {high:.3f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return ""
    if value < 60:
        return f"{value:.1f} s"
    minutes, hours = value // 60, value // 3600
    return f"{minutes:.0f} min {value % 60:02.0f} s" if value < 3600 else f"{hours:,.0f} h {minutes % 60:02.0f} min"


def about(seconds: float | None) -> str:
    """To two or three digits: more would pretend to know."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:,.1f} h"


def _clips(count: int | None, *, exact: bool) -> str:
    if count is None:
        return ""
    return f"{count if exact else round(count, 3 - len(str(count))):,}"


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return ""
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 10 else f"{hours:.2f}"


def amount(count: float | None) -> str:
    if count is None:
        return ""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.0f} {unit}" if count >= 100 * size else f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def gate_table(row: str, conditions: Sequence[Condition], *, told: Sequence[str] = ()) -> Table:
    """Every condition with its value, its limit and the verdict. told: what stands below."""
    table = plain_table(f"Gate: {row}", "condition", "held-out", right=("value", "limit"))
    table.add_column("verdict")
    for item in conditions:
        verdict = Text("met", style="green") if item.met else Text("not met", style="bold red")
        table.add_row(Text(item.what), item.heldout, item.told, item.limit, verdict)
    table.caption = Text("\n".join(told))
    return table


def plain_table(title: str, *left: str, right: Sequence[str] = ()) -> Table:
    """The look of all tables; nothing in a title or a heading is markup."""
    table = Table(
        title=Text(f"\n{title}", style="bold"),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, GAP - 1, 0, 0),
    )
    for name in (*left, *right):
        table.add_column(Text(name), justify="right" if name in right else "left", no_wrap=True)
    return table
