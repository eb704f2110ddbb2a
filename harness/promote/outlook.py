"""What the gate would say of a board, in words: for the report, which promotes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError
from harness.promote import targets
from harness.promote.promotion import decide

if TYPE_CHECKING:
    from pathlib import Path

    from harness.board.leaderboard import Line
    from harness.engine.plan import Plan
    from harness.engine.store import Store
    from harness.promote.gate import Condition
    from harness.promote.promotion import Decision


def outlook(plan: Plan, board: list[Line], store: Store, *, folder: Path) -> dict[str, Any] | None:
    """`row`, the one that would be promoted or None, and `sentences` on why; None where a suite promotes nothing.

    folder: `results/<suite>`.
    """
    if plan.suite.promote is None:
        return None
    target = targets.target(plan.suite.promote.target)
    try:
        decision = decide(plan, board, store, folder=folder, target=target)
    except HarnessError as error:
        return {"row": None, "sentences": [f"Nothing would be promoted: {error}."]}
    chosen = decision.chosen.row
    on_dev = [
        f"{100 * line['wer']:.1f} % on {line['heldout']}"
        for line in board
        if line["row"] == chosen and line["split_role"] == "dev"
    ]
    chosen_for = f"{chosen} has the lowest WER on dev of the fine-tuned rows for {target.title}: {', '.join(on_dev)}."
    return {"row": chosen if decision.is_met else None, "sentences": [chosen_for, _verdict(decision)]}


def _verdict(decision: Decision) -> str:
    missed = [_told(item) for item in decision.conditions if not item.met]
    if missed:
        return f"The gate refuses it: {'; '.join(missed)}."
    against = f"; it would follow {decision.champion.row}" if decision.champion else ""
    return f"It meets all {len(decision.conditions)} conditions of the gate, and would be promoted{against}."


def _told(condition: Condition) -> str:
    return f"{condition.what} on {condition.heldout} is {condition.told}, but must be {condition.limit}"
