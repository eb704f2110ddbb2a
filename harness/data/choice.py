"""Which clips of one source a set takes, how often, and why the others leave."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.core.manifests import iterate_utterances
from harness.data.filter import VOTES, error_rates, failures, matching, over_cap, tag
from harness.data.keys import COLUMNS, NONE, places, read_keys
from harness.data.mix import copies, within_hours
from harness.data.split import assign_splits
from harness.errors import DataError
from harness.suite.spec import RULED
from harness.suite.wording import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from harness.core.artifact import Artifact
    from harness.data.exclusions import Exclusions
    from harness.data.keys import Hashes, Keys
    from harness.data.select import Part
    from harness.data.split import Splits

    Mask = npt.NDArray[np.bool_]

CONTENT = ("duration_s", "chars_per_s", "alphabet", "votes")
REASONS = (
    "", "exclude", "drop_heldout: transcript", "drop_heldout: recording", "drop_heldout: speaker",
    *CONTENT, "max_cer", "max_hours_per_speaker", "take",
)  # fmt: skip
"""The key of the suite that made a clip leave; the first that did, in this order."""
LARGE_GROUP = 0.1
"""A group with more of all clips keeps the fractions of a split from being met."""
MAX_LISTED = 10


@dataclass(frozen=True, slots=True, eq=False)
class Restraints:
    """What a training set must not contain, whatever its sources."""

    heldout: Keys | None = None
    """Of all held-out sets together."""
    sources: npt.NDArray[np.str_] | None = None
    """[num_heldout], the dataset of each held-out clip."""
    drop: Sequence[str] = ()
    exclusions: Exclusions | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What becomes of each clip of a dataset, all [num_clips]."""

    copies: npt.NDArray[np.uint8]
    """How often it stands in the set."""
    reasons: npt.NDArray[np.uint8]
    """Why it left, of REASONS; 0 for a clip that did not, or was never asked for."""
    seconds: npt.NDArray[np.float64]
    speakers: Hashes
    notes: list[str]

    @property
    def left_out(self) -> dict[str, dict[str, float]]:
        """Reason → how many clips and hours left for it."""
        masks = {name: self.reasons == number for number, name in enumerate(REASONS) if number}
        return {
            name: {"num": int(mask.sum()), "hours": round(float(self.seconds[mask].sum()) / 3600, 4)}
            for name, mask in masks.items()
            if mask.any()
        }


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """What is kept of a dataset while it is chosen from, all [num_clips]."""

    keys: Keys
    order: Hashes
    """A stable hash of each clip."""
    seconds: npt.NDArray[np.float64]
    matching: Mask
    excluded: Mask
    failed: npt.NDArray[np.uint8]
    """The first of CONTENT that a clip does not meet, as a number of REASONS."""


class _Sieve:
    """Which clips are still in, and why the others are not."""

    def __init__(self, chosen: Mask) -> None:
        import numpy as np

        self.left = chosen.copy()
        self.reasons = np.zeros(len(chosen), np.uint8)

    def drop(self, reason: str, mask: Mask) -> None:
        gone = self.left & mask
        self.reasons[gone] = REASONS.index(reason)
        self.left &= ~gone


