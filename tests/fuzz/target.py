"""What one kind of input is: sound seeds, how its checksums are mended after a change, and who reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    Attack = Callable[[bytes, Path], None]


def as_it_is(data: bytes) -> bytes:
    return data


@dataclass(frozen=True)
class Target:
    """One kind of input from outside."""

    name: str
    seeds: Callable[[], Sequence[bytes]]
    attack: Attack
    """Reads an input as the product does, in an empty folder of its own."""
    weight: float = 1.0
    """How many inputs of a campaign it gets beside the others: slow readers get fewer."""
    mend: Callable[[bytes], bytes] = as_it_is
    """Renews checksums, so that changes reach what is behind them; used for two thirds of all inputs."""
    places: Callable[[bytes], Sequence[int]] = lambda _: ()
    """Offsets in a seed where changes matter most."""
    refuses_seeds: bool = False
    """The reader stops behind this input, for want of the others that belong to it."""
    is_quick: bool = True
    """Whether `make test` has time for it."""
