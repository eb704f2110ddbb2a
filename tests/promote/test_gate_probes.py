"""Limits on what probes found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from harness.engine.plan import Plan, plan
from harness.promote.gate import Condition, judge
from harness.suite.load import load
from harness.suite.schema import Gate
from tests.boards import SUITE

if TYPE_CHECKING:
    pass

ROW = "base_lr1e-5_ggml-f16"


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("gate")
    sets = "  far: {from: aelita/test, role: test}\n  test: {from"
    (folder / "small.yaml").write_text(SUITE.replace("  test: {from", sets), encoding="utf-8")
    return plan(load(folder / "small.yaml"), digest=lambda path: path.name)


def conditions(planned: Plan, limits: dict[str, Any], **figures: float | None) -> list[Condition]:
    """What the gate says of the probes of a row that is better than the untrained model on both test sets."""
    chosen = next(item for item in planned.rows if item.row == ROW)
    known = [
        {"row": row, "heldout": heldout, "split_role": "test", "wer": wer, "num_failed": 0, **found}
        for row, wer, found in ((ROW, 0.1, figures), ("base_zero-shot_ggml-f16", 0.2, {"silence_wpm": 99.0}))
        for heldout in ("far", "test")
    ]
    judged = judge(Gate.model_validate({"probes": limits}), chosen=chosen, plan=planned, board=known, num_leaks=0)
    assert all(item.met for item in judged if item.heldout != "probe")
    return [item for item in judged if item.heldout == "probe"]


@pytest.mark.parametrize(
    ("limits", "value", "expected"),
    [
        ({"max": 1}, 0.0, [("≤ 1", True)]),
        ({"max": 1}, 1.0, [("≤ 1", True)]),
        ({"max": 1}, 1.1, [("≤ 1", False)]),
        ({"max": 0}, 0.0, [("≤ 0", True)]),
        ({"min": 0.9}, 0.9, [("≥ 0.9", True)]),
        ({"min": 0.9}, 0.89, [("≥ 0.9", False)]),
        ({"min": 0.1, "max": 0.2}, 0.15, [("≥ 0.1", True), ("≤ 0.2", True)]),
        ({"min": 0.1, "max": 0.2}, 0.3, [("≥ 0.1", True), ("≤ 0.2", False)]),
        ({"min": 0.1, "max": 0.2}, None, [("≥ 0.1", False), ("≤ 0.2", False)]),
        # A difference of rates is a little off.
        ({"max": 0.005}, 0.105 - 0.1, [("≤ 0.005", True)]),
    ],
)
def test_limits(planned: Plan, limits: dict[str, float], value: float | None, expected: list[tuple[str, bool]]) -> None:
    found = conditions(planned, {"silence_wpm": limits}, silence_wpm=value)
    assert found == [Condition("silence_wpm", "probe", value, limit, met=met) for limit, met in expected]


def test_every_limit_is_judged_once_for_all_test_sets(planned: Plan) -> None:
    limits = {"silence_wpm": {"max": 1}, "timestamps_ok": {"min": 0.9}, "forgetting": {"max": 0.02}}
    found = conditions(planned, limits, silence_wpm=0.0, forgetting=-0.01)
    assert [(item.what, item.value, item.met) for item in found] == [
        ("silence_wpm", 0.0, True), ("timestamps_ok", None, False), ("forgetting", -0.01, True),
    ]  # fmt: skip


def test_limits_that_the_suite_does_not_name_are_not_judged(planned: Plan) -> None:
    assert conditions(planned, {}, silence_wpm=500.0) == []
