"""What probes found of each row of the board, and what a row has forgotten against the untrained model."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from harness.core.files import replace_copy
from harness.suite.kinds import kinds
from harness.suite.model import ZERO_SHOT
from harness.suite.probe import FORGETTING, PROBE_FILE, probe_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from harness.core.artifact import Artifact
    from harness.engine.plan import Plan, Row
    from harness.engine.store import Store
    from harness.suite.probe import ProbeSpec

    Figures = dict[str, float | None]

BEHAVIOUR = (*probe_columns(), FORGETTING)
"""The columns that this module fills, alike for all held-out sets of a row."""


def behaviour(plan: Plan, store: Store) -> Mapping[str, Figures]:
    """Row → the columns of BEHAVIOUR; None for what was not measured, or says nothing of this kind of model."""
    rows: dict[str, list[Row]] = {}
    for row in plan.rows:
        rows.setdefault(row.row, []).append(row)
    bases = {own[0].setting: name for name, own in rows.items() if own[0].variant == ZERO_SHOT}
    measured = {name: _measured(own[0], store) for name, own in rows.items()}
    wer = {name: _wer_on_probe_sets(own, store) for name, own in rows.items()}
    found = {}
    for name, own in rows.items():
        base = bases.get(own[0].setting)
        compared = _ratios(measured[name], measured[base]) if base else {}
        lost = _lost(wer[name], wer[base]) if base else None
        found[name] = dict.fromkeys(BEHAVIOUR) | measured[name] | compared | {FORGETTING: lost}
    return found


def publish_probes(plan: Plan, store: Store, *, folder: Path) -> None:
    """Write what each probe heard as `<row>__<probe>.jsonl` into `folder`; remove what the suite no longer has."""
    current = set()
    for name, artifact, _ in _artifacts({row.row: row for row in plan.rows}.values(), store):
        current.add(name)
        replace_copy(artifact.path / PROBE_FILE, folder / name)
    for path in folder.glob("*.jsonl"):
        if path.name not in current:
            path.unlink()


def _artifacts(rows: Iterable[Row], store: Store) -> Iterator[tuple[str, Artifact, ProbeSpec]]:
    """Every finished probe of some rows, and what its file is called."""
    for row in rows:
        for step in row.probed:
            artifact = store.find(step.folder, key=step.key)
            if artifact is not None:
                spec = cast("ProbeSpec", step.spec)
                yield f"{row.row}__{spec.kind}.jsonl", artifact, spec


def _measured(row: Row, store: Store) -> Figures:
    return {
        column: artifact.meta.get(column) for _, artifact, spec in _artifacts([row], store) for column in spec.columns
    }


def _ratios(own: Figures, base: Figures) -> Figures:
    wanted = [pair for module in kinds("probe").values() for pair in module.Spec.ratios.items()]
    pairs = {column: (own.get(of), base.get(of)) for column, of in wanted}
    return {column: value / unit if value is not None and unit else None for column, (value, unit) in pairs.items()}


def _wer_on_probe_sets(rows: Sequence[Row], store: Store) -> Figures:
    scored = [(row, store.find(row.scored.folder, key=row.scored.key)) for row in rows if row.split_role == "probe"]
    return {row.heldout: score.meta["wer"] if score else None for row, score in scored}


def _lost(own: Figures, base: Figures) -> float | None:
    """The rise in WER on the set where it rose most; None if one is missing, for it might be that one."""
    pairs = [(own[heldout], base.get(heldout)) for heldout in own]
    rises = [after - before for after, before in pairs if after is not None and before is not None]
    return max(rises) if rises and len(rises) == len(pairs) else None
