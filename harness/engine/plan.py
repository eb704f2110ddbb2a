"""A suite → every step that its decision needs, and the rows of its board. Pure: nothing is read or run."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.artifact import Resources
from harness.data import leakage
from harness.engine import search
from harness.engine.probes import probe_steps
from harness.engine.sets import heldout_sets, prepared_corpus, training_set
from harness.engine.store import folder_name
from harness.errors import SuiteError
from harness.score import scores
from harness.suite.model import ZERO_SHOT, ModelSpec, expand
from harness.suite.spec import ExportSpec

if TYPE_CHECKING:
    from harness.suite.model import Candidate, Runnable, Variant
    from harness.suite.schema import Suite
    from harness.suite.spec import RuntimeSpec, Spec

Digest = Callable[[Path], str]
"""A file or folder → a hash of its content."""


@dataclass(frozen=True, slots=True)
class Step:
    """One piece of work whose result is an artifact."""

    name: str
    """For people: `train whisper-base lr1e-5-warmup500`."""
    stage: str
    spec: Spec
    inputs: Mapping[str, tuple[Step, ...]]
    """Role → the steps whose artifacts it reads; part of the key."""
    after: tuple[Step, ...]
    """Must have succeeded before, but change nothing in the result: the leakage check."""
    key: str
    judge: Step | None = None
    """If it is there, it lists in `survivors` the keys of what may go on, and this step is done only if what it resumes
    is among them. As `after`, it changes nothing in the result."""
    pieces: Mapping[str, tuple[Step, ...]] = field(default_factory=dict)
    """Role → steps that do its work piece by piece. It reads what they leave; the result is the same without them, and
    once it is done, nobody needs them."""

    @property
    def folder(self) -> str:
        """Its name in the store."""
        return folder_name(self.stage, self.key)

    @property
    def module(self) -> Any:
        """The module of the kind: it holds `run` and `VERSION`."""
        return sys.modules[type(self.spec).__module__]

    @property
    def resources(self) -> Resources:
        return getattr(self.module, "RESOURCES", Resources())

    @property
    def needs(self) -> tuple[Step, ...]:
        judge = (self.judge,) if self.judge else ()
        return tuple(step for steps in self.reads.values() for step in steps) + self.after + judge

    @property
    def reads(self) -> Mapping[str, tuple[Step, ...]]:
        """All that its worker is given."""
        return {**self.inputs, **self.pieces}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the board: variant × export × held-out set."""

    row: str
    """Unique for variant × export (× runtime, where several run the same export); fit for a file name."""
    model: str
    family: str
    variant: str
    export: str
    runtime: str
    heldout: str
    split_role: str
    base: str
    export_kind: str
    exported: Step
    scored: Step
    trained: Step | None
    placed: Step
    """The base weights, or the published model."""
    probed: tuple[Step, ...] = ()

    @property
    def setting(self) -> tuple[str, str, str]:
        """What a row shares with that of the untrained model, and of every other variant, that it is held against."""
        return self.model, self.export, self.runtime


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps in an order in which they can run, and the rows that come of them."""

    suite: Suite
    steps: tuple[Step, ...]
    rows: tuple[Row, ...]


def with_needs(steps: Iterable[Step]) -> dict[str, Step]:
    """Some steps and all that they need, by key; what a step needs comes before it."""
    found: dict[str, Step] = {}

    def add(step: Step) -> None:
        if step.key not in found:
            for need in step.needs:
                add(need)
            found[step.key] = step

    for step in steps:
        add(step)
    return found


class Builder:
    """Collects steps; the same step asked for twice is one step."""

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        self.steps: dict[str, Step] = {}

    def add(
        self,
        stage: str,
        name: str,
        spec: Spec,
        inputs: Mapping[str, tuple[Step, ...]],
        after: tuple[Step, ...] = (),
        *,
        judge: Step | None = None,
        pieces: Mapping[str, tuple[Step, ...]] | None = None,
    ) -> Step:
        module = sys.modules[type(spec).__module__]
        identity = {
            "stage": stage,
            "kind": module.__name__,
            "version": module.VERSION,
            "spec": spec.identity(),
            "outside": [self.digest(path) for path in spec.outside()],
            "inputs": {role: [step.key for step in steps] for role, steps in inputs.items()},
        }
        canonical = json.dumps(identity, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        key = hashlib.sha256(canonical.encode()).hexdigest()
        step = Step(f"{stage} {name}", stage, spec, inputs, after, key, judge, pieces or {})
        return self.steps.setdefault(key, step)


def plan(suite: Suite, *, digest: Digest) -> Plan:
    """All steps and rows of a suite. `digest` hashes what lies outside the store: recordings, local base weights."""
    build = Builder(digest)
    prepared = {name: prepared_corpus(build, name, spec) for name, spec in suite.datasets.items()}
    heldout = heldout_sets(build, suite, prepared=prepared)
    train_set = training_set(
        build, suite, prepared=prepared, heldout=heldout.values(), listen=partial(_listen, build, suite)
    )
    checked = _checked(build, suite, train_set, heldout)
    dev = tuple(heldout[name] for name, spec in suite.heldout.items() if spec.role == "dev")
    rows: list[Row] = []
    for name, model in suite.models.items():
        base = _base(build, model)
        sets = {"base": (base,), "train": (train_set,), "dev": dev[:1]}
        variants = expand(model, seed=suite.seed)
        stopping = isinstance(model, ModelSpec) and model.search.kind == "asha"
        last = search.segments(build, (name, model), variants, sets=sets, checked=checked) if stopping else {}
        for variant in variants:
            trained = last.get(variant.name)
            if variant.training is not None and trained is None:
                trained = build.add("train", f"{name} {variant.name}", variant.training, sets, (checked,))
            rows += _rows(build, suite, (name, model), variant, base, trained, heldout)
    _refuse_equal_rows(rows)
    return Plan(suite, tuple(build.steps.values()), tuple(rows))


def _checked(build: Builder, suite: Suite, train_set: Step, heldout: Mapping[str, Step]) -> Step:
    """The leakage check that training waits for."""
    spec = leakage.Spec(
        names=list(heldout),
        allow=suite.allow_leakage.reason if suite.allow_leakage else "",
        # Where equal transcripts need not leave training, they are no leak.
        ignore=[] if "transcript" in suite.train.drop_heldout else ["transcript"],
    )
    sealed = {"train": (train_set,), "heldout": tuple(heldout.values())}
    return build.add("leakage", "train against held-out", spec, sealed)


def _base(build: Builder, model: Candidate) -> Step:
    return build.add("base", model.base, model.base_step(), {})


def _exported(build: Builder, name: str, variant: str, export: Runnable, model: Step) -> Step:
    if not isinstance(export, ExportSpec) or export.in_place:
        return model  # run as it was published, or trained
    return build.add("export", f"{name} {variant} {export.label}", export, {"model": (model,)})


def _listen(build: Builder, suite: Suite, name: str, what: str, clips: Step) -> Step:
    """The step in which an untrained model, in its first export that a runtime of the suite runs, transcribes a set."""
    model = suite.models[name]
    fitting = [pair for pair in product(model.runnable, suite.score.runtimes) if pair[0].kind in pair[1].accepts]
    if not fitting:
        raise SuiteError(f"no runtime of score.runtimes runs an export of '{name}', which `agrees_with` needs; add one")
    export, runtime = fitting[0]
    exported = _exported(build, name, ZERO_SHOT, export, _base(build, model))
    heard = f"{name}_{ZERO_SHOT}_{export.label} candidates {what}"
    return build.add("transcribe", heard, runtime, {"export": (exported,), "heldout": (clips,)})


def _rows(  # noqa: PLR0917  # the parts of one suite, in the order of the data
    build: Builder,
    suite: Suite,
    named: tuple[str, Candidate],
    variant: Variant,
    base: Step,
    trained: Step | None,
    heldout: Mapping[str, Step],
) -> Iterator[Row]:
    name, model = named
    # Of a set in another language only that is told which it is.
    scored_sets = [item for item in heldout.items() if suite.heldout[item[0]].language is None]
    for export, (set_name, subset) in product(model.runnable, scored_sets):
        exported = _exported(build, name, variant.name, export, trained or base)
        fitting = [runtime for runtime in suite.score.runtimes if export.kind in runtime.accepts]
        for runtime in fitting:
            row = _row_name(name, variant, export, runtime, several=len(fitting) > 1)
            inputs = {"export": (exported,), "heldout": (subset,)}
            heard = build.add("transcribe", f"{row} {set_name}", runtime, inputs)
            scoring = scores.Spec(
                normalise=suite.score.normalise,
                also=list(suite.score.also),
                slices=suite.score.slices,
                metrics=list(suite.score.metrics),
                resamples=suite.score.resamples,
                seed=suite.seed,
            )
            scored = build.add("score", f"{row} {set_name}", scoring, {"transcripts": (heard,), **inputs})
            probed = probe_steps(build, suite, row=row, export=export, runtime=runtime, exported=exported, sets=heldout)
            yield Row(
                row=row,
                model=name,
                family=model.kind,
                variant=variant.name,
                export=export.label,
                runtime=runtime.label,
                heldout=set_name,
                split_role=suite.heldout[set_name].role,
                base=model.base,
                export_kind=export.kind,
                exported=exported,
                scored=scored,
                trained=trained,
                placed=base,
                probed=tuple(probed),
            )


def _row_name(name: str, variant: Variant, export: Runnable, runtime: RuntimeSpec, *, several: bool) -> str:
    parts = [name, variant.name, export.label, *([runtime.label] if several else [])]
    return "_".join(parts)


def _refuse_equal_rows(rows: list[Row]) -> None:
    """Two rows of one name would overwrite each other's hypotheses."""
    seen: dict[tuple[str, str], Row] = {}
    for row in rows:
        first = seen.setdefault((row.row.lower(), row.heldout), row)
        if first is not row:
            raise SuiteError(
                f"two rows are called '{row.row}' on {row.heldout}: variant '{first.variant}' and '{row.variant}' of "
                f"'{row.model}'; give the variants, or the exports, different names"
            )
