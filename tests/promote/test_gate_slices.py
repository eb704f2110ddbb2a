"""No slice of a test set may be much worse than the baseline's."""

from __future__ import annotations

from typing import Any

import pytest

from harness.board.slices import Sliced
from harness.engine.plan import Plan, plan
from harness.promote.gate import Condition, judge
from harness.suite.load import load
from harness.suite.schema import Gate
from tests.boards import SUITE

ROW, BASE = "base_lr1e-5_ggml-f16", "base_zero-shot_ggml-f16"


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("gate")
    (folder / "small.yaml").write_text(SUITE, encoding="utf-8")
    return plan(load(folder / "small.yaml"), digest=lambda path: path.name)


def judged(planned: Plan, own: list[float], before: list[float], *, small: bool = False, **gate: Any) -> Condition:
    chosen = next(item for item in planned.rows if item.row == ROW)
    board = [
        {"row": row, "heldout": "test", "split_role": "test", "wer": wer, "num_failed": 0}
        for row, wer in ((ROW, 0.1), (BASE, 0.2))
    ]
    slices = [
        Sliced(
            row,
            heldout,
            0.1,
            [{"by": "room", "value": f"r{at}", "wer": wer, "is_small": small} for at, wer in enumerate(wers)],
            {},
        )
        for row, wers in ((BASE, before), (ROW, own))
        # Another set's slices judge nothing.
        for heldout, wers in (("test", wers), ("dev", [9.0]))
    ]
    asked = Gate.model_validate({"leakage_clean": False, **gate})
    *_, last = judge(asked, chosen=chosen, plan=planned, board=board, slices=slices)
    return last


@pytest.mark.parametrize(
    ("own", "before", "worst", "gap", "met"),
    [
        ([0.1, 0.3], [0.2, 0.3], 1, 0.0, True),
        ([0.1, 0.32], [0.2, 0.3], 1, 0.02, True),
        ([0.1, 0.33], [0.2, 0.3], 1, 0.03, False),
        ([0.15, 0.2], [0.2, 0.3], 0, -0.05, True),
    ],
)
def test_the_worst_slice_is_named(
    planned: Plan, own: list[float], before: list[float], worst: int, gap: float, *, met: bool
) -> None:
    found = judged(planned, own, before, no_slice_worse_than=0.02)
    assert found == Condition(
        f"WER loss to zero-shot on the worst slice, room: r{worst}", "test", pytest.approx(gap), "≤ 0.02", met
    )


def test_slices_that_are_too_small_prove_nothing(planned: Plan) -> None:
    found = judged(planned, [0.1], [0.2], small=True, no_slice_worse_than=0.02)
    assert found == Condition(
        "WER loss to zero-shot on a slice (none has 20 utterances)", "test", None, "≤ 0.02", met=False
    )


def test_nothing_is_judged_that_is_not_asked_for(planned: Plan) -> None:
    assert judged(planned, [0.9], [0.1]).what == "num_failed"
