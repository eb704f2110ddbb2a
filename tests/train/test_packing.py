"""Packing as properties: what every window of every epoch holds to, whatever the clips."""

from __future__ import annotations

import hashlib
import json
import math
import random
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.train.packing import MAX_TOKENS, Packing, Window, epoch_size, grid_steps, windows
from tests.conftest import AELITA

NUM_SAMPLES = st.one_of(st.integers(1_600, 480_000), st.sampled_from([16_000, 160_000, 480_000, 319, 321]))
CLIPS = st.lists(st.tuples(NUM_SAMPLES.map(lambda samples: samples / 16_000), st.integers(1, 441)), min_size=1)
PACKINGS = st.builds(
    Packing,
    window_s=st.one_of(st.floats(1.0, 30.0), st.just(30.0)),
    timestamps=st.floats(0, 1),
    singles=st.floats(0, 1),
    prompts=st.floats(0, 1),
)


def epochs(clips: list[tuple[float, int]], packing: Packing, *, seed: int, count: int = 2) -> list[list[Window]]:
    """The first epochs: in each, a clip comes once in a packed window, and some once more alone."""
    durations_s, tokens = [clip[0] for clip in clips], [clip[1] for clip in clips]
    endless = windows(durations_s, tokens, packing=packing, seed=seed)
    found: list[list[Window]] = []
    for _ in range(count):
        left = len(clips) + round(packing.singles * len(clips))
        found.append([])
        while left:
            found[-1].append(next(endless))
            left -= len(found[-1][-1].clips)
        assert left == 0
    return found


@settings(deadline=None)  # the first call imports numpy
@given(CLIPS, PACKINGS, st.integers(0, 5))
def test_every_epoch_has_every_clip_once_and_the_declared_singles(
    clips: list[tuple[float, int]], packing: Packing, seed: int
) -> None:
    for epoch in epochs(clips, packing, seed=seed):
        indices = [index for window in epoch for index in window.clips]
        assert set(indices) == set(range(len(clips)))
        assert len(indices) - len(clips) == round(packing.singles * len(clips))
        again = [index for index in set(indices) if indices.count(index) > 1]
        alone = {window.clips[0] for window in epoch if len(window.clips) == 1}
        assert set(again) <= alone
        assert len(again) == round(packing.singles * len(clips)), "a clip comes alone once"


@settings(deadline=None)  # the first call imports numpy
@given(CLIPS, PACKINGS, st.integers(0, 5))
def test_no_window_is_over_its_limits(clips: list[tuple[float, int]], packing: Packing, seed: int) -> None:
    for window in (window for epoch in epochs(clips, packing, seed=seed) for window in epoch):
        num_samples = sum(round(clips[index][0] * 16_000) for index in window.clips)
        assert len(window.clips) == 1 or num_samples <= packing.window_s * 16_000 * (1 + 1e-9)
        # The last timestamp, on the grid that each clip is padded to, is no later than <|30.00|>.
        assert sum(math.ceil(round(clips[index][0] * 16_000) / 320) for index in window.clips) <= 1_500
        assert 5 + sum(clips[index][1] + 2 for index in window.clips) <= MAX_TOKENS


@settings(deadline=None)  # the first call imports numpy
@given(CLIPS, PACKINGS, st.integers(0, 5))
def test_prompts_are_the_window_before_and_change_nothing_else(
    clips: list[tuple[float, int]], packing: Packing, seed: int
) -> None:
    prompted = epochs(clips, packing, seed=seed)
    plain = epochs(clips, packing.model_copy(update={"prompts": 0.0}), seed=seed)
    for epoch, without in zip(prompted, plain, strict=True):
        assert [(item.clips, item.timestamps) for item in epoch] == [(item.clips, item.timestamps) for item in without]
        assert not any(window.prompt for window in without)
        packed = {window.clips for window in epoch}
        for window in epoch:
            assert not window.prompt or window.prompt in packed
            assert not set(window.prompt) & set(window.clips), "a window whose own text stands before it"


@given(st.integers(1, 480_000))
def test_the_grid_holds_a_whole_clip(num_samples: int) -> None:
    assert (grid_steps(num_samples / 16_000) - 1) * 320 < num_samples <= grid_steps(num_samples / 16_000) * 320


def test_the_same_seed_gives_the_same_windows_and_each_epoch_another_packing() -> None:
    clips = [(3.0 + index % 7, 12) for index in range(40)]
    packing = Packing(singles=0.0, prompts=0.5)
    first, second = epochs(clips, packing, seed=1)
    assert [first, second] == epochs(clips, packing, seed=1)
    assert [first, second] != epochs(clips, packing, seed=2)
    assert {frozenset(window.clips) for window in first} != {frozenset(window.clips) for window in second}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("field", "what"), [("timestamps", "timestamps"), ("prompts", "prompt")])
def test_the_declared_share_of_windows_has_it(field: str, what: str, share: float) -> None:
    packing = Packing(**{"singles": 0.0, field: share})
    found = [window for epoch in epochs([(10.0, 10)] * 400, packing, seed=3, count=10) for window in epoch]
    count = sum(bool(getattr(window, what)) for window in found)
    # Five standard deviations of so many draws. The first window of an epoch has none before it.
    assert abs(count - share * len(found)) <= 5 * math.sqrt(share * (1 - share) * len(found)) + 10 * share


