"""Searches that cannot be carried out: what they sample, and the steps at which they compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.suite.model import ModelSpec, expand, segment_class
from harness.suite.search import Range, num_combinations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.suite.document import Place
    from harness.suite.schema import Suite
    from harness.suite.wording import Fault


def search_faults(suite: Suite) -> Iterator[Fault]:
    """What can be said before the variants are known."""
    for name, model in _searched(suite):
        search = model.search
        place: Place = ("models", name, "search")
        for field, values in model.grid.items():
            if isinstance(values, Range) and search.kind != "random":
                yield (
                    ("models", name, "grid", field),
                    f"a range is for `search: random`, but this is {search.kind}; list its values instead",
                )
        if "search" in model.model_fields_set and search.kind != "asha" and not model.grid:
            yield place, f"`search: {search.kind}` needs a grid, and there is none; add `grid: {{FIELD: [...]}}`"
        elif search.trials is not None and search.trials > num_combinations(model.grid):
            yield (
                (*place, "trials"),
                f"{search.trials} trials, but the grid has {num_combinations(model.grid):g} combinations; lower it",
            )
        if search.kind == "asha" and segment_class(model.train) is None:
            yield place, f"a training of kind {model.kind} cannot stop at a rung; use `search: grid` or `random`"


def rung_faults(suite: Suite) -> Iterator[Fault]:
    """Rungs that not every variant reaches."""
    for name, model in _searched(suite):
        if model.search.kind != "asha":
            continue
        place: Place = ("models", name, "search")
        trained = {item.name: item.training for item in expand(model, seed=suite.seed) if item.training is not None}
        steps = {variant: getattr(training, "max_steps", None) for variant, training in trained.items()}
        if len(trained) < 2:
            yield place, f"`search: asha` compares variants, but '{name}' trains only one; add a grid or variants"
            continue
        known = {variant: max_steps for variant, max_steps in steps.items() if max_steps is not None}
        if len(known) < len(steps):
            variant = next(variant for variant in steps if variant not in known)
            yield place, f"variant '{variant}' trains for epochs, so its number of steps is unknown; give max_steps"
            continue
        last, shortest = min((max_steps, variant) for variant, max_steps in known.items())
        rungs = model.search.stops(list(known.values()))
        if not rungs:
            yield place, f"variant '{shortest}' ends at step {last}: too few for a rung before it; raise max_steps"
        for index, rung in enumerate(rungs):
            if rung >= last:
                yield (
                    (*place, "rungs", index),
                    f"rung {rung} is not before the last step of '{shortest}', {last}; lower it",
                )


def _searched(suite: Suite) -> Iterator[tuple[str, ModelSpec]]:
    return ((name, model) for name, model in suite.models.items() if isinstance(model, ModelSpec))
