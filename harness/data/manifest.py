"""Recordings that a JSON Lines manifest lists, in NeMo's or in Hugging Face's form."""

from __future__ import annotations

import posixpath
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from harness.core.artifact import Resources
from harness.data.corpus import Corpus, CorpusSpec, FileCorpus, archives_of
from harness.data.entries import named_files, parse_line
from harness.data.index import Refusal
from harness.data.preparation import open_index, prepare, prepare_corpus
from harness.data.report import RefusedError
from harness.data.sizes import manifest_size
from harness.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.core.artifact import Inputs, Work
    from harness.core.estimates import Size
    from harness.data.index import Row
    from harness.data.preparation import Share

VERSION = 2
RESOURCES = Resources(whole_machine=True)


class Spec(CorpusSpec):
    """A manifest and the recordings beside it."""

    kind: Literal["manifest"] = "manifest"
    path: str = Field(
        min_length=1,
        description="A .jsonl file with audio_filepath, text, duration a line, or audio, sentence; paths in it are "
        "relative to its folder. Or an archive or a folder that holds such files.",
    )
    on_bad: Literal["refuse", "skip"] = Field(
        default="refuse", description="What to do about lines that cannot be used; both list them all in a report."
    )

    def outside(self) -> list[Path]:
        """The manifest and every file that it names, there or not; or the archives."""
        path = Path(self.path).resolve()
        if path.is_dir():
            manifests = sorted(path.rglob("*.jsonl"))
            return [*archives_of(path), *manifests, *(file for item in manifests for file in named_files(item))]
        if archives_of(path) or not path.is_file():
            return [path]
        return [path, *named_files(path)]


def size(spec: Spec) -> Size | None:
    """As the manifest says; None for archives and folders."""
    return manifest_size(Path(spec.path))


def run(spec: Spec, inputs: Inputs, work: Work, *, share: Share | None = None) -> dict[str, Any]:
    """Write the recordings (16 kHz mono), the manifests, and a report with what became of each line.

    Raises DataError after a look at every line: if any cannot be used (`on_bad: refuse`), or if none can.
    """
    path = Path(spec.path)
    if path.is_dir() or archives_of(path):
        return prepare_corpus(spec, inputs=inputs, work=work, share=share, rows=rows)
    if not path.is_file():
        raise DataError(f"{path}: there is no such manifest; `path` must name a .jsonl file")
    with open_index(inputs, work, share=share) as index:
        corpus = FileCorpus(path.parent, archives=[], index=index, scratch=work.scratch)
        rows_of = partial(_rows_of, corpus, [path.name])
        return prepare(spec, corpus=corpus, index=index, inputs=inputs, work=work, share=share, rows=rows_of)


def rows(corpus: Corpus) -> Iterator[Row | Refusal]:
    """The lines of all manifests of a corpus."""
    names = [name for name in corpus.tables("*.jsonl") if not name.endswith(".hf.jsonl")]
    yield from _rows_of(corpus, names)


def _rows_of(corpus: Corpus, names: list[str]) -> Iterator[Row | Refusal]:
    before = 0
    for name in names:
        last = 0
        for last, line in corpus.lines(name):
            try:
                yield parse_line(line, number=before + last, folder=posixpath.dirname(name), root=corpus.folder)
            except RefusedError as error:
                yield Refusal(before + last, name, error.reason, str(error))
        before += last
