from __future__ import annotations

from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from harness.data import near_recordings
from harness.data.fingerprint import NUM_DIMENSIONS, fingerprint, vectors
from harness.data.near_recordings import BLOCK, MIN_COSINE, Candidates, correlation, match, matches, near
from tests.copies import COPIES, cut, same_words

if TYPE_CHECKING:
    from pathlib import Path


def floats(samples: np.ndarray) -> np.ndarray:
    return samples / np.float32(32768)


def test_near_rows_are_found_in_every_block() -> None:
    rng = np.random.default_rng(0)
    heldout = rng.normal(size=(2 * BLOCK[1] + 7, NUM_DIMENSIONS)).astype(np.float32)
    heldout /= np.linalg.norm(heldout, axis=1, keepdims=True)
    rows = rng.normal(size=(BLOCK[0] + 9, NUM_DIMENSIONS)).astype(np.float32)
    planted = [(0, 0), (0, 2 * BLOCK[1] + 6), (BLOCK[0] - 1, BLOCK[1]), (BLOCK[0] + 8, 5)]
    for row, other in planted:
        rows[row] = heldout[other] if not row else heldout[other] + rng.normal(size=NUM_DIMENSIONS) * 0.05
    rows[0] = heldout[0] + heldout[2 * BLOCK[1] + 6]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = [part for block in near(rows, heldout) for part in zip(*(column.tolist() for column in block), strict=True)]
    assert sorted((row, other) for row, other, _ in found) == sorted(planted)
    assert all(cosine == pytest.approx(float(rows[row] @ heldout[other]), abs=1e-5) for row, other, cosine in found)
    assert list(near(rows, heldout[:0])) == list(near(rows[:0], heldout)) == []


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_a_match_and_another_sentence_is_not(copy: str) -> None:
    one, other, rng = cut(3, 0, 4), cut(8, 0, 4), np.random.default_rng(1)
    changed = COPIES[copy](one, rng)
    assert match(floats(changed), floats(one)) == correlation(floats(changed), floats(one)) > 0.35
    assert match(floats(changed), floats(other)) is None
    assert correlation(floats(changed), floats(other)) < 0.12


@pytest.mark.parametrize("margin_s", [0.0, 0.1])
def test_the_same_word_by_the_same_voice_is_no_copy(margin_s: float) -> None:
    num_alike = 0
    for cuts in same_words(margin_s=margin_s).values():
        for (_, one), (_, other) in combinations(cuts, 2):
            rows = vectors(
                [fingerprint(one) or bytes([1] * NUM_DIMENSIONS), fingerprint(other) or bytes([1] * NUM_DIMENSIONS)]
            )
            num_alike += rows[0] @ rows[1] >= MIN_COSINE
            assert match(floats(one), floats(other)) is None
    assert num_alike >= 5, "fingerprints alone take some for copies"


def test_neighbouring_cuts_of_one_recording_are_no_copies() -> None:
    for number in (1, 5, 40):
        cuts = [cut(number, start, start + 2) for start in (0, 2, 4)]
        assert all(match(floats(one), floats(other)) is None for one, other in pairwise(cuts))


def test_silence_matches_nothing() -> None:
    silent = np.zeros(8000, np.float32)
    assert correlation(silent, floats(cut(1, 0, 1))) == correlation(silent, silent) == 0
    assert match(silent, silent) is None


def test_matches_are_read_from_files_in_order(tmp_path: Path) -> None:
    recordings = {"a": cut(1, 0, 3), "b": cut(2, 0, 3), "a-louder": cut(1, 0, 3) * 2}
    for name, samples in recordings.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000)
    pairs = [("a", "b"), ("a-louder", "a"), ("b", "a"), ("a", "a")]
    found = list(matches((tmp_path / f"{one}.wav", tmp_path / f"{other}.wav") for one, other in pairs))
    assert [score is not None for score in found] == [False, True, False, True]
    assert found[3] == pytest.approx(1)


def test_of_too_many_candidates_each_held_out_recording_has_its_best_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_recordings, "MAX_VERIFIED", 4)
    found = Candidates()
    # The held-out recording 7 looks like a hundred others, more than 8 looks like any.
    found.add(np.arange(100), np.full(100, 7), np.linspace(0.8, 0.9, 100, dtype=np.float32))
    found.add(np.array([500, 501]), np.array([8, 8]), np.array([0.6, 0.7], np.float32))
    rows, heldout = found.chosen()
    assert list(zip(rows.tolist(), heldout.tolist(), strict=True)) == [(99, 7), (98, 7), (501, 8), (500, 8)]
    assert found.num_found == 102


def test_the_least_alike_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_recordings, "MAX_KEPT", 10)
    found = Candidates()
    for start in range(0, 40, 4):
        rows = np.arange(start, start + 4)
        found.add(rows, np.zeros(4, np.int64), (0.6 + rows % 20 / 100).astype(np.float32))
    rows, _ = found.chosen()
    assert found.num_found == 40
    assert len(rows) <= 10
    assert {19, 39} <= set(rows.tolist())


def test_no_candidates() -> None:
    assert [len(column) for column in Candidates().chosen()] == [0, 0]
