"""Long recordings are cut in pauses, and nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.score.chunks import split

RATE = 16_000


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(0, 5 * RATE),
    max_s=st.floats(0.01, 1.5),
    seed=st.integers(0, 2**32 - 1),
    silent=st.booleans(),
)
def test_pieces_cover_every_sample_once(num_samples, max_s, seed, silent):
    samples = np.random.default_rng(seed).standard_normal(num_samples).astype(np.float32) * (not silent)
    pieces = split(samples, max_s=max_s)
    assert np.array_equal(np.concatenate(pieces), samples)
    assert max(len(piece) for piece in pieces) <= max_s * RATE
    assert all(len(piece) for piece in pieces) or not num_samples
    assert all(len(piece) >= int(max_s * RATE) * 2 // 3 for piece in pieces[:-1])


@pytest.mark.parametrize(("seconds", "num_pieces"), [(0.5, 1), (30, 1), (30.001, 2), (45, 2)])
def test_up_to_30_s_stay_whole(seconds, num_pieces):
    assert len(split(np.ones(int(seconds * RATE), np.float32))) == num_pieces


def test_the_cut_falls_into_the_pause():
    samples = np.random.default_rng(0).standard_normal(40 * RATE).astype(np.float32)
    samples[5 * RATE : 6 * RATE] = 0  # before the last third
    samples[26 * RATE : int(26.05 * RATE)] = 0  # a stop consonant
    samples[int(23.7 * RATE) : int(24.1 * RATE)] *= 0.01
    first, second = split(samples)
    assert 23.75 * RATE <= len(first) <= 24.05 * RATE
    assert len(first) + len(second) == 40 * RATE


def test_a_pause_after_loud_noise_is_found():
    samples = np.full(31 * RATE, 1e-4, np.float32)
    samples[: 22 * RATE] = 1.0
    samples[25 * RATE : 26 * RATE] = 0
    assert 25 * RATE <= len(split(samples)[0]) <= 26 * RATE
