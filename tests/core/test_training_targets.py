from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.targets import left_out, target_text
from harness.suite.model import TextPolicy
from harness.train.whisper import Training
from tests.conftest import AELITA

AS_IS, LOWER, CASED = (TextPolicy(case=case) for case in ("as_is", "lower", "cased"))
WORDS = TextPolicy(digits="words")
ROWS = [json.loads(line) for line in (AELITA / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_default_leaves_the_shipped_transcripts_as_they_are() -> None:
    texts = [row["text"] for row in ROWS]
    assert len(texts) == 190
    assert [target_text(text, Training().text) for text in texts] == texts


CLEANED = [
    # What a corpus writes stays.
    ("Кто-то сказал: «Ёлка!» — и ушёл…", "Кто-то сказал: «Ёлка!» — и ушёл…"),
    ("  привет \t как\u00a0дела\n", "привет как дела"),
    ("мои\u0306 Е\u0308лка", "мой Ёлка"),
    ("caf\u00e9 cafe\u0301", "caf\u00e9 caf\u00e9"),
    ("C++ и 2+2, Google+ это", "C++ и 2+2, Google+ это"),
    ("если a < b и c > d", "если a < b и c > d"),
    ("он (Иван) *ушёл*", "он (Иван) *ушёл*"),
    # Stress.
    ("за\u0301мок и замо\u0341к", "замок и замок"),
    ("о\u0300колозе\u0301мный ѐ Ѝ", "околоземный е И"),
    ("и\u0301\u0306", "й"),
    ("з+амок +Аня", "замок Аня"),
    # Markup, with the space and the comma that it leaves.
    ("<b>да</b> <unk>", "да"),
    ("<|endoftext|> да <|ru|>", "да"),
    ("да<br/>нет", "да нет"),
    ("Да [шум], нет [UNK].", "Да, нет."),
    ("[смех], да, [шум], нет", "да, нет"),
    ("{кашель} да (смех) *вздох* ( Музыка. ) нет ⁇", "да нет"),
    ("[[шум] громко] да", "да"),
    ("кор\u00adре\u200bспондент\ufeff", "корреспондент"),
    # The first of the wordings that a reference allows.
    ("В {две тысячи|2000} году", "В две тысячи году"),
    ("{|Ну,} да {кашель}", "да"),
]


@pytest.mark.parametrize(("text", "expected"), CLEANED)
def test_always(text: str, expected: str) -> None:
    assert target_text(text, AS_IS) == expected


@pytest.mark.parametrize("text", ["в {две тысячи|2000 году", "{да|{нет|ну}}", "да {|}"])
def test_wordings_in_braces_that_do_not_match_teach_nothing(text: str) -> None:
    assert target_text(text, AS_IS) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Кто-то сказал: «Ёлка!» — и ушёл…", "кто то сказал ёлка и ушёл"),
        ("Это iPhone 5, №2", "это iphone 5 2"),
        ("о'кей", "о кей"),
    ],
)
def test_lower(text: str, expected: str) -> None:
    assert target_text(text, LOWER) == expected


@pytest.mark.parametrize(
    ("text", "teaches"),
    [
        ("Да.", True),
        ("Джой начни тренировку", True),
        ("да, конечно", True),
        ("да — нет", True),
        # Golos, OpenSTT.
        ("джой начни тренировку", False),
        ("по-моему о'кей 5", False),
        # Capitals alone say as little as none.
        ("ДЖОЙ, НАЧНИ ТРЕНИРОВКУ", False),
        # What is left after the markup decides.
        ("[Шум] да <unk>", False),
    ],
)
def test_cased_takes_only_what_can_teach_it(text: str, *, teaches: bool) -> None:
    assert target_text(text, CASED) == (text if teaches else None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("в 1943 году, в 12:30", "в тысяча девятьсот сорок три году, в двенадцать тридцать"),
        ("«5-й» дом (1 000 кг).", "«пятый» дом (тысяча кг)."),
        ("5-6 раз, 12.05.2020", "пять-шесть раз, двенадцать ноль пять две тысячи двадцать"),
        ("1,5кг", "одна целая пять десятых кг"),
    ],
)
def test_digits_to_words(text: str, expected: str) -> None:
    assert target_text(text, WORDS) == expected


def test_yo() -> None:
    assert target_text("Ёлка ещё е\u0308", TextPolicy(yo="fold")) == "Елка еще е"
    assert target_text("Ёлка", TextPolicy(case="lower", yo="fold", digits="words")) == "елка"


@pytest.mark.parametrize("text", ["", "  ", "...", "[шум]", "<unk> — (смех)", "«»\u0301"])
@pytest.mark.parametrize("policy", [AS_IS, LOWER, CASED], ids=lambda policy: policy.case)
def test_nothing_is_left(text: str, policy: TextPolicy) -> None:
    assert target_text(text, policy) is None


TRICKY = st.text(alphabet="аЯеёий +<>[]{}()*|/.,:-—5№²\u0301\u0306\u0308\u00ad\u200b⁇шумb", max_size=2 * 16)
POLICIES = st.builds(
    TextPolicy,
    case=st.sampled_from(["as_is", "lower", "cased"]),
    yo=st.sampled_from(["keep", "fold"]),
    digits=st.sampled_from(["keep", "words"]),
)


@given(text=st.one_of(TRICKY, st.text()), policy=POLICIES)
def test_twice_is_once(text: str, policy: TextPolicy) -> None:
    once = target_text(text, policy)
    if once is not None and policy.case != "cased":
        assert target_text(once, policy) == once


@given(text=st.one_of(TRICKY, st.text()), policy=POLICIES)
def test_targets_are_clean(text: str, policy: TextPolicy) -> None:
    target = target_text(text, policy)
    if target is None:
        return
    assert target == unicodedata.normalize("NFC", target)
    assert target == " ".join(target.split())
    assert not set(target) & set("\u0300\u0301\u00ad\u200b")
    assert policy.yo == "keep" or not set(target) & set("ёЁ")
    assert policy.digits == "keep" or not any(map(str.isdecimal, target))
    if policy.case == "lower":
        assert all(char == " " or unicodedata.category(char)[0] in "LMN" for char in target)


@given(text=TRICKY, policy=POLICIES)
def test_forms_of_unicode_do_not_matter(text: str, policy: TextPolicy) -> None:
    assert target_text(unicodedata.normalize("NFD", text), policy) == target_text(text, policy)


def test_what_was_left_out_is_said() -> None:
    assert left_out(0, of="train", policy=CASED) == []
    assert left_out(3, of="train", policy=LOWER) == ["3 train clips have no words to train on, and were left out"]
    (cased,) = left_out(3, of="dev", policy=CASED)
    assert cased.startswith("3 dev clips have no words to train on, or neither capitals nor punctuation to learn")
