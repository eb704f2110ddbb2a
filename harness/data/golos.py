"""Golos by Sber: 1,240 hours of Russian speech, into a phone (crowd) and to a device across the room (farfield)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from harness.core.artifact import Resources
from harness.data.corpus import CorpusSpec, archives_of
from harness.data.entries import parse_line
from harness.data.index import Refusal
from harness.data.preparation import prepare_corpus
from harness.data.published import GOLOS_LICENCE, GOLOS_OPUS, GOLOS_PAGE, GOLOS_SIZES, expected, refuse_archive
from harness.data.report import RefusedError
from harness.errors import DataError
from harness.suite.spec import Split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.core.artifact import Inputs, Work
    from harness.core.estimates import Size
    from harness.data.corpus import Corpus
    from harness.data.index import Row
    from harness.data.preparation import Share

VERSION = 1
RESOURCES = Resources(whole_machine=True)

Domain = Literal["crowd", "farfield"]
SUBSETS: tuple[Domain, ...] = ("crowd", "farfield")
TrainList = Literal["full", "100hours", "10hours", "1hour", "10min"]
LIST_HOURS: dict[TrainList, float] = {"100hours": 100.0, "10hours": 10.0, "1hour": 1.0, "10min": 1 / 6}
CLIP_S = 4.0
"""Mean of the training recordings."""
TRAIN_FOLDERS, TEST_FOLDERS = ("train", "train_opus"), ("test", "test_opus")


class Spec(CorpusSpec):
    """`golos_opus.tar`, or the WAV archives in one folder, or what either unpacks to."""

    kind: Literal["golos"] = "golos"
    subsets: list[Domain] = Field(
        default=list(SUBSETS), min_length=1, description="Each recording has its own as the tag `subset`."
    )
    train: TrainList = Field(default="full", description="Which of the corpus's lists of training recordings.")
    download: bool = Field(
        default=False, description="Fetch golos_opus.tar (20.5 GB) into the folder `path`, if it is not there yet."
    )
    licence: str = Field(default=GOLOS_LICENCE, description="Of the recordings; goes into the bundle.")

    split: Split | None = Split(dev=0.005, test=0)

    own_splits: ClassVar[tuple[str, ...] | None] = ("train", "test")

    @model_validator(mode="after")
    def _have_a_folder(self) -> Self:
        if self.download:
            refuse_archive(self.path)
        return self

    def identity(self) -> dict[str, Any]:
        """With what a download must be."""
        return {**super().identity(), "md5": GOLOS_OPUS.md5 if self.download else None}

    def archives(self) -> list[Path]:
        """Without those of the WAV form that hold nothing wanted."""
        if self.download:
            return [Path(self.path) / GOLOS_OPUS.name]
        spared = {"farfield": ["train_farfield"], "crowd": [f"train_crowd{number}" for number in range(9)]}
        # train_crowd9.tar stays: it has the lists of all training recordings.
        unwanted = [name for subset, names in spared.items() if subset not in self.subsets for name in names]
        return [item for item in archives_of(Path(self.path)) if item.name.split(".")[0] not in unwanted]

    def outside(self) -> list[Path]:
        """The archives; of an unpacked corpus its manifests. What a download holds, its MD5 says."""
        if self.download:
            return []
        path = Path(self.path)
        places = [f"{above}{place}" for above in ("", "*/") for place in ("train*/*.jsonl", "test*/*/manifest.jsonl")]
        tables = [item for place in places for item in path.glob(place)]
        return [*self.archives(), *sorted(tables)] if path.is_dir() else [path]


def size(spec: Spec) -> Size:
    """As published, with `max_hours` applied."""
    trained = [GOLOS_SIZES["train", subset] for subset in spec.subsets]
    if spec.train != "full":
        hours = LIST_HOURS[spec.train]
        trained = [(round(hours * 3600 / CLIP_S), hours)]
    heldout = {"test": [GOLOS_SIZES["test", subset] for subset in spec.subsets]}
    return expected(trained, heldout=heldout, max_hours=spec.max_hours)


def run(spec: Spec, inputs: Inputs, work: Work, *, share: Share | None = None) -> dict[str, Any]:
    """Write the recordings (16 kHz mono), the manifests, and a report with what became of each line.

    Raises DataError if the corpus has another layout or nothing to use, MissingError if it cannot be downloaded.
    """
    if spec.download and not inputs:
        from harness.data.download import fetch_all  # HTTP takes its time to import

        fetch_all([GOLOS_OPUS], folder=Path(spec.path), work=work)
    return prepare_corpus(spec, inputs=inputs, work=work, share=share, rows=partial(rows, spec))


def rows(spec: Spec, corpus: Corpus) -> Iterator[Row | Refusal]:
    """The lines of the wanted training list, and of the test manifests.

    Raises DataError if neither is there, or training recordings without their list.
    """
    tables = {name: split for name in corpus.tables("*.jsonl") if (split := _split_of(name, spec=spec))}
    if "train" not in tables.values() and any(_is_trained(name) for name in corpus.recordings()):
        raise DataError(
            f"{spec.path}: training recordings, but not their list {_list_name(spec)}; the WAV form has it in "
            f"train_crowd9.tar: put that archive beside the others ({GOLOS_PAGE})"
        )
    if not tables:
        raise DataError(
            f"{spec.path}: no manifest of Golos; expected train_opus/{_list_name(spec)} and "
            f"test_opus/crowd/manifest.jsonl, or the same under train and test; get the archives from {GOLOS_PAGE}"
        )
    before = 0
    for name, split in tables.items():
        last = 0
        for last, line in corpus.lines(name):
            row = _row(line, number=before + last, table=name, split=split, root=corpus.folder)
            if isinstance(row, Refusal) or row.tags["subset"] in spec.subsets:
                yield row
        before += last


def _list_name(spec: Spec) -> str:
    return "manifest.jsonl" if spec.train == "full" else f"{spec.train}.jsonl"


def _split_of(name: str, *, spec: Spec) -> str | None:
    """`train` or `test` for a manifest that is wanted."""
    above, folder, file = ("", "", *PurePosixPath(name).parts)[-3:]
    if folder in TRAIN_FOLDERS and file == _list_name(spec):
        return "train"
    return "test" if above in TEST_FOLDERS and folder in spec.subsets and file == "manifest.jsonl" else None


def _is_trained(name: str) -> bool:
    return any(part in TRAIN_FOLDERS for part in PurePosixPath(name).parts[:-1])


def _row(line: bytes, *, number: int, table: str, split: str, root: Path | None) -> Row | Refusal:
    folder = PurePosixPath(table).parent
    try:
        row = parse_line(line, number=number, folder=folder.as_posix(), root=root)
    except RefusedError as error:
        textless = error.reason == "empty transcript" or (
            error.reason == "missing field" and b'"audio_filepath"' in line
        )
        return Refusal(number, table, "missing text" if textless else error.reason, str(error))
    audio = PurePosixPath(row.audio)
    if audio.suffix == ".wav" and any(part.endswith("_opus") for part in folder.parts):
        audio = audio.with_suffix(".opus")  # should a manifest of the Opus form keep the names of the WAV form
    subset = next((part for part in audio.parts if part in SUBSETS), None)
    if subset is None:
        return Refusal(number, row.audio, "unknown subset", f"{row.audio} lies neither in crowd nor in farfield")
    # Their ids are the stems of the files, and a stem that comes twice is no reason to refuse a recording.
    return replace(row, id="", audio=audio.as_posix(), split=split, tags={**row.tags, "subset": subset})
