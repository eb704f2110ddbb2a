"""Recordings and tokens in batches of similar length, for trainers that read waveforms.

A set's rows stay in a memory-mapped table; of each clip only its duration and number of tokens are held.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from harness.core.files import beside
from harness.core.manifests import iterate_utterances
from harness.core.recordings import read_samples
from harness.core.targets import left_out, target_text
from harness.errors import DataError
from harness.train import ranks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np
    import torch

    from harness.core.artifact import Artifact
    from harness.core.targets import Policy
    from harness.train.augmentation import Augmenter

Batch = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor", "torch.Tensor"]
"""float32 [batch, samples], their numbers int64 [batch], tokens int64 [batch, longest], their numbers int64 [batch]."""

MIN_CLIP_S = 0.1
"""Shorter ones give the encoder a single frame, which cannot be normalised."""
MAX_UNWRITABLE = 0.1
"""Share of clips with characters outside the vocabulary from which on a training is refused."""
NUM_LISTED = 8
CUTS_AT_ONCE = 1000
BUFFER = 20_000
"""Clips from which the sampler fills a batch."""
QUADRATIC_S = 20.0
"""A clip of so many seconds counts twice: attention and a transducer's joint grow with the square of the length."""
MAX_BUCKETS = 30
BATCHES_PER_BUCKET = 4
"""A small set in many buckets would end every epoch with as many half-empty batches."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """How a model writes texts."""

    encode: Callable[[str], list[int]]
    letters: frozenset[str]
    """Characters that some token holds."""
    writes_everything: bool = False
    """It has tokens for bytes."""

    def fitted(self, text: str) -> str:
        """The text with ё as е where only that can be written, as Russian print does."""
        return text if "ё" in self.letters or self.writes_everything else text.replace("ё", "е").replace("Ё", "Е")

    def unwritable(self, text: str) -> set[str]:
        """Characters of a text that no token holds."""
        rest = set() if self.writes_everything else {letter for letter in text if not letter.isspace()} - self.letters
        return {letter for letter in rest if not set(unicodedata.normalize("NFKC", letter)) <= self.letters}


@dataclass(frozen=True, slots=True)
class Clips:
    """A set's clips that can be trained on, and how many others there were."""

    table: Any
    """datasets.Dataset, memory-mapped: audio, duration_s, tokens."""
    folder: Path
    rows: np.ndarray
    """int64 [num_clips]: which rows of the table they are."""
    durations_s: np.ndarray
    """float64 [num_clips]."""
    num_tokens: np.ndarray
    """int64 [num_clips]."""
    left_out: dict[str, int]
    """Why clips are not among them → how many."""
    unwritable: dict[str, int]
    """Character that the vocabulary does not have → clips with it, most of them first."""

    def notes(self, *, of: str, policy: Policy, max_clip_s: float) -> list[str]:
        """Sentences about what was left out. of: train, dev."""
        others = {"long": f"longer than {max_clip_s:g} s (max_clip_s)", "short": f"shorter than {MIN_CLIP_S:g} s"}
        notes = left_out(self.left_out["without text"], of=of, policy=policy)
        notes += [
            f"{self.left_out[key]} {of} clips are {what}, and were left out"
            for key, what in others.items()
            if self.left_out[key]
        ]
        if self.unwritable:
            notes.append(f"{of}: the vocabulary cannot write {_listed(self.unwritable)}; they are learnt as unknown")
        return notes


def read_clips(
    artifact: Artifact, *, policy: Policy, vocabulary: Vocabulary, max_clip_s: float, cache: Path, role: str
) -> Clips:
    """The clips of a prepared set with their target texts encoded; writes its table into `cache`.

    Raises DataError if none is left, or if too many cannot be written.
    """
    import numpy as np
    import pyarrow.compute as pc
    from datasets import Dataset

    path = cache / f"{role}.arrow"
    unwritable, num_unwritable = _write_table(artifact, path=path, policy=policy, vocabulary=vocabulary)
    table = Dataset.from_file(str(path))
    durations_s = table.data.column("duration_s").to_numpy()
    num_tokens = pc.list_value_length(table.data.column("tokens")).to_numpy()
    silent, long, short = num_tokens == 0, durations_s > max_clip_s, durations_s < MIN_CLIP_S
    rows = np.flatnonzero(~(silent | long | short))
    reasons = {"without text": silent, "long": long & ~silent, "short": short & ~silent}
    clips = Clips(
        table=table,
        folder=artifact.path,
        rows=rows,
        durations_s=durations_s[rows],
        num_tokens=num_tokens[rows],
        left_out={reason: int(mask.sum()) for reason, mask in reasons.items()},
        unwritable=dict(unwritable.most_common()),
    )
    if not len(rows):
        why = "; ".join(clips.notes(of=f"of {len(table)}", policy=policy, max_clip_s=max_clip_s)) or "it is empty"
        raise DataError(f"{artifact.path.name}: no clip is left to train on: {why}; change the set, or the limits")
    if num_unwritable > MAX_UNWRITABLE * len(table):
        raise DataError(
            f"{artifact.path.name}: {num_unwritable} of {len(table)} clips have characters that the model's vocabulary "
            f"cannot write: {_listed(clips.unwritable)}; write them otherwise (text: lower, digits: words), "
            "or train a tokenizer (tokenizer: {train: bpe, vocab_size: 1024})"
        )
    return clips


