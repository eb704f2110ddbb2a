"""What all kinds of model declare, and the variants that a declaration stands for."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self, get_args

from pydantic import Field, model_validator

from harness.core import targets, text
from harness.suite.kinds import KindOf
from harness.suite.search import Grid, Search, sampled
from harness.suite.spec import ExportSpec, Name, Seed, Spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

ZERO_SHOT = "zero-shot"
"""The variant that nobody trained: the base model as it is."""

CHAMPION = "champion"
"""In `gate.better_than`: whatever was promoted last."""

TUNED = "tuned"
"""The one variant of a model without a grid and without named variants."""

SHORT = {"learning_rate": "lr", "warmup_steps": "warmup", "batch_size": "batch", "max_steps": "steps"}
"""Field → its short form in a variant's name; other fields stand in full."""


class TextPolicy(Spec):
    """What transcripts become before a model learns to write them; `text: lower` is short for `{case: lower}`."""

    case: targets.Case = Field(
        default="as_is",
        description="as_is: as the corpus writes. lower: lower case, no punctuation. cased: with case and punctuation; "
        "clips without either are left out.",
    )
    yo: targets.Yo = Field(default="keep", description="fold: ё becomes е.")
    digits: targets.Digits = Field(default="keep", description="words: 5 becomes пять.")

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return {"case": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"enum": list(get_args(targets.Case))}, handler(schema)]}

    def identity(self) -> dict[str, Any]:
        """With the versions of the rules behind it."""
        return {**super().identity(), "version": [targets.VERSION, text.VERSION]}


class TrainingSpec(Spec):
    """How one variant is trained; the step's spec."""

    seed: Seed = Field(default=17, description="Of the data order and dropout; the suite's seed unless given here.")
    text: TextPolicy = Field(default=TextPolicy(), description="What the model learns to write.")


class Runnable(Protocol):
    """What a runtime is given: a kind of export, or a published model as it is."""

    @property
    def kind(self) -> str: ...

    @property
    def label(self) -> str: ...


class Candidate(Spec):
    """A kind of model, with rows on the board: a file in `harness/train/`."""

    kind: str
    base: str = Field(min_length=1, description="A local folder or a hub id.")

    def base_step(self) -> Spec:
        """The step that places the base weights."""
        raise NotImplementedError

    @property
    def runnable(self) -> Sequence[Runnable]:
        """The forms in which it is scored."""
        raise NotImplementedError


class ModelSpec(Candidate):
    """A model that is trained and exported; its `Spec` adds `train`."""

    revision: str = Field(default="main", description="Branch, tag or commit of the hub id.")
    zero_shot: Literal[True, False, "only"] = Field(
        default=True, description="Score the untrained base model as a row of its own; only: and train nothing."
    )
    train: TrainingSpec
    grid: Grid = Field(
        default={},
        description="Training field → values, or for a random search {from, to}; every combination is a variant.",
    )
    search: Search = Field(default=Search(), description="Which combinations are trained, and how far.")
    variants: dict[Name, dict[str, Any]] = Field(
        default={}, description="Name → training fields that differ; variants beside the grid."
    )
    export: list[Annotated[ExportSpec, KindOf("export")]] = Field(min_length=1)

    @property
    def runnable(self) -> Sequence[Runnable]:
        return [export for declared in self.export for export in declared.spread()]

    @model_validator(mode="after")
    def _train_nothing(self) -> Self:
        if self.zero_shot == "only" and (self.grid or self.variants):
            asked = " and ".join(name for name in ("grid", "variants") if getattr(self, name))
            raise ValueError(f"zero_shot: only trains nothing, but there is {asked}; write zero_shot: true, or drop it")
        return self


@dataclass(frozen=True, slots=True)
class Variant:
    """One model of the board before it is exported."""

    name: str
    training: TrainingSpec | None
    """None: zero-shot."""


def expand(model: Candidate, *, seed: int) -> list[Variant]:
    """All variants of a model: zero-shot, then the grid in its written order, then the named ones.

    Without a grid and without named variants, `train` itself is the one variant, TUNED. What is not trained has the
    one variant ZERO_SHOT.
    """
    if not isinstance(model, ModelSpec) or model.zero_shot == "only":
        return [Variant(ZERO_SHOT, None)]
    tuned = [Variant(name, trained_as(model, {"seed": seed}, fields)) for name, fields in changes(model, seed=seed)]
    return [Variant(ZERO_SHOT, None), *tuned] if model.zero_shot else tuned


def changes(model: ModelSpec, *, seed: int) -> list[tuple[str, dict[str, Any]]]:
    """Name of each variant that is trained, and the training fields in which it differs."""
    if model.search.kind == "random":
        chosen = sampled(model.grid, trials=model.search.trials, seed=seed)
    else:
        chosen = combinations({name: values for name, values in model.grid.items() if isinstance(values, list)})
    return [*((variant_name(fields), fields) for fields in chosen), *model.variants.items()] or [(TUNED, {})]


def combinations(grid: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """The cartesian product of a grid, in its written order; none of an empty grid."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())] if grid else []


def trained_as(model: ModelSpec, defaults: dict[str, Any], changes: dict[str, Any]) -> TrainingSpec:
    """The training of `model` with some fields changed. Raises pydantic's ValidationError."""
    declared = model.train.model_dump(exclude_unset=True)
    return type(model.train).model_validate({**defaults, **declared, **changes})


def segment_class(training: TrainingSpec) -> type[TrainingSpec] | None:
    """The spec of such a training up to the step `until`: `Segment` of its module. None where its kind has none.

    What continues it gets it, and what came before it, as `inputs["resume"]`, the newest first.
    """
    found: type[TrainingSpec] | None = getattr(sys.modules[type(training).__module__], "Segment", None)
    return found


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
