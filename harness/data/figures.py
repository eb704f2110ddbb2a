"""What a prepared set consists of, in numbers, from one pass over its columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.core.manifests import iterate_utterances
from harness.data.filter import chars_per_s

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

COLUMNS = ("id", "audio", "sha256", "text", "duration_s", "speaker", "split", "source", "tags")
MAX_VALUES = 30
"""A tag with more values tells clips apart, not groups of them."""
NUM_EXAMPLES = 8
EXAMPLE_S = (1.0, 12.0)
"""Length of a recording that makes a good example."""
NUM_CODES = 0x110000


@dataclass(slots=True)
class Group:
    """Clips that share a split, a source or a tag's value."""

    num_clips: int = 0
    audio_s: float = 0.0


Groups = dict[str, Group]


class Histogram:
    """Counts in steps so small that quantiles can be read from them."""

    def __init__(self, *, step: float, top: float) -> None:
        import numpy as np

        self.step = step
        self.counts = np.zeros(round(top / step) + 1, np.int64)
        """The last one: `top` and more."""

    def add(self, values: npt.NDArray[np.float64]) -> None:
        import numpy as np

        # A value on an edge belongs to the step that begins there, whatever its last bit says.
        steps = np.floor(values / self.step + 1e-6)
        places = np.clip(steps, 0, len(self.counts) - 1).astype(np.int64)
        self.counts += np.bincount(places, minlength=len(self.counts))

    def quantile(self, fraction: float) -> float | None:
        """Exact to one step; None of an empty histogram."""
        import numpy as np

        total = int(self.counts.sum())
        if not total:
            return None
        place = int(np.searchsorted(np.cumsum(self.counts), fraction * total))
        return round((place + 0.5) * self.step, 6)

    def bars(self, *, width: float, num: int) -> dict[str, Any]:
        """`counts` of `num` bars of `width` from 0 on; the last one also holds all that is beyond."""
        import numpy as np

        per_bar = round(width / self.step)
        places = np.minimum(np.arange(len(self.counts)) // per_bar, num - 1)
        counts = np.bincount(places, weights=self.counts, minlength=num).astype(np.int64)
        return {"width": width, "counts": counts.tolist()}


@dataclass(slots=True)
class Figures:
    """Grows batch by batch; its size depends on the number of speakers, not of clips."""

    num_clips: int = 0
    audio_s: float = 0.0
    num_characters: int = 0
    num_without_speaker: int = 0
    speakers: set[int] = field(default_factory=set)
    """Hashes of source and name."""
    splits: Groups = field(default_factory=dict)
    sources: Groups = field(default_factory=dict)
    tags: dict[str, Groups] = field(default_factory=dict)
    many_valued: set[str] = field(default_factory=set)
    """Tags with over MAX_VALUES values."""
    duration_s: Histogram = field(default_factory=lambda: Histogram(step=0.01, top=120))
    chars_per_s: Histogram = field(default_factory=lambda: Histogram(step=0.05, top=100))
    """Letters and digits; spaces and punctuation do not count, as in a suite's filter."""
    codes: npt.NDArray[np.int64] | None = None
    """Occurrences by code point."""
    examples: dict[str, dict[tuple[bool, int], dict[str, Any]]] = field(default_factory=dict)
    """Source → rank → utterance; the lowest ranks."""

    @property
    def alphabet(self) -> dict[str, int]:
        """Characters by count, spaces too; most frequent first."""
        import numpy as np

        if self.codes is None:
            return {}
        found = np.flatnonzero(self.codes)
        pairs = ((chr(code), int(self.codes[code])) for code in found.tolist())
        return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))

    def chosen(self) -> list[dict[str, Any]]:
        """NUM_EXAMPLES utterances, of each source in turn."""
        ranked = [[rows[rank] for rank in sorted(rows)] for rows in self.examples.values()]
        turns = [rows[turn] for turn in range(NUM_EXAMPLES) for rows in ranked if turn < len(rows)]
        return turns[:NUM_EXAMPLES]


def measure(folder: Path) -> Figures:
    """The figures of a set that a step of this folder wrote."""
    figures = Figures()
    for batch in iterate_utterances(folder, columns=COLUMNS):
        if len(batch):
            _add(batch, figures)
    return figures


