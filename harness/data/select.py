"""A set to train on or to hold out: named splits of datasets, put together."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from harness.core import text
from harness.core.manifests import read_manifest, write_manifests
from harness.errors import DataError
from harness.suite import spec as base

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from harness.core.artifact import Artifact, Inputs, Work
    from harness.core.records import Utterance

VERSION = 1


class Part(base.Spec):
    """One split of one dataset."""

    dataset: str
    split: str
    """train, dev or test, or what the corpus itself calls it."""
    rule: base.Split | None = None
    """For recordings without a split of their own."""


class Spec(base.Spec):
    """What the set consists of. The step takes `inputs["datasets"]`, one for each part."""

    parts: list[Part]
    seed: int

    def identity(self) -> dict[str, Any]:
        """With the normaliser's version: equal transcripts lie in one split."""
        return {**super().identity(), "normaliser": text.VERSION}


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Write both manifests of the set; its recordings stay where the datasets' steps put them.

    Raises DataError for a part that selects nothing, or the same utterance as another part.
    """
    several = len({part.dataset for part in spec.parts}) > 1
    chosen: dict[tuple[str, str], Utterance] = {}
    num_by_part: dict[str, int] = {}
    for done, (part, artifact) in enumerate(zip(spec.parts, inputs["datasets"], strict=True)):
        label = f"{part.dataset}/{part.split}"
        work.progress(done, len(spec.parts), label)
        selected = _select(part, artifact, seed=spec.seed)
        num_by_part[label] = len(selected)
        for item in selected:
            if (part.dataset, item.id) in chosen:
                raise DataError(f"{label} selects {item.id}, which an earlier part has selected; name each split once")
            chosen[part.dataset, item.id] = replace(
                item,
                # Two corpora may use one id.
                id=f"{part.dataset}/{item.id}" if several else item.id,
                # Artifacts are neighbours in the store.
                audio=f"../{artifact.path.name}/{item.audio}",
                split=part.split,
                source=part.dataset,
            )
    utterances = list(chosen.values())
    write_manifests(work.path, utterances)
    return {
        "parts": num_by_part,
        "num_utterances": len(utterances),
        "audio_s": round(sum(item.duration_s for item in utterances), 3),
        "num_speakers": len({(item.source, item.speaker) for item in utterances if item.speaker is not None}),
    }


def assign_splits(utterances: Sequence[Utterance], *, rule: base.Split | None, seed: int) -> list[str | None]:
    """The split of each utterance, in order: its own, else by `rule`; None where it has neither.

    Utterances that share a recording, a transcript, or (`by: speaker`) a speaker are one group. The group's
    smallest transcript, hashed with the seed, decides, so that neither order nor unrelated utterances matter.
    Where some of a group have a split of their own, and the same one, the others follow.
    Raises DataError for `by: speaker` with an utterance that names none.
    """
    if rule is None:
        return [item.split for item in utterances]
    if rule.by == "speaker":
        nameless = [item.id for item in utterances if item.split is None and item.speaker is None]
        if nameless:
            raise DataError(
                f"split by speaker: {len(nameless)} of {len(utterances)} utterances name no speaker, such as "
                f"{nameless[0]}; name them in the manifest, or split by recording"
            )
    transcripts = [text.normalise(item.text) for item in utterances]
    splits = [item.split for item in utterances]
    for group in _groups(utterances, transcripts=transcripts, by=rule.by):
        own = {splits[index] for index in group} - {None}
        split = own.pop() if len(own) == 1 else _draw(min(transcripts[index] for index in group), rule=rule, seed=seed)
        for index in group:
            splits[index] = splits[index] or split
    return splits


def _select(part: Part, artifact: Artifact, *, seed: int) -> list[Utterance]:
    utterances = read_manifest(artifact.path)
    splits = assign_splits(utterances, rule=part.rule, seed=seed)
    selected = [item for item, split in zip(utterances, splits, strict=True) if split == part.split]
    if selected:
        return selected
    numbers = Counter(split for split in splits if split is not None)
    there = ", ".join(f"{name} ({number})" for name, number in sorted(numbers.items())) or "no splits"
    num_without = splits.count(None)
    advice = f"; {num_without} utterances belong to none: give the dataset a `split`" if num_without else ""
    raise DataError(f"{part.dataset}/{part.split} selects nothing; {part.dataset} has {there}{advice}")


def _draw(transcript: str, *, rule: base.Split, seed: int) -> str:
    digest = sha256(f"{seed}\n{transcript}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    # Test first: another fraction for dev leaves the sealed set as it is.
    if place < rule.test:
        return "test"
    return "dev" if place < rule.test + rule.dev else "train"


def _groups(utterances: Sequence[Utterance], *, transcripts: Sequence[str], by: str) -> list[list[int]]:
    """Indices that must not be separated, by union-find."""
    parents = list(range(len(utterances)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    first: dict[Hashable, int] = {}
    for index, (item, transcript) in enumerate(zip(utterances, transcripts, strict=True)):
        for shared in _shared(item, transcript=transcript, by=by):
            parents[root(index)] = root(first.setdefault(shared, index))
    groups: dict[int, list[int]] = {}
    for index in range(len(utterances)):
        groups.setdefault(root(index), []).append(index)
    return list(groups.values())


def _shared(item: Utterance, *, transcript: str, by: str) -> Iterator[tuple[str, str]]:
    yield "recording", item.sha256
    if transcript:
        yield "transcript", transcript
    if by == "speaker" and item.speaker is not None:
        yield "speaker", item.speaker