def _write_table(artifact: Artifact, *, path: Path, policy: Policy, vocabulary: Vocabulary) -> tuple[Counter[str], int]:
    """Write the memory-mapped table; return unwritable characters by clips, and how many clips have any."""
    import pyarrow as pa

    schema = pa.schema({"audio": pa.string(), "duration_s": pa.float64(), "tokens": pa.list_(pa.int32())})
    unwritable: Counter[str] = Counter()
    num_unwritable = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for batch in iterate_utterances(artifact.path, columns=["audio", "duration_s", "text"]):
            tokens: list[list[int]] = []
            for transcript in batch.column("text").to_pylist():
                text = vocabulary.fitted(target_text(transcript, policy) or "")
                strange = vocabulary.unwritable(text)
                unwritable.update(strange)
                num_unwritable += bool(strange)
                tokens.append(vocabulary.encode(text) if text else [])
            columns = [batch.column("audio"), batch.column("duration_s"), pa.array(tokens, schema.field("tokens").type)]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    temporary.replace(path)
    return unwritable, num_unwritable


def _listed(unwritable: dict[str, int]) -> str:
    listed = ", ".join(f"'{letter}' ({number} clips)" for letter, number in islice(unwritable.items(), NUM_LISTED))
    return listed + (f" and {len(unwritable) - NUM_LISTED} more" if len(unwritable) > NUM_LISTED else "")


@dataclass(frozen=True, slots=True)
class Batches:
    """The rows of each training batch, epoch after epoch in one list: the same for the same seed.

    A resumed training takes the list up at the very batch it was killed at.
    """

    clips: Clips
    seconds: float
    """Of a batch, with padding, as `batch_size` takes it."""
    seed: int
    num_batches: int
    start: int = 0
    """Batches that an earlier process has done."""

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        epochs = (epoch_batches(self.clips, seconds=self.seconds, seed=self.seed, epoch=epoch) for epoch in count())
        return islice((batch for epoch in epochs for batch in epoch), self.start, self.num_batches)


def epoch_batches(clips: Clips, *, seconds: float, seed: int, epoch: int) -> Iterator[list[int]]:
    """Every clip once, in shuffled batches of similar length: Lhotse's dynamic bucketing."""
    import numpy as np
    from lhotse.dataset import DynamicBucketingSampler
    from lhotse.dataset.sampling.dynamic_bucketing import FixedBucketBatchSizeConstraint

    longest_s = _buckets(clips.durations_s, seconds=seconds)
    order = np.random.default_rng([seed, epoch]).permutation(len(clips.rows))
    sampler = DynamicBucketingSampler(
        _Cuts(clips, order),
        # Not `max_duration`: Lhotse looks at it when a clip is in the batch already, which one long clip among many
        # short ones makes many times too large.
        constraint=FixedBucketBatchSizeConstraint(
            max_seq_len_buckets=longest_s, batch_sizes=[batch_size(longest, seconds=seconds) for longest in longest_s]
        ),
        duration_bins=longest_s[:-1],
        buffer_size=BUFFER,
        shuffle=True,
        seed=seed + epoch,
        # Without this Lhotse 1.33 takes empty buckets for filled ones, and ends an epoch before its last clips.
        sync_buckets=True,
        world_size=1,
        rank=0,
    )
    for batch in sampler:
        yield [int(cut.id) for cut in batch]


def batch_size(longest_s: float, *, seconds: float) -> int:
    """How many clips of a length make a batch of so many seconds; long ones count for more, by what they cost."""
    return max(1, int(seconds / (longest_s + longest_s**2 / QUADRATIC_S)))


