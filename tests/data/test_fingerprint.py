from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from harness.data.fingerprint import BLOCK, HOP, NUM_DIMENSIONS, fingerprint, vectors
from harness.data.near_recordings import MIN_COSINE
from tests.copies import clips, cut


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    first, second = vectors([fingerprint(one) or b"", fingerprint(other) or b""])
    return float(first @ second)


def test_gain_and_whole_frames_of_silence_change_nothing_that_is_heard() -> None:
    clip = cut(3, 0, 5)
    silence = np.zeros(HOP * 40, np.int16)
    assert cosine(clip, np.concatenate([silence, clip, silence])) > 0.999
    assert cosine(clip, clip // 8) > 0.99
    assert cosine(clip, -clip) == pytest.approx(1)


@pytest.mark.parametrize("shift", [1, 50, HOP // 2, HOP - 1])
def test_frames_may_fall_anywhere(shift: int) -> None:
    for number in (1, 2, 3):
        clip = cut(number, 0, 4)
        assert cosine(clip, np.concatenate([np.zeros(shift, np.int16), clip])) > 0.95


def test_long_recordings_are_taken_in_blocks() -> None:
    clip = np.concatenate([samples for samples, _ in clips().values()])[: 100 * 16_000]
    assert len(clip) > 3 * BLOCK * HOP
    silence = np.zeros(BLOCK * HOP // 2 // HOP * HOP, np.int16)
    assert cosine(clip, np.concatenate([silence, clip])) > 0.999, "it may not matter where blocks begin"


def test_different_recordings_of_one_voice_are_far_apart() -> None:
    rows = vectors([fingerprint(samples) or b"" for samples, _ in clips().values()])
    assert len(rows) == 190
    cosines = (rows @ rows.T)[np.triu_indices(190, 1)]
    assert abs(cosines.mean()) < 0.02
    assert cosines.max() < MIN_COSINE


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(0, np.int16),
        np.zeros(64_000, np.int16),
        np.full(1000, 500, np.int16),
        cut(1, 1, 1.25),
    ],
    ids=["empty", "silent", "a click", "a syllable"],
)
def test_too_little_to_tell_recordings_apart(samples: np.ndarray) -> None:
    assert fingerprint(samples) is None


def test_rows_have_length_one() -> None:
    rows = vectors([fingerprint(cut(number, 0, 3)) or b"" for number in (1, 2, 3)])
    assert rows.shape == (3, NUM_DIMENSIONS)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1)
    assert vectors([]).shape == (0, NUM_DIMENSIONS)


@given(
    arrays.arrays(np.int16, st.integers(4800, 6000), elements=st.sampled_from([-32768, -1, 0, 1, 32767])),
    st.integers(0, 9000),
)
def test_anything_has_a_fingerprint_of_one_size_or_none(samples: np.ndarray, silence: int) -> None:
    found = fingerprint(np.concatenate([samples, np.zeros(silence, np.int16)]))
    assert found is None or len(found) == NUM_DIMENSIONS
    assert found is None or np.isfinite(vectors([found])).all()
