"""The check that stops a run whose held-out sets are not held out.

Every training set is compared with every held-out set, and these with each other. There are four kinds of leak:

- `recording`: the same samples, by their SHA-256.
- `near-duplicate`: the same recording re-encoded, louder, resampled or padded. Fingerprints find candidates among all
  pairs, the cross-correlation of the waveforms decides. A short piece of a long recording is not found, nor is another
  speed.
- `transcript`: equal after normalisation; or, from 20 letters on, within one edit in 20 letters, spaces apart, at a
  similar duration.
- `speaker`: named alike in the same source. A source that names no more than FEW_SPEAKERS, where training knows all
  those of the held-out set, cannot be split by speaker: figures on it hold for known voices, which is noted.

Between two held-out sets only recordings count. Shared transcripts are noted, as two test sets may read the same
sentences; shared speakers are usual.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from harness.core import text
from harness.core.manifests import count_utterances, iterate_utterances
from harness.data import fingerprint
from harness.data.compared import Heldout, iterate_rows
from harness.data.leaks import LEAKS_FILE, Kind, Leak, LeakFile
from harness.data.near_recordings import Candidates, matches, near
from harness.errors import LeakageError
from harness.suite import spec as base

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from harness.core.artifact import Artifact, Inputs, Work
    from harness.data.compared import Rows, Speaker

VERSION = 2
LEAKAGE_FILE = "leakage.json"
FEW_SPEAKERS = 2


class Spec(base.Spec):
    """What may pass. The step takes `inputs["train"]` and `inputs["heldout"]`, sets that `select` wrote."""

    names: list[str] = Field(default=[])
    """What the suite calls its held-out sets, in their order; without it they are called by their parts."""
    ignore: list[Kind] = Field(default=[])
    """Kinds that the suite accepts by what it declares elsewhere; they are not looked for."""
    allow: str = ""
    """The suite's reason why leaks may stay; without one they stop the run."""

    def identity(self) -> dict[str, Any]:
        """With the versions of what decides which texts and recordings are the same."""
        return {**super().identity(), "normaliser": text.VERSION, "fingerprint": fingerprint.VERSION}


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Compare all sets; write `leakage.json` with the numbers and `leaks.jsonl` with every leak.

    Raises LeakageError with the first leaks and the ways to go on, unless `spec.allow` gives a reason; `leaks.jsonl`
    is then in the scratch folder.
    """
    with LeakFile(work.scratch) as file:
        check = _Comparison(spec, inputs, file=file, work=work)
        check.compare_rows()
        check.compare_waveforms()
    numbers = {**check.numbers(), "ignored": list(spec.ignore), "allowed": spec.allow or None, "notes": check.notes()}
    if file.total and not spec.allow:
        raise LeakageError(file.message())
    file.path.replace(work.path / LEAKS_FILE)
    content = json.dumps(numbers, ensure_ascii=False, indent=1) + "\n"
    (work.path / LEAKAGE_FILE).write_text(content, encoding="utf-8", newline="\n")
    return numbers


@dataclass(frozen=True, slots=True)
class _Side:
    """A set that is compared with held-out sets."""

    name: str
    path: Path
    num_rows: int
    later: range
    """The held-out sets that it is compared with: all, or those after itself."""
    trained: bool


class _Comparison:
    """All sets against all held-out sets. Rows are numbered through, side by side."""

    def __init__(self, spec: Spec, inputs: Inputs, *, file: LeakFile, work: Work) -> None:
        self.spec, self.file, self.work = spec, file, work
        sealed = inputs["heldout"]
        self.names = spec.names or _names(sealed)
        self.heldout = Heldout([item.path for item in sealed], transcripts="transcript" not in spec.ignore)
        self.paths = [item.path for item in sealed]
        train = inputs["train"]
        trained = ["train"] if len(train) == 1 else _names(train)
        self.sides = [
            *(_side(item, name, range(len(sealed))) for item, name in zip(train, trained, strict=True)),
            *(
                _side(item, name, range(number, len(sealed)), trained=False)
                for number, (item, name) in enumerate(zip(sealed, self.names, strict=True), start=1)
            ),
        ]
        self.num_rows = sum(side.num_rows for side in self.sides)
        self.candidates = Candidates()
        self.num_chosen = self.num_compared = 0
        self.num_without_fingerprint = 0
        self.shared_texts: Counter[tuple[str, str]] = Counter()
        self.known_voices: dict[str, list[str]] = {}

    def compare_rows(self) -> None:
        """Everything but waveforms, in one pass over each set."""
        speakers = self._leaking_speakers()
        done = 0
        for side in self.sides:
            for rows in iterate_rows(side.path, transcripts=self.heldout.index is not None):
                self.work.progress(done, self.num_rows, side.name)
                settled: set[tuple[int, int]] = set()
                for number in side.later:
                    settled.update((row, number) for row in self._compare_keys(side, rows, number))
                    if side.trained:
                        for row, other in _shared(rows.speakers, speakers[number]):
                            self._tell("speaker", side, rows, row, other)
                self._compare_near_texts(side, rows, settled)
                self._compare_fingerprints(side, rows, first=done)
                done += len(rows.ids)

    def _compare_keys(self, side: _Side, rows: Rows, number: int) -> set[int]:
        """Equal recordings and equal transcripts; returns the rows that have one."""
        recordings = dict(_shared(rows.digests, self.heldout.recordings[number]))
        transcripts = dict(_shared(rows.normalised, self.heldout.transcripts[number]))
        for row, other in recordings.items():
            self._tell("recording", side, rows, row, other)
        for row, other in transcripts.items():
            if row not in recordings:
                self._tell("transcript", side, rows, row, other)
        return recordings.keys() | transcripts.keys()

    def _compare_near_texts(self, side: _Side, rows: Rows, settled: set[tuple[int, int]]) -> None:
        """The nearest transcript of each held-out set. settled: rows and sets that need no more evidence."""
        if self.heldout.index is None or not side.later:
            return
        found = self.heldout.index.matches(rows.letters, durations_s=rows.durations_s)
        nearest: dict[tuple[int, int], tuple[float, int]] = {}
        for row, other, score in zip(*(column.tolist() for column in found), strict=True):
            pair = (row, self.heldout.owners[other])
            if pair[1] in side.later and pair not in settled:
                nearest[pair] = max(nearest.get(pair, (0.0, 0)), (score, other))
        for (row, _), (score, other) in nearest.items():
            self._tell("transcript", side, rows, row, other, score=score)

    def _compare_fingerprints(self, side: _Side, rows: Rows, *, first: int) -> None:
        """Collect what looks alike; equal samples are told already."""
        known, vectors = rows.vectors()
        self.num_without_fingerprint += len(rows.ids) - len(known)
        if "near-duplicate" in self.spec.ignore or not side.later:
            return
        digests = rows.digest_words
        earliest = sum(self.heldout.sizes[: side.later.start])
        for here, there, cosines in near(vectors, self.heldout.vectors):
            mine, theirs = known[here], self.heldout.vector_rows[there]
            new = (theirs >= earliest) & (digests[mine] != self.heldout.digests[theirs])
            self.candidates.add(mine[new] + first, theirs[new], cosines[new])

    def compare_waveforms(self) -> None:
        """Listen to the candidates, as far as there is time."""
        mine, theirs = self.candidates.chosen()
        self.num_chosen = len(mine)
        first = 0
        for side in self.sides:
            ours = (mine >= first) & (mine < first + side.num_rows)
            self._listen(side, (mine[ours] - first).tolist(), theirs[ours].tolist())
            first += side.num_rows

    def _listen(self, side: _Side, mine: list[int], theirs: list[int]) -> None:
        found = _take(side.path, mine)
        pairs = (
            (side.path / found[row]["audio"], self.paths[self.heldout.owners[other]] / self.heldout.rows.audio[other])
            for row, other in zip(mine, theirs, strict=True)
        )
        for row, other, score in zip(mine, theirs, matches(pairs), strict=True):
            self.num_compared += 1
            self.work.progress(self.num_compared, self.num_chosen, "recordings that look alike")
            if score is not None:
                self._write("near-duplicate", side, found[row], other, score=score)

    def _leaking_speakers(self) -> list[dict[Speaker, int]]:
        """For each held-out set, whom training knows, and the first row of each."""
        if "speaker" in self.spec.ignore:
            return [{} for _ in self.names]
        trained = {speaker for side in self.sides if side.trained for speaker in _speakers(side.path)}
        sizes = Counter(source for source, _ in trained.union(*self.heldout.speakers))
        leaking = []
        for name, speakers in zip(self.names, self.heldout.speakers, strict=True):
            unknown = {source for source, _ in speakers.keys() - trained}
            known = {speaker: row for speaker, row in speakers.items() if speaker in trained}
            few = {source for source, _ in known if sizes[source] <= FEW_SPEAKERS} - unknown
            for source in sorted(few):
                self.known_voices.setdefault(source, []).append(name)
            leaking.append({speaker: row for speaker, row in known.items() if speaker[0] not in few})
        return leaking

    def _tell(self, kind: Kind, side: _Side, rows: Rows, row: int, other: int, *, score: float | None = None) -> None:
        utterance = {"id": rows.ids[row], "source": rows.sources[row], "text": rows.texts[row]}
        self._write(kind, side, utterance, other, score=score)

    def _write(self, kind: Kind, side: _Side, utterance: Mapping[str, str], other: int, *, score: float | None) -> None:
        """score: None where what is shared is equal."""
        name = self.names[self.heldout.owners[other]]
        if kind in self.spec.ignore:
            return
        if kind == "transcript" and not side.trained:
            self.shared_texts[side.name, name] += 1
            return
        sealed = self.heldout.rows
        speaker = sealed.speakers[other]
        leak = Leak(
            id=utterance["id"],
            source=utterance["source"],
            kind=kind,
            score=1.0 if score is None else round(score, 4),
            speaker=speaker[1] if kind == "speaker" and speaker else None,
            set=side.name,
            heldout=name,
            heldout_id=sealed.ids[other],
            text=utterance["text"],
            heldout_text=sealed.texts[other],
        )
        self.file.write(leak, equal=score is None, between_heldout=not side.trained)

    def numbers(self) -> dict[str, Any]:
        return {
            "train": {side.name: side.num_rows for side in self.sides if side.trained},
            "heldout": {side.name: side.num_rows for side in self.sides if not side.trained},
            "num_leaks": self.file.total,
            "leaks": dict(self.file.counts.most_common()),
            "num_candidates": self.candidates.num_found,
            "num_compared": self.num_compared,
            "num_without_fingerprint": self.num_without_fingerprint,
        }

    def notes(self) -> list[str]:
        """What the user should know of what passed."""
        told = [f"{self.file.summary()}, allowed: {self.spec.allow}"] if self.spec.allow and self.file.total else []
        if self.spec.allow and not self.file.total:
            told.append("there are no leaks: `allow_leakage` is not needed and marks the leaderboard for nothing")
        told += [
            f"the speakers of {source} are in training and in {', '.join(names)}: its figures hold for known voices"
            for source, names in self.known_voices.items()
        ]
        told += [
            f"{one} and {other} share {count} transcript{'s' if count > 1 else ''}"
            for (one, other), count in self.shared_texts.items()
        ]
        if self.num_without_fingerprint:
            told.append(
                f"{self.num_without_fingerprint} of {self.num_rows} recordings are silent or too short for a "
                "fingerprint: they were compared by their samples only"
            )
        if self.num_compared < self.candidates.num_found:
            told.append(
                f"{self.num_compared} of {self.candidates.num_found} pairs of recordings that look alike were heard, "
                "the most alike of each held-out recording"
            )
        return told


def _side(artifact: Artifact, name: str, later: range, *, trained: bool = True) -> _Side:
    return _Side(name, artifact.path, count_utterances(artifact.path), later, trained)


def _names(artifacts: Sequence[Artifact]) -> list[str]:
    """What each set consists of: `golos/train + common-voice/train`."""
    names = [" + ".join(item.meta.get("parts", [item.path.name])) for item in artifacts]
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names, start=1)]


def _shared(keys: Sequence[Any], known: Mapping[Any, int]) -> Iterator[tuple[int, int]]:
    """Rows whose key a held-out set has, and its row."""
    return ((row, known[key]) for row, key in enumerate(keys) if key in known)


def _speakers(folder: Path) -> Iterator[Speaker]:
    for batch in iterate_utterances(folder, columns=["source", "speaker"]):
        named = set(zip(batch.column("source").to_pylist(), batch.column("speaker").to_pylist(), strict=True))
        yield from ((source, speaker) for source, speaker in named if speaker is not None)


def _take(folder: Path, rows: Sequence[int]) -> dict[int, dict[str, str]]:
    """Some rows of a set, by number."""
    import numpy as np

    wanted = np.unique(np.array(rows, np.int64))
    found: dict[int, dict[str, str]] = {}
    first = 0
    for batch in iterate_utterances(folder, columns=["id", "source", "audio", "text"]):
        inside = wanted[slice(*np.searchsorted(wanted, [first, first + len(batch)]))]
        found.update(zip(inside.tolist(), batch.take(inside - first).to_pylist(), strict=True))
        first += len(batch)
    return found
