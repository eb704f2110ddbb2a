"""What a suite says. Every name in it is declared in one place and referred to by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from harness.suite.kinds import KindOf
from harness.suite.mix import Filter, Heldback, Share, Texts, Where
from harness.suite.model import ZERO_SHOT, Candidate
from harness.suite.spec import DatasetSpec, Name, RuntimeSpec, Seed, Spec

Metric = Literal["wer", "cer", "rtf", "latency", "memory", "size"]


class Train(Spec):
    """What every variant trains on: `from`, all of some sources, or `mix`, so much of each."""

    listed: Texts | None = Field(default=None, alias="from", description="`dataset/split`, or several.")
    mix: dict[str, Share] | None = Field(
        default=None,
        min_length=1,
        description="`dataset` (its train) or `dataset/split` → all, 100h, a weight, or {take, filter, where}.",
    )
    filter: Filter = Field(default=Filter(), description="What every clip must fulfil.")
    drop_heldout: list[Heldback] = Field(
        default=["transcript"],
        description="Clips leave training that share this with a held-out set; speakers within one dataset.",
    )
    exclude: str | None = Field(
        default=None, min_length=1, description="JSON lines with the `id` of clips that leave training."
    )

    @property
    def shares(self) -> dict[str, Share]:
        """`dataset/split` → how much of it, however the suite says it."""
        mix = self.mix if self.mix is not None else {source: Share() for source in self.listed or []}
        return {source if "/" in source else f"{source}/train": share for source, share in mix.items()}

    @property
    def sources(self) -> list[str]:
        """`dataset/split` of all that training draws on."""
        return list(self.shares)


class Heldout(Spec):
    """A set that no variant trains on."""

    sources: Texts = Field(alias="from", description="`dataset/split`, or several.")
    where: Where = Field(default={}, description="Tag → value or values that its clips must have.")
    role: Literal["dev", "test"] = Field(description="dev: variants are chosen here. test: sealed, for the verdict.")


class Leakage(Spec):
    """The way past the leakage check."""

    reason: str = Field(min_length=10, description="Why leaks are accepted; stands beside the results.")


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
    allow_leakage: Leakage | None = None
    models: dict[Name, Annotated[Candidate, KindOf("model")]] = Field(min_length=1)
    score: Scoring
    gate: Gate = Gate()
    promote: Promotion | None = None


def json_schema() -> dict[str, Any]:
    """JSON Schema of a suite, for editors."""
    schema = Suite.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
