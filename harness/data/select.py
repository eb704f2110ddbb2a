"""A set to train on or to hold out: so much of each of some datasets' splits, filtered, put together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field

from harness.core import text
from harness.core.manifests import BATCH, ManifestWriter, count_utterances, iterate_utterances, utterance_schema
from harness.data.card import write_card
from harness.data.choice import REASONS, Restraints, choose
from harness.data.exclusions import read_exclusions
from harness.data.keys import COLUMNS, read_keys
from harness.errors import DataError
from harness.suite import spec as base
from harness.suite.mix import Criteria, Heldback, Where

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa
    import pyarrow.parquet as pq

    from harness.core.artifact import Artifact, Inputs, Work
    from harness.data.choice import Choice
    from harness.data.keys import Hashes

VERSION = 2
LEFT_OUT_FILE = "left_out.parquet"


class Part(base.Spec):
    """So much of one split of one dataset."""

    dataset: str
    split: str
    """train, dev or test, or what the corpus itself calls it."""
    rule: base.Split | None = None
    """For recordings without a split of their own."""
    where: Where = Field(default={})
    criteria: list[Criteria] = Field(default=[])
    max_cer: list[float] = Field(default=[])
    """Limits, each against the transcripts of one model: the part's own next of `inputs["transcripts"]`."""
    hours: float | None = None
    """None: as many as there are."""
    weight: float = Field(default=1.0, gt=0)
    """How often the set passes over what is taken."""

    @property
    def label(self) -> str:
        return f"{self.dataset}/{self.split}"


class Spec(base.Spec):
    """What the set consists of.

    The step takes `inputs["datasets"]`, one for each part; `inputs["heldout"]`, sets that this step wrote, where
    `drop_heldout` names something; `inputs["transcripts"]`, one for each `max_cer` of the parts.
    """

    parts: list[Part]
    seed: int
    drop_heldout: list[Heldback] = Field(default=[])
    exclude: str | None = None

    not_identity: ClassVar[Mapping[str, str]] = {"exclude": "the file's content counts, wherever it lies"}

    def identity(self) -> dict[str, Any]:
        """With the normaliser's version: equal transcripts lie in one split."""
        return {**super().identity(), "normaliser": text.VERSION}

    def outside(self) -> list[Path]:
        """The list of clips to leave out."""
        return [Path(self.exclude)] if self.exclude else []


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Write the manifests of the set; its recordings stay where the datasets' steps put them.

    `left_out.parquet` (id, source, reason) lists every clip of the sources that left.
    Raises DataError for a part that selects nothing, or that stands twice.
    """
    labels = [part.label for part in spec.parts]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise DataError(f"{twice} stands twice in this set; name each split once")
    restraints = _restraints(spec, inputs)
    transcripts = iter(inputs.get("transcripts", ()))
    several = len({part.dataset for part in spec.parts}) > 1
    tick = _Ticker(work, total=2 * sum(count_utterances(dataset.path) for dataset in inputs["datasets"]))
    meta: dict[str, Any] = {"parts": {}, "hours": {}, "left_out": {}}
    notes: list[str] = []
    speakers: dict[str, list[Hashes]] = {}
    with ManifestWriter(work.path) as writer, _LeftOut(work.path) as left_out:
        for part, dataset in zip(spec.parts, inputs["datasets"], strict=True):
            tick.note = part.label
            heard = list(islice(transcripts, len(part.max_cer)))
            choice = choose(part, dataset, seed=spec.seed, restraints=restraints, transcripts=heard, tick=tick)
            prefix = f"{part.dataset}/" if several else ""
            for table in _chosen(part, dataset, choice, prefix=prefix, tick=tick):
                writer.write(table)
            left_out.write(part, dataset, choice, prefix=prefix)
            speakers.setdefault(part.dataset, []).append(choice.speakers[choice.copies > 0])
            meta["parts"][part.label] = int(choice.copies.sum())
            meta["hours"][part.label] = round(float((choice.copies * choice.seconds).sum()) / 3600, 4)
            meta["left_out"].update({part.label: choice.left_out} if choice.left_out else {})
            notes += [*choice.notes, *_told(part, choice)]
    notes += restraints.exclusions.notes if restraints.exclusions else []
    _write_card(spec, inputs, work, meta=meta, notes=notes)
    return {
        **meta,
        "num_utterances": writer.num_utterances,
        "audio_s": round(writer.audio_s, 3),
        "num_speakers": sum(_num_speakers(found) for found in speakers.values()),
        "notes": notes,
    }


def _write_card(spec: Spec, inputs: Inputs, work: Work, *, meta: dict[str, Any], notes: list[str]) -> None:
    rejected: Counter[str] = Counter()
    for reasons in meta["left_out"].values():
        rejected.update({reason: item["num"] for reason, item in reasons.items()})
    datasets = {part.dataset: dataset for part, dataset in zip(spec.parts, inputs["datasets"], strict=True)}
    write_card(
        work.path,
        title=" + ".join(part.label for part in spec.parts),
        licences={name: str(dataset.meta.get("licence", "")) for name, dataset in datasets.items()},
        rejected=rejected,
        notes=notes,
        # Recordings are looked up as from the store, where this set will lie beside its datasets.
        place=inputs["datasets"][0].path.parent / work.path.name,
    )


class _Ticker:
    """Counts clips for whoever watches."""

    def __init__(self, work: Work, *, total: int) -> None:
        self.work, self.total = work, total
        self.done = 0
        self.note = ""

    def __call__(self, num_clips: int) -> None:
        self.done += num_clips
        self.work.progress(self.done, self.total, self.note)


class _LeftOut:
    """Lists the clips that left; writes no file if none did. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEFT_OUT_FILE
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer:
            self._writer.close()

    def write(self, part: Part, dataset: Artifact, choice: Choice, *, prefix: str) -> None:
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not choice.reasons.any():
            return
        schema = pa.schema({"id": pa.string(), "source": pa.string(), "reason": pa.string()})
        self._writer = self._writer or pq.ParquetWriter(self.path, schema, compression="zstd")
        names = pa.array(REASONS)
        start = 0
        for batch in iterate_utterances(dataset.path, columns=["id"]):
            reasons = choice.reasons[start : start + len(batch)]
            rows = np.flatnonzero(reasons)
            start += len(batch)
            ids = _joined(prefix, batch.column("id").take(pa.array(rows)))
            columns = [ids, pa.repeat(part.dataset, len(rows)), names.take(pa.array(reasons[rows]))]
            self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _chosen(part: Part, dataset: Artifact, choice: Choice, *, prefix: str, tick: _Ticker) -> Iterator[pa.Table]:
    """The utterances that a set takes of a dataset, repeated ones pass by pass, in tables of about BATCH rows."""
    import numpy as np
    import pyarrow as pa

    waiting: list[pa.RecordBatch] = []
    for number in range(1, int(choice.copies.max()) + 1):
        start = 0
        for batch in iterate_utterances(dataset.path):
            rows = np.flatnonzero(choice.copies[start : start + len(batch)] >= number)
            start += len(batch)
            tick(len(batch) if number == 1 else 0)
            if len(rows):
                suffix = f"#{number}" if number > 1 else ""
                waiting.append(_placed(batch.take(pa.array(rows)), part, dataset, prefix=prefix, suffix=suffix))
            if sum(map(len, waiting)) >= BATCH:
                yield pa.Table.from_batches(waiting)
                waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


