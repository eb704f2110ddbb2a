from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.text import PROFILES, is_counted, normalise
from harness.errors import SuiteError

RUSSIAN = [
    ("Со спокойным мужеством, Скайлс, ожидал всего!", "со спокойным мужеством скайлс ожидал всего"),
    ("Ёлка ещё зелёная", "елка еще зеленая"),
    ("кто-то — что–нибудь", "кто то что нибудь"),
    ("«Аэлита» (1-я глава)…", "аэлита первая глава"),
    ("  много \t пробелов\u00a0и\nстрок ", "много пробелов и строк"),
    ("мой", "мой"),
    ("мои", "мои"),
    ("мои\u0306", "мой"),
    ("за\u0301мок", "замок"),
    ("и\u0301\u0306", "й"),
    ("caf\u00e9 cafe\u0301", "caf\u00e9 caf\u00e9"),
    ("кор\u00adреспондент", "корреспондент"),
    ("Это iPhone от Apple", "это iphone от apple"),
    ("ﬁлин ＡＢ", "fiлин ab"),
    ("№ 5", "пять"),
    ("5\ufe0f\u20e3 ❤\ufe0f", "пять"),
    ("в 1943 году", "в тысяча девятьсот сорок три году"),
    ("21 000 и 1\u202f000\u202f000 рублей", "двадцать одна тысяча и один миллион рублей"),
    ("1.000.000", "один миллион"),
    ("5 100", "пять тысяч сто"),
    ("12,5 и 0.05", "двенадцать целых пять десятых и ноль целых пять сотых"),
    ("12:30", "двенадцать тридцать"),
    ("12.05.2020", "двенадцать ноль пять две тысячи двадцать"),
    ("агент 007", "агент ноль ноль семь"),
    ("5-го, 3-я, 2-ой, 90-х", "пятого третья второй девяностых"),
    ("9-е мая 90-е годы", "девятое мая девяностые годы"),
    ("2-х, 10-ти, 8-ми", "двух десяти восьми"),
    ("20-летний COVID-19", "двадцать летний covid девятнадцать"),
    ("м²", "м два"),
    ("1" * 16, " ".join(["один"] * 16)),
    ("3.14159265", "три четырнадцать миллионов сто пятьдесят девять тысяч двести шестьдесят пять"),
    ("٣", "три"),
    ("...", ""),
    ("", ""),
]


@pytest.mark.parametrize(("text", "expected"), RUSSIAN)
def test_russian(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [(" Мои\u0306  дом, 5-й! ", "Мой дом, 5-й!"), ("Ёлка №2", "Ёлка №2"), ("\n", "")]
)
def test_strict(text: str, expected: str) -> None:
    assert normalise(text, profile="ru-strict") == expected


def test_short_i_and_i_are_two_letters() -> None:
    assert normalise("мой") != normalise("мои")
    assert normalise(unicodedata.normalize("NFD", "мой")) == normalise("мой")


TRICKY = st.text(alphabet="0123456789.,:- \u00a0-йгохмитняеёИ\u0301\u0306№½²")


@pytest.mark.parametrize("profile", PROFILES)
@given(text=st.one_of(st.text(), TRICKY))
def test_twice_is_once(profile: str, text: str) -> None:
    once = normalise(text, profile=profile)
    assert normalise(once, profile=profile) == once


@given(text=st.one_of(st.text(alphabet="мойёеи\u0301\u0306 5-"), st.text()))
def test_forms_of_unicode_do_not_matter(text: str) -> None:
    assert normalise(unicodedata.normalize("NFD", text)) == normalise(unicodedata.normalize("NFC", text))


def test_unknown_profile() -> None:
    with pytest.raises(SuiteError, match="unknown normaliser 'en'; known: ru, ru-strict"):
        normalise("текст", profile="en")


@pytest.mark.parametrize(
    ("reference", "counted"),
    [
        ("Мой дом!", True),
        ("кто-то № пять", True),
        ("в 5 часов", False),
        ("мой iPhone", False),
        ("caf\u00e9", False),
        ("м\u00b2", False),
        ("\u0663 дня", False),
        ("\uff21", False),
        ("в {пять|5} часов", False),
        ("", True),
    ],
)
def test_references_without_digits_and_latin(reference: str, *, counted: bool) -> None:
    assert is_counted(reference, profile="ru-no-digits") is counted
    assert is_counted(reference, profile="ru")
    assert is_counted(reference, profile="ru-strict")


@given(st.text())
def test_a_partial_profile_writes_as_the_whole_one(text: str) -> None:
    assert normalise(text, profile="ru-no-digits") == normalise(text)
