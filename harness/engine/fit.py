"""Whether the trainings of a plan fit the suite's GPU, by prediction: told before hours are spent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.engine.search import RESUMED, trained_name
from harness.errors import SuiteError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from harness.core.estimates import Memory
    from harness.engine.plan import Step
    from harness.engine.store import Store
    from harness.suite.schema import Budget
    from harness.suite.spec import Spec

GIB = 2**30


def memories(steps: Iterable[Step], store: Store, *, budget: Budget) -> dict[str, Memory | None]:
    """Key of each training that is to be done → what it will take of the GPU; None where that cannot be known yet."""
    return {
        step.key: _predicted(step, step.spec, store, budget=budget)
        for step in steps
        if step.stage == "train" and not store.find(step.folder, key=step.key)
    }


def check_fit(steps: Iterable[Step], store: Store, *, budget: Budget) -> dict[str, Memory | None]:
    """Refuse trainings that are predicted not to fit. Returns the `memories` of those that do.

    Raises SuiteError, which names each with what it takes, and the smallest change that would make it fit.
    """
    by_key = {step.key: step for step in steps}
    found = memories(by_key.values(), store, budget=budget)
    if budget.vram_gib is None:
        return found
    # The parts of one training take the same.
    faults = [
        f"  {trained_name(by_key[key])}: {_gib(memory)}; {_remedy(by_key[key], store, budget=budget)}"
        for key, memory in found.items()
        if memory is not None and memory.total_b > budget.vram_gib * GIB and not by_key[key].inputs.get(RESUMED)
    ]
    if faults:
        trainings = "1 training does" if len(faults) == 1 else f"{len(faults)} trainings do"
        told = f"{trainings} not fit into budget.vram_gib {budget.vram_gib:g} (predicted, not measured on a card)"
        raise SuiteError("\n".join([told, *faults]))
    return found


def _predicted(step: Step, training: Spec, store: Store, *, budget: Budget) -> Memory | None:
    predict = getattr(step.module, "memory", None)
    if predict is None:
        return None
    (base,) = step.inputs["base"]
    name: str = base.spec.base  # type: ignore[attr-defined]  # as base weights of all kinds have
    placed = store.find(base.folder, key=base.key)
    folder = placed.path / "model" if placed else Path(name) if Path(name).is_dir() else None
    budget_b = None if budget.vram_gib is None else budget.vram_gib * GIB
    found: Memory | None = predict(training, name, folder=folder, budget_b=budget_b)
    return found


def _remedy(step: Step, store: Store, *, budget: Budget) -> str:
    assert budget.vram_gib is not None  # noqa: S101  # else nothing is refused
    for change in getattr(step.module, "lighter", _nothing)(step.spec):
        memory = _predicted(step, step.spec.model_copy(update=change), store, budget=budget)
        if memory is not None and memory.total_b <= budget.vram_gib * GIB:
            told = ", ".join(f"{name}: {_yaml(value)}" for name, value in change.items())
            return f"{told} would take {_gib(memory)}"
    return "no setting makes it fit: take a smaller model"


def _nothing(_training: Spec) -> Iterator[dict[str, Any]]:
    yield from ()


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if hasattr(value, "identity"):
        return "{" + ", ".join(f"{name}: {_yaml(item)}" for name, item in value.identity().items()) + "}"
    return f"[{', '.join(map(_yaml, value))}]" if isinstance(value, list) else str(value)


def _gib(memory: Memory) -> str:
    return f"{'at least ' if memory.is_least else ''}{memory.total_b / GIB:.1f} GiB"
