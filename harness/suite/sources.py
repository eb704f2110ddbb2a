"""Faults in what a suite trains on and holds out: names of datasets, splits and models, and how much is taken.

Works on the plain data, as `references` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.suite.kinds import kinds
from harness.suite.spec import RULED
from harness.suite.wording import Fault, did_you_mean, unknown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.suite.document import Place

NEAR = 0.75
"""How alike a misspelled split is to what was meant."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a suite refers to a part of a dataset."""

    place: Place
    written: str
    dataset: str
    split: str
    whole: bool
    """Nothing but the split narrows it."""


def mapping(value: Any) -> dict[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def source_faults(data: dict[str, Any]) -> Iterator[Fault]:
    """All faults of `train` and of the sources of `heldout`."""
    sources = list(_sources(data))
    yield from _dataset_faults(data, sources)
    yield from _overlap_faults(sources)
    if isinstance(data.get("train"), dict):
        yield from _train_faults(data["train"])
        yield from _agreement_faults(data)


def _sources(data: dict[str, Any]) -> Iterator[Source]:
    train = mapping(data.get("train"))
    yield from _listed(("train",), train)
    for written, share in mapping(train.get("mix")).items():
        dataset, slash, split = written.partition("/")
        whole = not mapping(share).get("where")
        yield Source(("train", "mix", written), written, dataset, split if slash else "train", whole)
    for name, entry in mapping(data.get("heldout")).items():
        yield from _listed(("heldout", name), mapping(entry))


def _listed(place: Place, section: dict[str, Any]) -> Iterator[Source]:
    """What `from` names."""
    listed = section.get("from")
    whole = not section.get("where")
    named = [((*place, "from"), listed)] if isinstance(listed, str) else []
    for at, written in named or [((*place, "from", index), item) for index, item in enumerate(_list(listed))]:
        if isinstance(written, str):
            dataset, _, split = written.partition("/")
            yield Source(at, written, dataset, split, whole)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dataset_faults(data: dict[str, Any], sources: list[Source]) -> Iterator[Fault]:
    datasets = data.get("datasets")
    if not isinstance(datasets, dict):
        return
    for source in sources:
        name = source.dataset
        if name not in datasets:
            declared = f"declared: {', '.join(datasets) or 'none'}"
            yield source.place, f"dataset '{name}' is not declared{did_you_mean(name, datasets)} ({declared})"
        elif not source.split:
            message = f"'{source.written}' names a dataset without its split; write '{name}/train', '{name}/dev'"
            yield source.place, f"{message} or the like"
        else:
            yield from _split_faults(source, mapping(datasets[name]))
    # Where a section is missing or misspelled, that is the mistake to mend.
    if all(isinstance(data.get(section), dict) for section in ("train", "heldout")):
        used = {source.dataset for source in sources}
        for name in datasets:
            if name not in used:
                message = f"nothing uses dataset '{name}'; refer to it under train or heldout, or remove it"
                yield ("datasets", name), message


def _split_faults(source: Source, dataset: dict[str, Any]) -> Iterator[Fault]:
    """A split that its dataset cannot have, told before hours of preparation."""
    kind = dataset.get("kind")
    if not isinstance(kind, str) or kind not in kinds("dataset"):
        return
    spec = kinds("dataset")[kind].Spec
    ruled = RULED if dataset.get("split", spec.model_fields["split"].default) else ()
    if spec.own_splits is not None:
        known = list(dict.fromkeys((*spec.own_splits, *ruled)))
        rule = "; to take it out of train, give the dataset `split: {dev: 0.01, test: 0.01}` or the like"
        if source.split not in known:
            yield source.place, unknown("split", source.split, known=known) + (rule if source.split in RULED else "")
    # Its files may call a split anything, but hardly one letter off.
    elif (
        ruled
        and source.split not in ruled
        and source.split.isalpha()
        and did_you_mean(source.split, ruled, cutoff=NEAR)
    ):
        yield source.place, unknown("split", source.split, known=ruled)


def _overlap_faults(sources: list[Source]) -> Iterator[Fault]:
    """The same split twice in one set, or both trained on and held out."""
    seen: dict[tuple[Any, ...], Source] = {}
    heldout = {(item.dataset, item.split): item for item in sources if item.place[0] == "heldout" and item.whole}
    for source in sources:
        name = f"{source.dataset}/{source.split}"
        if seen.setdefault((source.place[:2], name), source) is not source:
            yield source.place, f"'{name}' is already in this set; name each split once"
        held = heldout.get((source.dataset, source.split))
        if held and source.place[0] == "train" and source.split:
            yield source.place, f"'{name}' is held out by '{held.place[1]}'; training must leave it alone"


def _train_faults(train: dict[str, Any]) -> Iterator[Fault]:
    if "from" in train and "mix" in train:
        yield ("train", "mix"), "`from` and `mix` both say what to train on; keep one of them"
    elif "from" not in train and "mix" not in train:
        yield ("train",), "expected `from: dataset/train` or `mix: {dataset: all}`; neither is here"


def _filters(train: dict[str, Any]) -> Iterator[tuple[Place, dict[str, Any]]]:
    yield ("train", "filter"), mapping(train.get("filter"))
    for name, share in mapping(train.get("mix")).items():
        yield ("train", "mix", name, "filter"), mapping(mapping(share).get("filter"))


def _agreement_faults(data: dict[str, Any]) -> Iterator[Fault]:
    models = mapping(data.get("models"))
    for place, entry in _filters(data["train"]):
        model = entry.get("agrees_with")
        if "max_cer" in entry and "agrees_with" not in entry:
            listed = ", ".join(models) or "none is declared"
            yield (
                (*place, "max_cer"),
                f"is measured against what a model hears; add `agrees_with: MODEL` (models: {listed})",
            )
        elif "agrees_with" in entry and "max_cer" not in entry:
            yield (*place, "agrees_with"), "needs a limit beside it; add `max_cer`, such as `max_cer: 0.2`"
        if isinstance(model, str) and isinstance(data.get("models"), dict) and model not in models:
            yield (*place, "agrees_with"), unknown("model", model, known=models)
