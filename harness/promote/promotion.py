"""A promotion from the decision to the record of it: judge, bundle, install or send, remember."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.board.devices import measurements_by_row, merged, model_digest
from harness.board.slices import sliced
from harness.errors import GateRefusedError
from harness.promote.bundle import write_bundle
from harness.promote.gate import Champion, candidate, judge
from harness.promote.history import PROMOTIONS_FILE, Entry, append, now, read, user
from harness.promote.install import HISTORY_FILE, install
from harness.promote.parcel import opened
from harness.promote.provenance import content_of
from harness.promote.swap import HOME
from harness.promote.transport import Remote, send

if TYPE_CHECKING:
    from harness.board.leaderboard import Line
    from harness.engine.plan import Plan, Row
    from harness.engine.store import Store
    from harness.promote.gate import Condition
    from harness.promote.install import Installed
    from harness.promote.targets import Target

CANDIDATE = "candidate"
PROMOTE = "promote"
ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True)
class Decision:
    """Which row, and what speaks for and against it."""

    chosen: Row
    conditions: list[Condition]
    champion: Champion | None

    @property
    def is_met(self) -> bool:
        return all(condition.met for condition in self.conditions)


@dataclass(frozen=True, slots=True)
class Promoted:
    """What a promotion has done."""

    bundle: Path
    entry: Entry
    installed: Installed | None


def decide(
    plan: Plan, board: list[Line], store: Store, *, folder: Path, target: Target, row: str | None = None
) -> Decision:
    """Choose a row and judge it. folder: `results/<suite>`. row: rather than the best one."""
    exports = [kind for kind, slot in target.slots.items() if row is not None or not slot.is_legacy]
    chosen = candidate(plan, board, exports=tuple(exports), row=row)
    champion = current_champion(plan, store, folder=folder)
    measured = measurements_by_row(plan, store, merged(folder)).get(chosen.row, [])
    conditions = judge(
        plan.suite.gate,
        chosen=chosen,
        plan=plan,
        board=board,
        champion=champion,
        measured=measured,
        slices=sliced(board, plan, store),
    )
    return Decision(chosen, conditions, champion)


def check_gate(decision: Decision, *, force: str | None) -> None:
    """Raises GateRefusedError if a condition is not met, unless somebody takes it on himself."""
    if decision.is_met or force:
        return
    unmeasured = any(item.heldout == "bench" and item.value is None for item in decision.conditions)
    more = (
        "; measure it where it shall run: harness promote SUITE --candidate, harness bench BUNDLE there, "
        "harness board SUITE --merge FILE"
    )
    raise GateRefusedError(
        f"the gate refuses {decision.chosen.row}; the table says which condition it does not meet"
        + (more if unmeasured else "")
    )


def promote(
    decision: Decision,
    plan: Plan,
    board: list[Line],
    store: Store,
    *,
    suite: Path,
    folder: Path,
    target: Target,
    to: Path | Remote | None,
    force: str | None = None,
) -> Promoted:
    """Bundle the chosen row; install it into the folder `to`, send it to another machine, or, with None, neither.

    Raises HarnessError if the model cannot be installed; then nothing is written into the history.
    """
    forced = force if force and not decision.is_met else None
    content = content_of(
        decision.chosen, plan, board, store, suite=suite, conditions=decision.conditions, forced=forced
    )
    bundle = write_bundle(content, folder=folder / "bundles")
    installed = None
    if isinstance(to, Remote):
        send(bundle.with_name(f"{bundle.name}.zip"), to=to)
    elif to is not None:
        with opened(bundle) as parcel:
            installed = install(parcel, target=target, folder=to)
    entry = {
        "when": now(),
        "action": CANDIDATE if to is None else PROMOTE,
        "row": decision.chosen.row,
        "bundle": bundle.name,
        "model_sha256": model_digest(content.export.files),
        "by": user(),
        "reason": _reason(decision, forced=forced),
        "forced": forced is not None,
        "previous": decision.champion.row if decision.champion else "",
        "target": target.name,
        "to": "" if to is None else str(to if isinstance(to, Remote) else to.resolve()),
    }
    append(folder / PROMOTIONS_FILE, entry)
    return Promoted(bundle, entry, installed)


def history(folder: Path) -> list[Entry]:
    """Promotions of a suite, and the rollbacks in folders of this machine that they went to; oldest first.

    folder: `results/<suite>`.
    """
    entries = read(folder / PROMOTIONS_FILE)
    bundles = {entry.get("bundle") for entry in entries}
    places = dict.fromkeys(str(entry.get("to", "")) for entry in entries)
    for place in (path for path in places if Path(path).is_absolute()):
        entries += [
            {**entry, "to": place}
            for entry in read(Path(place) / HOME / HISTORY_FILE)
            if entry.get("action") == ROLLBACK and entry.get("bundle") in bundles
        ]
    return sorted(entries, key=lambda entry: str(entry.get("when", "")))


def current_champion(plan: Plan, store: Store, *, folder: Path) -> Champion | None:
    """What was promoted last, or rolled back to after that."""
    entries = [entry for entry in history(folder) if entry["action"] in {PROMOTE, ROLLBACK} and entry.get("row")]
    if not entries:
        return None
    last = entries[-1]
    promoted = [entry for entry in entries if entry["action"] == PROMOTE and entry["bundle"] == last["bundle"]]
    return Champion(last["row"], last["bundle"], last["when"], _note(promoted[-1], plan, store) if promoted else "")


def _note(entry: Entry, plan: Plan, store: Store) -> str:
    """Whether the suite's row of that name is still the model that was promoted."""
    for row in plan.rows:
        if row.row == entry["row"]:
            artifact = store.find(row.exported.folder, key=row.exported.key)
            same = artifact is not None and model_digest(artifact.files) == entry.get("model_sha256")
            return "" if same else " (as this suite trains it now)"
    return ""


def _reason(decision: Decision, *, forced: str | None) -> str:
    failed = ", ".join(dict.fromkeys(item.what for item in decision.conditions if not item.met))
    if not failed:
        return "the gate let it pass"
    return f"FORCED: {forced} (not met: {failed})" if forced else f"to be measured; the gate says no yet: {failed}"
