"""Mozilla's Common Voice: volunteers who read sentences aloud, and vote on each other's recordings."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from harness.core.artifact import Resources
from harness.data.corpus import CorpusSpec, archives_of
from harness.data.durations import Durations
from harness.data.entries import resolve
from harness.data.index import Refusal, Row
from harness.data.preparation import prepare_corpus
from harness.data.published import (
    COMMON_VOICE_CLIP_S,
    COMMON_VOICE_CLIPS,
    COMMON_VOICE_LICENCE,
    COMMON_VOICE_PAGE,
    expected,
)
from harness.data.report import RefusedError
from harness.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from harness.core.artifact import Inputs, Work
    from harness.core.estimates import Size
    from harness.data.corpus import Corpus
    from harness.data.preparation import Share

VERSION = 1
RESOURCES = Resources(whole_machine=True)

HELDOUT = ("dev", "test")
DURATIONS = "clip_durations"
COLUMNS = ("client_id", "path", "sentence")
TAGS = ("up_votes", "down_votes", "age", "gender", "accents", "variant", "locale")
MP3_PADDING_S = 0.054
"""`clip_durations.tsv` counts whole MP3 frames, with what encoder and decoder add and drop: up to three frames of
36 ms. Half of that is taken off, so that what is left is less than what counts as truncated."""
MAX_DIGITS = 12
"""Of a duration in milliseconds: thirty years."""
SPEAKER_LETTERS = 16
"""Of the 128 hex digits of a `client_id`: more than enough to tell people apart."""


class Spec(CorpusSpec):
    """`cv-corpus-23.0-2025-09-05-ru.tar.gz` or the like, or what it unpacks to."""

    kind: Literal["common_voice"] = "common_voice"
    train_from: Literal["train", "validated"] = Field(
        default="train",
        description="validated: every recording that two people found right, without dev, test and their speakers; "
        "several times as much.",
    )
    others: list[Literal["other", "invalidated"]] = Field(
        default=[], description="Recordings with too few votes, or voted wrong; splits of these names."
    )
    download: bool = Field(default=False, description="Refused: Mozilla wants its terms accepted, with a login.")
    licence: str = Field(default=COMMON_VOICE_LICENCE, description="Of the recordings; goes into the bundle.")

    own_splits: ClassVar[tuple[str, ...] | None] = ("train", "dev", "test", "other", "invalidated")

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        if self.download:
            raise ValueError(
                "Common Voice cannot be fetched for you: its terms must be accepted, with a login, at "
                f"{COMMON_VOICE_PAGE}; get the Russian archive there and name it in `path`"
            )
        if self.train_from == "validated" and self.on_bad == "refuse":
            raise ValueError(
                "train_from: validated leaves out the speakers of dev and test, on_bad: refuse allows nothing to be "
                "left out; choose one"
            )
        return self

    def archives(self) -> list[Path]:
        return archives_of(Path(self.path))

    def outside(self) -> list[Path]:
        """The archive; of an unpacked corpus its tables."""
        path = Path(self.path)
        names = [self.train_from, *HELDOUT, *self.others, DURATIONS]
        places = [f"{above}{name}.tsv" for above in ("", "*/", "*/*/") for name in names]
        tables = [item for place in places for item in path.glob(place)]
        return [*self.archives(), *sorted(tables)] if path.is_dir() else [path]


def size(spec: Spec) -> Size:
    """As published for the Russian part of release 23, with `max_hours` applied."""

    def extent(name: str) -> tuple[int, float]:
        return COMMON_VOICE_CLIPS[name], COMMON_VOICE_CLIPS[name] * COMMON_VOICE_CLIP_S / 3600

    heldout = {name: [extent(name)] for name in (*HELDOUT, *spec.others)}
    return expected([extent(spec.train_from)], heldout=heldout, max_hours=spec.max_hours)


def run(spec: Spec, inputs: Inputs, work: Work, *, share: Share | None = None) -> dict[str, Any]:
    """Write the recordings (16 kHz mono), the manifests, and a report with what became of each line.

    Raises DataError if the corpus has another layout or nothing to use.
    """
    return prepare_corpus(spec, inputs=inputs, work=work, share=share, rows=partial(rows, spec))


def rows(spec: Spec, corpus: Corpus) -> Iterator[Row | Refusal]:
    """The lines of the wanted tables; held-out ones first, so that training can keep clear of them.

    Raises DataError if there are no such tables, or those of several releases.
    """
    tables = _tables(spec, corpus)
    folder = PurePosixPath(tables[spec.train_from]).parent / "clips"
    durations = Durations(_seconds(corpus.lines(tables[DURATIONS])) if DURATIONS in tables else [])
    heldout = _Heldout()
    before = 0
    for split in (*HELDOUT, "train", *spec.others):
        name = tables.get(spec.train_from if split == "train" else split)
        if name is None:
            continue
        last = 0
        for last, fields in _fields(corpus.lines(name), name=name):
            row = _row(fields, folder=folder.as_posix(), split=split, durations=durations)
            if split in HELDOUT and isinstance(row, Row):
                heldout.add(row)
            elif split == "train" and spec.train_from == "validated" and isinstance(row, Row):
                if row.audio in heldout.recordings:
                    continue
                row = heldout.refuse(row)
            yield replace(row, line=before + last)
        before += last


class _Heldout:
    """What training must not have."""

    def __init__(self) -> None:
        self.recordings: set[str] = set()
        self.speakers: set[str | None] = set()

    def add(self, row: Row) -> None:
        self.recordings.add(row.audio)
        self.speakers.add(row.speaker)

    def refuse(self, row: Row) -> Row | Refusal:
        if row.speaker is None or row.speaker not in self.speakers:
            return row
        message = f"the speaker {row.speaker} of {row.audio} is in dev or test"
        return Refusal(row.line, row.audio, "held-out speaker", message)


def _seconds(lines: Iterable[tuple[int, bytes]]) -> Iterator[tuple[str, float]]:
    for _, line in lines:
        clip, _, milliseconds = line.decode("utf-8", errors="replace").partition("\t")
        if len(milliseconds) < MAX_DIGITS and milliseconds.isdecimal():  # not so in the first line
            yield clip, int(milliseconds) / 1000


def _duration_s(clip: str, *, durations: Durations) -> float | None:
    place = durations.find(clip)
    if place is None or durations.seconds(place) <= MP3_PADDING_S:
        return None
    return durations.seconds(place) - MP3_PADDING_S


def _tables(spec: Spec, corpus: Corpus) -> dict[str, str]:
    """Table → its name in the corpus."""
    wanted = [spec.train_from, *HELDOUT, *spec.others, DURATIONS]
    names = [name for name in corpus.tables("*.tsv") if PurePosixPath(name).stem in wanted]
    found = {PurePosixPath(name).stem: name for name in names}
    if spec.train_from not in found:
        raise DataError(
            f"{spec.path}: no {spec.train_from}.tsv; expected what Common Voice's archive holds, "
            f"cv-corpus-…/ru/{spec.train_from}.tsv and clips/*.mp3; get it from {COMMON_VOICE_PAGE}"
        )
    folders = sorted({PurePosixPath(name).parent.as_posix() for name in names})
    if len(folders) > 1:
        raise DataError(f"{spec.path}: it holds several corpora ({', '.join(folders)}); name one of them in `path`")
    return found


def _fields(lines: Iterable[tuple[int, bytes]], *, name: str) -> Iterator[tuple[int, dict[str, str] | Refusal]]:
    """The lines of a table by column. Quotes are letters like any other there, so no CSV reader is used.

    Raises DataError for a table without the columns that are needed.
    """
    columns: list[str] = []
    for number, line in lines:
        try:
            values = line.decode("utf-8").split("\t")
        except UnicodeDecodeError as error:
            message = f"byte {error.start} of line {number} of {name} is not UTF-8"
            yield number, Refusal(number, name, "not UTF-8", message)
            continue
        if not columns:
            columns = values
            lacking = [column for column in COLUMNS if column not in columns]
            if lacking:
                raise DataError(f"{name}: no column {', '.join(lacking)}; it has {', '.join(columns)[:200]}")
        elif len(values) != len(columns):
            message = f"line {number} of {name} has {len(values)} columns, not {len(columns)} as the first"
            yield number, Refusal(number, name, "wrong columns", message)
        else:
            yield number, dict(zip(columns, values, strict=True))


def _row(fields: Mapping[str, str] | Refusal, *, folder: str, split: str, durations: Durations) -> Row | Refusal:
    if isinstance(fields, Refusal):
        return fields
    clip = fields["path"]
    try:
        audio = resolve(clip, folder=folder, root=None)
    except RefusedError as error:
        return Refusal(0, clip, error.reason, str(error))
    if not fields["sentence"].strip():
        return Refusal(0, audio, "missing text", f"{clip} has no sentence")
    return Row(
        line=0,
        audio=audio,
        text=fields["sentence"],
        duration_s=_duration_s(clip, durations=durations),
        speaker=fields["client_id"][:SPEAKER_LETTERS] or None,
        split=split,
        tags={tag: fields[tag] for tag in TAGS if fields.get(tag)},
    )
