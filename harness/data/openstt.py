"""OpenSTT: 20,000 hours of Russian speech of every kind, most of it transcribed by machines."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from harness.core.artifact import Resources
from harness.data.corpus import CorpusSpec, archives_of
from harness.data.durations import Durations
from harness.data.index import Refusal, Row
from harness.data.preparation import prepare_corpus
from harness.data.published import OPENSTT, OPENSTT_FORM, OPENSTT_LICENCE, OPENSTT_PAGE, expected, refuse_archive
from harness.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.core.artifact import Inputs, Work
    from harness.core.estimates import Size
    from harness.data.corpus import Corpus
    from harness.data.preparation import Share

VERSION = 1
RESOURCES = Resources(whole_machine=True)

SubsetName = Literal[
    "radio_v4",
    "public_speech",
    "audiobook_2",
    "radio_2",
    "public_youtube1120",
    "public_youtube700",
    "tts_russian_addresses",
    "asr_public_phone_calls_2",
    "public_youtube1120_hq",
    "asr_public_phone_calls_1",
    "radio_v4_add",
    "asr_public_stories_2",
    "asr_public_stories_1",
    "public_series_1",
    "asr_calls_2_val",
    "public_lecture_1",
    "buriy_audiobooks_2_val",
    "public_youtube700_val",
]
HELDOUT: tuple[SubsetName, ...] = ("asr_calls_2_val", "buriy_audiobooks_2_val", "public_youtube700_val")
"""Transcribed by people; splits of their own."""
TEXTLESS = tuple(name for name, subset in OPENSTT.items() if subset.record is None)
FOLDERS = {folder: name for name, subset in OPENSTT.items() for folder in (subset.stem, name)}
"""How a folder, or the start of an archive's name, may be called → subset."""


