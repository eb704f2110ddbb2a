"""A promotion from the decision to the record of it: judge, bundle, install or send, remember."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.board.comparison import SMALLEST_TEST, resampled, word_counts
from harness.board.devices import measurements_by_row, merged, model_digest
from harness.board.slices import sliced
from harness.errors import GateRefusedError
from harness.promote import challenge
from harness.promote.bundle import write_bundle
from harness.promote.gate import Champion, candidate, judge
from harness.promote.history import PROMOTIONS_FILE, Entry, append, now, read, user
from harness.promote.install import HISTORY_FILE, install
from harness.promote.parcel import opened
from harness.promote.provenance import content_of
from harness.promote.swap import HOME
from harness.promote.transport import Remote, send
from harness.suite.model import CHAMPION

if TYPE_CHECKING:
    from harness.board.leaderboard import Line
    from harness.core.artifact import Artifact
    from harness.engine.plan import Plan, Row
    from harness.engine.store import Store
    from harness.promote.challenge import Watched
    from harness.promote.gate import Condition
    from harness.promote.install import Installed
    from harness.promote.targets import Target
    from harness.score.significance import Difference

    Scores = dict[tuple[str, str], Artifact]
    """Row and held-out set → the score."""

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
    plan: Plan,
    board: list[Line],
    store: Store,
    *,
    folder: Path,
    target: Target,
    row: str | None = None,
    watch: Watched | None = None,
) -> Decision:
    """Choose a row and judge it.

    folder: `results/<suite>`. row: rather than the best one. watch: for a champion that must be heard again; without
    it, a champion that has not been heard yet raises HarnessError.
    """
    exports = [kind for kind, slot in target.slots.items() if row is not None or not slot.is_legacy]
    chosen = candidate(plan, board, exports=tuple(exports), row=row)
    champion = current_champion(plan, store, folder=folder)
    found = {(item.row, item.heldout): store.find(item.scored.folder, key=item.scored.key) for item in plan.rows}
    scores = {at: artifact for at, artifact in found.items() if artifact}
    known, slices = board, sliced(board, plan, store)
    if champion is not None and not champion.is_row and plan.suite.gate.better_than == CHAMPION:
        heard = challenge.rescored(champion, plan, store, folder=folder, watch=watch)
        scores |= {(champion.name, heldout): score for heldout, score in heard.items()}
        known = [*board, *challenge.lines(champion.name, heard)]
        slices += challenge.slices(champion.name, heard)
    conditions = judge(
        plan.suite.gate,
        chosen=chosen,
        plan=plan,
        board=known,
        champion=champion,
        measured=measurements_by_row(plan, store, merged(folder)).get(chosen.row, []),
        slices=slices,
        paired=partial(_paired, scores=scores, plan=plan),
        num_leaks=_num_leaks(plan, store),
    )
    return Decision(chosen, conditions, champion)


def _paired(own: str, before: str, heldout: str, *, scores: Scores, plan: Plan) -> Difference | None:
    """How much higher the WER of `own` is, by bootstrap over the same utterances; None where that says nothing."""
    pair = [scores.get((name, heldout)) for name in (own, before)]
    known = [score for score in pair if score and score.meta["wer"] is not None]
    if len(known) < len(pair) or known[0].meta["num_utterances"] < SMALLEST_TEST:
        return None
    return resampled([word_counts(score) for score in known], plan).difference(0, 1)


def _num_leaks(plan: Plan, store: Store) -> int | None:
    """Between the training set and the held-out sets, as they are now; None if they have not been compared yet."""
    checks = [store.find(step.folder, key=step.key) for step in plan.steps if step.stage == "leakage"]
    return sum(check.meta["num_leaks"] for check in checks if check) if all(checks) else None


def check_gate(decision: Decision, *, force: str | None) -> None:
    """Raises GateRefusedError if a condition is not met, unless somebody takes it on himself."""
    if decision.is_met or force:
        return
    remedies = dict.fromkeys(item.remedy for item in decision.conditions if item.remedy)
    told = f"the gate refuses {decision.chosen.row}; the table says which condition it does not meet"
    raise GateRefusedError("; ".join([told, *remedies]))


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
    told = [entry for entry in read(folder / PROMOTIONS_FILE) if entry.get("bundle") == last["bundle"]]
    return Champion(last["row"], last["bundle"], last["when"], is_row=_is_row(told[-1], plan, store))


def with_forced(board: list[Line], plan: Plan, store: Store, *, folder: Path) -> list[Line]:
    """The board with a note on every model that was last promoted past the gate. folder: `results/<suite>`."""
    told = {
        str(entry["row"]): f"{entry['row']}, promoted {entry['when'][:10]} by {entry.get('by') or '?'}: "
        f"{' '.join(str(entry['reason']).split())}"
        if entry.get("forced")
        else ""
        for entry in read(folder / PROMOTIONS_FILE)
        if (entry.get("forced") or entry.get("action") == PROMOTE) and _is_row(entry, plan, store)
    }
    return [{**line, "note": "; ".join(filter(None, (line["note"], told.get(line["row"])))) or None} for line in board]


def _is_row(entry: Entry, plan: Plan, store: Store) -> bool:
    """Whether the suite's row of that name is still the model that was promoted."""
    for row in plan.rows:
        if row.row == entry["row"]:
            artifact = store.find(row.exported.folder, key=row.exported.key)
            return artifact is not None and model_digest(artifact.files) == entry.get("model_sha256")
    return False


def _reason(decision: Decision, *, forced: str | None) -> str:
    failed = ", ".join(dict.fromkeys(item.what for item in decision.conditions if not item.met))
    if not failed:
        return "the gate let it pass"
    return f"FORCED: {forced} (not met: {failed})" if forced else f"to be measured; the gate says no yet: {failed}"