def _add(batch: pa.RecordBatch, figures: Figures) -> None:

    seconds = batch.column("duration_s").to_numpy()
    figures.num_clips += len(batch)
    figures.audio_s += float(seconds.sum())
    figures.duration_s.add(seconds)
    figures.chars_per_s.add(chars_per_s(batch))
    _add_speakers(batch, figures)
    _add_groups(figures.splits, batch.column("split"), batch.column("duration_s"))
    _add_groups(figures.sources, batch.column("source"), batch.column("duration_s"))
    _add_tags(batch, figures)
    _add_characters(batch, figures)
    _add_examples(batch, figures)


def _add_speakers(batch: pa.RecordBatch, figures: Figures) -> None:
    import pyarrow.compute as pc

    named = batch.filter(pc.is_valid(batch.column("speaker")))
    figures.num_without_speaker += len(batch) - len(named)
    names = pc.binary_join_element_wise(named.column("source"), named.column("speaker"), "\0")
    figures.speakers.update(hash(name) for name in names.unique().to_pylist())


def _add_groups(groups: Groups, names: pa.Array, seconds: pa.Array) -> None:
    import pyarrow as pa

    table = pa.table({"name": names, "s": seconds}).group_by("name").aggregate([("s", "count"), ("s", "sum")])
    for row in table.to_pylist():
        group = groups.setdefault(row["name"] or "", Group())
        group.num_clips += row["s_count"]
        group.audio_s += row["s_sum"]


def _add_tags(batch: pa.RecordBatch, figures: Figures) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    tags = batch.column("tags")
    # A slice of a map keeps the keys of the whole: the offsets say which are its own.
    offsets = tags.offsets.to_numpy()
    owners = np.repeat(np.arange(len(batch)), np.diff(offsets))
    own = slice(int(offsets[0]), int(offsets[-1]))
    table = pa.table(
        {"name": tags.keys[own], "value": tags.items[own], "s": batch.column("duration_s").take(pa.array(owners))}
    )
    table = table.filter(pc.invert(pc.is_in(table["name"], value_set=pa.array(list(figures.many_valued), pa.string()))))
    grouped = table.group_by(["name", "value"]).aggregate([("s", "count"), ("s", "sum")])
    for row in grouped.to_pylist():
        values = figures.tags.setdefault(row["name"], {})
        group = values.setdefault(row["value"] or "", Group())
        group.num_clips += row["s_count"]
        group.audio_s += row["s_sum"]
    for name in [name for name, values in figures.tags.items() if len(values) > MAX_VALUES]:
        figures.many_valued.add(name)
        del figures.tags[name]


def _add_characters(batch: pa.RecordBatch, figures: Figures) -> None:
    import numpy as np

    text = "".join(batch.column("text").to_pylist())
    found = np.bincount(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32), minlength=NUM_CODES)
    figures.num_characters += len(text)
    figures.codes = found if figures.codes is None else figures.codes + found


def _add_examples(batch: pa.RecordBatch, figures: Figures) -> None:
    """Rank by the recording's hash: a choice at random that is the same every time."""
    import numpy as np

    shortest, longest = EXAMPLE_S
    digests = batch.column("sha256")
    words = np.frombuffer(b"".join(digest[:8] for digest in digests.to_pylist()), ">u8")
    seconds = batch.column("duration_s").to_numpy()
    unfit = (seconds < shortest) | (seconds > longest)
    sources = batch.column("source").dictionary_encode()
    for number, source in enumerate(sources.dictionary.to_pylist()):
        rows = np.flatnonzero(sources.indices.to_numpy() == number)
        rows = rows[np.lexsort((words[rows], unfit[rows]))][: 2 * NUM_EXAMPLES]
        best = figures.examples.setdefault(source, {})
        # Keyed by recording: a mix may list one several times.
        best |= {(bool(unfit[row]), int(words[row])): batch.slice(row, 1).to_pylist()[0] for row in rows.tolist()}
        for rank in sorted(best)[NUM_EXAMPLES:]:
            del best[rank]
