"""Which clips a training set keeps, by what they are: length, speed, letters, votes, tags, and what a model hears."""

from __future__ import annotations

import unicodedata
from itertools import islice
from typing import TYPE_CHECKING

from harness.core.manifests import BATCH, iterate_utterances, read_jsonl
from harness.core.text import normalise
from harness.core.wer import count_errors
from harness.data.keys import NONE
from harness.suite.mix import ALPHABETS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from harness.core.artifact import Artifact
    from harness.core.wer import ErrorCounts
    from harness.suite.mix import Criteria, Range, Votes

    Mask = npt.NDArray[np.bool_]
    Floats = npt.NDArray[np.float64]

PUNCTUATION = r""" .,!?:;…"'«»„“”‘’()\-‐‑–—"""
"""May stand beside the letters of an alphabet, in the brackets of a regular expression."""
STRESS = r"\x{0301}"
NO_LETTERS = r"[^\p{L}\p{N}]+"
COLUMNS = ("speaker", "source")
"""What `where` may name beside tags."""
ROUNDING_S = 1e-6
VOTES = ("up_votes", "down_votes")
TRANSCRIPTS_FILE = "transcripts.jsonl"


def failures(batch: pa.RecordBatch, *, criteria: Criteria) -> dict[str, Mask]:
    """Criterion → which utterances do not meet it, for the criteria that a clip meets by itself.

    batch: with text, duration_s, tags.
    """
    failed = {}
    if criteria.duration_s:
        failed["duration_s"] = _outside(batch.column("duration_s").to_numpy(), criteria.duration_s)
    if criteria.chars_per_s:
        failed["chars_per_s"] = _outside(chars_per_s(batch), criteria.chars_per_s)
    if criteria.alphabet:
        failed["alphabet"] = _foreign(batch.column("text"), ALPHABETS.get(criteria.alphabet, criteria.alphabet))
    if criteria.votes:
        failed["votes"] = ~_voted(batch, criteria.votes)
    return failed


def tag(batch: pa.RecordBatch, name: str) -> pa.Array:
    """What `where` calls `name`: a tag of each utterance, its speaker, or its source; null where it has none."""
    import pyarrow.compute as pc

    return batch.column(name) if name in COLUMNS else pc.map_lookup(batch.column("tags"), name, "first")


