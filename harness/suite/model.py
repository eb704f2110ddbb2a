"""What all kinds of model declare, and the variants that a declaration stands for."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from harness.suite.kinds import KindOf
from harness.suite.spec import ExportSpec, Name, Seed, Spec

ZERO_SHOT = "zero-shot"
"""The variant that nobody trained: the base model as it is."""

TUNED = "tuned"
"""The one variant of a model without a grid and without named variants."""

SHORT = {"learning_rate": "lr", "warmup_steps": "warmup", "batch_size": "batch", "max_steps": "steps"}
"""Field → its short form in a variant's name; other fields stand in full."""


class TrainingSpec(Spec):
    """How one variant is trained; the step's spec."""

    seed: Seed = Field(default=17, description="Of the data order and dropout; the suite's seed unless given here.")


class ModelSpec(Spec):
    """A kind of model: a file in `harness/train/` whose `Spec` adds `kind` and `train`."""

    kind: str
    base: str = Field(description="A local folder or a hub id.")
    revision: str = Field(default="main", description="Branch, tag or commit of the hub id.")
    zero_shot: bool = Field(default=True, description="Score the untrained base model as a row of its own.")
    train: TrainingSpec
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default={}, description="Training field → values; every combination is a variant."
    )
    variants: dict[Name, dict[str, Any]] = Field(
        default={}, description="Name → training fields that differ; variants beside the grid."
    )
    export: list[Annotated[ExportSpec, KindOf("export")]] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Variant:
    """One model of the board before it is exported."""

    name: str
    training: TrainingSpec | None
    """None: zero-shot."""


def expand(model: ModelSpec, *, seed: int) -> list[Variant]:
    """All variants of a model: zero-shot, then the grid in its written order, then the named ones.

    Without a grid and without named variants, `train` itself is the one variant, TUNED.
    """
    changes = [(variant_name(fields), fields) for fields in combinations(model.grid)]
    changes += model.variants.items()
    tuned = [Variant(name, trained_as(model, {"seed": seed}, fields)) for name, fields in changes or [(TUNED, {})]]
    return [Variant(ZERO_SHOT, None), *tuned] if model.zero_shot else tuned


def combinations(grid: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """The cartesian product of a grid, in its written order; none of an empty grid."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())] if grid else []


def trained_as(model: ModelSpec, defaults: dict[str, Any], changes: dict[str, Any]) -> TrainingSpec:
    """The training of `model` with some fields changed. Raises pydantic's ValidationError."""
    declared = model.train.model_dump(exclude_unset=True)
    return type(model.train).model_validate({**defaults, **declared, **changes})


def variant_name(fields: dict[str, Any]) -> str:
    """`{"learning_rate": 1e-5, "warmup_steps": 500}` → `lr1e-5-warmup500`, fit for a file name."""
    parts = [f"{SHORT.get(name, name)}{_short(value)}" for name, value in fields.items()]
    return "".join(letter if letter.isalnum() or letter in "-._" else "_" for letter in "-".join(parts))


def _short(value: Any) -> str:
    if isinstance(value, float):
        mantissa, _, exponent = f"{value:.6e}".partition("e")
        if not -2 <= int(exponent) < 6:
            return f"{float(mantissa):g}e{int(exponent)}"
        return f"{value:g}"
    return str(value)
