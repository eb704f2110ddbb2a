from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.core.manifests import read_jsonl
from harness.errors import DataError
from harness.train.tokenizer import ALPHABET, config_vocabulary, missing_letters, model_vocabulary, train_tokenizer
from tests.conftest import AELITA

TEXTS = [row["text"] for row in read_jsonl(AELITA / "manifest.jsonl")]


@pytest.mark.parametrize(
    ("tokens", "missing"),
    [
        (list(ALPHABET), ""),
        (["▁АБВГДЕЖЗИЙКЛМНОП", "рстуфхцчшщъыьэюя"], ""),
        (["▁the", "ing", "s"], ALPHABET),
        ([letter for letter in ALPHABET if letter not in "ъщ"], "щъ"),
        (["<0xD0>", "<0xB0>"], ""),
        ([], ALPHABET),
    ],
)
def test_the_letters_that_no_token_writes(tokens: list[str], missing: str) -> None:
    assert missing_letters(tokens) == missing


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"joint": {"vocabulary": ["а", "б"]}}, ["а", "б"]),
        ({"decoder": {"vocabulary": ["а"]}}, ["а"]),
        ({"labels": ["г"], "joint": None}, ["г"]),
        ({"decoder": {"vocab_size": 3}}, []),
    ],
)
def test_the_tokens_that_a_configuration_lists(config: dict[str, object], tokens: list[str]) -> None:
    assert config_vocabulary(config) == tokens


def test_a_trained_tokenizer_writes_the_texts_back(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    folder = train_tokenizer(TEXTS, vocab_size=200, folder=tmp_path / "tokenizer")
    tokenizer = SentencePieceProcessor(str(folder / "tokenizer.model"))
    assert tokenizer.vocab_size() == 200
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == TEXTS
    assert (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.unk_id()) == (-1, -1, 0)
    pieces = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert pieces == [tokenizer.id_to_piece(place) for place in range(1, 200)]
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer"}


def test_the_same_texts_give_the_same_tokenizer(tmp_path: Path) -> None:
    models = [
        (train_tokenizer(TEXTS, vocab_size=100, folder=tmp_path / name) / "tokenizer.vocab").read_bytes()
        for name in ("a", "b", "a")
    ]
    assert models[0] == models[1] == models[2]


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        (
            TEXTS,
            90_000,
            r"tokenizer of 90000 tokens: Vocabulary size too high .* value <= \d+; change tokenizer.vocab_size",
        ),
        (TEXTS, 20, r"tokenizer of 20 tokens: Vocabulary size is smaller than required_chars. 20 vs \d+"),
        ([], 100, "tokenizer of 100 tokens: there are no texts; change"),
    ],
)
def test_a_tokenizer_that_the_texts_do_not_give_is_an_error(
    texts: list[str], vocab_size: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        train_tokenizer(texts, vocab_size=vocab_size, folder=tmp_path / "tokenizer")


def test_a_model_of_several_languages_is_told_that_it_writes_russian() -> None:
    heard = []

    def text_to_ids(text: str, language: str) -> list[int]:
        heard.append((text, language))
        return [1, 2]

    tokenizer = SimpleNamespace(langs=["en", "ru"], text_to_ids=text_to_ids)
    model = SimpleNamespace(tokenizer=tokenizer, decoder=SimpleNamespace(vocabulary=["<unk>", "▁да"]))
    vocabulary = model_vocabulary(model)
    assert (vocabulary.encode("да"), vocabulary.letters) == ([1, 2], frozenset("да"))
    assert heard == [("да", "ru")]