class Spec(CorpusSpec):
    """A folder with the archives of the subsets, or with what they unpack to."""

    kind: Literal["openstt"] = "openstt"
    subsets: list[SubsetName] | None = Field(
        default=None,
        min_length=1,
        description="What to read, all that is there by default; the tag `subset`. The three *_val sets, splits of "
        "their own names, are read where they are there even if none of them is listed.",
    )
    download: bool = Field(
        default=False, description="Fetch the archives of `subsets` and *_val into the folder `path`, if not there yet."
    )
    licence: str = Field(default=OPENSTT_LICENCE, description="Of the recordings; goes into the bundle.")

    own_splits: ClassVar[tuple[str, ...] | None] = ("train", *HELDOUT)

    @model_validator(mode="after")
    def _refuse_impossible_download(self) -> Self:
        if self.download:
            refuse_archive(self.path)
        if self.download and self.subsets is None:
            total = sum(subset.gigabytes for subset in OPENSTT.values())
            raise ValueError(f"download: true would fetch {total:.0f} GB; name the `subsets` that you want")
        textless = [name for name in TEXTLESS if self.download and name in (self.subsets or [])]
        if textless:
            raise ValueError(
                f"the texts of {', '.join(textless)} are given out by a form ({OPENSTT_FORM}), so it cannot be fetched "
                "for you; put recordings and texts into the folder `path` yourself, without `download`"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """With what a download must be."""
        fetched = self.wanted if self.download else []
        return {**super().identity(), "md5": [OPENSTT[name].md5 for name in fetched]}

    @property
    def wanted(self) -> list[SubsetName]:
        """Listed or not: the held-out sets stay out only where some of them are listed."""
        listed = list(self.subsets or OPENSTT)
        return [*listed, *(HELDOUT if not set(listed) & set(HELDOUT) else [])]  # type: ignore[list-item]

    def archives(self) -> list[Path]:
        """Those of the wanted subsets that have not been unpacked beside themselves."""
        path = Path(self.path)
        if path.is_file():
            return archives_of(path)
        return [
            item
            for item in archives_of(path)
            if FOLDERS.get(_stem(item)) in self.wanted and not (item.parent / _stem(item)).is_dir()
        ]

    def outside(self) -> list[Path]:
        """The archives and manifests; of what is unpacked, one folder of each subset: to walk all takes minutes."""
        if self.download:
            return []
        path = Path(self.path)
        if not path.is_dir():
            return [path]
        samples = [min(folder.glob("*/*"), default=None) for folder in _unpacked(path)]
        manifests = [item for above in ("", "*/") for item in path.glob(f"{above}*.csv")]
        return [*self.archives(), *sorted(manifests), *(item for item in samples if item is not None)]


def size(spec: Spec) -> Size:
    """As published, of what is wanted and there, or of what is wanted where nothing is there yet."""
    there = _there(Path(spec.path)) or set(OPENSTT)
    wanted = [name for name in spec.wanted if name in there or spec.download]
    extents = {name: (OPENSTT[name].num_clips, OPENSTT[name].hours) for name in wanted}
    trained = [extent for name, extent in extents.items() if name not in HELDOUT]
    heldout = {str(name): [extent] for name, extent in extents.items() if name in HELDOUT}
    return expected(trained, heldout=heldout, max_hours=spec.max_hours)


def run(spec: Spec, inputs: Inputs, work: Work, *, share: Share | None = None) -> dict[str, Any]:
    """Write the recordings (16 kHz mono), the manifests, and a report with what became of each recording.

    Raises DataError if a listed subset is not there or has nothing to use, MissingError if it cannot be downloaded.
    """
    path = Path(spec.path)
    if spec.download and not inputs:
        from harness.data.download import fetch_all  # HTTP takes its time to import

        fetch_all([OPENSTT[name].archive for name in spec.wanted], folder=path, work=work)
    lacking = [name for name in spec.subsets or [] if name not in _there(path)] if path.is_dir() else []
    if lacking:
        raise DataError(
            f"{path}: neither an archive nor a folder of {', '.join(lacking)}; expected "
            f"{', '.join(OPENSTT[name].archive.name for name in lacking)}: fetch it from {OPENSTT_PAGE}"
            + ("" if set(lacking) & set(TEXTLESS) else ", or set `download: true`")
        )
    return prepare_corpus(spec, inputs=inputs, work=work, share=share, rows=partial(rows, spec))


def rows(spec: Spec, corpus: Corpus) -> Iterator[Row | Refusal]:
    """All recordings of the wanted subsets; then what the manifests list and nobody has."""
    listed = _Listed(spec, corpus)
    wanted = spec.wanted
    read: set[str] = set()
    number = 0
    for name in corpus.recordings():
        subset = _subset_of(name, spec=spec)
        shown = name.encode("utf-8", errors="replace").decode()
        if shown != name:
            number += 1
            yield Refusal(number, shown, "name not UTF-8", f"{shown}: its name is not UTF-8; rename it and its text")
        elif subset is None:
            number += 1
            yield Refusal(number, name, "unknown subset", f"{name} lies in no folder of a subset of OpenSTT")
        elif subset in wanted:
            number += 1
            read.add(subset)
            yield Row(
                line=number,
                audio=name,
                text_file=f"{name.rpartition('.')[0]}.txt",
                duration_s=listed.duration_s(name),
                split=subset if subset in HELDOUT else "train",
                tags={"subset": subset, "annotation": OPENSTT[subset].annotation},
            )
    for name in listed.unseen(read):
        number += 1
        yield Refusal(number, name, "missing file", f"the manifest lists {name}, which is not there")


class _Listed:
    """What the manifests say: recording → seconds, 13 bytes each."""

    def __init__(self, spec: Spec, corpus: Corpus) -> None:
        self._spec, self._corpus = spec, corpus
        self._durations = Durations((_place(name), duration_s) for name, duration_s in self._lines())
        self._seen = bytearray(len(self._durations))

    def duration_s(self, name: str) -> float | None:
        """Of a recording; notes that it is there."""
        place = self._durations.find(_place(name))
        if place is None:
            return None
        self._seen[place] = True
        return self._durations.seconds(place)

    def unseen(self, subsets: set[str]) -> Iterator[str]:
        """Recordings of these subsets that nobody has asked for."""
        if all(self._seen):
            return
        for name, _ in self._lines():
            place = self._durations.find(_place(name))
            if place is not None and not self._seen[place] and _subset_of(name, spec=self._spec) in subsets:
                yield name

    def _lines(self) -> Iterator[tuple[str, float]]:
        """Recording and seconds, by all lines of wanted subsets: `[index,]wav_path,text_path,duration`."""
        wanted = self._spec.wanted
        for table in self._corpus.tables("*.csv"):
            for _, line in self._corpus.lines(table):
                values = line.decode("utf-8", errors="replace").split(",")
                try:
                    duration_s = float(values[-1])
                except ValueError:
                    continue  # a header
                if len(values) not in {3, 4} or not 0 < duration_s < math.inf:
                    continue
                if _subset_of(values[-3], spec=self._spec) in wanted:
                    yield values[-3], duration_s


def _place(name: str) -> str:
    """The same for a recording wherever it lies and in whatever form: manifests name the WAV files of their authors."""
    stem, dot, suffix = name.replace("\\", "/").rpartition(".")
    return "/".join((stem if dot else suffix).split("/")[-3:])


def _subset_of(name: str, *, spec: Spec) -> str | None:
    """By the folders that a recording lies in; else by what `path` names, or because only one subset is wanted."""
    for part in name.split("/")[:-1]:
        if part in FOLDERS:
            return FOLDERS[part]
    path = Path(spec.path)
    named = FOLDERS.get(path.name) or FOLDERS.get(_stem(path))
    return named or (spec.subsets[0] if spec.subsets is not None and len(spec.subsets) == 1 else None)


def _there(path: Path) -> set[str]:
    """Subsets that have an archive or a folder at `path`."""
    names = [_stem(item) for item in archives_of(path)]
    names += [item.name for item in _unpacked(path)]
    return {FOLDERS[name] for name in names if name in FOLDERS}


def _unpacked(path: Path) -> list[Path]:
    """The folders of subsets at `path`."""
    found = [item for above in ("", "*/") for name in FOLDERS for item in path.glob(f"{above}{name}")]
    return sorted(item for item in ([path] if path.name in FOLDERS else found) if item.is_dir())


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar")
