from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import DataError
from harness.score import significance
from harness.score.significance import Bootstrap, holm, interval_over, paired_difference, rate_interval


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


RATE = 0.15
NUM_SETS = 3000
"""Coverage is then known to 0.4 points."""


def drawn_utterances(generator: np.random.Generator, *, number: int) -> tuple[list[int], list[int], list[str]]:
    """Utterances that are hard or easy by themselves."""
    words = generator.integers(3, 20, number)
    errors = generator.binomial(words, generator.beta(3, 17, number))
    return errors.tolist(), words.tolist(), [str(place) for place in range(number)]


def drawn_speakers(generator: np.random.Generator, *, number: int) -> tuple[list[int], list[int], list[str]]:
    """Speakers that are hard or easy to hear, each with some 15 utterances, few or many."""
    sizes = np.maximum(1, generator.lognormal(2.5, 0.6, number).astype(int))
    names = np.repeat(np.arange(number), sizes)
    words = generator.integers(3, 20, len(names))
    errors = generator.binomial(words, generator.beta(3, 17, number)[names])
    return errors.tolist(), words.tolist(), [str(name) for name in names]


def coverage(draw: Any, *, number: int, by_speaker: bool, num_sets: int = NUM_SETS) -> float:
    """How often the interval holds RATE."""
    generator, hits = np.random.default_rng(7), 0
    for _ in range(num_sets):
        errors, words, names = draw(generator, number=number)
        lo, hi = rate_interval(errors, words, speakers=names if by_speaker else None, seed=17, resamples=500)
        hits += lo <= RATE <= hi
    return hits / num_sets


@pytest.mark.parametrize(("draw", "number"), [(drawn_utterances, 30), (drawn_utterances, 200), (drawn_speakers, 40)])
def test_intervals_hold_the_true_rate_as_often_as_they_say(draw: Any, number: int) -> None:
    assert 0.93 <= coverage(draw, number=number, by_speaker=draw is drawn_speakers) <= 0.97


def test_few_speakers_are_better_than_many_utterances_of_theirs() -> None:
    """What `FEWEST_SPEAKERS` promises: short of 95 %, but far from what drawing utterances gives."""
    number = significance.FEWEST_SPEAKERS
    by_speaker, by_utterance = (
        coverage(drawn_speakers, number=number, by_speaker=is_drawn, num_sets=300) for is_drawn in (True, False)
    )
    assert by_speaker > 0.85
    assert by_utterance < 0.7


def test_what_is_drawn() -> None:
    errors, words, names = drawn_speakers(np.random.default_rng(1), number=12)
    by_speaker = rate_interval(errors, words, speakers=names, seed=1)
    assert Bootstrap([errors], words, speakers=names, seed=1).num_blocks == 12
    pooled = [[sum(x for x, y in zip(counts, names, strict=True) if y == name) for name in dict.fromkeys(names)]
              for counts in (errors, words)]  # fmt: skip
    assert by_speaker == rate_interval(*pooled, seed=1), "a speaker is one draw"
    # Too few, or unknown ones: as without them.
    plain = rate_interval(errors, words, seed=1)
    for speakers in ([None] * len(words), [f"s{number % 4}" for number in range(len(words))]):
        assert rate_interval(errors, words, speakers=speakers, seed=1) == plain
    partly = Bootstrap([errors], words, speakers=[None, None, *names[2:]], seed=1)
    assert partly.num_blocks == 2 + len(set(names[2:])), "an utterance of an unknown speaker is a block of its own"


@pytest.mark.parametrize(
    ("speakers", "expected"),
    [
        (None, "utterances"),
        ([], "utterances"),
        ([None, ""], "utterances"),
        (["a", "b", "c", "d", None, "a"], "utterances"),
        (["a", "b", "c", "d", "e"], "speakers"),
    ],
)
def test_interval_over(speakers: list[str | None] | None, expected: str) -> None:
    assert interval_over(speakers) == expected


def test_a_seed_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    errors, references = utterances(number=40, rate=0.2, seed=3)
    first = rate_interval(errors, references, seed=17)
    assert rate_interval(errors, references, seed=17) == first
    assert rate_interval(errors, references, seed=18) != first
    # How many draws are made at a time is a matter of memory alone.
    monkeypatch.setattr(significance, "BLOCK", 40 * 7)
    assert significance.RESAMPLES % 7, "the last ones are fewer"
    assert rate_interval(errors, references, seed=17) == first


def test_more_utterances_narrow_it() -> None:
    widths = []
    for number in (25, 400):
        lo, hi = rate_interval(*utterances(number=number, rate=0.2, seed=2), seed=17)
        widths.append(hi - lo)
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.4)


