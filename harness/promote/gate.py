"""Which row is promoted, and whether it may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.board.comparison import best_on_dev
from harness.board.slices import worst_gap
from harness.errors import HarnessError, SuiteError
from harness.score.slices import SMALLEST
from harness.suite.model import CHAMPION, ZERO_SHOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness.board.devices import Measurement
    from harness.board.leaderboard import Line
    from harness.board.slices import Slice, Sliced
    from harness.engine.plan import Plan, Row
    from harness.suite.schema import Gate

ROUNDING = 1e-12
"""0.105 - 0.1 is a little less than 0.005."""
MEASURED = ("load_s", "rtf", "latency_p95_ms", "peak_ram_mib")
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


@dataclass(frozen=True, slots=True)
class Champion:
    """What was promoted last."""

    row: str
    bundle: str
    when: str
    note: str = ""
    """What must be told beside its name."""


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
    best = best_on_dev(plan, board, among=by_name)
    if best is None:
        raise HarnessError("no fine-tuned row has a WER on dev yet; run the suite first: harness run SUITE")
    return by_name[best]


def judge(
    gate: Gate,
    *,
    chosen: Row,
    plan: Plan,
    board: list[Line],
    champion: Champion | None = None,
    measured: Sequence[Measurement] = (),
    slices: Sequence[Sliced] = (),
) -> list[Condition]:
    """All conditions on all test sets. A value that was not measured does not meet its limit.

    champion: None before the first promotion. measured: of the chosen row's files. slices: of all rows.
    """
    baseline, over = _baseline(gate, chosen, plan, champion=champion)
    conditions = []
    for heldout in dict.fromkeys(item.heldout for item in plan.rows if item.split_role == "test"):
        line, before = (_line(board, name, heldout) for name in (chosen.row, baseline.row))
        gain = None if None in (line["wer"], before["wer"]) else before["wer"] - line["wer"]
        asked = f"≥ {gate.by_wer:g}" if gate.by_wer else "> 0"
        met = gain is not None and gain > 0 and gain >= gate.by_wer - ROUNDING
        conditions.append(Condition(f"WER gain over {over}", heldout, gain, asked, met))
        conditions.append(Condition("num_failed", heldout, line["num_failed"], "= 0", line["num_failed"] == 0))
        for name in LIMITS:
            limit = getattr(gate, name)
            if limit is not None:
                value: Any = line[name]
                met = value is not None and value <= limit.max
                conditions.append(Condition(name, heldout, value, f"≤ {limit.max:g}", met))
        if gate.max_sealed_readings is not None:
            readings = line.get("sealed_readings")
            met = readings is not None and readings <= gate.max_sealed_readings
            asked = f"≤ {gate.max_sealed_readings}"
            conditions.append(Condition("readings of the sealed set", heldout, readings, asked, met))
        if gate.no_slice_worse_than is not None:
            own, theirs = (_slices(slices, row=name, heldout=heldout) for name in (chosen.row, baseline.row))
            conditions.append(_slice_condition(own, theirs, limit=gate.no_slice_worse_than, heldout=heldout, over=over))
    conditions += _measured_conditions(gate, measured)
    return [*conditions, *_probe_conditions(gate, chosen=chosen, board=board)]


def _slices(slices: Sequence[Sliced], *, row: str, heldout: str) -> Sequence[Slice]:
    return next((item.slices for item in slices if (item.row, item.heldout) == (row, heldout)), ())


def _slice_condition(
    own: Sequence[Slice], theirs: Sequence[Slice], *, limit: float, heldout: str, over: str
) -> Condition:
    """The slice on which the WER is most above the baseline's."""
    worst = worst_gap(own, theirs)
    if worst is None:
        what = f"WER loss to {over} on a slice (none has {SMALLEST} utterances)"
        return Condition(what, heldout, None, f"≤ {limit:g}", met=False)
    gap, at = worst
    what = f"WER loss to {over} on the worst slice, {at['by']}: {at['value']}"
    return Condition(what, heldout, gap, f"≤ {limit:g}", gap <= limit + ROUNDING)


def _measured_conditions(gate: Gate, measured: Sequence[Measurement]) -> Iterator[Condition]:
    """What was measured where the model shall run; of several devices there, the best."""
    if gate.measured is None:
        return
    host = gate.measured.host
    found = [item for item in measured if item.host == host]
    for name in MEASURED:
        limit = getattr(gate.measured, name)
        if limit is not None:
            values = [value for item in found if (value := getattr(item, name)) is not None]
            value = min(values, default=None)
            yield Condition(
                f"{name} on {host}", "bench", value, f"≤ {limit.max:g}", bool(values) and value <= limit.max
            )


def _probe_conditions(gate: Gate, *, chosen: Row, board: list[Line]) -> Iterator[Condition]:
    """What probes found belongs to the model, not to a held-out set: each limit is judged once."""
    line = next((item for item in board if item["row"] == chosen.row), {})
    for name, bounds in gate.probes.items():
        value = line.get(name)
        if bounds.min is not None:
            met = value is not None and value >= bounds.min - ROUNDING
            yield Condition(name, "probe", value, f"≥ {bounds.min:g}", met)
        if bounds.max is not None:
            met = value is not None and value <= bounds.max + ROUNDING
            yield Condition(name, "probe", value, f"≤ {bounds.max:g}", met)


def _baseline(gate: Gate, chosen: Row, plan: Plan, *, champion: Champion | None) -> tuple[Row, str]:
    """The row that the gate compares with, and what to call it.

    It is a variant of the same model, export and runtime, or the champion, whatever that is.
    """
    if gate.better_than == CHAMPION and champion is not None:
        return _champion(champion, chosen, plan)
    wanted, told = gate.better_than, gate.better_than
    if wanted == CHAMPION:
        wanted, told = ZERO_SHOT, f"{ZERO_SHOT} (no champion yet)"
    for item in plan.rows:
        if item.setting == chosen.setting and item.variant == wanted:
            return item, told
    variants = ", ".join(dict.fromkeys(item.variant for item in plan.rows if item.model == chosen.model))
    raise SuiteError(f"gate.better_than: '{chosen.model}' has no variant '{wanted}'; it has: {variants}")


def _champion(champion: Champion, chosen: Row, plan: Plan) -> tuple[Row, str]:
    if champion.row == chosen.row and not champion.note:
        raise HarnessError(
            f"{chosen.row} is the champion already, promoted {champion.when}; install its bundle again: "
            f"harness install {champion.bundle}"
        )
    for item in plan.rows:
        if item.row == champion.row:
            return item, f"champion {champion.row}{champion.note}"
    raise SuiteError(
        f"gate.better_than: the champion '{champion.row}', promoted {champion.when}, is no row of this suite any more, "
        "so nothing can be compared with it on the same clips; add its variant again, or name another variant"
    )


def _line(board: list[Line], row: str, heldout: str) -> Line:
    for line in board:
        if line["row"] == row and line["heldout"] == heldout:
            return line
    raise HarnessError(f"row '{row}' is not scored on {heldout} yet; run the suite first: harness run SUITE")
