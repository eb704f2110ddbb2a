from __future__ import annotations

import random

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.wer import ErrorCounts, count_errors, pool
from harness.errors import DataError

CASES = [
    ("word", "мама мыла раму", "мама мыла раму", ErrorCounts(hits=3)),
    ("word", "мама мыла раму", "мама раму", ErrorCounts(hits=2, deletions=1)),
    ("word", "мама мыла раму", "мама мыла раме и", ErrorCounts(hits=2, substitutions=1, insertions=1)),
    ("word", "мама мыла раму", "", ErrorCounts(deletions=3)),
    ("word", "мама мыла раму", None, ErrorCounts(deletions=3)),
    ("word", "", "шум и гам", ErrorCounts(insertions=3)),
    ("word", "", None, ErrorCounts()),
    ("char", "тоже", "то же", ErrorCounts(hits=4, insertions=1)),
    ("char", "да", None, ErrorCounts(deletions=2)),
    ("char", "мой дом", "мои дом", ErrorCounts(hits=6, substitutions=1)),
]
WORDS = st.lists(st.sampled_from(["мама", "мыла", "раму", "и", "да"]), max_size=6).map(" ".join)
PAIRS = st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=12)


@pytest.mark.parametrize(("unit", "reference", "hypothesis", "expected"), CASES)
def test_counts(unit, reference, hypothesis, expected) -> None:
    assert count_errors([reference], [hypothesis], unit=unit) == [expected]


def test_each_utterance_has_its_own() -> None:
    counts = count_errors(["а б", "в", "г д е"], ["а", None, "г д е ж"])
    assert [item.errors for item in counts] == [1, 1, 1]
    assert pool(counts) == ErrorCounts(hits=4, deletions=2, insertions=1)
    assert pool(counts).rate == 3 / 6
    # Pooled, not the mean of 1/2, 1/1 and 1/3.
    assert pool(counts).rate != pytest.approx((1 / 2 + 1 + 1 / 3) / 3)


@given(pairs=PAIRS)
def test_pooled_rates_are_jiwers(pairs) -> None:
    references, hypotheses = map(list, zip(*pairs, strict=True))
    assert pool(count_errors(references, hypotheses)).rate == pytest.approx(jiwer.wer(references, hypotheses))
    characters = pool(count_errors(references, hypotheses, unit="char"))
    assert characters.rate == pytest.approx(jiwer.cer(references, hypotheses))


NUM_PAIRS = 10_000


def distance(reference: list[str], hypothesis: list[str]) -> int:
    """Edit distance by the textbook."""
    row = list(range(len(hypothesis) + 1))
    for place, word in enumerate(reference, start=1):
        diagonal, row[0] = row[0], place
        for at, other in enumerate(hypothesis, start=1):
            diagonal, row[at] = row[at], min(diagonal + (word != other), row[at] + 1, row[at - 1] + 1)
    return row[-1]


def test_ten_thousand_pairs_to_the_last_count() -> None:
    draw = random.Random(17)  # repeatable, not secret
    vocabulary = ["мама", "мыла", "раму", "и", "да", "мой"]
    references, hypotheses = (
        [" ".join(draw.choices(vocabulary, k=draw.randint(low, 8))) for _ in range(NUM_PAIRS)] for low in (1, 0)
    )
    for unit, process in (("word", jiwer.process_words), ("char", jiwer.process_characters)):
        counts = count_errors(references, hypotheses, unit=unit)
        whole = process(references, hypotheses)
        names = ("hits", "substitutions", "deletions", "insertions")
        assert pool(counts) == ErrorCounts(**{name: getattr(whole, name) for name in names})
        for reference, hypothesis, count in zip(references, hypotheses, counts, strict=True):
            sides = (reference.split(), hypothesis.split()) if unit == "word" else (list(reference), list(hypothesis))
            assert count.num_reference == len(sides[0])
            assert count.hits + count.substitutions + count.insertions == len(sides[1])
            if unit == "word":
                assert count.errors == distance(*sides)


@given(pairs=PAIRS, seed=st.integers(0, 99))
def test_order_of_utterances_does_not_matter(pairs, seed: int) -> None:
    shuffled = random.Random(seed).sample(pairs, len(pairs))  # repeatable, not secret
    for unit in ("word", "char"):
        straight, mixed = (pool(count_errors(*zip(*rows, strict=True), unit=unit)) for rows in (pairs, shuffled))
        assert straight == mixed
        assert straight.rate == mixed.rate


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        ([], [], "no utterances to count errors in"),
        (["а", "б"], ["а"], "2 references but 1 hypotheses"),
    ],
)
def test_refused(references, hypotheses, message: str) -> None:
    with pytest.raises(DataError, match=message):
        count_errors(references, hypotheses)


@pytest.mark.parametrize("counts", [ErrorCounts(), ErrorCounts(insertions=3)])
def test_without_a_reference_there_is_no_rate(counts: ErrorCounts) -> None:
    with pytest.raises(DataError, match="an error rate needs a reference"):
        _ = counts.rate
