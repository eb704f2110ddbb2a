"""Searches that stop the worst variants early: their steps in a plan, and what has become of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.suite.model import ModelSpec, expand, segment_class
from harness.train import rung

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from harness.core.artifact import Artifact
    from harness.engine.plan import Builder, Plan, Step
    from harness.engine.store import Store
    from harness.suite.model import Candidate, TrainingSpec, Variant
    from harness.suite.schema import Suite

JUDGE = "rung"
"""The stage of the steps that decide who goes on."""
RESUMED = "resume"
"""Role of the segments that a training continues, the newest first."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """A variant that a search has stopped."""

    name: str
    """`whisper-base lr3e-5`."""
    trial: Step
    """The last segment that it was trained for."""
    step: int
    dev_wer: float | None
    """None: its loss broke before."""
    place: int
    num_trials: int

    def __str__(self) -> str:
        place = f"{_ordinal(self.place)} of {self.num_trials}"
        figure = "its loss broke before" if self.dev_wer is None else f"dev WER {self.dev_wer:.3f}"
        return f"{self.name}: stopped at step {self.step:,}: {figure}, {place}"


def segments(
    build: Builder,
    model: tuple[str, Candidate],
    variants: Sequence[Variant],
    *,
    sets: Mapping[str, tuple[Step, ...]],
    checked: Step,
) -> dict[str, Step]:
    """Variant → the step that ends its training, which is cut at the rungs of the model's search.

    At each rung a step judges: it reads the segments before it and nothing else, above all no test set.
    """
    name, spec = model
    assert isinstance(spec, ModelSpec)  # noqa: S101  # nothing else is searched
    trained = {item.name: item.training for item in variants if item.training is not None}
    rungs = spec.search.stops([training.max_steps for training in trained.values()])  # type: ignore[attr-defined]
    done: dict[str, tuple[Step, ...]] = dict.fromkeys(trained, ())
    judge = None
    for until in (*rungs, None):
        for variant, training in trained.items():
            resumed = {RESUMED: done[variant]} if done[variant] else {}
            part = training if until is None else _segment(training, until=until)
            label = f"{name} {variant}" + (f" to {until}" if until else "")
            step = build.add("train", label, part, {**sets, **resumed}, (checked,), judge=judge)
            done[variant] = (step, *done[variant])
        if until is not None:
            # In the order of their keys: that of the suite does not count.
            trials = {steps[0].key: steps[0] for steps in done.values()}
            inputs = {"trials": tuple(trials[key] for key in sorted(trials))}
            if judge:
                inputs["before"] = (judge,)
            judge = build.add(JUDGE, f"{name} at {until}", rung.Spec(step=until, keep=spec.search.keep), inputs)
    return {variant: steps[0] for variant, steps in done.items()}


def _segment(training: TrainingSpec, *, until: int) -> TrainingSpec:
    of = segment_class(training)
    assert of is not None  # noqa: S101  # a suite with another kind is refused when it is read
    return of.model_validate({**training.model_dump(exclude_unset=True), "until": until})


def is_pruned(step: Step, pruned: Collection[str], store: Store) -> bool:
    """Whether a search has stopped what the step belongs to, once all that it needs has come to an end.

    pruned: keys of the steps before it that are pruned. A judge reads what is left of its trials.
    """
    if step.stage == JUDGE:
        return False
    if any(need.key in pruned for need in step.needs):
        return True
    verdict = store.find(step.judge.folder, key=step.judge.key) if step.judge else None
    return verdict is not None and step.inputs[RESUMED][0].key not in verdict.meta["survivors"]


def surviving(plan: Plan, store: Store) -> Plan:
    """The plan without the steps and rows of variants that are known to be stopped."""
    pruned: set[str] = set()
    for step in plan.steps:
        if is_pruned(step, pruned, store):
            pruned.add(step.key)
    return replace(
        plan,
        steps=tuple(step for step in plan.steps if step.key not in pruned),
        rows=tuple(row for row in plan.rows if row.scored.key not in pruned),
    )


def stopped(plan: Plan, store: Store) -> list[Stopped]:
    """The variants that searches have stopped, in the order of the rungs, the best first."""
    steps = {step.key: step for step in plan.steps}
    return [
        item
        for judge in surviving(plan, store).steps
        if judge.stage == JUDGE and (verdict := store.find(judge.folder, key=judge.key))
        for item in _stopped_at(verdict, steps)
    ]


def _stopped_at(verdict: Artifact, steps: Mapping[str, Step]) -> Iterator[Stopped]:
    places = verdict.meta["places"]
    for item in places:
        if not item["kept"]:
            trial = steps[item["key"]]
            numbers = (verdict.meta["step"], item["dev_wer"], item["place"], len(places))
            yield Stopped(trained_name(trial), trial, *numbers)


def trained_name(step: Step) -> str:
    """`whisper-base lr3e-5` of a training step or a segment of one."""
    until = getattr(step.spec, "until", None)
    return step.name.removeprefix("train ").removesuffix(f" to {until}")


def prospects(suite: Suite) -> Iterator[str]:
    """What each search that stops variants will do at most: one line a model."""
    for name, model in suite.models.items():
        if not isinstance(model, ModelSpec) or model.search.kind != "asha":
            continue
        trained = [item.training for item in expand(model, seed=suite.seed) if item.training is not None]
        rungs = model.search.stops([training.max_steps for training in trained])  # type: ignore[attr-defined]
        left, parts = len(trained), []
        for number, step in enumerate(rungs, start=1):
            left = num_kept(left, keep=model.search.keep)
            parts.append(f"at most {left} finish" if number == len(rungs) else f"at most {left} pass step {step:,}")
        yield f"search of {name}: {len(trained)} variants, {', '.join(parts)}"


def num_kept(num_trials: int, *, keep: float) -> int:
    """How many go on at a rung: the pruner leaves what is not over the percentile between the places."""
    return math.floor((num_trials - 1) * keep + 1e-9) + 1


def _ordinal(place: int) -> str:
    ending = "th" if place % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending}"
