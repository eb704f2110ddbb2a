"""Where a promoted model comes from: what its bundle tells about it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.manifests import read_jsonl, read_manifest
from harness.core.recordings import read_samples
from harness.errors import HarnessError
from harness.promote.bundle import Clip, Content, encode_wav
from harness.promote.smoke import distance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.board.leaderboard import Line
    from harness.core.artifact import Artifact
    from harness.engine.plan import Plan, Row, Step
    from harness.engine.store import Store
    from harness.promote.gate import Condition

UNKNOWN_LICENCE = "not declared"
CLIP_S = (2.0, 10.0)
"""A smoke clip should say a few words, and be heard in a moment."""


def content_of(
    chosen: Row,
    plan: Plan,
    board: list[Line],
    store: Store,
    *,
    suite: Path,
    conditions: Sequence[Condition] = (),
    forced: str | None = None,
) -> Content:
    """Everything that the bundle of a row holds. Raises HarnessError if the row is not finished."""
    scored = _finished(chosen.scored, store)
    lines = [line for line in board if line["row"] == chosen.row]
    (heard,) = chosen.scored.inputs["transcripts"]
    quoted = _quoted(chosen, plan)
    return Content(
        name=chosen.row,
        export=_finished(chosen.exported, store),
        export_kind=chosen.export_kind,
        lines=lines,
        suite=plan.suite.suite,
        suite_sha256=hashlib.sha256(suite.read_bytes()).hexdigest(),
        base=_public(chosen.base),
        licences=_licences(chosen, plan, store, quoted=quoted.heldout),
        runtime=scored.meta["runtime"],
        decoding=scored.meta["decoding"],
        serving=heard.spec.identity(),
        smoke=_smoke(quoted, store),
        gate=[asdict(condition) for condition in conditions],
        forced=forced,
    )


def _public(base: str) -> str:
    """A hub id as it is; of a folder on this machine only the name."""
    return Path(base).name if Path(base).is_absolute() else base


def _quoted(chosen: Row, plan: Plan) -> Row:
    """The row's line on the held-out set that the smoke clip comes from: dev's rather than a sealed one's."""
    same = [item for item in plan.rows if item.row == chosen.row]
    return next((item for item in same if item.split_role == "dev"), same[0])


def _smoke(row: Row, store: Store) -> Clip:
    """A short clip that the row heard right, or else the one that it heard best."""
    rows = read_jsonl(_finished(row.scored, store).path / "hypotheses.jsonl")
    heard = [item for item in rows if item["error"] is None]
    if not heard:
        raise HarnessError(f"{row.row} failed on every recording of {row.heldout}; there is no clip to try it out with")
    best = min(heard, key=_rank)
    heldout = _finished(row.scored.inputs["heldout"][0], store)
    (audio,) = {item.audio for item in read_manifest(heldout.path) if item.id == best["id"]}
    samples = read_samples(store.recording(heldout, audio))
    return Clip(encode_wav(samples), text=best["hypothesis"], reference=best["reference"])


def _rank(row: dict[str, Any]) -> tuple[float, bool, float, str]:
    reference, hypothesis = row["reference_norm"].split(), row["hypothesis_norm"].split()
    fits = CLIP_S[0] <= row["duration_s"] <= CLIP_S[1]
    return distance(reference, hypothesis) / max(1, len(reference)), not fits, row["duration_s"], row["id"]


def _licences(chosen: Row, plan: Plan, store: Store, *, quoted: str) -> dict[str, str]:
    """Of the base model, of everything that was trained on, and of the recording that travels along."""
    licences = {}
    prepared = {}
    for step in plan.steps:
        if step.stage == "base" and getattr(step.spec, "base", None) == chosen.base:
            licences[f"base model {_public(chosen.base)}"] = (
                _finished(step, store).meta.get("licence") or UNKNOWN_LICENCE
            )
        if step.stage == "prepare":
            prepared[step.name.removeprefix("prepare ")] = step
    trained_on = {source.split("/", 1)[0] for source in plan.suite.train.sources} if chosen.trained else set()
    heard = {source.split("/", 1)[0] for source in plan.suite.heldout[quoted].sources}
    for name in sorted(trained_on | heard):
        what = f"recordings {name}" if name in trained_on else f"smoke clip, from {name}"
        declared = getattr(plan.suite.datasets[name], "licence", "")
        found = store.find(prepared[name].folder, key=prepared[name].key)
        licences[what] = declared or (found.meta.get("licence") if found else "") or UNKNOWN_LICENCE
    return licences


def _finished(step: Step, store: Store) -> Artifact:
    artifact = store.find(step.folder, key=step.key)
    if artifact is None:
        raise HarnessError(f"{step.name} is not finished; run the suite first: harness run SUITE")
    return artifact
