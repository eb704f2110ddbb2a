"""Where a promoted model comes from: what its bundle tells about it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.promote.bundle import Content

if TYPE_CHECKING:
    from harness.board.leaderboard import Line
    from harness.core.artifact import Artifact
    from harness.engine.plan import Plan, Row, Step
    from harness.engine.store import Store

UNKNOWN_LICENCE = "not declared"


def content_of(chosen: Row, plan: Plan, board: list[Line], store: Store, *, suite: Path) -> Content:
    """Everything that the bundle of a row holds. Raises HarnessError if the row is not finished."""
    scored = _finished(chosen.scored, store)
    lines = [line for line in board if line["row"] == chosen.row]
    return Content(
        name=chosen.row,
        export=_finished(chosen.exported, store),
        lines=lines,
        suite=plan.suite.suite,
        suite_sha256=hashlib.sha256(suite.read_bytes()).hexdigest(),
        base=_public(chosen.base),
        licences=_licences(chosen, plan, store),
        runtime=scored.meta["runtime"],
        decoding=scored.meta["decoding"],
    )


def _public(base: str) -> str:
    """A hub id as it is; of a folder on this machine only the name."""
    return Path(base).name if Path(base).is_absolute() else base


def _licences(chosen: Row, plan: Plan, store: Store) -> dict[str, str]:
    licences = {}
    for step in plan.steps:
        if step.stage == "base" and getattr(step.spec, "base", None) == chosen.base:
            licences[f"base model {_public(chosen.base)}"] = (
                _finished(step, store).meta.get("licence") or UNKNOWN_LICENCE
            )
    trained_on = {source.split("/", 1)[0] for source in plan.suite.train.sources}
    for name in sorted(trained_on):
        licence = getattr(plan.suite.datasets[name], "licence", "")
        licences[f"recordings {name}"] = licence or UNKNOWN_LICENCE
    return licences


def _finished(step: Step, store: Store) -> Artifact:
    artifact = store.find(step.folder, key=step.key)
    if artifact is None:
        raise HarnessError(f"{step.name} is not finished; run the suite first: harness run SUITE")
    return artifact
