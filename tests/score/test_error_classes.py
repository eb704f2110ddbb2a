"""Word errors by their cause."""

from __future__ import annotations

import pytest

from harness.score.error_classes import CLASSES, count_classes

CASES = [
    ("ещё ёлка", "еще елка", {"yo": 2}),
    ("мой дом", "мои дом", {}),
    ("в 5 часов", "в пять часов", {"numbers": 1}),
    ("двадцать один год", "21 год", {"numbers": 2}),
    ("в 1943 году", "в тысяча девятьсот сорок три году", {"numbers": 4}),
    # Misheard, however it is written.
    ("в 5 часов", "в шесть часов", {}),
    ("кто-то пришёл", "кто то пришёл", {"hyphens": 2}),
    ("кто-то пришёл", "ктото пришёл", {"hyphens": 1}),
    ("то же самое", "тоже самое", {"joined": 2}),
    ("тоже самое", "то же самое", {"joined": 2}),
    ("ни в коем случае", "нивкоем случае", {"joined": 3}),
    ("я то же был", "я тоже бил", {"joined": 2}),
    ("он и она", "они она", {"joined": 2}),
    ("мой iphone", "мой айфон", {"latin": 1}),
    ("мой дом", "мой dom", {"latin": 1}),
    ("дом", "дом the end", {"latin": 2}),
    ("купил iphone вчера", "купил вчера", {"latin": 1}),
    ("iphone дома", "iphone дом", {}),
    ("…", "спасибо за просмотр", {"silence": 3}),
    ("", "", {}),
    ("Ещё, ёлка!", "ещё ёлка", {}),
    # Two wordings: what the reference allows is no error.
    ("в {пять|5} часов", "в 5 часов", {}),
    ("ещё 5", None, {}),
    ("ещё 5", "", {}),
]


@pytest.mark.parametrize(("reference", "hypothesis", "expected"), CASES)
def test_causes(reference: str, hypothesis: str | None, expected: dict[str, int]) -> None:
    counts = count_classes([reference], [hypothesis], names=["a"])
    assert {name: counts[name] for name in CLASSES if counts[name]} == expected


def test_a_set_adds_up() -> None:
    references, hypotheses, _ = zip(*CASES, strict=True)
    counts = count_classes(references, hypotheses, names=[str(number) for number in range(len(CASES))])
    for name in CLASSES:
        assert counts[name] == sum(expected.get(name, 0) for _, _, expected in CASES), name


def test_words_are_those_of_references_that_were_heard() -> None:
    counts = count_classes(["кто-то тут", "ещё 5", "…"], ["кто", None, "да"], names=["a", "b", "c"])
    assert counts["num_words"] == 2
