"""The work that all corpora share: one pass over the archives, on all cores, into recordings and manifests."""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.assembly import assemble
from harness.data.corpus import FileCorpus
from harness.data.decoding import Part, decode_part, rows_path, start_process
from harness.data.index import Index
from harness.data.storage import AUDIO_FOLDER
from harness.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from harness.core.artifact import Work
    from harness.data.corpus import Corpus, CorpusSpec
    from harness.data.index import Refusal, Row

INDEX_FILE = "index.sqlite"
FEW = 64
"""Recordings that are decoded sooner than other processes have started."""
SPARE_PARTS = 2
"""Parts that wait for a free process, so that none waits for the archive."""


def prepare_corpus(
    spec: CorpusSpec, *, work: Work, rows: Callable[[Corpus], Iterable[Row | Refusal]]
) -> dict[str, Any]:
    """The `run` of a corpus that lies in files: index, decode, assemble; a killed run goes on at its last part.

    rows: what the corpus's tables say. Returns the artifact's meta.
    Raises DataError for a corpus that is missing, hostile, or has nothing to use.
    """
    with (
        Index(work.scratch / INDEX_FILE) as index,
        closing(FileCorpus.at(Path(spec.path), archives=spec.archives(), index=index, scratch=work.scratch)) as corpus,
    ):
        if not index.complete:
            corpus.scan()
        return prepare(spec, corpus=corpus, index=index, work=work, rows=lambda: rows(corpus))


def prepare(
    spec: CorpusSpec, *, corpus: Corpus, index: Index, work: Work, rows: Callable[[], Iterable[Row | Refusal]]
) -> dict[str, Any]:
    """The same for any corpus that gives contents."""
    if not index.complete:
        index.add_rows(rows())
        index.finish(in_folder=corpus.folder is not None, max_hours=spec.max_hours, size_of=corpus.size_of)
    decode_parts(index, corpus=corpus, storage=spec.storage, work=work)
    return assemble(spec, index=index, work=work)


def decode_parts(index: Index, *, corpus: Corpus, storage: str, work: Work) -> None:
    """Decode what an earlier run has not. Raises DataError if the disk is full or a process dies."""
    for name in (AUDIO_FOLDER, "rows"):
        (work.scratch / name).mkdir(exist_ok=True)
    total = index.num_rows
    done = 0
    try:
        for number in _decoded(_parts(index, corpus=corpus, storage=storage, work=work), inline=total <= FEW):
            done += number
            work.progress(done, total)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that decodes recordings died: out of memory, or a recording that crashes the decoder; "
            "what is decoded is kept: run again"
        ) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataError(
            f"the disk is full: {work.scratch}; free some space and run again, what is decoded is kept"
        ) from error


def _parts(index: Index, *, corpus: Corpus, storage: str, work: Work) -> Iterator[Part | int]:
    """What is to be decoded; for a part that is done, how many rows it has."""
    for number in range(index.num_parts):
        rows = index.part(number)
        if rows_path(work.scratch, number=number).is_file():
            yield len(rows)
            continue
        contents = corpus.contents(rows)
        whole = [(row, *content) for (row, _), content in zip(rows, contents, strict=True)]
        yield Part(number, work.scratch, storage, corpus.folder, whole)


def _decoded(parts: Iterator[Part | int], *, inline: bool) -> Iterator[int]:
    """The number of rows of each part, once it is done."""
    if inline:
        yield from (part if isinstance(part, int) else decode_part(part) for part in parts)
        return
    workers = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    running: deque[Future[int]] = deque()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=start_process) as pool:
        try:
            for part in parts:
                if isinstance(part, int):
                    yield part
                    continue
                running.append(pool.submit(decode_part, part))
                if len(running) >= workers + SPARE_PARTS:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
