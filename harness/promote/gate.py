"""Which row is promoted, and whether it may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.board.comparison import best_on_dev
from harness.board.slices import worst_gap
from harness.errors import HarnessError, SuiteError
from harness.score.slices import SMALLEST
from harness.suite.kinds import kinds
from harness.suite.model import CHAMPION, ZERO_SHOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from harness.board.devices import Measurement
    from harness.board.leaderboard import Line
    from harness.board.slices import Slice, Sliced
    from harness.engine.plan import Plan, Row
    from harness.score.significance import Difference
    from harness.suite.schema import Gate

    Paired = Callable[[str, str, str], Difference | None]
    """Two rows and a held-out set → how much higher the WER of the first is, with its paired 95 % interval."""

ROUNDING = 1e-12
"""0.105 - 0.1 is a little less than 0.005."""
MEASURED = ("load_s", "rtf", "latency_p95_ms", "peak_ram_mib")
LIMITS = ("rtf", "latency_p95_ms", "peak_ram_mib", "peak_vram_mib", "size_mib")
EXPORT_LOSS = "WER loss to its checkpoint"
LEAKS = "leaks into training"
BENCH = "bench"
REMEDIES = {
    EXPORT_LOSS: "score its checkpoint: add whisper_checkpoint or parakeet_nemo to its export, then harness run SUITE",
    LEAKS: "compare its training set with the held-out sets: harness run SUITE",
    BENCH: "measure it where it shall run: harness promote SUITE --candidate, harness bench BUNDLE there, "
    "harness board SUITE --merge FILE",
}
"""How to measure what a gate demands."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One line of the gate's table."""

    what: str
    heldout: str
    value: float | None
    """None: not measured, which fails."""
    limit: str
    met: bool
    lo: float | None = None
    """Of the 95 % interval of a difference."""
    hi: float | None = None

    @property
    def told(self) -> str:
        """The value as people read it."""
        if self.value is None:
            return "not measured"
        return f"{self.value:.4g}" + ("" if self.lo is None else f" [{self.lo:.4g}, {self.hi:.4g}]")

    @property
    def remedy(self) -> str:
        """How to measure it; empty where it is measured, or a run measures it anyway."""
        return REMEDIES.get(self.what, REMEDIES.get(self.heldout, "")) if self.value is None else ""


@dataclass(frozen=True, slots=True)
class Champion:
    """What was promoted last."""

    row: str
    bundle: str
    when: str
    is_row: bool = True
    """Whether the row of that name is still the same model; if not, the bundle is heard again."""

    @property
    def name(self) -> str:
        """What the board, with the champion's lines on it, calls it."""
        return self.row if self.is_row else self.bundle


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


def _unpaired(_own: str, _before: str, _heldout: str) -> None:
    return None


def judge(
    gate: Gate,
    *,
    chosen: Row,
    plan: Plan,
    board: Sequence[Line],
    champion: Champion | None = None,
    measured: Sequence[Measurement] = (),
    slices: Sequence[Sliced] = (),
    paired: Paired = _unpaired,
    num_leaks: int | None = None,
) -> list[Condition]:
    """All conditions on all test sets. A value that was not measured does not meet its limit.

    board: with the champion's lines, if it is no row of the suite. champion: None before the first promotion.
    measured: of the chosen row's files. slices: of all rows. num_leaks: None if nobody has looked for them.
    """
    baseline, over = _baseline(gate, chosen, plan, champion=champion)
    conditions = []
    for heldout in dict.fromkeys(item.heldout for item in plan.rows if item.split_role == "test"):
        line, before = (_line(board, name, heldout) for name in (chosen.row, baseline))
        conditions.append(_gain(gate, line, before, over=over, difference=paired(chosen.row, baseline, heldout)))
        conditions.append(Condition("num_failed", heldout, line["num_failed"], "= 0", line["num_failed"] == 0))
        conditions += _limits(gate, line)
        if gate.export_loss is not None:
            checkpoint = _checkpoint(chosen, plan, board=board, heldout=heldout)
            conditions.append(_export_loss(line, checkpoint, limit=gate.export_loss.max, paired=paired))
        if gate.no_slice_worse_than is not None:
            own, theirs = (_slices(slices, row=name, heldout=heldout) for name in (chosen.row, baseline))
            conditions.append(_slice_condition(own, theirs, limit=gate.no_slice_worse_than, heldout=heldout, over=over))
    if gate.leakage_clean:
        conditions.append(Condition(LEAKS, "all", num_leaks, "= 0", num_leaks == 0))
    conditions += _measured_conditions(gate, measured)
    return [*conditions, *_probe_conditions(gate, chosen=chosen, board=board)]


