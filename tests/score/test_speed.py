"""Real-time factor and latency against hand-made tables."""

from __future__ import annotations

import pytest

from harness.core.records import Transcript
from harness.score.speed import latency_ms, rtf


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
