from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from harness.data import near_transcripts
from harness.data.near_transcripts import LETTERS_PER_EDIT, TranscriptIndex

TEXT = "засквозняломходилхолодныйветер"


def matches(heldout: list[str], texts: list[str]) -> dict[tuple[int, int], float]:
    """Text and held-out text → score, all of one duration."""
    index = TranscriptIndex(heldout, durations_s=np.full(len(heldout), 2.0))
    found = index.matches(texts, durations_s=np.full(len(texts), 2.0))
    return {(row, owner): score for row, owner, score in zip(*(column.tolist() for column in found), strict=True)}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (TEXT, True),
        (f"и{TEXT}", True),
        (TEXT[1:], True),
        (TEXT[:-1], True),
        (TEXT.replace("ветер", "вечер"), True),
        (TEXT.replace("ветер", "вечор"), False),
        (f"ну{TEXT}", False),
        ("холодныйветер", False),
        ("", False),
    ],
)
def test_one_edit_in_thirty_letters(text: str, found: bool) -> None:
    assert bool(matches([TEXT], [text])) == found


@pytest.mark.parametrize(
    ("length", "edits", "found"),
    [(19, 0, False), (20, 1, True), (39, 1, True), (39, 2, False), (40, 2, True), (60, 3, True)],
)
def test_longer_texts_may_differ_more(length: int, edits: int, found: bool) -> None:
    text = "".join(chr(0x430 + (number * 7) % 32) for number in range(length))
    changed = "".join("z" if number % 15 == 7 and number // 15 < edits else char for number, char in enumerate(text))
    assert Levenshtein.distance(text, changed) == edits
    assert matches([text], [changed]) == ({(0, 0): pytest.approx(1 - edits / length)} if found else {})


@pytest.mark.parametrize(
    ("one", "other", "alike"), [(2, 3, True), (2, 3.1, False), (8, 12, True), (0.5, 1.5, True), (0.5, 1.6, False)]
)
def test_durations_must_be_alike(one: float, other: float, alike: bool) -> None:
    for first, second in ((one, other), (other, one)):
        found = TranscriptIndex([TEXT], durations_s=np.array([first])).matches([TEXT], durations_s=np.array([second]))
        assert (len(found[0]) == 1) == alike


def test_no_texts() -> None:
    assert matches([], [TEXT]) == matches([TEXT], []) == matches(["да"], ["да", TEXT]) == {}


letters = st.text("аб", min_size=18, max_size=70)
edit = st.tuples(st.integers(0, 80), st.sampled_from(["", "а", "б", "в", "аб"]), st.integers(0, 1))


@st.composite
def corpora(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Held-out texts, some with one beginning, and texts that a few edits made of them."""
    start = draw(st.text("аб", max_size=25))
    heldout = draw(st.lists(st.one_of(letters, letters.map(start.__add__)), min_size=1, max_size=6))
    texts = []
    for text, edits in draw(st.lists(st.tuples(st.sampled_from(heldout), st.lists(edit, max_size=4)), max_size=8)):
        changed = text
        for place, new, removed in edits:
            changed = changed[:place] + new + changed[place + removed :]
        texts.append(changed)
    return heldout, texts


@settings(max_examples=300, deadline=None)
@given(corpora(), st.sampled_from([3, near_transcripts.MAX_PAIRS]))
def test_every_pair_is_found_that_a_comparison_of_all_pairs_finds(
    corpus: tuple[list[str], list[str]], max_pairs: int
) -> None:
    heldout, texts = corpus
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_transcripts, "MAX_PAIRS", max_pairs)
        found = matches(heldout, texts)
    assert found.keys() == {
        (row, owner)
        for row, text in enumerate(texts)
        for owner, other in enumerate(heldout)
        if len(other) >= LETTERS_PER_EDIT and Levenshtein.distance(text, other) <= len(other) // LETTERS_PER_EDIT
    }
