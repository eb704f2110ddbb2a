"""Whether a model still hears which language is spoken, on held-out sets in other languages."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from harness.core.artifact import Resources
from harness.core.manifests import read_manifest, write_jsonl
from harness.core.recordings import read_samples
from harness.errors import DataError
from harness.score.probes import recognisers
from harness.suite.probe import PROBE_FILE, ProbeSpec

if TYPE_CHECKING:
    from harness.core.artifact import Artifact, Inputs, Work
    from harness.core.records import Utterance

VERSION = 1
RESOURCES = Resources(whole_machine=True, gpu=True)
SEED = 17
"""Of the clips that are taken of a large set."""


class Spec(ProbeSpec):
    """Takes Whisper's own guess, from the first step of its decoder."""

    kind: Literal["language"] = "language"
    accepts: ClassVar[tuple[str, ...] | None] = ("whisper_onnx", "whisper_ggml")
    reads: ClassVar[Literal["dev", "languages"] | None] = "languages"
    columns: ClassVar[tuple[str, ...]] = ("language_accuracy",)

    clips: int = Field(default=50, ge=1, description="At most so many of each set.")
    languages: Annotated[list[str], SkipJsonSchema()] = Field(default=[])
    """Of the sets, by their `language`; a suite leaves it out."""


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Write the language of each clip, spoken and heard, into `probe.jsonl`; return the share that is right.

    Raises DataError for a language that the model does not know, or sets without clips.
    """
    recogniser = recognisers.load(spec, inputs)
    unknown = sorted(set(spec.languages) - recogniser.languages())
    if unknown:
        raise DataError(
            f"probe language: the model does not know the language {', '.join(map(repr, unknown))}; "
            "give the held-out set Whisper's code of its language, such as 'en'"
        )
    clips = [
        (language, heldout, utterance)
        for language, heldout in zip(spec.languages, inputs["clips"], strict=True)
        for utterance in _taken(heldout, count=spec.clips)
    ]
    if not clips:
        raise DataError("probe language: the held-out sets with a `language` have no clips; it needs at least 1")
    rows = []
    for done, (language, heldout, utterance) in enumerate(clips):
        work.progress(done, len(clips), utterance.id)
        heard = recogniser.detect_language(read_samples(heldout.path / utterance.audio))
        rows.append({"id": utterance.id, "language": language, "heard": heard})
    write_jsonl(work.path / PROBE_FILE, rows)
    work.progress(len(rows), len(rows))
    return {
        "language_accuracy": sum(row["language"] == row["heard"] for row in rows) / len(rows),
        "num_clips": len(rows),
    }


def _taken(heldout: Artifact, *, count: int) -> list[Utterance]:
    utterances = read_manifest(heldout.path)
    return random.Random(SEED).sample(utterances, min(count, len(utterances)))  # noqa: S311  # no secret
