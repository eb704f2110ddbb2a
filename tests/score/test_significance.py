from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import DataError
from harness.score import significance
from harness.score.significance import paired_difference, rate_interval


def utterances(*, number: int, rate: float, seed: int) -> tuple[list[int], list[int]]:
    """Errors and reference words of utterances of 5 to 20 words."""
    draw = random.Random(seed)  # repeatable, not secret
    references = [draw.randint(5, 20) for _ in range(number)]
    return [sum(draw.random() < rate for _ in range(words)) for words in references], references


def looped(errors: list[int], references: list[int], *, resamples: int, seed: int) -> tuple[float, float]:
    """The same by a plain loop, with another generator and another rule for percentiles."""
    draw, rates = random.Random(seed), []  # repeatable, not secret
    for _ in range(resamples):
        drawn = draw.choices(range(len(errors)), k=len(errors))
        rates.append(sum(errors[index] for index in drawn) / sum(references[index] for index in drawn))
    rates.sort()
    return rates[math.floor(0.025 * resamples)], rates[math.ceil(0.975 * resamples) - 1]


@pytest.mark.parametrize(("number", "rate"), [(24, 0.15), (100, 0.05), (300, 0.3)])
def test_agrees_with_a_plain_loop(number: int, rate: float) -> None:
    errors, references = utterances(number=number, rate=rate, seed=1)
    lo, hi = rate_interval(errors, references, seed=17)
    other_lo, other_hi = looped(errors, references, resamples=2000, seed=5)
    assert lo == pytest.approx(other_lo, abs=0.1 * (hi - lo))
    assert hi == pytest.approx(other_hi, abs=0.1 * (hi - lo))


@settings(deadline=None, max_examples=50)
@given(number=st.integers(2, 60), rate=st.floats(0, 1), seed=st.integers(0, 999))
def test_covers_the_estimate(number: int, rate: float, seed: int) -> None:
    errors, references = utterances(number=number, rate=rate, seed=seed)
    lo, hi = rate_interval(errors, references, seed=seed, resamples=1000)
    assert 0 <= lo <= sum(errors) / sum(references) <= hi <= 1


def test_holds_the_true_rate_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(200):
        errors, references = utterances(number=80, rate=0.2, seed=seed)
        lo, hi = rate_interval(errors, references, seed=17, resamples=400)
        hits += lo <= 0.2 <= hi
    assert 0.88 <= hits / 200 <= 0.99


def test_a_seed_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    errors, references = utterances(number=40, rate=0.2, seed=3)
    first = rate_interval(errors, references, seed=17)
    assert rate_interval(errors, references, seed=17) == first
    assert rate_interval(errors, references, seed=18) != first
    # How many draws are made at a time is a matter of memory alone.
    monkeypatch.setattr(significance, "BLOCK", 40 * 7)
    assert rate_interval(errors, references, seed=17) == first


def test_more_utterances_narrow_it() -> None:
    widths = []
    for number in (25, 400):
        lo, hi = rate_interval(*utterances(number=number, rate=0.2, seed=2), seed=17)
        widths.append(hi - lo)
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.4)


def test_one_utterance_and_no_errors_have_no_width() -> None:
    assert rate_interval([3], [10], seed=1) == (0.3, 0.3)
    assert rate_interval([0, 0], [4, 6], seed=1) == (0.0, 0.0)


def test_draws_without_words_are_left_out() -> None:
    lo, hi = rate_interval([1, 1], [0, 4], seed=1)
    assert lo == 0.25
    assert math.isfinite(hi)


def test_paired_difference_sees_what_intervals_do_not() -> None:
    errors_a, references = utterances(number=200, rate=0.2, seed=4)
    errors_b = [max(0, errors - (index % 4 == 0)) for index, errors in enumerate(errors_a)]
    (lo_a, _), (_, hi_b) = (rate_interval(errors, references, seed=17) for errors in (errors_a, errors_b))
    assert lo_a < hi_b
    delta, lo, hi = paired_difference(errors_a, errors_b, references, seed=17)
    assert delta == pytest.approx((sum(errors_a) - sum(errors_b)) / sum(references))
    assert 0 < lo < delta < hi
    mirrored = paired_difference(errors_b, errors_a, references, seed=17)
    assert mirrored == pytest.approx((-delta, -hi, -lo))


def test_equal_systems_differ_by_nothing() -> None:
    errors, references = utterances(number=50, rate=0.2, seed=6)
    assert paired_difference(errors, errors, references, seed=17) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("errors", "references", "message"),
    [
        ([], [], "0 utterances with 0 reference units have no error rate"),
        ([2, 1], [0, 0], "2 utterances with 0 reference units"),
        ([1], [3, 4], "1 utterances with errors but 2 references"),
    ],
)
def test_refused(errors: list[int], references: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rate_interval(errors, references, seed=1)


def test_pairs_must_match() -> None:
    with pytest.raises(DataError, match="2 utterances against 1"):
        paired_difference([1, 2], [1], [3, 3], seed=1)
