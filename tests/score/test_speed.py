"""Real-time factor, latency and throughput against hand-made tables and known costs."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.records import Transcript
from harness.score.speed import MIN_GAIN, bucket, buckets, figures, latency_ms, rtf, spread, sweep


def transcripts(*walls_s: float | None) -> list[Transcript]:
    """Utterances "0", "1", … with these times; None is a failure that took 9 s."""
    return [
        Transcript(str(n), "да", wall_s) if wall_s is not None else Transcript(str(n), None, 9.0, error="ValueError: x")
        for n, wall_s in enumerate(walls_s)
    ]


@pytest.mark.parametrize(
    ("walls_s", "durations_s", "expected"),
    [
        ([1.0, 1.0], [2.0, 8.0], 0.2),  # of the set, not the mean of 0.5 and 0.125
        ([1.0, None], [4.0, 100.0], 0.25),  # a failure counts on neither side
        ([3.0], [2.0], 1.5),
        ([None], [2.0], None),
        ([], [], None),
        ([0.1], [0.0], None),
    ],
)
def test_rtf(walls_s, durations_s, expected):
    durations = {str(n): value for n, value in enumerate(durations_s)}
    assert rtf(transcripts(*walls_s), duration_s=durations) == expected


@pytest.mark.parametrize(
    ("walls_s", "percentile", "expected"),
    [
        ([0.3, 0.1, 0.2], 50, 200.0),
        ([0.1, 0.2], 50, 150.0),
        ([0.1, 0.2], 95, 195.0),
        ([0.1, 0.2, None], 100, 200.0),
        ([0.4], 95, 400.0),
        ([None, None], 50, None),
        ([], 50, None),
    ],
)
def test_latency(walls_s, percentile, expected):
    assert latency_ms(transcripts(*walls_s), percentile=percentile) == (expected and pytest.approx(expected))


@pytest.mark.parametrize(
    ("duration_s", "expected"),
    [(0.0, 0), (0.5, 0), (2.999, 0), (3.0, 1), (9.999, 1), (10.0, 2), (29.99, 2), (30.0, 3), (3600.0, 3)],
)
def test_the_edges_of_the_buckets(duration_s, expected):
    assert bucket(duration_s) == expected


def test_every_clip_counts_in_its_bucket_alone():
    heard = [(duration_s, Transcript("same id", "да", duration_s / 10)) for duration_s in (1.0, 2.0, 3.0, 12.0, 45.0)]
    found = buckets([*heard, (50.0, Transcript("x", None, 9.0, error="ValueError: x"))])
    assert [(item["from_s"], item["to_s"], item["num_clips"]) for item in found] == [
        (0.0, 3.0, 2),
        (3.0, 10.0, 1),
        (10.0, 30.0, 1),
        (30.0, None, 2),
    ]
    first = {"rtf": 0.1, "latency_p50_ms": 150, "latency_p95_ms": 195, "latency_p99_ms": 199}
    assert {name: found[0][name] for name in first} == pytest.approx(first)
    assert found[3]["latency_p99_ms"] == pytest.approx(4500), "a failure has no latency"
    assert figures([]) == dict.fromkeys(first)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([2.0, 2.0], 0.0), ([1.0, 2.0, 4.0], 1.5), ([4.0, 1.0, 2.0], 1.5), ([1.0, 3.0], 1.0), ([2.0], None)],
)
def test_spread(values, expected):
    assert spread(values) == expected


@given(st.floats(0, 100), st.floats(0.001, 10), st.integers(1, 300))
def test_the_best_batch_of_a_known_cost(per_call_s, per_clip_s, largest):
    """A call costs something, and each clip in it; of batches so large that the call costs nothing, 5 % are near."""

    def throughput_x(size):
        return size / (per_call_s + size * per_clip_s)

    found = sweep(lambda size: {"throughput_x": throughput_x(size)}, single_x=throughput_x(1), largest=largest)
    assert [item["batch"] for item in found] == [2**power for power in range(len(found))]
    assert found[-1]["batch"] <= largest
    rates = [item["throughput_x"] for item in found]
    assert all(after >= before * (1 + MIN_GAIN) for before, after in pairwise(rates[:-1]))
    if 2 * found[-1]["batch"] <= largest:
        assert rates[-1] < rates[-2] * (1 + MIN_GAIN), "it stopped although more was to gain"
        assert max(rates) > 0.94 / per_clip_s


def test_a_batch_that_does_not_fit_ends_the_sweep():
    def measure(size):
        if size > 4:
            raise MemoryError("8 clips")
        return {"throughput_x": float(size)}

    assert sweep(measure, single_x=1.0, largest=64) == [
        {"batch": 1, "throughput_x": 1.0},
        {"batch": 2, "throughput_x": 2.0},
        {"batch": 4, "throughput_x": 4.0},
        {"batch": 8, "throughput_x": None, "error": "MemoryError: 8 clips"},
    ]


def test_a_batch_that_gains_too_little_is_the_last():
    rates = {2: 1.5, 4: 1.56, 8: 99.0}
    found = sweep(lambda size: {"throughput_x": rates[size]}, single_x=1.0, largest=64)
    assert [item["batch"] for item in found] == [1, 2, 4]