def test_one_utterance_has_no_interval_and_no_errors_have_no_width() -> None:
    assert rate_interval([3], [10], seed=1) == (None, None)
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
        ([1], [3, 4], "1 utterances with errors but 2 references; give one for each"),
    ],
)
def test_refused(errors: list[int], references: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rate_interval(errors, references, seed=1)


def test_every_utterance_has_a_speaker_or_none() -> None:
    with pytest.raises(DataError, match="1 utterances with a speaker but 2 references; give one for each"):
        rate_interval([1, 1], [3, 4], speakers=["a"], seed=1)


def test_each_system_may_have_references_of_its_own() -> None:
    """Where a reference has alternatives, each system is compared with the one nearest to it."""
    errors_a, references = utterances(number=60, rate=0.2, seed=1)
    errors_b, others = utterances(number=60, rate=0.3, seed=2)
    both = Bootstrap([errors_a, errors_b], [references, others], seed=3)
    assert both.interval(0) == rate_interval(errors_a, references, seed=3)
    assert both.interval(1) == rate_interval(errors_b, others, seed=3)
    assert both.difference(1, 0).delta == pytest.approx(
        sum(errors_b) / sum(others) - sum(errors_a) / sum(references)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([], []),
        ([0.04], [0.04]),
        # Holm 1979: 4 x 0.005, 3 x 0.01, 2 x 0.03, and no smaller than the one before.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.9, 0.6], [1.0, 1.0, 1.0]),
    ],
)
def test_holm(p_values: list[float], expected: list[float]) -> None:
    corrected, levels = holm(p_values)
    assert corrected == pytest.approx(expected)
    assert all((p < 1 - level) == (own < 0.05) for p, level, own in zip(p_values, levels, corrected, strict=True))


@settings(deadline=None, max_examples=60)
@given(number=st.integers(2, 40), systems=st.integers(2, 6), seed=st.integers(0, 999))
def test_intervals_and_p_values_say_the_same(number: int, systems: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    words = generator.integers(1, 12, number)
    errors = [generator.binomial(words, rate).tolist() for rate in generator.uniform(0, 0.6, systems)]
    drawn = Bootstrap(errors, words.tolist(), seed=seed, resamples=200)
    differences, p_values, levels = drawn.compare([(system, 0) for system in range(1, systems)])
    for (delta, lo, hi), p_value, level in zip(differences, p_values, levels, strict=True):
        assert lo <= delta <= hi
        assert level >= 0.95
        assert 0 <= p_value <= 1
        assert (p_value < 0.05) == (lo > 0 or hi < 0)


def test_a_few_lucky_utterances_beat_nobody() -> None:
    """Four of 24 utterances better and none worse: a fair coin does that once in eight times, both ways."""
    errors = [[1] * 4 + [0] * 20, [0] * 24]
    drawn = Bootstrap(errors, [10] * 24, seed=1)
    assert drawn.p_value(0, 1) == 0.125
    assert drawn.difference(0, 1).lo == 0.0


@pytest.mark.parametrize("number", [5, 10, 30])
def test_systems_that_suit_other_speakers_differ_once_in_twenty_sets(number: int) -> None:
    """Neither is better; each hears some speakers better than the other does."""
    generator = np.random.default_rng(5)
    by_speaker = by_utterance = 0
    for _ in range(400):
        names = np.repeat(np.arange(number), 30)
        words = generator.integers(3, 20, len(names))
        hard = generator.beta(3, 17, number) * np.exp(generator.normal(0, 0.2, (2, number)))
        errors = [generator.binomial(words, np.minimum(own, 1)[names]).tolist() for own in hard]
        speakers = [str(name) for name in names]
        by_speaker += Bootstrap(errors, words.tolist(), speakers=speakers, seed=1, resamples=200).p_value(0, 1) < 0.05
        by_utterance += Bootstrap(errors, words.tolist(), seed=1, resamples=200).p_value(0, 1) < 0.05
    assert by_speaker / 400 <= 0.08
    assert by_utterance / 400 > 0.15, "drawn as if they were independent, utterances find differences that are none"


def test_of_many_equal_systems_hardly_one_is_said_to_differ() -> None:
    """Without the correction, one of nine comparisons would be mistaken in every third set."""
    generator = np.random.default_rng(3)
    plain = corrected = 0
    for _ in range(200):
        words = generator.integers(5, 20, 60)
        hard = generator.beta(3, 17, 60)
        errors = [generator.binomial(words, hard).tolist() for _ in range(10)]
        drawn = Bootstrap(errors, words.tolist(), seed=1, resamples=300)
        pairs = [(system, 0) for system in range(1, 10)]
        plain += min(drawn.p_value(a, b) for a, b in pairs) < 0.05
        corrected += min(drawn.compare(pairs).p_values) < 0.05
    assert corrected / 200 <= 0.07
    assert plain / 200 > 0.15


def test_as_many_utterances_as_needed_tell_two_apart_four_times_out_of_five() -> None:
    generator = np.random.default_rng(11)

    def pair(number: int) -> Bootstrap:
        words = generator.integers(5, 20, number)
        hard = generator.beta(3, 17, number)
        errors = [generator.binomial(words, rates).tolist() for rates in (hard, 0.85 * hard)]
        return Bootstrap(errors, words.tolist(), seed=1, resamples=300)

    needed = pair(20_000).num_needed(0, 1)
    found = sum(pair(needed).p_value(0, 1) < 0.05 for _ in range(300)) / 300
    assert found == pytest.approx(significance.POWER, abs=0.07)
    assert pair(50).num_needed(0, 0) is None, "no number of utterances tells a system from itself"


def test_pairs_must_match() -> None:
    with pytest.raises(DataError, match="2 utterances against 1"):
        paired_difference([1, 2], [1], [3, 3], seed=1)
