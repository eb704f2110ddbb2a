"""The error rate of parts of a held-out set: by duration, speaker, source and every tag."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from harness.core.wer import pool
from harness.score.significance import rate_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.core.records import Utterance
    from harness.core.wer import ErrorCounts

SMALLEST = 20
"""Utterances below which a slice is marked, and judges no model."""
MOST_VALUES = 30
"""Of a tag that is sliced by without being asked for; above, a tag of numbers is cut into quarters."""
DURATION = "duration"
EDGES_S = (2, 5, 10, 20)
BUCKETS = ("under 2 s", "2 to 5 s", "5 to 10 s", "10 to 20 s", "20 s and over")
WITHOUT = "(none)"
"""Of utterances that lack a tag."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The utterances with one value of one tag."""

    by: str
    value: str
    num_utterances: int
    num_words: int
    """Of the references."""
    wer: float | None
    """None where the references have no words."""
    wer_lo: float | None
    wer_hi: float | None
    is_small: bool
    """Fewer than SMALLEST utterances."""


def slice_rates(
    utterances: Sequence[Utterance],
    counts: Sequence[ErrorCounts] | None,
    *,
    by: Sequence[str] | None,
    seed: int,
    resamples: int,
) -> list[dict[str, Any]]:
    """Every slice, the worst first; those that are too small come last.

    counts: word errors of each utterance; None where they are not counted, and there is no slice.
    by: `duration`, `speaker`, `source` or tags; None: duration, and what has 2 to MOST_VALUES values, each of them for
    two utterances on average. A tag that no utterance has gives no slice.
    """
    if counts is None:
        return []
    found = []
    for name, values in _columns(utterances, by=by).items():
        rows: dict[str, list[int]] = {}
        for number, value in enumerate(values):
            rows.setdefault(value, []).append(number)
        for value, chosen in rows.items():
            errors = [counts[number] for number in chosen]
            speakers = [utterances[number].speaker for number in chosen]
            found.append(_slice(name, value, errors, speakers=speakers, seed=seed, resamples=resamples))
    found.sort(key=lambda item: (item.is_small, -(item.wer if item.wer is not None else -1), item.by, item.value))
    return [asdict(item) for item in found]


def unknown_tags(utterances: Sequence[Utterance], *, by: Sequence[str] | None) -> list[str]:
    """Those asked for that no utterance has."""
    return [name for name in by or () if not any(_value(item, name) for item in utterances)]


def _slice(
    name: str,
    value: str,
    counts: Sequence[ErrorCounts],
    *,
    speakers: Sequence[str | None],
    seed: int,
    resamples: int,
) -> Slice:
    pooled = pool(counts)
    wer = lo = hi = None
    if pooled.num_reference:
        wer = pooled.rate
        lo, hi = rate_interval(
            [item.errors for item in counts],
            [item.num_reference for item in counts],
            speakers=speakers,
            seed=seed,
            resamples=resamples,
        )
    is_small = len(counts) < SMALLEST or wer is None
    return Slice(name, value, len(counts), pooled.num_reference, wer, lo, hi, is_small)


def _columns(utterances: Sequence[Utterance], *, by: Sequence[str] | None) -> dict[str, list[str]]:
    """Name → the value of each utterance."""
    tags = dict.fromkeys(tag for item in utterances for tag in item.tags)
    names = dict.fromkeys([DURATION, "source", "speaker", *tags] if by is None else by)
    columns = {}
    for name in names:
        values = [_value(item, name) for item in utterances]
        different = set(values)
        # A tag that is another one in each utterance, such as the text as it was printed, is no group of them.
        most = min(MOST_VALUES, len(values) // 2)
        if by is None and name != DURATION and not 2 <= len(different) <= most:
            continue
        if different != {""}:
            cut = _quarters(values) if len(different) > MOST_VALUES else None
            columns[name] = cut or [value or WITHOUT for value in values]
    return columns


def _value(utterance: Utterance, name: str) -> str:
    """Empty where it has none."""
    if name == DURATION:
        return BUCKETS[bisect_right(EDGES_S, utterance.duration_s)]
    if name == "speaker":
        return utterance.speaker or ""
    return utterance.source if name == "source" else utterance.tags.get(name, "")


def _quarters(values: Sequence[str]) -> list[str] | None:
    """A tag of numbers, such as a noise level, as which quarter each value is in; None if it holds anything else."""
    import numpy as np

    try:
        numbers = [float(value) if value else math.nan for value in values]
    except ValueError:
        return None
    known = [number for number in numbers if math.isfinite(number)]
    if not known:
        return None
    edges = [float(edge) for edge in np.quantile(known, [0, 0.25, 0.5, 0.75, 1])]
    names = [f"{lo:g} to {hi:g}" for lo, hi in pairwise(edges)]
    return [
        names[bisect_right(edges[1:-1], number)] if math.isfinite(number) else value or WITHOUT
        for number, value in zip(numbers, values, strict=True)
    ]
