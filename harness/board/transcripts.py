"""What every row heard in a held-out set, as columns small enough to be sent along in a page."""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from harness.core.manifests import SAMPLE_RATE_HZ, SHARDED, iterate_utterances, read_jsonl
from harness.core.recordings import read_samples
from harness.core.wer import count_errors
from harness.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from harness.core.artifact import Artifact

FAILED = -1
"""In place of the number of a text: the utterance failed in this row."""


@dataclass(frozen=True, slots=True)
class Transcripts:
    """One held-out set as the rows of a board heard it."""

    rows: tuple[str, ...]
    ids: list[str]
    references: list[str]
    """As written."""
    normalised: list[str]
    """As compared."""
    durations_s: list[float]
    texts: list[list[tuple[str, str, int]]]
    """By utterance, what any row heard, each once: as heard, as compared, number of word errors."""
    heard: list[list[int]]
    """By row and utterance, which of `texts`; FAILED for none."""
    reasons: list[dict[int, str]]
    """By row, utterance that failed → its error."""
    wordings: list[dict[str, str]]
    """By utterance, text as compared → the wording of the reference that it is compared with, if another one than in
    `normalised`: references may allow several."""

    @property
    def num_words(self) -> list[int]:
        """Reference words of each utterance."""
        return [len(text.split()) for text in self.normalised]

    def errors(self, row: str) -> list[int]:
        """Word errors of each utterance; all words of one that failed."""
        heard = self.heard[self.rows.index(row)]
        return [
            words if number == FAILED else texts[number][2]
            for texts, number, words in zip(self.texts, heard, self.num_words, strict=True)
        ]

    def columns(self) -> dict[str, Any]:
        """For the page. Of a text stands 0 where it is what its neighbour is: heard = compared = reference."""
        texts = [
            [
                value
                for raw, norm, errors in forms
                for value in (0 if raw == norm else raw, 0 if norm == said else norm, errors)
            ]
            for forms, said in zip(self.texts, self.normalised, strict=True)
        ]
        wordings = {
            at: {number: found[norm] for number, (_, norm, _) in enumerate(self.texts[at]) if norm in found}
            for at, found in enumerate(self.wordings)
            if found
        }
        plain = [0 if raw == norm else raw for raw, norm in zip(self.references, self.normalised, strict=True)]
        return {
            "rows": self.rows,
            "ids": self.ids,
            "references": plain,
            "normalised": self.normalised,
            "durations_s": [round(value, 2) for value in self.durations_s],
            "texts": texts,
            "wordings": wordings,
            "heard": self.heard,
            "reasons": self.reasons,
        }


def read_transcripts(scores: Mapping[str, Artifact]) -> Transcripts:
    """The transcripts of one held-out set.

    scores: row → its finished score of this set; at least one.
    Raises DataError if two rows do not list the same utterances.
    """
    first, utterances = "", list[dict[str, Any]]()
    forms: list[dict[tuple[str, str], int]] = []
    wordings: list[dict[str, str]] = []
    heard, reasons = [], []
    for row, score in scores.items():
        lines = list(read_jsonl(score.path / "hypotheses.jsonl"))
        if not utterances:
            first, utterances, forms, wordings = row, lines, [{} for _ in lines], [{} for _ in lines]
        elif [line["id"] for line in lines] != [line["id"] for line in utterances]:
            raise DataError(
                f"{row} lists {len(lines)} utterances, not the {len(utterances)} of {first}, or in another order; "
                "remove the score of one of them from the store and run again"
            )
        for line, shown, found in zip(lines, utterances, wordings, strict=True):
            if line["reference_norm"] != shown["reference_norm"]:
                found[line["hypothesis_norm"]] = line["reference_norm"]
        heard.append([_number(line, known) for line, known in zip(lines, forms, strict=True)])
        reasons.append({number: str(line["error"]) for number, line in enumerate(lines) if line["error"]})
    references = [line["reference_norm"] for line in utterances]
    counted = _count(references, forms, wordings=wordings)
    return Transcripts(
        rows=tuple(scores),
        ids=[line["id"] for line in utterances],
        references=[line["reference"] for line in utterances],
        normalised=references,
        durations_s=[line["duration_s"] for line in utterances],
        texts=[
            [(raw, norm, errors[norm]) for raw, norm in known] for known, errors in zip(forms, counted, strict=True)
        ],
        heard=heard,
        reasons=reasons,
        wordings=wordings,
    )


def _number(line: Mapping[str, Any], known: dict[tuple[str, str], int]) -> int:
    if line["error"]:
        return FAILED
    return known.setdefault((line["hypothesis"] or "", line["hypothesis_norm"]), len(known))


def _count(
    references: Sequence[str], forms: Sequence[Iterable[tuple[str, str]]], *, wordings: Sequence[Mapping[str, str]]
) -> list[dict[str, int]]:
    """By utterance, each text as compared → its word errors, counted as the board counts them."""
    counted = [{norm: 0 for _, norm in known} for known in forms]
    said = [(at, norm, wordings[at].get(norm, references[at])) for at, texts in enumerate(counted) for norm in texts]
    wrong = [(at, norm, reference) for at, norm, reference in said if norm != reference]
    if wrong:
        counts = count_errors([reference for _, _, reference in wrong], [norm for _, norm, _ in wrong])
        for (at, norm, _), count in zip(wrong, counts, strict=True):
            counted[at][norm] = count.errors
    return counted


@dataclass(frozen=True, slots=True)
class Recordings:
    """Where a page finds the recordings of a set."""

    paths: list[Path | None]
    """None: not there, or outside of the store, which no manifest has a reason to name."""
    speakers: list[str | None]

    def links(self, folder: Path) -> list[str | None]:
        """Relative to `folder`, as a browser wants them; None for what lies in a shard and cannot be linked."""
        return [_link(path, folder) for path in self.paths]


def find_recordings(heldout: Artifact, *, root: Path) -> Recordings:
    """root: of the store."""
    paths, speakers = [], []
    place = heldout.path.absolute()
    inside = Path(os.path.normpath(root.absolute()))
    for batch in iterate_utterances(heldout.path, columns=["audio", "speaker"]):
        for name in batch.column("audio").to_pylist():
            # By text: ".." of a folder that is a link would lead elsewhere.
            path = Path(os.path.normpath(place / name))
            there = path.parent if SHARDED.match(name) else path
            paths.append(path if path.is_relative_to(inside) and there.is_file() else None)
        speakers += batch.column("speaker").to_pylist()
    return Recordings(paths, speakers)


def _link(path: Path | None, folder: Path) -> str | None:
    if path is None or SHARDED.match(path.as_posix()):
        return None
    try:
        return quote(Path(os.path.relpath(path, folder)).as_posix())
    except ValueError:  # another drive of Windows
        return None


def embed(path: Path) -> str | None:
    """A recording as Ogg Opus in base64; None if it cannot be read, which is no reason to lose the page."""
    import soundfile

    try:
        samples = read_samples(path)
        clip = io.BytesIO()
        soundfile.write(clip, samples, SAMPLE_RATE_HZ, format="OGG", subtype="OPUS")
    except (OSError, soundfile.SoundFileError, DataError):
        return None
    return base64.b64encode(clip.getvalue()).decode("ascii")
