"""The rows of one held-out set against the best of them and against their baselines, and the row that dev chooses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.core.manifests import read_jsonl
from harness.core.wer import count_errors
from harness.errors import DataError
from harness.score.significance import LEVEL, Bootstrap
from harness.suite.model import ZERO_SHOT

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from harness.board.leaderboard import Line
    from harness.core.artifact import Artifact
    from harness.engine.plan import Plan, Row

COMPARED = (
    *("tied_with_best", "delta_best", "delta_best_lo", "delta_best_hi", "p_best", "num_needed"),
    *("delta_baseline", "delta_baseline_lo", "delta_baseline_hi", "p_baseline"),
)
"""Columns of the board: difference in WER to the best row and to the untrained model of the same export and runtime.

Intervals and p-values are corrected by Holm over the rows of the set. `num_needed`: utterances on which a row that is
tied with the best would be told apart from it, four times out of five.
"""
SMALLEST_TEST = 2
"""Utterances below which a bootstrap says nothing."""


class WordCounts(NamedTuple):
    """Of each utterance of a score, in order."""

    errors: list[int]
    references: list[int]
    speakers: list[str | None]
    utterances: list[tuple[str, str]]
    """Id and reference as written."""


def word_counts(score: Artifact) -> WordCounts:
    """Errors and reference words of each utterance."""
    rows = list(read_jsonl(score.path / "hypotheses.jsonl"))
    heard = [None if row["error"] else row["hypothesis_norm"] for row in rows]
    counts = count_errors([row["reference_norm"] for row in rows], heard, unit="word")
    errors, references = [count.errors for count in counts], [count.num_reference for count in counts]
    speakers = [row.get("speaker") for row in rows]
    return WordCounts(errors, references, speakers, [(row["id"], row["reference"]) for row in rows])


def compare_set(group: Sequence[tuple[Row, Artifact]], plan: Plan) -> dict[str, Line]:
    """Row → COMPARED of one held-out set; all None where WER was not asked for, or a bootstrap says nothing.

    group: its rows with their scores, best first.
    Raises DataError if two rows do not list the same utterances.
    """
    rows = [row for row, _ in group]
    blank: Line = dict.fromkeys(COMPARED)
    _refuse_other_utterances([(row.row, score.meta["num_utterances"], ()) for row, score in group])
    if any(score.meta["wer"] is None or score.meta["num_utterances"] < SMALLEST_TEST for _, score in group):
        return {row.row: blank for row in rows}
    counts = {row.row: word_counts(score) for row, score in group}
    if not counts:
        return {}
    _refuse_other_utterances([(row, len(item.utterances), item.utterances) for row, item in counts.items()])
    drawn = resampled(list(counts.values()), plan)
    best, baselines = _against_best(drawn, rows), _against_baselines(drawn, rows)
    return {row.row: {**blank, **best[row.row], **baselines.get(row.row, {})} for row in rows}


def resampled(counts: Sequence[WordCounts], plan: Plan) -> Bootstrap:
    """Scores on one held-out set, drawn again and again as the suite says; numbered as `counts`."""
    return Bootstrap(
        [item.errors for item in counts],
        [item.references for item in counts],
        speakers=counts[0].speakers,
        seed=plan.suite.seed,
        resamples=plan.suite.score.resamples,
    )


def _refuse_other_utterances(group: Sequence[tuple[str, int, Sequence[object]]]) -> None:
    """group: row, number of its utterances, and which they are, if that is known."""
    for row, size, found in group[1:]:
        first, expected, known = group[0]
        apart = sum(a != b for a, b in zip(found, known, strict=False)) + abs(size - expected)
        if apart:
            raise DataError(
                f"{row} lists {size} utterances of a held-out set and {first} {expected}, {apart} of them others: they "
                "cannot be compared; remove the score of one of them from the store and run again"
            )


def _against_best(drawn: Bootstrap, rows: Sequence[Row]) -> dict[str, Line]:
    pairs = drawn.compare([(number, 0) for number in range(1, len(rows))])
    found: dict[str, Line] = {rows[0].row: {"tied_with_best": True}}
    compared = zip(*pairs, strict=True)
    for number, (difference, p_value, level) in enumerate(compared, start=1):
        tied = p_value >= 1 - LEVEL
        found[rows[number].row] = {
            "tied_with_best": tied,
            **_named("delta_best", difference),
            "p_best": p_value,
            "num_needed": drawn.num_needed(number, 0, level=level) if tied else None,
        }
    return found


def _against_baselines(drawn: Bootstrap, rows: Sequence[Row]) -> dict[str, Line]:
    places = {row.setting: number for number, row in enumerate(rows) if row.variant == ZERO_SHOT}
    against = {
        number: places[row.setting]
        for number, row in enumerate(rows)
        if row.variant != ZERO_SHOT and row.setting in places
    }
    compared = zip(against, *drawn.compare(list(against.items())), strict=True)
    return {
        rows[number].row: {**_named("delta_baseline", difference), "p_baseline": p_value}
        for number, difference, p_value, _ in compared
    }


def _named(name: str, difference: Any) -> Line:
    return dict(zip((name, f"{name}_lo", f"{name}_hi"), difference, strict=True))


def best_on_dev(plan: Plan, board: Sequence[Line], *, among: Collection[str] | None = None) -> str | None:
    """The row with the lowest mean WER over the dev sets, of those that are scored on all; None without any.

    among: rows to choose from; by default the fine-tuned ones, or all where nothing is fine-tuned.
    """
    if among is None:
        tuned = {row.row for row in plan.rows if row.variant != ZERO_SHOT}
        among = tuned or {row.row for row in plan.rows}
    num_dev = len({row.heldout for row in plan.rows if row.split_role == "dev"})
    on_dev: dict[str, list[Line]] = {}
    for line in board:
        if line["row"] in among and line["split_role"] == "dev" and line["wer"] is not None:
            on_dev.setdefault(line["row"], []).append(line)
    scored = {name: lines for name, lines in on_dev.items() if len(lines) == num_dev}
    return min(scored, key=lambda name: (_mean(scored[name], "wer"), _mean(scored[name], "cer"), name), default=None)


def _mean(lines: Sequence[Line], name: str) -> float:
    """The last place for what was not measured."""
    values = [line[name] for line in lines]
    return math.inf if None in values else math.fsum(values) / len(values)
