from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.artifact import Artifact, Work
from harness.engine.search import num_kept
from harness.errors import MissingError
from harness.train.rung import Spec, run, survives


def trial(key: str, dev_wer: float | None, dev_loss: float | None = 1.0) -> Artifact:
    return Artifact(key, "train", Path(key), {}, {"dev_wer": dev_wer, "dev_loss": dev_loss})


def judged(trials: list[Artifact], work: Work, *, keep: float = 0.5) -> dict:
    return run(Spec(step=500, keep=keep), {"trials": trials}, work)


def test_the_best_go_on(work: Work) -> None:
    found = judged([trial(key, wer) for key, wer in zip("abcdef", (0.5, 0.2, 0.4, 0.1, 0.6, 0.3), strict=True)], work)
    assert found["survivors"] == ["d", "b", "f"]
    assert [(item["key"], item["place"], item["kept"]) for item in found["places"]] == [
        ("d", 1, True), ("b", 2, True), ("f", 3, True), ("c", 4, False), ("a", 5, False), ("e", 6, False),
    ]  # fmt: skip
    assert found["step"] == 500
    assert [item["dev_wer"] for item in found["places"]] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


def test_of_equal_wers_the_lower_loss_is_better_and_they_do_not_all_pass(work: Work) -> None:
    trials = [trial("a", 0.2, 3.0), trial("b", 0.2, 1.0), trial("c", 0.2, None), trial("d", 0.2, 2.0)]
    assert judged(trials, work)["survivors"] == ["b", "d"]
    same = [trial(key, 0.2) for key in "dcba"]
    assert judged(same, work)["survivors"] == ["a", "b"]


def test_what_broke_comes_last_and_somebody_always_stays(work: Work) -> None:
    assert judged([trial("a", None, None), trial("b", 0.9, math.nan)], work)["survivors"] == ["b"]
    assert judged([trial("a", None, None), trial("b", None, None)], work)["survivors"] == ["a"]
    assert judged([trial("a", 0.5)], work, keep=0.01)["survivors"] == ["a"]


@settings(deadline=None, max_examples=60)
@given(
    wers=st.lists(st.floats(0, 2), min_size=1, max_size=30),
    keep=st.integers(1, 99).map(lambda percent: percent / 100),
    shuffle=st.randoms(use_true_random=False),
)
def test_the_order_of_the_trials_does_not_count(wers: list[float], keep: float, shuffle: random.Random) -> None:
    trials = [trial(f"{place:02}", wer) for place, wer in enumerate(wers)]
    work = Work(path=Path("out"), scratch=Path("scratch"))
    found = judged(trials, work, keep=keep)
    mixed = list(trials)
    shuffle.shuffle(mixed)
    assert judged(mixed, work, keep=keep) == found
    kept = [item for item in found["places"] if item["kept"]]
    # What `harness plan` promises.
    assert 1 <= len(kept) <= num_kept(len(wers), keep=keep) <= max(1, math.ceil(keep * len(wers)))
    assert max(item["dev_wer"] for item in kept) <= min(
        (item["dev_wer"] for item in found["places"] if not item["kept"]), default=math.inf
    )


@pytest.mark.parametrize(
    ("num_trials", "keep", "expected"),
    [(8, 0.5, 4), (4, 0.5, 2), (2, 0.5, 1), (3, 0.5, 2), (8, 0.25, 2), (10, 0.3, 3),
     (9, 0.9, 8), (2, 0.99, 1), (1, 0.1, 1)],
)  # fmt: skip
def test_how_many_go_on(num_trials: int, keep: float, expected: int) -> None:
    assert sum(survives(range(1, num_trials + 1), keep=keep)) == num_kept(num_trials, keep=keep) == expected


def test_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingError, match=r"`search: asha` needs Optuna, which is not installed: pip install"):
        survives([1, 2], keep=0.5)
