"""The check that stops a run whose held-out sets are not held out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, Any

from harness.core import text
from harness.core.manifests import read_manifest
from harness.errors import LeakageError
from harness.suite import spec as base

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from harness.core.artifact import Artifact, Inputs, Work

VERSION = 1
LEAKAGE_FILE = "leakage.json"
NUM_SHOWN = 10


class Spec(base.Spec):
    """Nothing to declare: the step takes `inputs["train"]` and `inputs["heldout"]`, sets that `select` wrote."""

    def identity(self) -> dict[str, Any]:
        """With the normaliser's version: it decides which transcripts are the same."""
        return {**super().identity(), "normaliser": text.VERSION}


@dataclass(frozen=True, slots=True)
class Leak:
    """An utterance of one set, and the first one of another set that it shares something with."""

    shares: str
    """recording or transcript."""
    sets: tuple[str, str]
    ids: tuple[str, str]
    text: str

    def __str__(self) -> str:
        (one, other), (first, second) = self.sets, self.ids
        return f"{one}: {first} and {other}: {second} share a {self.shares}: {self.text!r}"


@dataclass(frozen=True, slots=True)
class _Set:
    name: str
    path: Path
    num_utterances: int
    recordings: dict[str, str]
    """sha256 → the first id."""
    transcripts: dict[str, str]
    """Normalised → the first id."""
    utterances: list[tuple[str, str, str]]
    """id, sha256, normalised transcript."""


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Compare each held-out set with all training sets and with the other held-out sets.

    Writes `leakage.json` with the numbers compared.
    Raises LeakageError with the first leaks; all of them are in `leakage.json` of the scratch folder.
    """
    del spec
    train = [_read(artifact) for artifact in inputs["train"]]
    heldout = [_read(artifact) for artifact in inputs["heldout"]]
    pairs = [*product(train, heldout), *combinations(heldout, 2)]
    leaks: list[Leak] = []
    for done, (one, other) in enumerate(pairs):
        work.progress(done, len(pairs), f"{one.name} and {other.name}")
        # A set that is named twice is one set.
        if one.path != other.path:
            leaks += _compare(one, other)
    numbers = {
        "train": {item.name: item.num_utterances for item in train},
        "heldout": {item.name: item.num_utterances for item in heldout},
        "num_leaks": len(leaks),
    }
    _write(work.path / LEAKAGE_FILE, numbers=numbers, leaks=leaks)
    if leaks:
        kept = work.scratch / LEAKAGE_FILE
        _write(kept, numbers=numbers, leaks=leaks)
        shown = [f"  {leak}" for leak in leaks[:NUM_SHOWN]]
        more = [f"  … and {len(leaks) - NUM_SHOWN} more"] if len(leaks) > NUM_SHOWN else []
        message = (
            f"{len(leaks)} utterances of held-out sets share a recording or a transcript with another set; "
            "let one rule split the dataset, or leave them out of one of the sets"
        )
        raise LeakageError("\n".join([message, *shown, *more, f"All of them: {kept}"]))
    return numbers


def _read(artifact: Artifact) -> _Set:
    rows = [(item.id, item.sha256, text.normalise(item.text)) for item in read_manifest(artifact.path)]
    # Backwards, so that the first of equal ones stays.
    return _Set(
        name=" + ".join(artifact.meta.get("parts", [artifact.path.name])),
        path=artifact.path,
        num_utterances=len(rows),
        recordings={digest: name for name, digest, _ in reversed(rows)},
        transcripts={transcript: name for name, _, transcript in reversed(rows) if transcript},
        utterances=rows,
    )


def _compare(one: _Set, other: _Set) -> Iterator[Leak]:
    for name, digest, transcript in other.utterances:
        shares, partner = "recording", one.recordings.get(digest)
        if partner is None:
            shares, partner = "transcript", one.transcripts.get(transcript)
        if partner is not None:
            yield Leak(shares=shares, sets=(one.name, other.name), ids=(partner, name), text=transcript)


def _write(path: Path, *, numbers: dict[str, Any], leaks: Sequence[Leak]) -> None:
    content = {**numbers, "leaks": [asdict(leak) for leak in leaks]}
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8", newline="\n")
