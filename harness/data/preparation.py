"""The work that all corpora share: decode every recording into 16 kHz WAV, and notice what is listed twice."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.core.records import Utterance
from harness.data.audio import read_recording, write_wav
from harness.data.entries import file_names, name_entries
from harness.data.report import RefusedError, Report

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from harness.core.artifact import Work
    from harness.data.entries import Entry

AUDIO_FOLDER = "audio"
BATCH = 512
"""Recordings that are under way at once; bounds the memory of corpora with millions of lines."""
NOTED = {"Latin letters in the text": re.compile(r"[A-Za-z]"), "digits in the text": re.compile(r"\d")}


@dataclass(frozen=True, slots=True)
class _Decoded:
    audio: str
    """Relative to the artifact, with forward slashes."""
    sha256: str
    duration_s: float
    notes: tuple[str, ...]


def prepare(entries: Sequence[Entry], *, work: Work, report: Report) -> list[Utterance]:
    """Decode all entries into `work.path/audio`, in their order, and refuse or drop into `report` what cannot stay.

    A recording that is listed twice with the same text is kept once; with two texts, one of them is wrong, and the
    later line is refused.
    """
    ids, errors = name_entries(entries)
    report.refused.update(errors)
    wanted = [entry for entry in entries if entry.line not in report.refused]
    (work.path / AUDIO_FOLDER).mkdir(exist_ok=True)
    utterances: list[Utterance] = []
    first_line: dict[str, tuple[int, str]] = {}
    for done, (entry, decoded) in enumerate(_decode_all(wanted, ids=ids, folder=work.path)):
        work.progress(done, len(wanted), ids[entry.line])
        if isinstance(decoded, RefusedError):
            report.refused[entry.line] = decoded
            continue
        line, text = first_line.setdefault(decoded.sha256, (entry.line, entry.text))
        if line != entry.line:
            (work.path / decoded.audio).unlink()
            _settle_duplicate(entry, first=line, first_text=text, report=report)
            continue
        for what in (*decoded.notes, *(what for what, pattern in NOTED.items() if pattern.search(entry.text))):
            report.note(what, line=entry.line)
        utterances.append(_utterance(entry, decoded, name=ids[entry.line]))
    work.progress(len(wanted), len(wanted))
    return utterances


def _settle_duplicate(entry: Entry, *, first: int, first_text: str, report: Report) -> None:
    if entry.text == first_text:
        report.duplicates[entry.line] = first
        return
    report.refused[entry.line] = RefusedError(
        "two texts",
        f"{entry.relative} is the recording of line {first} with another text: {entry.text!r}, there {first_text!r}; "
        "leave out the wrong one",
    )


def _decode_all(
    entries: Sequence[Entry], *, ids: dict[int, str], folder: Path
) -> Iterator[tuple[Entry, _Decoded | RefusedError]]:
    """In the order of `entries`. Threads suffice: libsndfile, soxr and hashlib let go of the interpreter's lock."""
    names = file_names(ids[entry.line] for entry in entries)
    targets = [f"{AUDIO_FOLDER}/{name}.wav" for name in names]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for start in range(0, len(entries), BATCH):
            batch = entries[start : start + BATCH]
            decoded = pool.map(
                lambda entry, audio: _decode(entry, audio, folder), batch, targets[start : start + BATCH]
            )
            yield from zip(batch, decoded, strict=True)


def _decode(entry: Entry, audio: str, folder: Path) -> _Decoded | RefusedError:
    try:
        recording = read_recording(entry.path, duration_s=entry.duration_s)
    except RefusedError as error:
        return error
    write_wav(folder / audio, samples=recording.samples)
    return _Decoded(audio, recording.sha256, recording.duration_s, recording.notes)


def _utterance(entry: Entry, decoded: _Decoded, *, name: str) -> Utterance:
    return Utterance(
        id=name,
        audio=decoded.audio,
        sha256=decoded.sha256,
        text=entry.text,
        duration_s=decoded.duration_s,
        speaker=entry.speaker,
        split=entry.split,
        tags=entry.tags,
    )
