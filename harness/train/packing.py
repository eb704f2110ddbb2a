"""Clips into 30-second windows: what one training example holds.

Whisper's encoder always sees 30 s. A clip of 4 s alone is seven eighths silence, and training on such clips unlearns
timestamps; several clips in one window, each between its timestamp tokens, cost the same and keep them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from harness.suite.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_LABEL_TOKENS = 448
"""Whisper's text context."""
TOKENS_AROUND_WINDOW = 5
"""Start, language, task, no-timestamps, end."""
TOKENS_AROUND_CLIP = 2
"""Its two timestamps."""


class Packing(Spec):
    """How clips share windows."""

    window_s: float = Field(default=29.5, gt=0, le=30, description="At most this much speech in a window.")
    timestamps: float = Field(default=0.5, ge=0, le=1, description="Share of windows with timestamp tokens.")
    singles: float = Field(
        default=0.2, ge=0, le=1, description="Share of clips that also come alone, as dictation does."
    )


@dataclass(frozen=True, slots=True)
class Window:
    """One training example: clips by index, in order."""

    clips: tuple[int, ...]
    timestamps: bool


def windows(
    durations_s: Sequence[float], num_tokens: Sequence[int], *, packing: Packing | None, seed: int
) -> Iterator[Window]:
    """Endless windows, another packing each epoch; the same for the same seed.

    durations_s, num_tokens: of each clip; no clip may be longer than the window or its text than the text context.
    Without packing each clip is a window of its own, without timestamps.
    """
    rng = random.Random(seed)  # noqa: S311  # an order of clips, not a secret
    while True:
        order = list(range(len(durations_s)))
        rng.shuffle(order)
        if packing is None:
            yield from (Window((index,), timestamps=False) for index in order)
            continue
        epoch = [
            Window(clips, timestamps=rng.random() < packing.timestamps)
            for clips in _fill(order, durations_s, num_tokens, window_s=packing.window_s)
        ]
        singles = rng.sample(order, round(packing.singles * len(order)))
        epoch += [Window((index,), timestamps=False) for index in singles]
        rng.shuffle(epoch)
        yield from epoch


def epoch_size(durations_s: Sequence[float], num_tokens: Sequence[int], *, packing: Packing | None) -> int:
    """About how many windows one pass over the clips takes; packings differ by a few."""
    if packing is None:
        return len(durations_s)
    packed = _fill(range(len(durations_s)), durations_s, num_tokens, window_s=packing.window_s)
    return sum(1 for _ in packed) + round(packing.singles * len(durations_s))


def _fill(
    order: Sequence[int], durations_s: Sequence[float], num_tokens: Sequence[int], *, window_s: float
) -> Iterator[tuple[int, ...]]:
    clips: list[int] = []
    length_s, tokens = 0.0, TOKENS_AROUND_WINDOW
    for index in order:
        more = num_tokens[index] + TOKENS_AROUND_CLIP
        if clips and (length_s + durations_s[index] > window_s or tokens + more > MAX_LABEL_TOKENS):
            yield tuple(clips)
            clips, length_s, tokens = [], 0.0, TOKENS_AROUND_WINDOW
        clips.append(index)
        length_s += durations_s[index]
        tokens += more
    if clips:
        yield tuple(clips)
