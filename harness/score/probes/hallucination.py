"""Words per minute that a model writes where nobody speaks: in silence, in noise, in music."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from harness.core import text
from harness.core.artifact import Resources
from harness.core.manifests import write_jsonl
from harness.score.probes import recognisers
from harness.score.probes import sounds as made
from harness.suite.probe import PROBE_FILE, ProbeSpec

if TYPE_CHECKING:
    from harness.core.artifact import Inputs, Work

VERSION = 1
RESOURCES = Resources(whole_machine=True, gpu=True)


class Spec(ProbeSpec):
    """Decodes as the runtime scores, which bounds what a model can write of one recording: Whisper's text context."""

    kind: Literal["hallucination"] = "hallucination"
    columns: ClassVar[tuple[str, ...]] = ("silence_wpm", "noise_wpm", "music_wpm")

    lengths_s: list[Annotated[float, Field(ge=1, le=300)]] = Field(
        default=[5.0, 30.0],
        min_length=1,
        description="Of the recordings: three of silence, six of noise, three of music.",
    )

    def identity(self) -> dict[str, Any]:
        """With the versions of the recordings, and of the normaliser after which words are counted."""
        return {**super().identity(), "sounds": made.VERSION, "normaliser": text.VERSION}


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Write what was heard into `probe.jsonl`; return words per minute of silence, noise and music."""
    recogniser = recognisers.load(spec, inputs)
    sounds = list(made.sounds(spec.lengths_s))
    rows = []
    for done, sound in enumerate(sounds):
        work.progress(done, len(sounds), sound.name)
        heard = recogniser.transcribe(sound.samples)
        words = len(text.normalise(heard).split())
        rows.append(
            {
                "id": sound.name,
                "category": sound.category,
                "duration_s": sound.duration_s,
                "hypothesis": heard,
                "num_words": words,
            }
        )
    write_jsonl(work.path / PROBE_FILE, rows)
    work.progress(len(rows), len(rows))
    return words_per_minute(rows)


def words_per_minute(rows: list[dict[str, Any]]) -> dict[str, float]:
    """All words of a category by all its minutes: `silence_wpm` and so on."""
    words: dict[str, int] = defaultdict(int)
    minutes: dict[str, float] = defaultdict(float)
    for row in rows:
        words[row["category"]] += row["num_words"]
        minutes[row["category"]] += row["duration_s"] / 60
    return {f"{category}_wpm": words[category] / minutes[category] for category in words}
