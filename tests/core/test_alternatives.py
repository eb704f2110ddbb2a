"""References that allow several wordings."""

from __future__ import annotations

import itertools
import re

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.alternatives import first_wording, has_choices, nearest_wording, normalised_pair
from harness.core.text import normalise
from harness.errors import DataError

NEAREST = [
    ("в {две тысячи|2000} году", "в 2000 году", "в 2000 году"),
    ("в {две тысячи|2000} году", "в две тысячи году", "в две тысячи году"),
    # Among equals the first.
    ("{да|нет}", "ну", "да"),
    ("{да|нет} и {да|нет}", "нет и нет", "нет и нет"),
    # A wording may be empty.
    ("{ну|} хорошо", "хорошо", "хорошо"),
    ("{ну|} хорошо", "ну хорошо", "ну хорошо"),
    ("{|ну} хорошо", "плохо", "хорошо"),
    # What touches a choice belongs to each of its wordings.
    ("при{шёл|шла} «{2000|две тысячи}»,", "пришла «две тысячи»,", "пришла «две тысячи»,"),
    ("{а|б}{в|г}", "бг", "бг"),
    # Without a bar, braces are what they were.
    ("{кашель} да", "да", "{кашель} да"),
    ("{кашель} {да|нет}", "кашель нет", "{кашель} нет"),
    ("да } нет", "да", "да } нет"),
    ("да | нет", "да", "да | нет"),
    ("", "да", ""),
]


@pytest.mark.parametrize(("reference", "heard", "expected"), NEAREST)
def test_nearest(reference: str, heard: str, expected: str) -> None:
    assert nearest_wording(reference, heard.split(), words=str.split, name="a") == expected


WORDS = st.lists(st.sampled_from(["да", "нет", "ну", "и"]), max_size=3).map(" ".join)
CHOICES = st.lists(WORDS, min_size=2, max_size=3).filter(any)
REFERENCES = st.lists(st.one_of(CHOICES, WORDS.map(lambda text: [text])), max_size=5)


@given(parts=REFERENCES, heard=WORDS)
def test_no_combination_is_nearer(parts: list[list[str]], heard: str) -> None:
    written = " ".join(part[0] if len(part) == 1 else "{" + "|".join(part) + "}" for part in parts)
    every = [" ".join(" ".join(words).split()) for words in itertools.product(*parts)]

    def errors(reference: str) -> int:
        output = jiwer.process_words([reference], [heard])
        return output.substitutions + output.deletions + output.insertions

    found = " ".join(nearest_wording(written, heard.split(), words=str.split, name="a").split())
    assert found in every
    assert errors(found) == min(map(errors, every))


@given(text=st.text("абё 5{}.,-"), heard=st.text("абё 5 "))
def test_without_a_bar_nothing_changes(text: str, heard: str) -> None:
    assert not has_choices(text)
    assert normalised_pair(text, heard, profile="ru", name="a") == (normalise(text), normalise(heard))


def test_many_choices_take_no_time() -> None:
    reference = " ".join(["{да|нет|ну}"] * 100)
    heard = ["ну", "нет"] * 50
    assert nearest_wording(reference, heard, words=str.split, name="a").split() == heard


def test_a_failure_has_an_empty_text() -> None:
    assert normalised_pair("{Ну|} да.", None, profile="ru", name="a") == ("да", "")


def test_a_hypothesis_has_no_choices() -> None:
    assert normalised_pair("да", "{да|нет}", profile="ru", name="a") == ("да", "да нет")


MALFORMED = [
    ("{да|нет", "a brace that stands alone or inside another"),
    ("да|нет}", "a brace that stands alone or inside another"),
    ("{да|{нет|ну}}", "a brace that stands alone or inside another"),
    ("да {|}", "a choice without words"),
    ("да { | }", "a choice without words"),
]


@pytest.mark.parametrize(("text", "fault"), MALFORMED)
def test_malformed(text: str, fault: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"utterance u7: {fault} in {text!r}; write wordings as {{две")):
        normalised_pair(text, "да", profile="ru", name="u7")
    assert first_wording(text) is None


def test_too_many_wordings_of_one_word() -> None:
    with pytest.raises(DataError, match=r"utterance u7: '.*' has 81 wordings, at most 64 are allowed in one word"):
        normalised_pair("{а|б|в}" * 4, "да", profile="ru", name="u7")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("в {две тысячи|2000} году", "в две тысячи году"),
        ("{|ну} да", " да"),
        ("{кашель} да", "{кашель} да"),
        ("да } нет", "да } нет"),
    ],
)
def test_first(text: str, expected: str) -> None:
    assert first_wording(text) == expected
