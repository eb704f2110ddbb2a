from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.durations import Durations


@given(st.dictionaries(st.text(), st.floats(min_value=0.125, max_value=1000, width=32)), st.text())
def test_every_name_is_found_and_no_other(listed: dict[str, float], other: str) -> None:
    durations = Durations(listed.items())
    assert len(durations) == len(listed)
    places = {name: durations.find(name) for name in listed}
    assert sorted(place for place in places.values() if place is not None) == list(range(len(listed)))
    assert {name: durations.seconds(place) for name, place in places.items() if place is not None} == listed
    assert (durations.find(other) is not None) == (other in listed)


def test_looking_up_takes_as_long_in_a_large_table() -> None:
    def wall_s(size: int) -> float:
        durations = Durations((str(number), 1.0) for number in range(size))
        best = 1e9
        for _ in range(3):
            started = time.perf_counter()
            for number in range(2_000):
                durations.find(str(number))
            best = min(best, time.perf_counter() - started)
        return best

    # A search by halves: 9 more steps for 500 times the names. Looking at every name would take 500 times as long.
    assert wall_s(200_000) < 10 * wall_s(400)


def test_names_that_no_text_can_have() -> None:
    durations = Durations([("a\ud800", 2.0)])
    place = durations.find("a\ud800")
    assert place is not None
    assert durations.seconds(place) == pytest.approx(2.0)
