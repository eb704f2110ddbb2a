"""How much RAM steps will take: as much as the hungriest step like them has taken. Where none has run, nobody knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.engine.store import ARTIFACT_FILE, read_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from harness.engine.plan import Step
    from harness.engine.store import Store

Likeness = tuple[Any, ...]
"""Stage, kind, and the base weights where they are read: steps that agree in these take about the same."""


def peaks_mib(steps: Iterable[Step], store: Store) -> dict[str, float]:
    """Key of a step → MiB of RAM; without the steps of which nothing is known."""
    known: dict[Likeness, float] = {}
    for path in store.root.glob(f"*-*/{ARTIFACT_FILE}"):
        try:
            record = read_record(path.parent)
            peak_mib = float(record.get("peak_ram_mib") or 0)
            like = _of_record(record)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # the step itself will complain
        known[like] = max(known.get(like, 0), peak_mib)
    return {step.key: peak_mib for step in steps if (peak_mib := known.get(_of_step(step), 0))}


def _of_record(record: Mapping[str, Any]) -> Likeness:
    return record["stage"], record["spec"].get("kind"), *record["inputs"].get("base", ())


def _of_step(step: Step) -> Likeness:
    return step.stage, getattr(step.spec, "kind", None), *(base.folder for base in step.inputs.get("base", ()))
