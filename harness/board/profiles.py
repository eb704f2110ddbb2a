"""Figures by other normalisers beside the one that ranks, and where they would rank otherwise."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from harness.board.leaderboard import Line

MARK = "@"
"""In a column: `wer@ru-strict`."""
NAMED = 3
"""Pairs that a sentence names; the others are counted."""


def beside(meta: Mapping[str, Any]) -> Line:
    """The columns of a score's other profiles."""
    return {name: value for name, value in meta.items() if MARK in name}


def rates_beside(board: Sequence[Line]) -> list[str]:
    """Those of them that people compare: `wer@ru-strict`, `cer@ru-strict`."""
    return [name for name in (board[0] if board else ()) if name.startswith((f"wer{MARK}", f"cer{MARK}"))]


def flips(board: Sequence[Line]) -> list[str]:
    """Of each held-out set and profile: which rows change places. None where the order is the same."""
    profiles = dict.fromkeys(name.partition(MARK)[2] for name in rates_beside(board))
    sets = dict.fromkeys(line["heldout"] for line in board)
    return [
        told
        for heldout in sets
        for profile in profiles
        for told in _told([line for line in board if line["heldout"] == heldout], heldout=heldout, profile=profile)
    ]


def _told(group: Sequence[Line], *, heldout: str, profile: str) -> Iterator[str]:
    column = f"wer{MARK}{profile}"
    scored = [line for line in group if line["wer"] is not None and line.get(column) is not None]
    # Stable: equal rates keep the order of the board.
    order = sorted(scored, key=lambda line: line[column])
    # Some row is out of order if and only if two neighbours are.
    pairs = [(first, second) for first, second in pairwise(order) if first["wer"] > second["wer"]]
    if pairs:
        best = min(scored, key=lambda line: line["wer"])
        if order[0]["wer"] > best["wer"] and (order[0], best) not in pairs:
            pairs.insert(0, (order[0], best))
        named = [
            f"{first['row']} comes before {second['row']} ({first[column]:.3f} against {second[column]:.3f})"
            for first, second in pairs[:NAMED]
        ]
        more = f", and {len(pairs) - NAMED} more pairs" if len(pairs) > NAMED else ""
        yield f"The order on {heldout} depends on the normaliser: under {profile}, {'; '.join(named)}{more}"