def test_singles_are_the_declared_share_of_clips() -> None:
    packing = Packing(timestamps=1.0, singles=0.25, prompts=1.0)
    (epoch,) = epochs([(10.0, 10)] * 80, packing, seed=3, count=1)
    singles = [window for window in epoch if len(window.clips) == 1]
    assert len(singles) == 20
    assert all(not window.prompt for window in singles)
    assert len(epoch) == epoch_size([10.0] * 80, [10] * 80, packing=packing) == 40 + 20  # two clips of 10 s to 29.5 s


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_singles_have_timestamps_as_often_as_packed_windows(share: float) -> None:
    (epoch,) = epochs([(10.0, 10)] * 400, Packing(timestamps=share, singles=1.0), seed=3, count=1)
    singles = [window for window in epoch if len(window.clips) == 1]
    assert abs(sum(window.timestamps for window in singles) - share * 400) <= 5 * math.sqrt(share * (1 - share) * 400)


def test_without_packing_each_clip_is_a_window_without_timestamps() -> None:
    found = list(islice(windows([1.0] * 5, [3] * 5, packing=None, seed=1), 5))
    assert sorted(window.clips for window in found) == [(index,) for index in range(5)]
    assert not any(window.timestamps or window.prompt for window in found)
    assert epoch_size([1.0] * 5, [3] * 5, packing=None) == 5


@pytest.mark.parametrize(
    ("durations_s", "window_s", "expected"),
    [
        ([10.0] * 3, 30.0, [3]),  # exactly full
        ([10.0] * 3, 29.5, [1, 2]),
        ([0.1] * 300, 30.0, [79, 221]),  # 221 clips have 2 timestamps each; the text context has 448 tokens
        # 200 clips of 9.001 steps each take 2,000 steps of 20 ms, and 30 s have 1,500.
        ([9 * 0.02 + 1 / 16_000] * 200, 30.0, [50, 150]),
        ([20.0, 20.0], 10.0, [1, 1]),  # longer than the window: to itself
    ],
)
def test_how_many_clips_share_a_window(durations_s: list[float], window_s: float, expected: list[int]) -> None:
    packing = Packing(window_s=window_s, singles=0.0)
    (epoch,) = epochs([(duration_s, 0) for duration_s in durations_s], packing, seed=1, count=1)
    assert sorted(len(window.clips) for window in epoch) == expected


@pytest.mark.parametrize(("shortest_s", "longest_s"), [(3.0, 6.0), (1.0, 7.0), (2.0, 20.0)])
def test_windows_are_full(shortest_s: float, longest_s: float) -> None:
    rng = random.Random(0)
    durations_s = [rng.uniform(shortest_s, longest_s) for _ in range(2_000)]
    num_windows = epoch_size(durations_s, [20] * 2_000, packing=Packing(singles=0.0, timestamps=0.0))
    assert sum(durations_s) / num_windows >= 0.98 * 29.5


def test_windows_with_timestamps_end_at_different_places() -> None:
    """Or the model would learn the end of a window for the end of speech."""
    rng = random.Random(0)
    clips = [(rng.uniform(3.0, 6.0), 20) for _ in range(2_000)]
    (epoch,) = epochs(clips, Packing(singles=0.0, timestamps=0.5), seed=1, count=1)
    lengths_s = {
        timestamps: [sum(clips[index][0] for index in item.clips) for item in epoch if item.timestamps is timestamps]
        for timestamps in (False, True)
    }
    assert sorted(lengths_s[False])[1] > 29, "all are full, but the last one"
    shares = [
        sum(low <= length < low + 1 for length in lengths_s[True]) / len(lengths_s[True]) for low in range(25, 29)
    ]
    assert min(shares) > 0.05, "each of the last seconds ends some of them"


def test_the_text_context_is_the_models() -> None:
    durations_s, tokens = [1.0] * 20, [100] * 20
    for max_tokens, fitting in ((448, 4), (224, 2)):
        found = windows(durations_s, tokens, packing=Packing(singles=0.0), seed=1, max_tokens=max_tokens)
        assert {len(window.clips) for window in islice(found, 5)} == {fitting}
        assert epoch_size(durations_s, tokens, packing=Packing(singles=0.0), max_tokens=max_tokens) == 20 / fitting


@pytest.mark.parametrize(("said", "meant"), [(True, 0.5), (False, 0.0), (1, 1.0), (0.25, 0.25)])
def test_timestamps_are_a_share_or_a_switch(said: bool | float, meant: float) -> None:
    packing = Packing.model_validate({"window_s": 30, "timestamps": said})
    assert packing.timestamps == meant
    assert packing.identity() == Packing(window_s=30.0, timestamps=meant).identity()


@pytest.mark.parametrize("said", ["true", 1.5, -0.1, None])
def test_other_timestamps_are_refused(said: object) -> None:
    with pytest.raises(ValidationError, match="timestamps"):
        Packing.model_validate({"timestamps": said})


def test_suites_without_prompts_keep_their_windows() -> None:
    """What the quickstart's packing gives of the shipped clips' durations."""
    quickstart = Packing(window_s=29.5, timestamps=0.5, singles=0.2)
    rows = [json.loads(line) for line in (AELITA / "manifest.jsonl").read_text("utf-8").splitlines()]
    durations_s, tokens = [row["duration"] for row in rows], [len(row["text"]) // 2 for row in rows]
    found = islice(windows(durations_s, tokens, packing=quickstart, seed=17), 500)
    digest = hashlib.sha256(json.dumps([[window.clips, window.timestamps] for window in found]).encode()).hexdigest()
    assert digest == "12be2edd555e040ceb3ecae0e2426588646ee4a1556ee90c9064a76b25c99c84"
