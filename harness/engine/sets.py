"""The corpora of a suite, and the sets that it trains on and holds out, as steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.data import pieces, select
from harness.data.preparation import LISTING, SHARES
from harness.suite.kinds import kinds
from harness.suite.mix import Criteria

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from harness.engine.plan import Builder, Step
    from harness.suite.mix import Filter, Share
    from harness.suite.schema import Suite
    from harness.suite.spec import DatasetSpec

HEARD_PER_TAKEN = 3
"""Hours that a model listens to for each hour that a mix takes of what it agrees with."""

Listen = Callable[[str, str, "Step"], "Step"]
"""Name of a model, what it listens to, the set → the step in which the untrained model transcribes it."""


def prepared_corpus(build: Builder, name: str, spec: DatasetSpec) -> Step:
    """The step that prepares a dataset; before it those that do it together, if the suite wants several."""
    of: int = getattr(spec, "tasks", 1)
    if of == 1:
        return build.add("prepare", name, spec, {})
    piece = pieces.Spec(corpus=spec, version=kinds("dataset")[spec.kind].VERSION, of=of)  # type: ignore[arg-type]  # those with tasks are corpora
    listing = {LISTING: (build.add("list", name, piece, {}),)}
    shares = tuple(
        build.add("decode", f"{name} {number + 1}/{of}", piece.model_copy(update={"number": number}), listing)
        for number in range(of)
    )
    return build.add("prepare", name, spec, {}, pieces={**listing, SHARES: shares})


def heldout_sets(build: Builder, suite: Suite, *, prepared: Mapping[str, Step]) -> dict[str, Step]:
    """Held-out set → its selection."""
    found = {}
    for name, spec in suite.heldout.items():
        parts = [_part(suite, source).model_copy(update={"where": spec.where}) for source in spec.sources]
        found[name] = _selected(build, name, select.Spec(parts=parts, seed=suite.seed), prepared=prepared)
    return found


def training_set(
    build: Builder, suite: Suite, *, prepared: Mapping[str, Step], heldout: Iterable[Step], listen: Listen
) -> Step:
    """The selection that every variant trains on.

    It reads the held-out sets only where it must not share something with them; their names, roles and order do not
    count for its key.
    """
    train = suite.train
    sealed = {step.key: step for step in heldout} if train.drop_heldout else {}
    shared = {"heldout": tuple(sealed[key] for key in sorted(sealed))} if sealed else {}
    whole = select.Spec(parts=[], seed=suite.seed, drop_heldout=sorted(set(train.drop_heldout)), exclude=train.exclude)
    parts, transcripts = [], []
    for source, share in train.shares.items():
        filters = [train.filter, share.filter]
        part = _taken(_part(suite, source), share, filters)
        parts.append(part)
        agreements = [item.agrees_with for item in filters if item.max_cer is not None and item.agrees_with]
        if agreements:
            spec = whole.model_copy(update={"parts": [_candidates(part)]})
            candidates = _selected(build, f"candidates {source}", spec, prepared=prepared, more=shared)
            transcripts += [listen(model, source, candidates) for model in agreements]
    spec = whole.model_copy(update={"parts": parts})
    heard = {"transcripts": tuple(transcripts)} if transcripts else {}
    return _selected(build, "train", spec, prepared=prepared, more={**shared, **heard})


def _part(suite: Suite, source: str) -> select.Part:
    dataset, split = source.split("/", 1)
    return select.Part(dataset=dataset, split=split, rule=suite.datasets[dataset].split)


def _taken(part: select.Part, share: Share, filters: Iterable[Filter]) -> select.Part:
    return part.model_copy(
        update={
            "where": share.where,
            "criteria": [item.criteria for item in filters if item.criteria != Criteria()],
            "max_cer": [item.max_cer for item in filters if item.max_cer is not None],
            "hours": share.hours,
            "weight": share.weight,
        }
    )


def _candidates(part: select.Part) -> select.Part:
    """What a model listens to before `part` can be selected: each clip once, and no more than it may need."""
    uncapped = [item.model_copy(update={"max_hours_per_speaker": None}) for item in part.criteria]
    return part.model_copy(
        update={
            "criteria": [item for item in uncapped if item != Criteria()],
            "max_cer": [],
            "hours": None if part.hours is None else part.hours * HEARD_PER_TAKEN,
            "weight": min(part.weight, 1.0),
        }
    )


def _selected(
    build: Builder,
    name: str,
    spec: select.Spec,
    *,
    prepared: Mapping[str, Step],
    more: Mapping[str, tuple[Step, ...]] | None = None,
) -> Step:
    datasets = tuple(prepared[part.dataset] for part in spec.parts)
    return build.add("select", name, spec, {"datasets": datasets, **(more or {})})