@dataclass(frozen=True, slots=True)
class _Cuts:
    """Lhotse's view of the clips, made while it asks for them: how long each is, and its row."""

    clips: Clips
    order: np.ndarray

    def __iter__(self) -> Iterator[Any]:
        from lhotse import MonoCut

        for start in range(0, len(self.order), CUTS_AT_ONCE):
            chosen = self.order[start : start + CUTS_AT_ONCE]
            rows, durations_s = self.clips.rows[chosen].tolist(), self.clips.durations_s[chosen].tolist()
            for row, duration_s in zip(rows, durations_s, strict=True):
                yield MonoCut(id=str(row), start=0.0, duration=duration_s, channel=0)


def _buckets(durations_s: np.ndarray, *, seconds: float) -> list[float]:
    """The longest clip of each bucket, ascending; the buckets hold about equally much speech."""
    import numpy as np

    ordered = np.sort(durations_s)
    total = np.cumsum(ordered)
    num_buckets = max(1, min(MAX_BUCKETS, int(total[-1] / (seconds * BATCHES_PER_BUCKET))))
    places = np.searchsorted(total, total[-1] * np.arange(1, num_buckets) / num_buckets)
    longest_s: list[float] = np.unique([*ordered[places], ordered[-1]]).tolist()
    return longest_s


def evaluation_batches(clips: Clips, *, seconds: float) -> list[list[int]]:
    """Every clip once, longest first: what does not fit into memory fails at once."""
    batches: list[list[int]] = []
    longest_s = 0.0
    for place in (-clips.durations_s).argsort(kind="stable").tolist():
        if not batches or len(batches[-1]) == batch_size(longest_s, seconds=seconds):
            batches.append([])
            longest_s = float(clips.durations_s[place])
        batches[-1].append(int(clips.rows[place]))
    return batches


@dataclass(frozen=True, slots=True)
class Examples:
    """What a data loader's processes turn lists of rows into batches with."""

    table: Any
    folder: Path
    augmenter: Augmenter | None = None

    def __getitem__(self, numbered: tuple[int, list[int]]) -> Batch:
        import torch

        place, rows = numbered
        chosen = self.table[rows]
        samples = [
            torch.from_numpy(self._samples(audio, place=place, row=row))
            for row, audio in zip(rows, chosen["audio"], strict=True)
        ]
        tokens = [torch.tensor(row, dtype=torch.long) for row in chosen["tokens"]]
        lengths = (torch.tensor([len(item) for item in items]) for items in (samples, tokens))
        waves, labels = (torch.nn.utils.rnn.pad_sequence(items, batch_first=True) for items in (samples, tokens))
        num_samples, num_tokens = lengths
        return waves, num_samples, labels, num_tokens

    def _samples(self, audio: str, *, place: int, row: int) -> np.ndarray:
        samples = read_samples(self.folder / audio)
        return samples if self.augmenter is None else self.augmenter.clip(samples, place=place, index=row)


@dataclass(frozen=True, slots=True)
class Dealt:
    """Batches with their places in the training, dealt to the ranks in turn: those of one rank.

    All ranks have equally many, since NeMo's encoders wait for each other: where they do not come out even, a rank
    has one of the first again, which does not count.
    """

    batches: Batches | list[list[int]]
    rank: int = 0
    num_ranks: int = 1

    @property
    def num_own(self) -> int:
        """Batches that count."""
        return len(range(self.rank, len(self.batches), self.num_ranks))

    def __len__(self) -> int:
        return math.ceil(len(self.batches) / self.num_ranks)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        first = getattr(self.batches, "start", 0)
        yield from islice(enumerate(self.batches, start=first), self.rank, None, self.num_ranks)
        yield from islice(enumerate(self.batches, start=first), len(self) - self.num_own)


def loader(
    clips: Clips, batches: Batches | list[list[int]], *, num_workers: int, augmenter: Augmenter | None = None
) -> Any:
    """A torch DataLoader over `batches`, or over this rank's share of them."""
    import torch

    return torch.utils.data.DataLoader(
        Examples(clips.table, clips.folder, augmenter),
        sampler=Dealt(batches, *ranks.place()),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        # Forked processes would share the locks of torch's threads.
        multiprocessing_context="spawn" if num_workers else None,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _as_it_is(batch: Batch) -> Batch:
    return batch
