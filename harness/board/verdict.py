"""A board in words: who is best, by how much, and what cannot be told apart."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

from harness.score.significance import Difference
from harness.suite.model import ZERO_SHOT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.board.leaderboard import Line

TURNING = {"R", "AL", "AN", "RLE", "RLO", "RLI", "LRE", "LRO", "LRI", "FSI", "PDF", "PDI"}
"""Unicode's directions that change the order of what stands beside them."""
NAMED = 3
"""Tied rows that are named; the others are counted."""


def sentences(group: Sequence[Line], *, chosen: str | None = None) -> list[str]:
    """The verdict on one held-out set.

    group: its lines of the board, best first. chosen: the row that is best on dev.
    """
    scored = [line for line in group if line["wer"] is not None]
    if not scored:
        return []
    best, others = scored[0], scored[1:]
    count = best["num_utterances"]
    on = f"{count} utterance{'s' if count != 1 else ''} of {isolated(best['heldout'])}"
    if not others:
        return [f"{isolated(best['row'])}: WER {_rate(best)} on {on}."]
    said = [f"{isolated(best['row'])} has the lowest WER on {on}: {_rate(best)}.", *_choice(scored, chosen=chosen)]
    if any(line["tied_with_best"] is None for line in scored):
        return [*said, "So few utterances do not say how sure this order is."]
    beaten = next((line for line in others if not line["tied_with_best"]), None)
    untrained = _untrained(best, others)
    for line in {line["row"]: line for line in (beaten, untrained) if line and not line["tied_with_best"]}.values():
        what = "the untrained " if untrained and line["row"] == untrained["row"] else ""
        said.append(f"{isolated(best['row'])} beats {what}{isolated(line['row'])} by {points(_to_best(line))}.")
    tied = [line for line in others if line["tied_with_best"]]
    if tied:
        said += [_told_tied(best, tied), *to_tell_apart(scored)]
    if len(tied) > 1 and untrained in tied:
        said.append(f"The untrained {isolated(untrained['row'])} is among them: {points(_to_best(untrained))}.")
    return said


def to_tell_apart(group: Sequence[Line]) -> list[str]:
    """On how many utterances the best row would part from the next one that is tied with it but has another WER.

    group: the lines of one held-out set, best first.
    """
    line = next((line for line in group if line["tied_with_best"] and line["num_needed"] is not None), None)
    if line is None:
        return []
    names = " and ".join(isolated(item["row"]) for item in (group[0], line))
    return [f"To tell {names} apart takes about {about(int(line['num_needed']))} utterances like these (80 % power)."]


def _choice(group: Sequence[Line], *, chosen: str | None) -> list[str]:
    """What dev says to the best on a test set: rows are chosen there."""
    line = next((line for line in group if line["row"] == chosen), None)
    if line is None or line["split_role"] != "test":
        return []
    if line is group[0]:
        return ["It is also the row that dev chooses."]
    return [f"Dev chooses {isolated(line['row'])}, whose WER here is {_rate(line)}; choose by dev, this set is sealed."]


def _told_tied(best: Line, tied: Sequence[Line]) -> str:
    name, on = isolated(best["row"]), f"on {best['num_utterances']} utterances"
    if len(tied) == 1:
        return f"{name} and {isolated(tied[0]['row'])} cannot be told apart {on}: {points(_to_best(tied[0]))}."
    named = [isolated(line["row"]) for line in tied[:NAMED]]
    rest = [f"{len(tied) - NAMED} more"] if len(tied) > NAMED else []
    *most, last = [*named, *rest]
    return f"{name} cannot be told apart from {', '.join(most)} and {last} {on}."


def _untrained(best: Line, others: Sequence[Line]) -> Line | None:
    """The zero-shot row that the best one is compared with: of the same export, if there is one."""
    if best["variant"] == ZERO_SHOT:
        return None
    found = [line for line in others if line["variant"] == ZERO_SHOT and line["family"] == best["family"]]
    return min(found, key=lambda line: (line["export"] != best["export"], line["rank"]), default=None)


def _to_best(line: Line) -> Difference:
    """How much higher its WER is than that of the best row, with the corrected interval."""
    return Difference(line["delta_best"], line["delta_best_lo"], line["delta_best_hi"])


def _rate(line: Line) -> str:
    if line["wer_lo"] is None:
        return f"{percent(line['wer'])} % (no interval)"
    return f"{percent(line['wer'])} % [{percent(line['wer_lo'])}, {percent(line['wer_hi'])}]"


def about(count: int) -> str:
    """To two digits: more would pretend to know."""
    return f"{round(count, 2 - len(str(count))):,}"


def points(difference: Difference) -> str:
    """A difference of two rates in percentage points, with its interval."""
    delta, lo, hi = (100 * value for value in difference)
    return f"{_signed(delta)} point{'s' if _signed(delta) != '1.0' else ''} [{_signed(lo)}, {_signed(hi)}]"


def _signed(value: float) -> str:
    text = f"{value:.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", "\N{MINUS SIGN}")


def percent(rate: Any) -> str:
    return "–" if rate is None else f"{100 * rate:.1f}"


def isolated(name: str) -> str:
    """A name inside a sentence: one in another direction, or with marks that turn it, leaves the rest in order."""
    if not any(unicodedata.bidirectional(char) in TURNING for char in name):
        return name
    return f"\N{FIRST STRONG ISOLATE}{name}\N{POP DIRECTIONAL ISOLATE}"
