"""What a suite says. Every name in it is declared in one place and referred to by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from harness.suite.kinds import KindOf
from harness.suite.model import ZERO_SHOT, ModelSpec
from harness.suite.spec import DatasetSpec, Name, RuntimeSpec, Seed, Spec

Metric = Literal["wer", "cer", "rtf", "latency", "memory", "size"]
Sources = Annotated[
    list[str],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]
"""One `dataset/split` or a list of them."""


class Train(Spec):
    """What every variant trains on."""

    sources: Sources = Field(alias="from", description="`dataset/split`, or several.")


class Heldout(Spec):
    """A set that no variant trains on."""

    sources: Sources = Field(alias="from", description="`dataset/split`, or several.")
    role: Literal["dev", "test"] = Field(description="dev: variants are chosen here. test: sealed, for the verdict.")


class Scoring(Spec):
    """How the exported files are run and what is measured."""

    runtimes: list[Annotated[RuntimeSpec, KindOf("runtime")]] = Field(min_length=1)
    normalise: Literal["ru", "ru-strict"] = Field(default="ru", description="Applied to both sides alike.")
    metrics: list[Metric] = Field(default=["wer", "cer", "rtf", "latency", "memory", "size"], min_length=1)
    resamples: int = Field(default=2000, ge=100, description="Bootstrap resamples behind each 95 % interval.")


class Limit(Spec):
    """An upper limit."""

    max: float = Field(gt=0)


class Gate(Spec):
    """What a model must fulfil, on every test set, to be promoted."""

    better_than: str = Field(default=ZERO_SHOT, description="A variant of the same model and export.")
    by_wer: float = Field(default=0.0, ge=0, lt=1, description="Smallest gain in WER, as a fraction.")
    rtf: Limit | None = None
    latency_p95_ms: Limit | None = None
    peak_ram_mib: Limit | None = None
    peak_vram_mib: Limit | None = None
    size_mib: Limit | None = None


class Promotion(Spec):
    """Which application the winner is for."""

    target: Literal["mimir"]


class Suite(Spec):
    """One decision: which exported model to ship."""

    suite: Name
    seed: Seed = Field(default=17, description="Of splits, data order and resampling.")
    datasets: dict[Name, Annotated[DatasetSpec, KindOf("dataset")]] = Field(min_length=1)
    train: Train
    heldout: dict[Name, Heldout] = Field(min_length=1)
    models: dict[Name, Annotated[ModelSpec, KindOf("model")]] = Field(min_length=1)
    score: Scoring
    gate: Gate = Gate()
    promote: Promotion | None = None


def json_schema() -> dict[str, Any]:
    """JSON Schema of a suite, for editors."""
    schema = Suite.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
