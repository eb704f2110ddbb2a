from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.train.packing import MAX_LABEL_TOKENS, Packing, Window, epoch_size, windows

CLIPS = st.lists(st.tuples(st.floats(0.1, 29.0), st.integers(1, 200)), min_size=1, max_size=60)


def first_epoch(durations_s: list[float], tokens: list[int], packing: Packing, seed: int) -> list[Window]:
    """Windows until every clip has come, which no singles can blur: they are switched off."""
    found: list[Window] = []
    for window in windows(durations_s, tokens, packing=packing, seed=seed):
        found.append(window)
        if sum(len(item.clips) for item in found) == len(durations_s):
            return found
    raise AssertionError


@given(CLIPS, st.integers(0, 5))
def test_an_epoch_has_every_clip_once_in_windows_that_fit(clips: list[tuple[float, int]], seed: int) -> None:
    durations_s, tokens = [clip[0] for clip in clips], [clip[1] for clip in clips]
    packing = Packing(window_s=29.5, timestamps=0.5, singles=0.0)
    epoch = first_epoch(durations_s, tokens, packing, seed)
    assert sorted(index for window in epoch for index in window.clips) == list(range(len(clips)))
    for window in epoch:
        assert len(window.clips) == 1 or sum(durations_s[index] for index in window.clips) <= 29.5
        assert 5 + sum(tokens[index] + 2 for index in window.clips) <= MAX_LABEL_TOKENS


def test_the_same_seed_gives_the_same_windows_and_each_epoch_another_packing() -> None:
    durations_s, tokens = [3.0 + index % 7 for index in range(40)], [12] * 40
    packing = Packing(singles=0.0)
    size = len(first_epoch(durations_s, tokens, packing, 1))
    several = list(islice(windows(durations_s, tokens, packing=packing, seed=1), 3 * size))
    assert several == list(islice(windows(durations_s, tokens, packing=packing, seed=1), 3 * size))
    assert several != list(islice(windows(durations_s, tokens, packing=packing, seed=2), 3 * size))
    assert several[:size] != several[size : 2 * size]


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0.0, 0.0), (0.5, 0.4, 0.6), (1.0, 1.0, 1.0)])
def test_the_declared_share_of_windows_has_timestamps(share: float, low: float, high: float) -> None:
    packing = Packing(timestamps=share, singles=0.0)
    found = list(islice(windows([10.0] * 200, [10] * 200, packing=packing, seed=3), 400))
    assert low <= sum(window.timestamps for window in found) / len(found) <= high


def test_singles_are_the_declared_share_of_clips_without_timestamps() -> None:
    packing = Packing(timestamps=1.0, singles=0.25)
    count = epoch_size([10.0] * 80, [10] * 80, packing=packing)
    epoch = list(islice(windows([10.0] * 80, [10] * 80, packing=packing, seed=3), count))
    singles = [window for window in epoch if not window.timestamps]
    assert len(singles) == 20
    assert all(len(window.clips) == 1 for window in singles)
    assert count == 40 + 20  # two clips of 10 s to a window of 29.5 s


def test_without_packing_each_clip_is_a_window_without_timestamps() -> None:
    found = list(islice(windows([1.0] * 5, [3] * 5, packing=None, seed=1), 5))
    assert sorted(window.clips for window in found) == [(index,) for index in range(5)]
    assert not any(window.timestamps for window in found)
    assert epoch_size([1.0] * 5, [3] * 5, packing=None) == 5
