"""The loop that all runtimes share: every utterance of a held-out set, one at a time, against the clock.

Inside the clock: features, encoder, decoder, detokenising. Outside: loading the model, reading the file.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from harness.core.manifests import read_jsonl, read_manifest, write_jsonl
from harness.core.recordings import read_samples
from harness.core.records import Transcript, Utterance
from harness.errors import DataError
from harness.score.chunks import split
from harness.score.device import device_details
from harness.score.memory import VramMeter, peak_ram_mib

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from harness.core.artifact import Artifact, Work

TRANSCRIPTS_FILE = "transcripts.jsonl"


class Recogniser(Protocol):
    """A loaded model."""

    def transcribe(self, samples: np.ndarray, /) -> str:
        """The text of float32 [num_samples] of any length, 16 kHz mono in [-1, 1]."""


@runtime_checkable
class BatchRecogniser(Recogniser, Protocol):
    """A loaded model whose library hears several recordings at once."""

    def transcribe_batch(self, recordings: Sequence[np.ndarray], /) -> list[str]:
        """The text of each, as `transcribe` gives it but for the rounding of a larger batch."""


def transcribe_set(
    heldout: Artifact,
    *,
    load: Callable[[], Recogniser],
    work: Work,
    runtime: str,
    device: str,
    decoding: Mapping[str, Any],
) -> dict[str, Any]:
    """Transcribe all utterances of `heldout` into `transcripts.jsonl`, and measure what it takes.

    An utterance that fails gets an error in place of a text, and the others go on, even if all fail.
    A step that was killed goes on after the last utterance that it finished.

    load: makes the recogniser; timed by itself.
    runtime: name and version. device: short, for people. decoding: every parameter that changes the text.
    Returns the artifact's meta.
    Raises DataError for a set without utterances.
    """
    utterances = read_manifest(heldout.path)
    if not utterances:
        raise DataError(f"{heldout.path}: the held-out set has no utterances; it needs at least 1")
    with VramMeter() as meter:
        start = time.perf_counter()
        recogniser = load()
        load_s = time.perf_counter() - start
        # The first call allocates and compiles; it says nothing about the ones that follow.
        warm_up_s = _transcribe(utterances[0], heldout=heldout, recogniser=recogniser).wall_s
        _transcribe_all(utterances, heldout=heldout, recogniser=recogniser, work=work)
    return {
        "runtime": runtime,
        "device": device,
        "decoding": dict(decoding),
        "load_s": load_s,
        "warm_up_s": warm_up_s,
        "peak_ram_mib": peak_ram_mib(),
        "peak_vram_mib": meter.peak_mib,
        "device_details": device_details(),
    }


def read_transcripts(folder: Path) -> list[Transcript]:
    """The transcripts that `transcribe_set` left in `folder`."""
    names = Transcript.__dataclass_fields__
    return [Transcript(**{name: row[name] for name in names}) for row in read_jsonl(folder / TRANSCRIPTS_FILE)]


def clocked(recogniser: Recogniser, samples: np.ndarray, *, name: str) -> Transcript:
    """Transcribe one recording against the clock; whatever the runtime raises is told in place of a text."""
    start = time.perf_counter()
    try:
        text = recogniser.transcribe(samples)
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises, the other utterances go on
        return _failed(name, error, wall_s=time.perf_counter() - start)
    return Transcript(id=name, text=text, wall_s=time.perf_counter() - start)


def in_pieces(
    recordings: Sequence[np.ndarray], *, max_s: float, transcribe: Callable[[list[np.ndarray]], list[str]]
) -> list[str]:
    """The texts of recordings of any length, by a library that hears a list of pieces of at most `max_s` at once."""
    pieces = [split(samples, max_s=max_s) for samples in recordings]
    texts = iter(transcribe([piece for own in pieces for piece in own]))
    heard = [[next(texts).strip() for _ in own] for own in pieces]
    return [" ".join(text for text in own if text) for own in heard]


def _transcribe_all(utterances: list[Utterance], *, heldout: Artifact, recogniser: Recogniser, work: Work) -> None:
    finished = _finished(work.scratch / TRANSCRIPTS_FILE)
    write_jsonl(work.scratch / TRANSCRIPTS_FILE, finished.values())
    rows = []
    with (work.scratch / TRANSCRIPTS_FILE).open("a", encoding="utf-8", newline="\n") as file:
        for done, utterance in enumerate(utterances):
            work.progress(done, len(utterances), utterance.id)
            row = finished.get(utterance.id)
            if row is None:
                transcript = _transcribe(utterance, heldout=heldout, recogniser=recogniser)
                row = {**asdict(transcript), "duration_s": utterance.duration_s}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
            rows.append(row)
    write_jsonl(work.path / TRANSCRIPTS_FILE, rows)
    num_failed = sum(row["error"] is not None for row in rows)
    work.progress(len(rows), len(rows), f"{num_failed} failed" if num_failed else "done")


def _transcribe(utterance: Utterance, *, heldout: Artifact, recogniser: Recogniser) -> Transcript:
    try:
        samples = read_samples(heldout.path / utterance.audio)
    except Exception as error:  # noqa: BLE001 - an unreadable recording fails alone
        return _failed(utterance.id, error, wall_s=0.0)
    return clocked(recogniser, samples, name=utterance.id)


def _failed(name: str, error: Exception, *, wall_s: float) -> Transcript:
    return Transcript(id=name, text=None, wall_s=wall_s, error=f"{type(error).__name__}: {error}")


def _finished(path: Path) -> dict[str, dict[str, Any]]:
    """What an earlier, killed attempt transcribed, by id. Failures get a second chance."""
    if not path.is_file():
        return {}
    # A kill may have left half a line at the end.
    whole, _, _ = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    rows = [json.loads(line) for line in whole.split("\n") if line]
    return {row["id"]: row for row in rows if row["error"] is None}