def _gain(gate: Gate, line: Line, before: Line, *, over: str, difference: Difference | None) -> Condition:
    gain = None if None in (line["wer"], before["wer"]) else before["wer"] - line["wer"]
    lo, hi = (None, None) if difference is None else (-difference.hi, -difference.lo)
    if gate.non_inferior_by is not None:
        asked = f"95 % above {-gate.non_inferior_by:g}"
        met = lo is not None and lo > -gate.non_inferior_by
    else:
        asked = f"≥ {gate.by_wer:g}" if gate.by_wer else "> 0"
        met = gain is not None and gain > 0 and gain >= gate.by_wer - ROUNDING
        if gate.superior:
            asked, met = f"{asked}, 95 % above 0", met and lo is not None and lo > 0
    return Condition(f"WER gain over {over}", line["heldout"], gain, asked, met, lo, hi)


def _limits(gate: Gate, line: Line) -> Iterator[Condition]:
    """What the board measured of the row, and of the set."""
    for name in LIMITS:
        limit = getattr(gate, name)
        if limit is not None:
            value: Any = line[name]
            yield Condition(name, line["heldout"], value, f"≤ {limit.max:g}", value is not None and value <= limit.max)
    most = gate.max_sealed_readings
    if most is not None:
        readings = line.get("sealed_readings")
        met = readings is not None and readings <= most
        yield Condition("readings of the sealed set", line["heldout"], readings, f"≤ {most}", met)


def _checkpoint(chosen: Row, plan: Plan, *, board: Sequence[Line], heldout: str) -> Line | None:
    """The line of the same model before it was exported; None if it is not scored."""
    exports = kinds("export")
    for item in plan.rows:
        same = (item.model, item.variant, item.heldout) == (chosen.model, chosen.variant, heldout)
        if same and item.export_kind in exports and exports[item.export_kind].Spec.is_checkpoint:
            return next((line for line in board if (line["row"], line["heldout"]) == (item.row, heldout)), None)
    return None


def _export_loss(line: Line, checkpoint: Line | None, *, limit: float, paired: Paired) -> Condition:
    loss = difference = None
    if checkpoint is not None and None not in (line["wer"], checkpoint["wer"]):
        loss = line["wer"] - checkpoint["wer"]
        difference = paired(line["row"], checkpoint["row"], line["heldout"])
    lo, hi = (None, None) if difference is None else (difference.lo, difference.hi)
    met = loss is not None and loss <= limit + ROUNDING
    return Condition(EXPORT_LOSS, line["heldout"], loss, f"≤ {limit:g}", met, lo, hi)


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
            yield Condition(f"{name} on {host}", BENCH, value, f"≤ {limit.max:g}", bool(values) and value <= limit.max)


def _probe_conditions(gate: Gate, *, chosen: Row, board: Sequence[Line]) -> Iterator[Condition]:
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


def _baseline(gate: Gate, chosen: Row, plan: Plan, *, champion: Champion | None) -> tuple[str, str]:
    """The row that the gate compares with, and what to call it.

    It is a variant of the same model, export and runtime, or the champion, whatever that is.
    """
    if gate.better_than == CHAMPION and champion is not None:
        if champion.name == chosen.row:
            raise HarnessError(
                f"{chosen.row} is the champion already, promoted {champion.when}; install its bundle again: "
                f"harness install {champion.bundle}"
            )
        return champion.name, f"champion {champion.name}"
    wanted, told = gate.better_than, gate.better_than
    if wanted == CHAMPION:
        wanted, told = ZERO_SHOT, f"{ZERO_SHOT} (no champion yet)"
    for item in plan.rows:
        if item.setting == chosen.setting and item.variant == wanted:
            return item.row, told
    variants = ", ".join(dict.fromkeys(item.variant for item in plan.rows if item.model == chosen.model))
    raise SuiteError(f"gate.better_than: '{chosen.model}' has no variant '{wanted}'; it has: {variants}")


def _line(board: Sequence[Line], row: str, heldout: str) -> Line:
    for line in board:
        if line["row"] == row and line["heldout"] == heldout:
            return line
    raise HarnessError(f"row '{row}' is not scored on {heldout} yet; run the suite first: harness run SUITE")