def choose(
    part: Part,
    dataset: Artifact,
    *,
    seed: int,
    restraints: Restraints,
    transcripts: Sequence[Artifact],
    tick: Callable[[int], None],
) -> Choice:
    """Choose among the clips of a prepared dataset.

    transcripts: one for each of `part.max_cer`. tick: is told how many clips have been read.
    Raises DataError where nothing is left, or a criterion asks for what the dataset does not have.
    """
    import numpy as np

    texts = part.rule is not None or "transcript" in restraints.drop
    columns = _read(part, dataset, seed=seed, exclusions=restraints.exclusions, texts=texts, tick=tick)
    splits = assign_splits(columns.keys, rule=part.rule)
    chosen = splits.mask(part.split) & columns.matching
    if not chosen.any():
        raise _nothing_there(part, dataset, splits)
    sieve = _Sieve(chosen)
    sieve.drop("exclude", columns.excluded)
    for what, shared in _shared(part, columns.keys, restraints):
        sieve.drop(f"drop_heldout: {what}", shared)
    for reason in CONTENT:
        sieve.drop(reason, columns.failed == REASONS.index(reason))
    for limit, heard in zip(part.max_cer, transcripts, strict=True):
        rates = error_rates(dataset, chosen=sieve.left, transcripts=heard)
        sieve.drop("max_cer", rates > limit)
        # What nobody listened to lies beyond the hours that the candidates were limited to.
        sieve.drop("take", np.isnan(rates))
    often = copies(columns.order, weight=part.weight)
    notes = [*_group_notes(part, splits), *_take(part, columns, sieve, often)]
    if not sieve.left.any():
        counts = Counter(REASONS[number] for number in sieve.reasons[chosen].tolist())
        listed = ", ".join(f"{reason}: {count:,}" for reason, count in counts.most_common())
        raise DataError(f"{part.label}: nothing is left of its {int(chosen.sum()):,} clips ({listed}); loosen these")
    return Choice(often * sieve.left, sieve.reasons, columns.seconds, columns.keys.speakers, notes)


def _read(
    part: Part, dataset: Artifact, *, seed: int, exclusions: Exclusions | None, texts: bool, tick: Callable[[int], None]
) -> _Columns:
    """One pass over the dataset's columns."""
    import numpy as np

    parts: dict[str, list[np.ndarray]] = {name: [] for name in _Columns.__slots__ if name != "keys"}
    wanted = {*part.where, *(VOTES if any(item.votes for item in part.criteria) else ())}
    tagged: Counter[str] = Counter()

    def batches() -> Iterator[pa.RecordBatch]:
        names = ["id", "duration_s", "text", *COLUMNS, "source", *(["tags"] if wanted else [])]
        for batch in iterate_utterances(dataset.path, columns=list(dict.fromkeys(names))):
            ids = batch.column("id")
            parts["order"].append(places(ids.to_pylist(), seed=seed))
            parts["seconds"].append(batch.column("duration_s").to_numpy())
            parts["matching"].append(matching(batch, where=part.where))
            parts["excluded"].append(
                exclusions.mask(ids, dataset=part.dataset) if exclusions else np.zeros(len(ids), np.bool_)
            )
            parts["failed"].append(_failed(batch, part))
            tagged.update({name: len(batch) - tag(batch, name).null_count for name in wanted})
            yield batch
            tick(len(batch))

    keys = read_keys(batches(), seed=seed, texts=texts)
    for name in sorted(wanted):
        if not tagged[name]:
            raise _no_tag(part, dataset, name)
    return _Columns(keys=keys, **{name: np.concatenate(values) for name, values in parts.items()})


def _failed(batch: pa.RecordBatch, part: Part) -> npt.NDArray[np.uint8]:
    import numpy as np

    first = np.zeros(len(batch), np.uint8)
    for criteria in part.criteria:
        for reason, mask in failures(batch, criteria=criteria).items():
            first[mask & (first == 0)] = REASONS.index(reason)
    return first


def _shared(part: Part, keys: Keys, restraints: Restraints) -> Iterator[tuple[str, Mask]]:
    """What training may not share with held-out sets → which clips do."""
    import numpy as np

    held = restraints.heldout
    if held is None or restraints.sources is None:
        return
    # One label of two corpora is not one person.
    own = restraints.sources == part.dataset
    pairs = {
        "transcript": (keys.transcripts, held.transcripts),
        "recording": (keys.recordings, held.recordings),
        "speaker": (keys.speakers, held.speakers[own]),
    }
    for what, (ours, theirs) in pairs.items():
        if what in restraints.drop:
            yield what, np.isin(ours, theirs) & (ours != NONE)


