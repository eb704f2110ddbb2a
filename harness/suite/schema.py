"""What a suite says. Every name in it is declared in one place and referred to by name."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from harness.suite.kinds import KindOf
from harness.suite.mix import Filter, Heldback, Share, Texts, Where
from harness.suite.model import ZERO_SHOT, Candidate
from harness.suite.probe import FORGETTING, ProbeSpec, probe_columns
from harness.suite.spec import DatasetSpec, Name, RuntimeSpec, Seed, Spec
from harness.suite.wording import found, unknown

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
    role: Literal["dev", "test", "probe"] = Field(
        description="dev: variants are chosen here. test: sealed, for the verdict. probe: shows what was forgotten."
    )
    language: str | None = Field(
        default=None,
        description="Whisper's code of what is spoken, for `role: probe`: not scored, only the language is told.",
    )

    @field_validator("language")
    @classmethod
    def _is_a_code(cls, language: str | None) -> str | None:
        if language is not None and not re.fullmatch("[a-z]{2,3}", language):
            raise ValueError(f"expected Whisper's code of a language, such as en, found {found(language)}")
        return language

    @model_validator(mode="after")
    def _language_is_for_probes(self) -> Self:
        if self.language is not None and self.role != "probe":
            raise ValueError(
                f"language: {self.language} belongs to sets with `role: probe`, but the role is {self.role}"
            )
        return self


class Leakage(Spec):
    """The way past the leakage check."""

    reason: str = Field(min_length=10, description="Why leaks are accepted; stands beside the results.")


class Scoring(Spec):
    """How the exported files are run and what is measured."""

    runtimes: list[Annotated[RuntimeSpec, KindOf("runtime")]] = Field(min_length=1)
    normalise: Literal["ru", "ru-strict"] = Field(default="ru", description="Applied to both sides alike; ranks.")
    also: list[Literal["ru", "ru-strict", "ru-no-digits"]] = Field(
        default=[],
        description="Normalisers whose WER and CER stand beside. ru-strict: with case and punctuation. ru-no-digits: "
        "only references without digits and Latin letters.",
    )
    metrics: list[Metric] = Field(default=["wer", "cer", "rtf", "latency", "memory", "size"], min_length=1)
    slices: list[str] | None = Field(
        default=None,
        description="duration, speaker, source or tags whose values are scored apart; without it, duration and all "
        "that have 2 to 30 values.",
    )
    resamples: int = Field(default=2000, ge=100, description="Bootstrap resamples behind each 95 % interval.")
    probes: list[Annotated[ProbeSpec, KindOf("probe")]] = Field(
        default=[], description="What else the exported files do: in silence, with timestamps, in other languages."
    )

    @model_validator(mode="after")
    def _score_once(self) -> Self:
        profiles = [self.normalise, *self.also]
        for name in profiles:
            if profiles.count(name) > 1:
                raise ValueError(f"normaliser '{name}' is in score.normalise and score.also twice; name it once")
        return self

    @field_validator("probes")
    @classmethod
    def _probe_all_runtimes(cls, probes: list[ProbeSpec]) -> list[ProbeSpec]:
        kinds = [probe.kind for probe in probes]
        for probe in probes:
            if probe.runtime is not None:
                raise ValueError(f"probe '{probe.kind}' has a runtime; remove it: score.runtimes are probed")
            if kinds.count(probe.kind) > 1:
                raise ValueError(f"probe '{probe.kind}' is here twice; the board has one column for each figure")
        return probes


class Limit(Spec):
    """An upper limit."""

    max: float = Field(gt=0)


class Bounds(Spec):
    """A lower limit, an upper one, or both."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _bound_something(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("expected `max: NUMBER`, `min: NUMBER` or both")
        return self


class Measured(Spec):
    """Limits on what `harness bench` measured where the model shall run, brought by `harness board SUITE --merge`."""

    host: str = Field(min_length=1, description="As in the name of its file, bench-<host>.json.")
    load_s: Limit | None = None
    rtf: Limit | None = None
    latency_p95_ms: Limit | None = None
    peak_ram_mib: Limit | None = None


class Gate(Spec):
    """What a model must fulfil, on every test set, to be promoted."""

    better_than: str = Field(
        default=ZERO_SHOT, description="A variant of the same model and export, or champion: what was promoted last."
    )
    by_wer: float = Field(default=0.0, ge=0, lt=1, description="Smallest gain in WER, as a fraction.")
    superior: bool = Field(default=False, description="The whole paired 95 % interval of the gain must lie above 0.")
    non_inferior_by: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="In place of a gain: its whole paired 95 % interval must lie above minus this margin.",
    )
    export_loss: Limit | None = Field(
        default=None, description="How much higher than its own checkpoint's the WER of the export may be."
    )
    leakage_clean: bool = Field(
        default=True, description="Refuse a model whose training set leaks, though `allow_leakage` let it be trained."
    )
    rtf: Limit | None = None
    latency_p95_ms: Limit | None = None
    peak_ram_mib: Limit | None = None
    peak_vram_mib: Limit | None = None
    size_mib: Limit | None = None
    no_slice_worse_than: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="How much higher than the baseline's the WER of any slice of a test set may be, as a fraction.",
    )
    measured: Measured | None = None
    max_sealed_readings: int | None = Field(
        default=None, ge=1, description="How often a test set may have been read with changing rows or selections."
    )
    probes: dict[str, Bounds] = Field(
        default={}, description="Column of a probe → its limits: {silence_wpm: {max: 1}, timestamps_ok: {min: 0.9}}."
    )

    @model_validator(mode="after")
    def _demand_one_thing(self) -> Self:
        if self.non_inferior_by is not None and (self.superior or self.by_wer):
            other = "superior" if self.superior else "by_wer"
            raise ValueError(f"non_inferior_by lets a model pass that is no better, {other} demands a gain; keep one")
        return self

    @field_validator("probes")
    @classmethod
    def _are_columns(cls, probes: dict[str, Bounds]) -> dict[str, Bounds]:
        known = [*probe_columns(), FORGETTING]
        for name in probes:
            if name not in known:
                raise ValueError(unknown("column", name, known=known))
        return probes


class Promotion(Spec):
    """Which application the winner is for."""

    target: Literal["mimir", "handy", "voiceink", "folder"]


class Budget(Spec):
    """What there is to spend."""

    vram_gib: float | None = Field(default=None, gt=0, description="The GPU's memory; what cannot fit is refused.")
    hours: float | None = Field(default=None, gt=0, description="A plan that is known to take longer says so.")


class Suite(Spec):
    """One decision: which exported model to ship."""

    suite: Name
    seed: Seed = Field(default=17, description="Of splits, data order and resampling.")
    budget: Budget = Budget()
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
