"""The shipped recordings cut at their pauses to 3–6 s: real speech as short as the clips of most Russian corpora."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import soundfile

from harness.core.manifests import write_manifests
from harness.core.records import Utterance
from tests.conftest import AELITA

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

CUTS = Path(__file__).parent / "pieces.txt"
"""A recording a line: its name, then each cut as SECOND/WORDS BEFORE IT, in the middle of a pause. A pause belongs to
the punctuation mark before which, by syllables, as large a share of the speech lies; where two came into question, the
recording was left out."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a recording, from pause to pause, with the words said in it."""

    id: str
    recording: str
    samples: np.ndarray
    text: str

    @property
    def duration_s(self) -> float:
        return len(self.samples) / 16_000


def short_pieces() -> list[Piece]:
    """All pieces, in the order of the recordings."""
    rows = [json.loads(line) for line in (AELITA / "manifest.jsonl").read_text("utf-8").splitlines()]
    by_name = {Path(row["audio_filepath"]).stem: row for row in rows}
    pieces = []
    for line in CUTS.read_text("utf-8").splitlines():
        name, *cuts = line.split()
        samples = soundfile.read(AELITA / by_name[name]["audio_filepath"], dtype="float32")[0]
        words = by_name[name]["text"].split()
        places = [(0.0, 0), *((float(second), int(count)) for second, count in (cut.split("/") for cut in cuts))]
        ends = [*places[1:], (len(samples) / 16_000, len(words))]
        for (start_s, first), (end_s, last) in zip(places, ends, strict=True):
            part = samples[round(start_s * 16_000) : round(end_s * 16_000)]
            pieces.append(Piece(f"{name}-{first}", name, part, " ".join(words[first:last])))
    return pieces


def write_pieces(folder: Path, pieces: Iterable[Piece]) -> Path:
    """A set as `select` leaves it."""
    folder.mkdir(parents=True)
    utterances = []
    for number, piece in enumerate(pieces):
        soundfile.write(folder / f"{piece.id}.wav", piece.samples, 16_000, subtype="PCM_16")
        utterances.append(Utterance(piece.id, f"{piece.id}.wav", f"{number:064x}", piece.text, piece.duration_s))
    write_manifests(folder, utterances)
    return folder