def _take(part: Part, columns: _Columns, sieve: _Sieve, often: npt.NDArray[np.uint8]) -> Iterator[str]:
    """Drop what goes beyond a cap or beyond what is to be taken; yields notes."""
    import numpy as np

    caps = [item.max_hours_per_speaker for item in part.criteria if item.max_hours_per_speaker]
    if caps:
        speakers = columns.keys.speakers
        if not speakers.any():
            raise DataError(
                f"{part.dataset} names no speakers, which max_hours_per_speaker needs; "
                "give it under the sources of the mix that do"
            )
        left = np.flatnonzero(sieve.left)
        over = over_cap(speakers[left], order=columns.order[left], seconds=columns.seconds[left], hours=min(caps))
        sieve.drop("max_hours_per_speaker", _spread(left[over], len(speakers)))
    if part.hours is not None:
        left = np.flatnonzero(sieve.left)
        taken = within_hours(columns.order[left], seconds=columns.seconds[left], hours=part.hours)
        sieve.drop("take", _spread(left[~taken], len(sieve.left)))
        there = float(columns.seconds[left].sum()) / 3600
        if taken.all() and there < part.hours:
            what = "are there" if not part.max_cer else "agree with what was heard"
            yield f"{part.label}: {there:.2f} h {what}, fewer than the {part.hours:g} h to take; all of them are taken"
    sieve.drop("take", often == 0)


def _spread(rows: npt.NDArray[np.intp], num_clips: int) -> Mask:
    """Rows as a mask."""
    import numpy as np

    mask = np.zeros(num_clips, np.bool_)
    mask[rows] = True
    return mask


def _group_notes(part: Part, splits: Splits) -> list[str]:
    if splits.largest_group <= LARGE_GROUP * len(splits.codes):
        return []
    held = f"{part.dataset}: {splits.largest_group:,} of {len(splits.codes):,} clips hang together by what they share"
    return [f"{held} and lie in one split; the fractions of its `split` are met only roughly"]


def _nothing_there(part: Part, dataset: Artifact, splits: Splits) -> DataError:
    listed = ", ".join(f"{split} ({count})" for split, count in splits.counts.items()) or "no splits"
    if splits.mask(part.split).any():
        return DataError(f"{part.label} has no clip {_asked(part)}; {_values(part, dataset)}")
    num_without = int((splits.codes < 0).sum())
    advice = did_you_mean(part.split, splits.counts)
    if num_without:
        advice = f"; {num_without} utterances belong to none: give the dataset a `split`"
    elif part.rule is not None and splits.num_groups and part.split in RULED:
        groups = f"{splits.num_groups} group{'s' if splits.num_groups != 1 else ''}"
        advice = (
            f"; its {len(splits.codes)} utterances are {groups} by the speakers, transcripts or recordings that they "
            f"share, and none fell to {part.split}: give that a larger fraction"
        )
        advice += "" if part.rule.by == "recording" else ", or divide the dataset `by: recording`"
    return DataError(f"{part.label} selects nothing; {part.dataset} has {listed}{advice}")


def _asked(part: Part) -> str:
    return "with " + " and ".join(f"{name} = {' or '.join(values)}" for name, values in part.where.items())


def _values(part: Part, dataset: Artifact) -> str:
    """What the tags that `where` names say in this dataset."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in part.where}
    for batch in iterate_utterances(dataset.path, columns=["speaker", "source", "tags"]):
        for name, counter in counts.items():
            counter.update(value for value in tag(batch, name).to_pylist() if value is not None)
    return "; ".join(
        f"its {name} is " + ", ".join(f"{value} ({count})" for value, count in counter.most_common(MAX_LISTED))
        for name, counter in counts.items()
    )


def _no_tag(part: Part, dataset: Artifact, name: str) -> DataError:
    known: Counter[str] = Counter()
    for batch in iterate_utterances(dataset.path, columns=["tags"]):
        known.update(key for item in batch.column("tags").to_pylist() for key, _ in item or ())
    listed = f"its tags: {', '.join(sorted(known)[:MAX_LISTED]) or 'none'}"
    if name in VOTES and name not in part.where:
        return DataError(
            f"no clip of {part.dataset} has the tag '{name}', which `votes` needs ({listed}); "
            "give `votes` under the sources of the mix that have it"
        )
    return DataError(f"no clip of {part.dataset} has the tag '{name}'{did_you_mean(name, known)} ({listed})")
