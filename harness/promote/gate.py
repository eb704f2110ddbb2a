"""Which row is promoted, and whether it may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, SuiteError
from harness.suite.model import ZERO_SHOT

if TYPE_CHECKING:
    from harness.board.leaderboard import Line
    from harness.engine.plan import Plan, Row
    from harness.suite.schema import Gate

ROUNDING = 1e-12
"""0.105 - 0.1 is a little less than 0.005."""
LIMITS = ("rtf", "latency_p95_ms", "peak_ram_mib", "peak_vram_mib", "size_mib")


@dataclass(frozen=True, slots=True)
class Condition:
    """One line of the gate's table."""

    what: str
    heldout: str
    value: float | None
    """None: not measured, which fails."""
    limit: str
    met: bool


def candidate(plan: Plan, board: list[Line], *, exports: tuple[str, ...], row: str | None) -> Row:
    """The row to promote: the one asked for, or the best fine-tuned one by its mean WER over the dev sets.

    exports: the kinds of export that the target can run.
    """
    fitting = [item for item in plan.rows if item.export_kind in exports]
    if not fitting:
        raise SuiteError(f"no model of this suite exports what the target runs; add one of: {', '.join(exports)}")
    if row is not None:
        named = [item for item in fitting if item.row == row]
        if not named:
            names = ", ".join(dict.fromkeys(item.row for item in fitting))
            raise SuiteError(f"row '{row}' does not exist or does not fit the target; rows that fit: {names}")
        return named[0]
    by_name = {item.row: item for item in fitting if item.variant != ZERO_SHOT}
    num_dev = len({item.heldout for item in plan.rows if item.split_role == "dev"})
    on_dev = {
        name: [
            line for line in board if line["row"] == name and line["split_role"] == "dev" and line["wer"] is not None
        ]
        for name in by_name
    }
    scored = {name: lines for name, lines in on_dev.items() if len(lines) == num_dev}
    if not scored:
        raise HarnessError("no fine-tuned row has a WER on dev yet; run the suite first: harness run SUITE")
    return by_name[min(scored, key=lambda name: (_mean(scored[name], "wer"), _mean(scored[name], "cer"), name))]


def judge(gate: Gate, *, chosen: Row, plan: Plan, board: list[Line]) -> list[Condition]:
    """All conditions on all test sets. A value that was not measured does not meet its limit."""
    baseline = _baseline(gate, chosen, plan)
    conditions = []
    for heldout in dict.fromkeys(item.heldout for item in plan.rows if item.split_role == "test"):
        line, before = (_line(board, name, heldout) for name in (chosen.row, baseline.row))
        gain = None if None in (line["wer"], before["wer"]) else before["wer"] - line["wer"]
        asked = f"≥ {gate.by_wer:g}" if gate.by_wer else "> 0"
        met = gain is not None and gain > 0 and gain >= gate.by_wer - ROUNDING
        conditions.append(Condition(f"WER gain over {gate.better_than}", heldout, gain, asked, met))
        conditions.append(Condition("num_failed", heldout, line["num_failed"], "= 0", line["num_failed"] == 0))
        for name in LIMITS:
            limit = getattr(gate, name)
            if limit is not None:
                value: Any = line[name]
                met = value is not None and value <= limit.max
                conditions.append(Condition(name, heldout, value, f"≤ {limit.max:g}", met))
    return conditions


def _baseline(gate: Gate, chosen: Row, plan: Plan) -> Row:
    """The row of the same model, export and runtime that the gate compares with."""
    for item in plan.rows:
        same = (item.model, item.export, item.runtime) == (chosen.model, chosen.export, chosen.runtime)
        if same and item.variant == gate.better_than:
            return item
    variants = ", ".join(dict.fromkeys(item.variant for item in plan.rows if item.model == chosen.model))
    raise SuiteError(f"gate.better_than: '{chosen.model}' has no variant '{gate.better_than}'; it has: {variants}")


def _mean(lines: list[Line], name: str) -> float:
    """The last place for what was not measured."""
    values = [line[name] for line in lines]
    return math.inf if None in values else math.fsum(values) / len(values)


def _line(board: list[Line], row: str, heldout: str) -> Line:
    for line in board:
        if line["row"] == row and line["heldout"] == heldout:
            return line
    raise HarnessError(f"row '{row}' is not scored on {heldout} yet; run the suite first: harness run SUITE")
