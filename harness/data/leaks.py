"""What held-out sets share with other sets: as records, as a file to exclude by, and in a message."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, Self

if TYPE_CHECKING:
    from pathlib import Path

Kind = Literal["recording", "near-duplicate", "transcript", "speaker"]
"""The same samples; the same recording in another form; (nearly) the same words; the same voice."""

LEAKS_FILE = "leaks.jsonl"
NUM_SHOWN = 10
MAX_TEXT = 60


@dataclass(frozen=True, slots=True)
class Leak:
    """An utterance, and one of a held-out set that it shares something with. Its fields are those of `leaks.jsonl`."""

    id: str
    """Of the utterance to leave out, as the set lists it; `train.exclude` reads this and `source`."""
    source: str
    kind: Kind
    score: float
    """How alike, at most 1: correlation of the waveforms, or share of the letters that are the same."""
    speaker: str | None
    set: str
    heldout: str
    heldout_id: str
    text: str
    heldout_text: str

    def __str__(self) -> str:
        alike = "" if self.score == 1 else f" ({self.score:.2f})"
        texts = dict.fromkeys([self.text, self.heldout_text])
        shared = self.speaker if self.kind == "speaker" else " and ".join(repr(_short(item)) for item in texts)
        return f"{self.kind}{alike}: {self.set} {self.id}, {self.heldout} {self.heldout_id}: {shared}"


class LeakFile:
    """Writes `leaks.jsonl` and remembers what a message needs. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEAKS_FILE
        self.counts: Counter[Kind] = Counter()
        self.droppable: set[Kind] = set()
        """Kinds of which `train.drop_heldout` can drop some, as it compares what is equal only."""
        self.num_between_heldout = 0
        self.first: list[Leak] = []

    def __enter__(self) -> Self:
        self._file = self.path.open("w", encoding="utf-8", newline="\n")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, leak: Leak, *, equal: bool, between_heldout: bool) -> None:
        self._file.write(json.dumps(asdict(leak), ensure_ascii=False) + "\n")
        self.counts[leak.kind] += 1
        if between_heldout:
            self.num_between_heldout += 1
        elif equal:
            self.droppable.add(leak.kind)
        # Some of each kind: a thousand equal transcripts must not hide the one speaker.
        if self.counts[leak.kind] <= NUM_SHOWN:
            self.first.append(leak)

    @property
    def total(self) -> int:
        return self.counts.total()

    def summary(self) -> str:
        """`12 leaks (10 transcript, 2 recording)`."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.most_common())
        return f"{self.total} leak{'s' if self.total > 1 else ''} ({kinds})"

    def message(self) -> str:
        """What stops the run: how many leaks, the first ones, and every way to go on."""
        shown = [f"  {leak}" for leak in self._shown()]
        more = [f"  … and {self.total - len(shown)} more"] if self.total > len(shown) else []
        ways = [f"`train: {{drop_heldout: [{', '.join(sorted(self.droppable))}]}}`"] if self.droppable else []
        if self.total > self.num_between_heldout:
            ways.append("`train: {exclude: FILE}` with a copy of that list, which leaves out exactly these")
        if self.num_between_heldout:
            ways.append(f"{self.num_between_heldout} lie between two held-out sets: take these from different splits")
        ways.append("`allow_leakage: {reason: …}`, which marks every row of the leaderboard")
        head = f"held-out sets are not held out: {self.summary()}; leave these out, or say why they may stay"
        return "\n".join([head, *shown, *more, f"All of them: {self.path}", *(f"- {way}" for way in ways)])

    def _shown(self) -> list[Leak]:
        """Up to NUM_SHOWN, of every kind that there is."""
        num_each = NUM_SHOWN // max(len(self.counts), 1)
        seen: Counter[str] = Counter()
        chosen = []
        for leak in self.first:
            seen[leak.kind] += 1
            if seen[leak.kind] <= num_each:
                chosen.append(leak)
        return chosen


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
