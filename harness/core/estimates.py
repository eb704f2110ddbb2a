"""What is known of a dataset before it is prepared."""

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