def matching(batch: pa.RecordBatch, *, where: Mapping[str, Sequence[str]]) -> Mask:
    """Which utterances have one of the wanted values in every tag.

    batch: with speaker, source, tags.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    mask = np.ones(len(batch), np.bool_)
    for name, values in where.items():
        wanted = pa.array(values, pa.string())
        mask &= pc.is_in(tag(batch, name), value_set=wanted).to_numpy(zero_copy_only=False)
    return mask


def over_cap(speakers: npt.NDArray[np.uint64], *, order: npt.NDArray[np.uint64], seconds: Floats, hours: float) -> Mask:
    """Which clips go beyond `hours` of their speaker, if each speaker's clips are taken by `order`.

    speakers: [num_clips], NONE where none is named; those clips stay. order: a stable hash of each clip.
    """
    import numpy as np

    ranked = np.lexsort((order, speakers))
    starts = np.flatnonzero(np.diff(speakers[ranked], prepend=~speakers[ranked[:1]]))
    sums = np.cumsum(seconds[ranked])
    before = np.repeat(sums[starts] - seconds[ranked][starts], np.diff(starts, append=len(ranked)))
    over = np.empty(len(ranked), np.bool_)
    over[ranked] = sums - before > hours * 3600 + ROUNDING_S
    capped: Mask = over & (speakers != NONE)
    return capped


def error_rates(dataset: Artifact, *, chosen: Mask, transcripts: Artifact) -> Floats:
    """The CER of what a model heard in the chosen clips of a dataset, the corpus's text as reference.

    chosen: [num_clips]. Returns float64 [num_clips]; NaN for a clip that was not chosen or not listened to, infinite
    where listening failed or the reference is empty.
    """
    import numpy as np

    heard = _read_transcripts(transcripts.path)
    index = _positions(dataset, chosen=chosen, names=heard.column("id"))
    rates = np.full(len(chosen), np.nan)
    start = 0
    for batch in iterate_utterances(dataset.path, columns=["text"]):
        part = index[start : start + len(batch)]
        rows = np.flatnonzero(part >= 0)
        if len(rows):
            references = batch.column("text").take(rows).to_pylist()
            rates[start + rows] = _rates(references, heard.column("text").take(part[rows]).to_pylist())
        start += len(batch)
    return rates


def _positions(dataset: Artifact, *, chosen: Mask, names: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Where each chosen clip stands among `names`; -1 for the others."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = pa.Table.from_batches(iterate_utterances(dataset.path, columns=["id"])).column("id")
    found = pc.index_in(ids, value_set=names).fill_null(-1).to_numpy().astype(np.int64)
    return np.where(chosen, found, -1)


def _rates(references: Sequence[str], hypotheses: Sequence[str | None]) -> list[float]:
    normalised = [None if text is None else normalise(text) for text in hypotheses]
    counts = count_errors([normalise(text) for text in references], normalised, unit="char")
    return [_rate(count, text) for count, text in zip(counts, normalised, strict=True)]


def _rate(counts: ErrorCounts, hypothesis: str | None) -> float:
    return float("inf") if hypothesis is None or not counts.num_reference else counts.rate


def _read_transcripts(folder: Path) -> pa.Table:
    """Columns id and text of what a runtime's step wrote."""
    import pyarrow as pa

    schema = pa.schema({"id": pa.string(), "text": pa.string()})
    rows = read_jsonl(folder / TRANSCRIPTS_FILE)
    batches = []
    while part := list(islice(rows, BATCH)):
        batches.append(pa.RecordBatch.from_pylist([{"id": row["id"], "text": row["text"]} for row in part], schema))
    return pa.Table.from_batches(batches, schema)


def _outside(values: Floats, limits: Range) -> Mask:
    low, high = limits
    return (values < low) | (values > high)


def chars_per_s(batch: pa.RecordBatch) -> Floats:
    """Letters and digits of each text a second of its recording."""
    import numpy as np
    import pyarrow.compute as pc

    letters = pc.utf8_length(pc.replace_substring_regex(batch.column("text"), NO_LETTERS, ""))
    seconds = batch.column("duration_s").to_numpy()
    rates: Floats = letters.to_numpy(zero_copy_only=False) / np.maximum(seconds, 1e-9)
    return rates


def _foreign(texts: pa.Array, letters: str) -> Mask:
    """Which texts have a character that is neither in `letters`, in either case, nor punctuation."""
    import pyarrow as pa
    import pyarrow.compute as pc

    pattern = rf"[^{letters.lower()}{letters.upper()}{PUNCTUATION}{STRESS}\s\p{{Z}}]"
    # "й" may be written as two characters. Not pyarrow's own: its "NFC" decomposes (25.0).
    composed = pa.array([unicodedata.normalize("NFC", text) for text in texts.to_pylist()], pa.string())
    mask: Mask = pc.match_substring_regex(composed, pattern).to_numpy(zero_copy_only=False)
    return mask


def _voted(batch: pa.RecordBatch, votes: Votes) -> Mask:
    import numpy as np

    up, down = (_numbers(tag(batch, name)) for name in VOTES)
    enough = (up >= votes.min_up) & np.isfinite(down)
    if votes.max_down is not None:
        enough &= down <= votes.max_down
    if votes.min_margin is not None:
        enough &= up - down >= votes.min_margin
    return enough


def _numbers(texts: pa.Array) -> Floats:
    """Texts as numbers, NaN for what is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    digits = pc.if_else(pc.match_substring_regex(texts, r"^\d{1,9}$"), texts, pa.scalar(None, pa.string()))
    numbers: Floats = pc.cast(digits, pa.float64()).to_numpy(zero_copy_only=False)
    return numbers
