from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.manifests import utterance_table, write_jsonl, write_manifests
from harness.core.records import Utterance
from harness.data.filter import error_rates, failures, matching, over_cap
from harness.suite.mix import Criteria
from tests.conftest import artifact

if TYPE_CHECKING:
    from pathlib import Path


def utterance(text: str = "да", **more: object) -> Utterance:
    return Utterance(**{"id": "x", "audio": "x.wav", "sha256": "0" * 64, "text": text, "duration_s": 1.0, **more})


def failing(utterances: list[Utterance], **criteria: object) -> list[bool]:
    """Whether each of some utterances fails the one criterion."""
    (batch,) = utterance_table(utterances).to_batches()
    ((name, mask),) = failures(batch, criteria=Criteria.model_validate(criteria)).items()
    assert name == next(iter(criteria))
    return list(mask)


def test_no_criteria_nothing_fails() -> None:
    (batch,) = utterance_table([utterance()]).to_batches()
    assert failures(batch, criteria=Criteria()) == {}


def test_duration() -> None:
    clips = [utterance(duration_s=seconds) for seconds in (0.49, 0.5, 30.0, 30.01)]
    assert failing(clips, duration_s=[0.5, 30]) == [True, False, False, True]


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("да", 2.0),
        ("да, да!", 4.0),
        ("  кто-то ", 5.0),
        ("дом 17", 5.0),
        ("", 0.0),
        # "й" in two characters is one letter.
        ("\u0438\u0306", 1.0),
        ("ok", 2.0),
    ],
)
def test_characters_per_second_are_letters_and_digits(text: str, rate: float) -> None:
    assert failing([utterance(text)], chars_per_s=[rate, rate]) == [False]
    assert failing([utterance(text, duration_s=2.0)], chars_per_s=[rate / 2, rate / 2]) == [False]
    assert failing([utterance(text)], chars_per_s=[rate + 0.1, 99]) == [True]


@pytest.mark.parametrize(
    ("text", "alphabet", "failed"),
    [
        ("Съешь же ещё этих мягких французских булок, да выпей чаю.", "ru", False),
        ("ЁЖИК — «кто-то»… (да!) \u00a0нет; “так”?", "ru", False),
        ("й и ё".replace("й", "\u0438\u0306").replace("ё", "\u0435\u0308"), "ru", False),
        ("за\u0301мок", "ru", False),
        ("сто 17", "ru", True),
        ("сто 17", "ru+digits", False),
        ("wi-fi", "ru", True),
        ("ії", "ru", True),
        ("10 %", "ru+digits", True),
        ("№", "ru", True),
        ("", "ru", False),
        ("Hello, World", "abcdefghijklmnopqrstuvwxyz", False),
        ("привет", "abcdefghijklmnopqrstuvwxyz", True),
    ],
)
def test_alphabet(text: str, alphabet: str, *, failed: bool) -> None:
    assert failing([utterance(text)], alphabet=alphabet) == [failed]


@pytest.mark.parametrize(
    ("votes", "tags", "failed"),
    [
        ({"min_up": 2}, {"up_votes": "2", "down_votes": "9"}, False),
        ({"min_up": 2}, {"up_votes": "1", "down_votes": "0"}, True),
        ({"max_down": 0}, {"up_votes": "2", "down_votes": "0"}, False),
        ({"max_down": 0}, {"up_votes": "2", "down_votes": "1"}, True),
        ({"min_margin": 2}, {"up_votes": "3", "down_votes": "1"}, False),
        ({"min_margin": 3}, {"up_votes": "3", "down_votes": "1"}, True),
        ({}, {"up_votes": "many", "down_votes": "1"}, True),
        ({}, {"up_votes": "3"}, True),
        ({}, {}, True),
    ],
)
def test_votes(votes: dict, tags: dict[str, str], *, failed: bool) -> None:
    assert failing([utterance(tags=tags)], votes=votes) == [failed]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, [True, True, True]),
        ({"subset": ["crowd"]}, [True, False, False]),
        ({"subset": ["crowd", "farfield"]}, [True, True, False]),
        ({"subset": ["crowd", "farfield"], "speaker": ["ann"]}, [False, True, False]),
        ({"source": ["golos"]}, [True, False, False]),
        ({"noise": ["low"]}, [False, False, False]),
    ],
)
def test_where(where: dict[str, list[str]], expected: list[bool]) -> None:
    clips = [
        utterance(tags={"subset": "crowd"}, source="golos"),
        utterance(tags={"a": "b", "subset": "farfield"}, speaker="ann"),
        utterance(speaker="ann"),
    ]
    (batch,) = utterance_table(clips).to_batches()
    assert list(matching(batch, where=where)) == expected


SPOKEN = st.lists(st.tuples(st.integers(0, 4), st.floats(0.1, 20.0)), min_size=1, max_size=80)
"""Speaker (0: none), seconds."""


@given(spoken=SPOKEN, cap_s=st.floats(0.1, 100.0))
def test_a_cap_holds_for_each_speaker_and_wastes_no_clip(spoken: list[tuple[int, float]], cap_s: float) -> None:
    speakers = np.array([speaker for speaker, _ in spoken], np.uint64)
    seconds = np.array([length for _, length in spoken])
    order = np.random.default_rng(len(spoken)).permutation(len(spoken)).astype(np.uint64)
    over = over_cap(speakers, order=order, seconds=seconds, hours=cap_s / 3600)
    assert not over[speakers == 0].any()
    for speaker in range(1, 5):
        own = speakers == speaker
        kept = seconds[own & ~over].sum()
        assert kept <= cap_s + 1e-3
        if (own & over).any():
            first = np.flatnonzero(own & over)[order[own & over].argmin()]
            assert kept + seconds[first] > cap_s
            assert order[own & ~over].max(initial=0) <= order[first]
    wider = over_cap(speakers, order=order, seconds=seconds, hours=2 * cap_s / 3600)
    assert not (wider & ~over).any()


def test_error_rates(tmp_path: Path) -> None:
    texts = ["кот ест", "Ёлка!", "мышь", "дом", "", "не спрошено"]
    (tmp_path / "d").mkdir()
    write_manifests(tmp_path / "d", [utterance(text, id=str(number)) for number, text in enumerate(texts)])
    heard = [("1", "елка"), ("0", "кит ест"), ("2", None), ("4", "что"), ("5", "не спрошено")]
    (tmp_path / "t").mkdir()
    rows = [{"id": name, "text": text, "wall_s": 0.1, "error": text and "failed"} for name, text in heard]
    write_jsonl(tmp_path / "t" / "transcripts.jsonl", rows)
    chosen = np.array([True] * 5 + [False])
    rates = error_rates(artifact(tmp_path / "d"), chosen=chosen, transcripts=artifact(tmp_path / "t"))
    assert rates[0] == pytest.approx(1 / 7)
    assert rates[1] == 0, "normalised on both sides"
    assert math.isinf(rates[2]), "listening failed"
    assert math.isnan(rates[3]), "nobody listened"
    assert math.isinf(rates[4]), "nothing to compare with"
    assert math.isnan(rates[5]), "not asked for"
