"""Word and character error counts, jiwer's, kept by utterance so that they can be pooled, sliced and resampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from harness.errors import DataError, MissingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Unit = Literal["word", "char"]


@dataclass(frozen=True, slots=True)
class ErrorCounts:
    """The alignment of hypothesis and reference in numbers, of one utterance or of many pooled."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def num_reference(self) -> int:
        """Units (words or characters) of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Errors per reference unit; over 1 where insertions abound.

        Raises DataError where the reference has no units: 0 would read as a perfect result.
        """
        if not self.num_reference:
            raise DataError(
                f"an error rate needs a reference, but this one has 0 units ({self.insertions} inserted); "
                "leave out utterances whose transcripts are empty after normalisation"
            )
        return self.errors / self.num_reference

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            hits=self.hits + other.hits,
            substitutions=self.substitutions + other.substitutions,
            deletions=self.deletions + other.deletions,
            insertions=self.insertions + other.insertions,
        )


def count_errors(
    references: Sequence[str], hypotheses: Sequence[str | None], *, unit: Unit = "word"
) -> list[ErrorCounts]:
    """The counts of each utterance, in order; the rate of the set is that of their `pool`, never a mean of rates.

    references, hypotheses: normalised alike. None stands for an utterance that failed: all its units are deleted.
    A reference without units counts what was inserted.
    unit: "char" counts the spaces between words too, as jiwer does.
    Raises DataError if there is nothing to count or the lengths differ.
    """
    try:
        import jiwer
    except ImportError as error:
        raise MissingError("counting errors needs jiwer, which is not installed: pip install jiwer") from error

    if len(references) != len(hypotheses):
        raise DataError(f"{len(references)} references but {len(hypotheses)} hypotheses; give one for each")
    if not references:
        raise DataError("no utterances to count errors in: an empty set has no error rate; check what selects it")
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    output = process(list(references), [text or "" for text in hypotheses])
    return [_count(chunks) for chunks in output.alignments]


def pool(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """The sum over a set of utterances."""
    return sum(counts, ErrorCounts())


def _count(chunks: Iterable[Any]) -> ErrorCounts:
    """Add up jiwer's `AlignmentChunk`s."""
    num = {"equal": 0, "substitute": 0, "delete": 0, "insert": 0}
    for chunk in chunks:
        # Either side may be empty: a chunk is as long as its longer side.
        num[chunk.type] += max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
    return ErrorCounts(
        hits=num["equal"], substitutions=num["substitute"], deletions=num["delete"], insertions=num["insert"]
    )
