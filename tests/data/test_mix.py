from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.keys import places
from harness.data.mix import copies, within_hours

SECONDS = st.lists(st.floats(0.1, 30.0), min_size=1, max_size=100)


def order_of(number: int) -> np.ndarray:
    return places([f"clip {index}" for index in range(number)], seed=17)


@given(lengths=SECONDS, share=st.floats(0.01, 0.99))
def test_hours_are_met_within_one_clip(lengths: list[float], share: float) -> None:
    seconds = np.array(lengths)
    wish_s = share * seconds.sum()
    taken = within_hours(order_of(len(seconds)), seconds=seconds, hours=wish_s / 3600)
    total = seconds[taken].sum()
    assert total <= wish_s + 1e-3
    assert total + seconds[~taken].max(initial=0) >= wish_s - 1e-3


@given(lengths=SECONDS, wishes=st.tuples(st.floats(0, 3000), st.floats(0, 3000)))
def test_a_larger_wish_takes_the_same_clips_and_more(lengths: list[float], wishes: tuple[float, float]) -> None:
    seconds, order = np.array(lengths), order_of(len(lengths))
    less, more = (within_hours(order, seconds=seconds, hours=wish_s / 3600) for wish_s in sorted(wishes))
    assert not (less & ~more).any()


@given(lengths=SECONDS, num_new=st.integers(1, 100), wish_s=st.floats(1, 300))
def test_new_clips_only_push_out_the_last_ones(lengths: list[float], num_new: int, wish_s: float) -> None:
    count = len(lengths)
    order = order_of(count + num_new)
    seconds = np.array([*lengths, *[5.0] * num_new])
    before = within_hours(order[:count], seconds=seconds[:count], hours=wish_s / 3600)
    after = within_hours(order, seconds=seconds, hours=wish_s / 3600)[:count]
    assert not (after & ~before).any()
    pushed = before & ~after
    assert not pushed.any() or order[:count][pushed].min() > order[:count][after].max(initial=0)


@pytest.mark.parametrize(("weight", "total"), [(0.3, 3000), (1.0, 10_000), (2.0, 20_000), (2.5, 25_000)])
def test_weights(weight: float, total: int) -> None:
    often = copies(order_of(10_000), weight=weight)
    assert often.sum() == pytest.approx(total, rel=0.05)
    assert set(often.tolist()) == {int(weight), *([int(weight) + 1] if weight % 1 else [])}


def test_a_larger_share_holds_the_smaller_whatever_else_is_there() -> None:
    order = order_of(1000)
    less, more = copies(order, weight=0.2), copies(order, weight=0.5)
    assert not (less > more).any()
    assert list(copies(order[:300], weight=0.2)) == list(less[:300])
