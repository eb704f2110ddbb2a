"""The core types that pass between stages, all frozen."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording with its transcript."""

    id: str
    audio: str
    """Path relative to the folder of the manifest that lists it, with forward slashes."""
    sha256: str
    """Of the decoded samples (16 kHz mono PCM-16, little endian), not of the file."""
    text: str
    duration_s: float
    speaker: str | None = None
    split: str | None = None
    source: str = ""
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Transcript:
    """What a runtime heard in one utterance: a text, or the error that kept it from one."""

    id: str
    text: str | None
    wall_s: float
    """Seconds from samples in memory to text."""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one set, with its interval where it has one."""

    name: str
    value: float
    lo: float | None = None
    hi: float | None = None
    counts: dict[str, int] = field(default_factory=dict)
