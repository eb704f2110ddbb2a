"""Error rates of parts of a set."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.records import Utterance
from harness.core.wer import ErrorCounts, pool
from harness.score.significance import rate_interval
from harness.score.slices import BUCKETS, SMALLEST, slice_rates, unknown_tags


def utterance(number: int, **fields: Any) -> Utterance:
    return Utterance(**{"id": f"u{number}", "audio": "a.wav", "sha256": "0", "text": "", "duration_s": 3.0, **fields})


def sliced(utterances: list[Utterance], errors: list[int], *, by: list[str] | None = None) -> list[dict[str, Any]]:
    counts = [ErrorCounts(hits=10 - wrong, substitutions=wrong) for wrong in errors]
    return slice_rates(utterances, counts, by=by, seed=3, resamples=100)


def shown(found: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    return [(item["by"], item["value"], item["num_utterances"]) for item in found]


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.5, 0), (1.99, 0), (2, 1), (4.99, 1), (5, 2), (9.9, 2), (10, 3), (19.9, 3), (20, 4), (300, 4)],
)
def test_durations(seconds: float, bucket: int) -> None:
    (found,) = sliced([utterance(0, duration_s=seconds)], [1])
    assert (found["by"], found["value"]) == ("duration", BUCKETS[bucket])


def test_the_worst_first_and_small_ones_last() -> None:
    values = ["a"] * SMALLEST + ["b"] * SMALLEST + ["c"] * (SMALLEST - 1)
    utterances = [utterance(number, tags={"room": value}) for number, value in enumerate(values)]
    errors = [{"a": 1, "b": 4, "c": 10}[value] for value in values]
    found = sliced(utterances, errors, by=["room"])
    assert shown(found) == [("room", "b", SMALLEST), ("room", "a", SMALLEST), ("room", "c", SMALLEST - 1)]
    assert [item["is_small"] for item in found] == [False, False, True]
    assert [item["wer"] for item in found] == [0.4, 0.1, 1.0]
    assert [item["num_words"] for item in found] == [200, 200, 190]


def test_intervals_are_those_of_the_part_alone() -> None:
    utterances = [utterance(number, tags={"room": "ab"[number % 2]}, speaker=f"s{number % 14}") for number in range(60)]
    errors = [number % 7 for number in range(60)]
    found = {item["value"]: item for item in sliced(utterances, errors, by=["room"])}
    speakers = [item.speaker for item in utterances[::2]]
    expected = rate_interval(errors[::2], [10] * 30, speakers=speakers, seed=3, resamples=100)
    assert (found["a"]["wer_lo"], found["a"]["wer_hi"]) == expected


def test_by_default_tags_of_a_few_values() -> None:
    utterances = [
        utterance(
            number,
            source="golos" if number else "cv",
            speaker=f"s{number}",
            tags={"one": "same", "many": f"v{number}", **({"some": "x"} if number < 5 else {})},
        )
        for number in range(31)
    ]
    found = sliced(utterances, [0] * 31)
    assert {(by, value) for by, value, _ in shown(found)} == {
        ("duration", "2 to 5 s"), ("source", "golos"), ("source", "cv"), ("some", "x"), ("some", "(none)"),
    }  # fmt: skip


def test_what_is_asked_for_may_have_any_number_of_values() -> None:
    utterances = [utterance(number, speaker=f"s{number}", tags={"one": "same"}) for number in range(40)]
    assert len(sliced(utterances, [1] * 40, by=["speaker"])) == 40
    assert shown(sliced(utterances, [1] * 40, by=["one"])) == [("one", "same", 40)]


def test_a_noise_level_is_cut_into_quarters() -> None:
    utterances = [utterance(number, tags={"snr": f"{number / 2}"} if number else {}) for number in range(81)]
    found = sliced(utterances, [number // 10 for number in range(81)], by=["snr"])
    assert {value: num for _, value, num in shown(found)} == {
        "0.5 to 10.375": 20, "10.375 to 20.25": 20, "20.25 to 30.125": 20, "30.125 to 40": 20, "(none)": 1,
    }  # fmt: skip
    assert found[0]["value"] == "30.125 to 40"


def test_tags_that_nobody_has() -> None:
    utterances = [utterance(0, tags={"room": "a"})]
    assert unknown_tags(utterances, by=["room", "duration", "gender", "speaker"]) == ["gender", "speaker"]
    assert unknown_tags(utterances, by=None) == []
    assert sliced(utterances, [1], by=["gender"]) == []


def test_a_slice_without_reference_words_has_no_rate() -> None:
    utterances = [utterance(number, tags={"room": "ab"[number % 2]}) for number in range(2 * SMALLEST)]
    counts = [ErrorCounts(hits=1) if number % 2 else ErrorCounts(insertions=3) for number in range(2 * SMALLEST)]
    found = slice_rates(utterances, counts, by=["room"], seed=3, resamples=100)
    assert [(item["value"], item["wer"], item["wer_lo"], item["is_small"]) for item in found] == [
        ("b", 0.0, 0.0, False), ("a", None, None, True),
    ]  # fmt: skip


def test_nothing_without_counts() -> None:
    assert slice_rates([utterance(0)], None, by=None, seed=3, resamples=100) == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), min_size=1, max_size=40))
def test_slices_of_a_tag_add_up_to_the_set(rows: list[tuple[str, int]]) -> None:
    utterances = [utterance(number, tags={"room": value}) for number, (value, _) in enumerate(rows)]
    found = sliced(utterances, [wrong for _, wrong in rows], by=["room"])
    whole = pool(ErrorCounts(hits=10 - wrong, substitutions=wrong) for _, wrong in rows)
    assert sum(item["num_words"] for item in found) == whole.num_reference
    assert sum(item["wer"] * item["num_words"] for item in found) == pytest.approx(whole.errors)
