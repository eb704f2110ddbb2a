"""What a plan will take: clips, hours, disk and time of each step, measured where it has run, else estimated.

What nobody can know yet is None, never 0.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.core.estimates import Size
from harness.engine.fit import memories
from harness.engine.search import RESUMED
from harness.engine.store import ARTIFACT_FILE, read_record
from harness.engine.walk import unneeded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from harness.core.estimates import Memory
    from harness.data import pieces
    from harness.data.select import Part
    from harness.engine.plan import Plan, Step
    from harness.engine.store import Store
    from harness.suite.spec import DatasetSpec, Spec

WAV_B_PER_S = 32_000
FLAC_SHARE = 0.54
"""Of a FLAC file in its WAV file; measured on read speech."""
MANIFEST_B_PER_CLIP, MANIFEST_B_PER_S = 500, 110
"""Of the three manifests; measured. Texts, and fingerprints, grow with the length of a clip."""
PREPARED_PER_CORE = 250
"""Seconds of audio that a core prepares in a second; measured on Ogg Opus. WAV and MP3 are a third quicker."""
LIST_S_PER_CLIP, JOIN_S_PER_CLIP = 65e-6, 45e-6
"""Of a core: to list a corpus for several steps, and to join what they decoded; measured on 40,000 in shards."""
SELECT_S_PER_CLIP = 30e-6
"""Of a core; measured on a million clips."""
LEAKAGE_S_PER_CLIP, LEAKAGE_S_PER_PAIR = 12e-6, 6.5e-9
"""Of a core: for each training clip, and for each held-out clip that it is compared with; measured on 150,000."""
START_S = 2.0
"""Until a step's process has imported what it needs."""
LONG_S = 20.0
"""A shorter step mostly says how long a process takes to start: nothing is reckoned from it."""
WINDOW_FIELDS = ("freeze", "precision", "packing", "gradient_checkpointing", "lora")
"""Fields of a training, where it has them, that change how long a step of it takes."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one step."""

    num_clips: int | None = None
    audio_s: float | None = None
    disk_b: int | None = None
    """What its artifact holds."""
    wall_s: float | None = None
    is_measured: bool = False
    """The step has run: these are its figures."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """Of a whole plan."""

    steps: Mapping[str, Estimate]
    """By key."""
    missing: Mapping[str, tuple[Path, int]]
    """Dataset → the first file that its step needs and that is not there, and how many there are of them."""
    memories: Mapping[str, Memory | None] = field(default_factory=dict)
    """Key of each training to do → what it will take of the GPU; None: not known yet."""

    def total(self, name: str) -> float | None:
        """The sum of a field over what is to be done, as far as it is known; None if nothing is."""
        values = [getattr(item, name) for item in self.steps.values() if not item.is_measured]
        known = [value for value in values if value is not None]
        return sum(known) if known else None


def outlook(plan: Plan, store: Store) -> Outlook:
    """What the store knows, and what follows from the datasets' published sizes for the rest."""
    estimator = _Estimator(store)
    estimator.unneeded.update(step.key for step in unneeded(plan.steps, store=store))
    return Outlook(
        {step.key: estimator.of(step) for step in plan.steps},
        dict(_missing(plan, store)),
        memories(plan.steps, store, budget=plan.suite.budget),
    )


def split_size(size: Size, part: Part, *, own_splits: tuple[str, ...] | None) -> Size | None:
    """About how much of a dataset lies in the split that a part names; None where nobody can tell.

    own_splits: what the kind of corpus divides into; None where only its files tell.
    """
    own, rule = size.splits, part.rule
    fractions = {} if rule is None else {"dev": rule.dev, "test": rule.test, "train": 1 - rule.dev - rule.test}
    if not own:
        return size.scaled(fractions[part.split]) if own_splits is None and part.split in fractions else None
    if "" in own:
        return own.get(part.split, Size(0, 0.0)) + own[""].scaled(fractions.get(part.split, 0.0))
    if rule is None or "train" not in own:
        return own.get(part.split)
    # The rule takes what the corpus lacks out of its train.
    lacking = {name: fractions[name] for name in ("dev", "test") if name not in (own_splits or own)}
    if part.split == "train":
        return own["train"].scaled(1 - sum(lacking.values()))
    return own["train"].scaled(lacking[part.split]) if part.split in lacking else own.get(part.split)


