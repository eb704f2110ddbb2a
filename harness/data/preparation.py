"""The work that all corpora share: one pass over the archives, on all cores, into recordings and manifests.

One step does all of it, or several do it together: one lists the corpus, each of the others decodes a range of its
parts, and a last one joins them as a killed run goes on: by what it finds done.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.artifact import CPUS
from harness.core.files import link_or_copy
from harness.data.assembly import assemble
from harness.data.corpus import FileCorpus
from harness.data.decoding import ROWS_FOLDER, Part, decode_part, rows_path, start_process
from harness.data.index import Index
from harness.data.storage import AUDIO_FOLDER
from harness.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from harness.core.artifact import Artifact, Inputs, Work
    from harness.data.corpus import Corpus, CorpusSpec
    from harness.data.index import Refusal, Row

INDEX_FILE = "index.sqlite"
LISTING, SHARES = "listing", "shares"
"""Roles of what other steps have done already."""
PART_FOLDERS = (AUDIO_FOLDER, ROWS_FOLDER)
"""What decoding fills; a part whose table is there is done, so tables come last."""
FEW = 64
"""Recordings that are decoded sooner than other processes have started."""
SPARE_PARTS = 2
"""Parts that wait for a free process, so that none waits for the archive."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one of several steps does of a preparation."""

    number: int | None
    """It decodes this share, from 0; None: it lists the corpus."""
    of: int


def open_index(inputs: Inputs, work: Work, *, share: Share | None) -> Index:
    """That of the step which has listed the corpus, or a new one."""
    if LISTING in inputs:
        return Index(inputs[LISTING][0].path / INDEX_FILE, published=True)
    return Index((work.path if share else work.scratch) / INDEX_FILE)


def prepare_corpus(
    spec: CorpusSpec,
    *,
    inputs: Inputs,
    work: Work,
    share: Share | None,
    rows: Callable[[Corpus], Iterable[Row | Refusal]],
) -> dict[str, Any]:
    """The `run` of a corpus that lies in files: index, decode, assemble; a killed run goes on at its last part.

    share: if the step does only this. rows: what the corpus's tables say. Returns the artifact's meta.
    Raises DataError for a corpus that is missing, hostile, or has nothing to use.
    """
    with (
        open_index(inputs, work, share=share) as index,
        closing(FileCorpus.at(Path(spec.path), archives=spec.archives(), index=index, scratch=work.scratch)) as corpus,
    ):
        if not index.complete:
            corpus.scan()
        return prepare(
            spec, corpus=corpus, index=index, inputs=inputs, work=work, share=share, rows=lambda: rows(corpus)
        )


def prepare(
    spec: CorpusSpec,
    *,
    corpus: Corpus,
    index: Index,
    inputs: Inputs,
    work: Work,
    share: Share | None,
    rows: Callable[[], Iterable[Row | Refusal]],
) -> dict[str, Any]:
    """The same for any corpus that gives contents."""
    if not index.complete:
        index.add_rows(rows())
        index.finish(in_folder=corpus.folder is not None, max_hours=spec.max_hours, size_of=corpus.size_of)
    if share is None:
        numbers = range(index.num_parts)
    elif share.number is None:
        return {"num_recordings": index.num_rows, "num_parts": index.num_parts}
    else:
        # Ranges in the order of the archives: a compressed one must be read from its beginning.
        numbers = index.shares(share.of)[share.number]
    _take(inputs.get(SHARES, ()), scratch=work.scratch)
    decode_parts(index, numbers=numbers, corpus=corpus, storage=spec.storage, work=work)
    if share is None:
        return assemble(spec, index=index, work=work)
    for name in PART_FOLDERS:
        work.adopt(name)
    return {"num_recordings": index.num_rows_of(numbers)}


def _take(shares: Sequence[Artifact], *, scratch: Path) -> None:
    """What other steps have decoded, under second names: nothing is read again."""
    for share in shares:
        for name in PART_FOLDERS:
            for source in sorted((share.path / name).rglob("*")):
                target = scratch / source.relative_to(share.path)
                if source.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                elif not target.is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    link_or_copy(source, target)


def decode_parts(index: Index, *, numbers: range, corpus: Corpus, storage: str, work: Work) -> None:
    """Decode what an earlier run has not. Raises DataError if the disk is full or a process dies."""
    for name in PART_FOLDERS:
        (work.scratch / name).mkdir(exist_ok=True)
    total = index.num_rows_of(numbers)
    done = 0
    try:
        parts = _parts(index, numbers=numbers, corpus=corpus, storage=storage, work=work)
        for number in _decoded(parts, inline=total <= FEW):
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


def _parts(index: Index, *, numbers: range, corpus: Corpus, storage: str, work: Work) -> Iterator[Part | int]:
    """What is to be decoded; for a part that is done, how many rows it has."""
    for number in numbers:
        rows = index.part(number)
        if rows_path(work.scratch, number=number).is_file():
            yield len(rows)
            continue
        contents = corpus.contents(rows)
        whole = [(row, *content) for (row, _), content in zip(rows, contents, strict=True)]
        yield Part(number, work.scratch, storage, corpus.folder, whole)


def _decoded(parts: Iterator[Part | int], *, inline: bool) -> Iterator[int]:
    """The number of rows of each part, once it is done."""
    workers = int(os.environ.get(CPUS, "0")) or os.cpu_count() or 1
    if inline or workers == 1:
        yield from (part if isinstance(part, int) else decode_part(part) for part in parts)
        return
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
