"""References that allow several wordings: `в {две тысячи|2000} году`; the one nearest to the hypothesis is scored."""

from __future__ import annotations

import itertools
import math
import re
from typing import TYPE_CHECKING

from harness.core.text import normalise
from harness.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Cell = tuple[int, tuple[int, ...]]
    """Fewest errors up to a place, and which wordings they take."""

GROUP = re.compile(r"\{([^{}]*)\}")
"""With a bar in it, wordings; without one, what corpora mark so, such as `{cough}`, which this module leaves alone."""
CHOICE = re.compile(r"\{([^{}|]*)\|[^{}]*\}")
TOKEN = re.compile(r"(?:[^\s{}]|\{[^{}]*\})+")
MAX_WORDINGS = 64
"""Of one word with what touches it: `{a|b}{c|d}` has four. Choices that stand apart may be as many as there are."""


def has_choices(text: str) -> bool:
    """Whether a reference means to allow several wordings, well-formed or not: it has a bar and a brace."""
    return "|" in text and ("{" in text or "}" in text)


def first_wording(text: str) -> str | None:
    """The reference with the first wording of every choice; None if its braces are not well-formed."""
    if not has_choices(text):
        return text
    return None if _fault(text) else CHOICE.sub(lambda found: found[1], text)


def normalised_pair(reference: str, hypothesis: str | None, *, profile: str, name: str) -> tuple[str, str]:
    """What is compared of an utterance: of a reference with choices, the wording with the fewest word errors.

    hypothesis: None of one that failed, which is compared as an empty text. name: of the utterance, for errors.
    Raises DataError if braces are not well-formed.
    """
    heard = normalise(hypothesis or "", profile=profile)
    said = nearest_wording(
        reference, heard.split(), words=lambda text: normalise(text, profile=profile).split(), name=name
    )
    return normalise(said, profile=profile), heard


def nearest_wording(reference: str, heard: Sequence[str], *, words: Callable[[str], list[str]], name: str) -> str:
    """The reference as written, without choices: those wordings that differ from `heard` in the fewest words.

    Of equal ones the first as written. The time grows with the words of all wordings, not with their combinations.
    words: a text → its words as compared. name: of the utterance.
    Raises DataError if braces are not well-formed.
    """
    if not has_choices(reference):
        return reference
    if fault := _fault(reference):
        raise DataError(
            f"utterance {name}: {fault} in {reference!r}; write wordings as {{две тысячи|2000}}, one level deep"
        )
    parts = _parts(reference, name=name)
    cells: list[Cell] = [(place, ()) for place in range(len(heard) + 1)]
    for wordings in parts:
        ends = [_aligned(cells, words(wording), heard) for wording in wordings]
        # An earlier wording has the smaller number, and so wins among equals.
        cells = [
            min((cost, (*chosen, number)) for number, (cost, chosen) in enumerate(at)) for at in zip(*ends, strict=True)
        ]
    _, chosen = cells[-1]
    return " ".join(filter(None, (wordings[number] for wordings, number in zip(parts, chosen, strict=True))))


def _fault(text: str) -> str | None:
    """What is wrong with the braces of a text that has choices."""
    if set("{}") & set(GROUP.sub("", text)):
        return "a brace that stands alone or inside another"
    empty = any("|" in inside and not inside.replace("|", "").strip() for inside in GROUP.findall(text))
    return "a choice without words" if empty else None


def _parts(reference: str, *, name: str) -> list[list[str]]:
    """The wordings of each stretch of a reference: one of a stretch without choices, several of a word with one."""
    parts: list[list[str]] = []
    for token in TOKEN.findall(reference):
        pieces = [_wordings(piece) for piece in re.split(r"(\{[^{}]*\})", token)]
        num = math.prod(map(len, pieces))
        if num > MAX_WORDINGS:
            raise DataError(
                f"utterance {name}: {token!r} has {num} wordings, at most {MAX_WORDINGS} are allowed in one word; "
                "write fewer, or put spaces between the braces"
            )
        parts.append([" ".join("".join(made).split()) for made in itertools.product(*pieces)])
    # Stretches without choices are normalised whole, as numbers of several words must be.
    joined: list[list[str]] = []
    for single, group in itertools.groupby(parts, key=lambda wordings: len(wordings) == 1):
        stretch = list(group)
        joined += [[" ".join(wordings[0] for wordings in stretch)]] if single else stretch
    return joined


def _wordings(piece: str) -> list[str]:
    return piece[1:-1].split("|") if piece.startswith("{") and "|" in piece else [piece]


def _aligned(cells: Sequence[Cell], words: Sequence[str], heard: Sequence[str]) -> list[Cell]:
    """Levenshtein's table, `len(words)` rows further. cells: one for each number of words heard."""
    for word in words:
        row: list[Cell] = [(cells[0][0] + 1, cells[0][1])]
        for at, other in enumerate(heard):
            (across, way_across), (down, way_down), (along, way_along) = cells[at], cells[at + 1], row[at]
            row.append(min((across + (word != other), way_across), (down + 1, way_down), (along + 1, way_along)))
        cells = row
    return list(cells)