class _Estimator:
    """Estimates steps in the order of a plan: later ones build on earlier ones."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.sizes: dict[str, Size | None] = {}
        """Of prepared datasets and selected sets, by the step's key."""
        self.unneeded: set[str] = set()
        """Keys of steps that have done a piece of what is done."""
        self.prepared_per_s = _prepared_per_s(store) or PREPARED_PER_CORE * (os.cpu_count() or 1)

    def of(self, step: Step) -> Estimate:
        artifact = self.store.find(step.folder, key=step.key)
        if artifact:
            record = read_record(artifact.path)
            self.sizes[step.key] = size = _measured(artifact.path, record)
            return Estimate(*_numbers(size), _weight(record), record.get("wall_s"), is_measured=True)
        if step.key in self.unneeded:
            return Estimate(is_measured=True)
        known = {
            "list": self._list,
            "decode": self._decode,
            "prepare": self._prepare,
            "select": self._select,
            "leakage": self._leakage,
            "train": self._train,
        }
        return known[step.stage](step) if step.stage in known else Estimate()

    def _list(self, step: Step) -> Estimate:
        size = _published(step.spec.corpus)  # type: ignore[attr-defined]
        return Estimate() if size is None else Estimate(wall_s=START_S + size.num_clips * LIST_S_PER_CLIP)

    def _decode(self, step: Step) -> Estimate:
        """A share of a corpus."""
        piece: pieces.Spec = step.spec  # type: ignore[assignment]
        whole = _published(piece.corpus)
        if whole is None:
            return Estimate()
        size = whole.scaled(1 / piece.of)
        return Estimate(*_numbers(size), _recordings_b(size, piece.corpus), self._decoding_s(size))

    def _prepare(self, step: Step) -> Estimate:
        """With the recordings, unless other steps have decoded them: then they only get second names."""
        self.sizes[step.key] = size = _published(step.spec)
        if size is None:
            return Estimate()
        if step.pieces:
            return Estimate(*_numbers(size), round(_manifests_b(size)), START_S + size.num_clips * JOIN_S_PER_CLIP)
        disk_b = _recordings_b(size, step.spec) + round(_manifests_b(size))
        return Estimate(*_numbers(size), disk_b, self._decoding_s(size))

    def _decoding_s(self, size: Size) -> float:
        return START_S + size.audio_s / self.prepared_per_s

    def _select(self, step: Step) -> Estimate:
        datasets = step.inputs["datasets"]
        parts = [self._part(part, prepared) for part, prepared in zip(step.spec.parts, datasets, strict=True)]  # type: ignore[attr-defined]
        known = [part for part in parts if part is not None]
        self.sizes[step.key] = size = sum(known, Size(0, 0.0)) if len(known) == len(parts) else None
        read = self._num_clips(datasets)
        wall_s = None if read is None else START_S + read * SELECT_S_PER_CLIP
        return Estimate(*_numbers(size), None if size is None else round(_manifests_b(size)), wall_s)

    def _part(self, part: Part, prepared: Step) -> Size | None:
        """What a set takes of a dataset. Filters take some more away, which is not known before."""
        whole = self.sizes.get(prepared.key)
        spec: DatasetSpec = prepared.spec  # type: ignore[assignment]
        size = None if whole is None else split_size(whole, part, own_splits=spec.own_splits)
        if size is None or (part.where and part.hours is None):
            return None
        wanted = 1.0 if part.hours is None or not size.audio_s else min(1.0, part.hours * 3600 / size.audio_s)
        return size.scaled(wanted * part.weight)

    def _leakage(self, step: Step) -> Estimate:
        # Held-out sets are small beside what is trained on; one of unknown size changes little.
        heldout = sum(self._num_clips([item]) or 0 for item in step.inputs["heldout"])
        trained = self._num_clips(step.inputs["train"])
        if trained is None:
            return Estimate()
        return Estimate(wall_s=START_S + trained * (LEAKAGE_S_PER_CLIP + LEAKAGE_S_PER_PAIR * heldout))

    def _num_clips(self, steps: Sequence[Step]) -> int | None:
        """Clips of datasets or sets together; None if one is unknown."""
        sizes = [self.sizes.get(step.key) for step in steps]
        known = [size.num_clips for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def _train(self, step: Step) -> Estimate:
        """As long a step as in earlier trainings of the same base model with the same memory and compute settings."""
        base = step.inputs["base"][0].folder
        # As the store's records have it.
        spec = step.spec.model_dump(mode="json", by_alias=True, serialize_as_any=True)
        if not spec.get("max_steps"):
            return Estimate()
        windows, seconds = 0, 0.0
        for record in _records(self.store, "train"):
            other, done = record.get("spec", {}), self._num_steps(record)
            same = all(other.get(field) == spec.get(field) for field in WINDOW_FIELDS)
            if same and done and record.get("inputs", {}).get("base") == [base]:
                windows += done * _windows(other)
                seconds += record["wall_s"]
        resumed = [getattr(part.spec, "until", 0) for part in step.inputs.get(RESUMED, ())]
        num_steps = spec.get("until", spec["max_steps"]) - max(resumed, default=0)
        return Estimate(wall_s=seconds / windows * num_steps * _windows(spec) if windows else None)

    def _num_steps(self, record: Mapping[str, Any]) -> int:
        """Optimizer steps that a finished training took itself: without those of the segments before it."""
        resumed = record.get("inputs", {}).get(RESUMED, [])
        earlier = [read_record(self.store.root / name) for name in resumed if (self.store.root / name).is_dir()]
        before = max((part["meta"]["final_step"] for part in earlier), default=0)
        return int(record["meta"].get("final_step") or 0) - before


def _windows(training: Mapping[str, Any]) -> int:
    """Examples that a device takes in an optimizer step."""
    if training.get("batch_size") == "auto":
        return int(training["effective_batch_size"]) // int(training.get("devices", 1))
    return int(training.get("batch_size", 1)) * int(training.get("gradient_accumulation_steps", 1))


def _numbers(size: Size | None) -> tuple[int | None, float | None]:
    return (None, None) if size is None else (size.num_clips, size.audio_s)


def _published(corpus: Spec) -> Size | None:
    """As its kind knows it before it is prepared."""
    known = getattr(sys.modules[type(corpus).__module__], "size", None)
    size: Size | None = known(corpus) if known else None
    return size


def _recordings_b(size: Size, corpus: Spec) -> int:
    share = 1.0 if getattr(corpus, "storage", "wav") == "wav" else FLAC_SHARE
    return round(size.audio_s * WAV_B_PER_S * share)


def _manifests_b(size: Size) -> float:
    return size.num_clips * MANIFEST_B_PER_CLIP + size.audio_s * MANIFEST_B_PER_S


def _weight(record: Mapping[str, Any]) -> int:
    held = [*record["files"].values(), *record.get("adopted", {}).values()]
    return sum(item["size"] for item in held)


def _measured(path: Path, record: Mapping[str, Any]) -> Size | None:
    """From the artifact's meta, and from its card where it has one."""
    meta = record["meta"]
    if "num_utterances" not in meta or "audio_s" not in meta:
        return None
    splits: dict[str, Size] = {}
    if "card.json" in record["files"]:
        card = json.loads((path / "card.json").read_text(encoding="utf-8"))
        splits = {name: Size(group["num_clips"], group["audio_s"]) for name, group in card["splits"].items()}
    return Size(meta["num_utterances"], meta["audio_s"], splits)


def _records(store: Store, stage: str) -> Iterator[dict[str, Any]]:
    """The records of all finished steps of a stage that ran long enough."""
    for path in sorted(store.root.glob(f"{stage}-*/{ARTIFACT_FILE}")):
        try:
            record = read_record(path.parent)
        except (OSError, ValueError):
            continue  # the step itself will complain
        if (record.get("wall_s") or 0) >= LONG_S:
            yield record


def _prepared_per_s(store: Store) -> float | None:
    """Seconds of audio that this machine has prepared in a second; None if it has not yet."""
    pairs = [(record["meta"].get("audio_s"), record["wall_s"]) for record in _records(store, "prepare")]
    known = [(audio_s, wall_s) for audio_s, wall_s in pairs if audio_s]
    return sum(audio_s for audio_s, _ in known) / sum(wall_s for _, wall_s in known) if known else None


def _missing(plan: Plan, store: Store) -> Iterator[tuple[str, tuple[Path, int]]]:
    for step in plan.steps:
        if step.stage == "prepare" and not store.find(step.folder, key=step.key):
            missing = [path for path in step.spec.outside() if not path.exists()]
            if missing:
                yield step.name.removeprefix("prepare "), (missing[0], len(missing))
