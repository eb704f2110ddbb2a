"""A rung of a search: of the variants trained so far, the best by dev WER go on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import Field

from harness.errors import MissingError
from harness.suite import spec as base

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.core.artifact import Artifact, Inputs, Work

VERSION = 1


class Spec(base.Spec):
    """Who goes on."""

    step: int = Field(ge=1, description="Optimizer steps that the variants were trained for.")
    keep: float = Field(gt=0, lt=1, description="The share that goes on.")


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:  # noqa: ARG001  # it leaves nothing but its meta
    """Compare variants.

    inputs: `trials`, trainings up to this rung with `dev_wer` and `dev_loss` in their meta; their order does not count.
    Returns their `places`, best first, and the keys of the `survivors`. Of equal WERs the lower dev loss is better.
    """
    trials = sorted(inputs["trials"], key=_quality)
    kept = survives(range(1, len(trials) + 1), keep=spec.keep)
    places = [
        {"key": trial.key, "dev_wer": trial.meta["dev_wer"], "place": place, "kept": stays}
        for place, (trial, stays) in enumerate(zip(trials, kept, strict=True), start=1)
    ]
    return {"step": spec.step, "places": places, "survivors": [item["key"] for item in places if item["kept"]]}


def survives(places: Sequence[int], *, keep: float) -> list[bool]:
    """Which places Optuna's percentile pruner leaves of a study that consists of them.

    Places, not WERs: dev sets are small and WERs often equal, and a pruner lets equals pass together.
    Raises MissingError without Optuna.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingError("`search: asha` needs Optuna, which is not installed: pip install '.[train]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize")
    study.add_trials([optuna.trial.create_trial(value=place, intermediate_values={0: place}) for place in places])
    pruner = optuna.pruners.PercentilePruner(100 * keep, n_startup_trials=0)
    return [not pruner.prune(study, trial) for trial in study.get_trials(deepcopy=False)]


def _quality(trial: Artifact) -> tuple[float, float, str]:
    return _known(trial.meta["dev_wer"]), _known(trial.meta.get("dev_loss")), trial.key


def _known(value: float | None) -> float:
    """The last place for what was not measured or is no number."""
    return math.inf if value is None or math.isnan(value) else value