def _placed(batch: pa.RecordBatch, part: Part, dataset: Artifact, *, prefix: str, suffix: str) -> pa.RecordBatch:
    """Utterances as the set lists them."""
    import pyarrow as pa

    columns = {name: batch.column(name) for name in utterance_schema().names}
    # Two corpora may use one id.
    columns["id"] = _joined(prefix, columns["id"], suffix)
    # Artifacts are neighbours in the store.
    columns["audio"] = _joined(f"../{dataset.path.name}/", columns["audio"])
    columns["split"] = pa.repeat(part.split, len(batch))
    columns["source"] = pa.repeat(part.dataset, len(batch))
    return pa.RecordBatch.from_pydict(columns, schema=utterance_schema())


def _joined(prefix: str, column: pa.Array, suffix: str = "") -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.binary_join_element_wise(pa.scalar(prefix), column, pa.scalar(suffix), "")


def _restraints(spec: Spec, inputs: Inputs) -> Restraints:
    import numpy as np

    exclusions = read_exclusions(Path(spec.exclude)) if spec.exclude else None
    if not spec.drop_heldout:
        return Restraints(exclusions=exclusions)
    sources: list[str] = []

    def batches() -> Iterator[pa.RecordBatch]:
        for heldout in inputs["heldout"]:
            for batch in iterate_utterances(heldout.path, columns=[*COLUMNS, "source"]):
                sources.extend(batch.column("source").to_pylist())
                yield batch

    keys = read_keys(batches(), seed=spec.seed, texts="transcript" in spec.drop_heldout)
    return Restraints(keys, np.array(sources, np.str_), spec.drop_heldout, exclusions)


def _told(part: Part, choice: Choice) -> Iterator[str]:
    left = choice.left_out
    if left:
        reasons = ", ".join(f"{reason} {item['num']:,} ({item['hours']:.2f} h)" for reason, item in left.items())
        num_left = sum(int(item["num"]) for item in left.values())
        num_all = num_left + int((choice.copies > 0).sum())
        yield f"{part.label}: {num_left:,} of {num_all:,} clips left out ({reasons}); {LEFT_OUT_FILE} lists them"


def _num_speakers(found: Sequence[Hashes]) -> int:
    import numpy as np

    return int(np.count_nonzero(np.unique(np.concatenate(found))))
