"""What is known of a dataset before it is prepared, and of a training before it is run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Size:
    """About how much a dataset will hold once it is prepared, as its publisher or its manifest says."""

    num_clips: int
    audio_s: float
    splits: Mapping[str, Size] = field(default_factory=dict, compare=False)
    """The corpus's own splits, as far as they are known; "" for clips without one."""

    def scaled(self, share: float) -> Size:
        """That part of it, without its splits."""
        return Size(round(self.num_clips * share), self.audio_s * share)

    def __add__(self, other: Size) -> Size:
        return Size(self.num_clips + other.num_clips, self.audio_s + other.audio_s)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a training will take of a GPU at its peak, by arithmetic."""

    parts: Mapping[str, int]
    """What takes it → bytes."""
    micro_batch: int | None = None
    """Examples in one forward pass, where the training chooses it by itself."""
    is_least: bool = False
    """More than this is known to be needed, but not how much."""

    @property
    def total_b(self) -> int:
        return sum(self.parts.values())
