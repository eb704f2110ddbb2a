"""Clips into 30-second windows: what one training example holds.

Whisper's encoder always sees 30 s. A clip of 4 s alone is seven eighths silence, and training on such clips unlearns
timestamps; several clips in one window, each between its timestamp tokens, cost the same and keep them. Clips follow
each other without a gap: what silence speakers leave at both ends of a clip is the pause. None is ever split, so that
no window ends in Whisper's start of a segment that the next window goes on with.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from harness.suite.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

MAX_TOKENS = 448
"""Whisper's text context, unless a model's config says otherwise."""
TOKENS_AROUND_WINDOW = 5
"""Start, language, task, no-timestamps, end."""
TOKENS_AROUND_CLIP = 2
"""Its two timestamps."""
TIMESTAMPS_PER_S = 50
"""Whisper's timestamps lie on a grid of 20 ms; a clip in a window is padded to it."""
MAX_WINDOW_S = 30
NUM_AHEAD = 32
"""Clips among which the last ones of a window are looked for."""
TIMESTAMPS = 0.5
"""Share of windows with timestamps, where a suite only says that there are some."""


def _share(value: Any) -> Any:
    return {True: TIMESTAMPS, False: 0.0}[value] if isinstance(value, bool) else value


class Packing(Spec):
    """How clips share windows."""

    window_s: float = Field(
        default=29.5,
        gt=0,
        le=MAX_WINDOW_S,
        description="At most this much speech in a window. A longer clip, up to 30 s, has a window to itself.",
    )
    timestamps: Annotated[
        float,
        Field(ge=0, le=1),
        BeforeValidator(_share),
        WithJsonSchema({"anyOf": [{"type": "boolean"}, {"type": "number", "minimum": 0, "maximum": 1}]}),
    ] = Field(default=TIMESTAMPS, description=f"Share of windows with timestamp tokens; true: {TIMESTAMPS:g}.")
    singles: float = Field(
        default=0.2, ge=0, le=1, description="Share of clips that also come alone, as dictation does."
    )
    prompts: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of packed windows that begin with the text of the window before, as dictation in context "
        "does: the model reads it, and learns nothing of it.",
    )


@dataclass(frozen=True, slots=True)
class Window:
    """One training example: clips by index, in order."""

    clips: tuple[int, ...]
    timestamps: bool
    prompt: tuple[int, ...] = ()
    """Clips whose text the decoder is given as what was said before."""


def windows(
    durations_s: Sequence[float],
    num_tokens: Sequence[int],
    *,
    packing: Packing | None,
    seed: int,
    max_tokens: int = MAX_TOKENS,
) -> Iterator[Window]:
    """Endless windows, another packing each epoch; the same for the same seed.

    durations_s, num_tokens: of each clip; no clip may be longer than 30 s, or its text than the text context.
    max_tokens: the text context. Without packing each clip is a window of its own, without timestamps.
    """
    sizes = _sizes(durations_s, num_tokens)
    rng = random.Random(seed)  # noqa: S311  # an order of clips, not a secret
    # Apart from the order: the windows are the same, whatever share of them has a prompt.
    prompting = random.Random(f"prompts {seed}")  # noqa: S311
    while True:
        order = list(range(len(durations_s)))
        rng.shuffle(order)
        if packing is None:
            yield from (Window((index,), timestamps=False) for index in order)
            continue
        epoch = list(_fill(order, sizes, packing=packing, rng=rng, max_tokens=max_tokens))
        if packing.prompts:
            epoch[1:] = [
                replace(window, prompt=before.clips) if prompting.random() < packing.prompts else window
                for before, window in pairwise(epoch)
            ]
        singles = rng.sample(order, round(packing.singles * len(order)))
        # With timestamps, too: nothing else shows speech that ends long before its window.
        epoch += [Window((index,), timestamps=rng.random() < packing.timestamps) for index in singles]
        rng.shuffle(epoch)
        yield from epoch


def epoch_size(
    durations_s: Sequence[float], num_tokens: Sequence[int], *, packing: Packing | None, max_tokens: int = MAX_TOKENS
) -> int:
    """About how many windows one pass over the clips takes; packings differ by a few."""
    if packing is None:
        return len(durations_s)
    order = range(len(durations_s))
    rng = random.Random(0)  # noqa: S311  # as above
    packed = _fill(order, _sizes(durations_s, num_tokens), packing=packing, rng=rng, max_tokens=max_tokens)
    return sum(1 for _ in packed) + round(packing.singles * len(durations_s))


def grid_steps(duration_s: float) -> int:
    """How many steps of the timestamp grid a clip takes."""
    # Less than a sample, more than the rounding of a product: a clip of whole steps has no step more.
    return math.ceil(duration_s * TIMESTAMPS_PER_S - 1e-6)


def _sizes(durations_s: Sequence[float], num_tokens: Sequence[int]) -> np.ndarray:
    """Seconds, steps of the grid and tokens that each clip takes of a window: [num_clips, 3]."""
    import numpy as np

    steps = [grid_steps(duration_s) for duration_s in durations_s]
    return np.column_stack([durations_s, steps, np.asarray(num_tokens) + TOKENS_AROUND_CLIP])


def _fill(
    order: Sequence[int], sizes: np.ndarray, *, packing: Packing, rng: random.Random, max_tokens: int
) -> Iterator[Window]:
    """Each window begins with the clip that waits longest, and takes what comes next.

    sizes: of all clips, from `_sizes`.

    Without timestamps it is filled to measure. With them it ends before the first clip that does not fit: were all
    such windows full, the model would learn that speech ends where a window does, and not listen.
    """
    import numpy as np

    # What many clips are padded by to the grid may be more than what `window_s` leaves of the 30 s.
    limits = np.array([packing.window_s, MAX_WINDOW_S * TIMESTAMPS_PER_S, max_tokens - TOKENS_AROUND_WINDOW])
    rest = iter(order)
    ahead = list(islice(rest, NUM_AHEAD))
    while ahead:
        timestamps = rng.random() < packing.timestamps
        clips: list[int] = []
        room = limits
        places = [0]
        while places:
            taken = [ahead[place] for place in places]
            clips += taken
            room = room - sizes[taken].sum(axis=0)
            ahead = [index for index in ahead if index not in taken]
            ahead += islice(rest, NUM_AHEAD - len(ahead))
            places = _next(sizes[ahead], room, to_measure=not timestamps)
        yield Window(tuple(clips), timestamps)


def _next(waiting: np.ndarray, room: np.ndarray, *, to_measure: bool) -> list[int]:
    """Places of the clips that a window takes next: of those that wait [num_clips, 3], at most two; none if none fits.

    The first, while there is room for any two; then, to measure, the one or two that leave the least room.
    """
    import numpy as np

    if not len(waiting):
        return []
    if (room >= 2 * waiting.max(axis=0)).all() or not to_measure:
        return [0] if (room >= waiting[0]).all() else []
    sums = waiting[:, None] + waiting[None]
    sums[np.diag_indices(len(waiting))] = waiting
    lengths_s = np.where((sums <= room).all(axis=2), sums[..., 0], 0.0)
    place = int(lengths_s.argmax())
    return sorted(set(divmod(place, len(waiting)))) if lengths_s.flat[place] else []
