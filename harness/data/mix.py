"""How much of a source a set takes: stable samples, by a hash of each clip that nothing else changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ROUNDING_S = 1e-6


def within_hours(
    order: npt.NDArray[np.uint64], *, seconds: npt.NDArray[np.float64], hours: float
) -> npt.NDArray[np.bool_]:
    """Which clips are taken if they are taken by `order` until the next one would go beyond `hours`.

    A larger wish takes these and more. order: [num_clips], a stable hash of each clip.
    """
    import numpy as np

    ranked = np.argsort(order, kind="stable")
    taken = np.empty(len(ranked), np.bool_)
    taken[ranked] = np.cumsum(seconds[ranked]) <= hours * 3600 + ROUNDING_S
    return taken


def copies(order: npt.NDArray[np.uint64], *, weight: float) -> npt.NDArray[np.uint8]:
    """How often each clip stands in a set that passes `weight` times over its source: 2.3 is 3 for a stable 30 %."""
    import numpy as np

    whole = int(weight)
    more: npt.NDArray[np.bool_] = order / 2.0**64 < weight - whole
    return whole + more.astype(np.uint8)
