from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from harness.board.leaderboard import lines
from harness.engine.plan import Plan, plan
from harness.errors import HarnessError, SuiteError
from harness.promote.gate import Condition, candidate, judge
from harness.score.significance import Difference
from harness.suite.load import load
from harness.suite.schema import Gate
from tests.boards import SUITE, finished

if TYPE_CHECKING:
    from pathlib import Path

ROW = "base_lr1e-5_ggml-f16"
BOTH = ("whisper_onnx", "whisper_ggml")
GGML = ("whisper_ggml",)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return planned_from(tmp_path_factory.mktemp("gate"), SUITE)


def planned_from(folder: Path, suite: str) -> Plan:
    (folder / "small.yaml").write_text(suite, encoding="utf-8")
    return plan(load(folder / "small.yaml"), digest=lambda path: path.name)


def line(row: str, heldout: str, **figures: Any) -> dict[str, Any]:
    role = "dev" if heldout.startswith("dev") else "test"
    measured = {
        "wer": 0.2, "cer": 0.1, "num_failed": 0, "rtf": 0.3, "latency_p95_ms": 900.0, "peak_ram_mib": 800.0,
        "peak_vram_mib": None, "size_mib": 280.0,
    }  # fmt: skip
    return {"row": row, "heldout": heldout, "split_role": role, **measured, **figures}


def board(planned: Plan, **wers: float | None) -> list[dict[str, Any]]:
    """A line for every row; `lr1e_5=0.1` gives the WER of variant lr1e-5 on all sets."""
    named = {name.replace("_", "-"): wer for name, wer in wers.items()}
    return [
        line(row.row, row.heldout, **({"wer": named[row.variant]} if row.variant in named else {}))
        for row in planned.rows
    ]


def judged(planned: Plan, row: str, figures: dict[str, Any], before: dict[str, Any], **gate: Any) -> list[Condition]:
    chosen = next(item for item in planned.rows if item.row == row)
    base = row.replace(chosen.variant, "zero-shot")
    known = [line(row, "test", **figures), line(base, "test", **before)]
    more = {name: gate.pop(name) for name in ("paired", "num_leaks") if name in gate}
    asked = Gate.model_validate({"leakage_clean": False, **gate})
    return judge(asked, chosen=chosen, plan=planned, board=known, **more)


def test_the_best_on_dev_is_the_candidate(planned: Plan) -> None:
    known = board(planned, lr1e_5=0.15, lr3e_5=0.12, zero_shot=0.05)
    # Zero-shot is better, but nothing that anybody trained; and the first of equal exports by name.
    assert candidate(planned, known, exports=BOTH, row=None).row == "base_lr3e-5_ggml-f16"
    assert candidate(planned, known, exports=("whisper_onnx",), row=None).row == "base_lr3e-5_onnx-fp32"


def test_test_sets_do_not_choose(planned: Plan) -> None:
    known = board(planned, lr1e_5=0.15, lr3e_5=0.12)
    for item in known:
        if item["heldout"] == "test" and "lr1e-5" in item["row"]:
            item["wer"] = 0.01
    assert candidate(planned, known, exports=GGML, row=None).variant == "lr3e-5"


def test_cer_decides_between_equal_wers(planned: Plan) -> None:
    known = board(planned)
    for item in known:
        item["cer"] = 0.05 if "lr3e-5_ggml" in item["row"] else None
    assert candidate(planned, known, exports=GGML, row=None).variant == "lr3e-5"


def test_several_dev_sets_choose_together(tmp_path: Path) -> None:
    planned = planned_from(tmp_path, SUITE.replace("  test: {", "  dev-far: {from: aelita/dev, role: dev}\n  test: {"))
    wers = {("lr1e-5", "dev"): 0.01, ("lr1e-5", "dev-far"): 0.5, ("lr3e-5", "dev"): 0.1, ("lr3e-5", "dev-far"): 0.1}
    known = [line(row.row, row.heldout, wer=wers.get((row.variant, row.heldout), 0.3)) for row in planned.rows]
    assert candidate(planned, known, exports=GGML, row=None).variant == "lr3e-5"
    # A row that lacks one of the sets is not compared.
    partly = [item for item in known if (item["row"], item["heldout"]) != ("base_lr3e-5_ggml-f16", "dev-far")]
    assert candidate(planned, partly, exports=GGML, row=None).variant == "lr1e-5"


def test_a_row_can_be_asked_for(planned: Plan) -> None:
    known = board(planned, lr3e_5=0.01)
    assert candidate(planned, known, exports=GGML, row="base_zero-shot_ggml-f16").variant == "zero-shot"


@pytest.mark.parametrize("row", ["base_lr9_ggml-f16", "base_lr1e-5_onnx-fp32"])
def test_a_row_that_does_not_fit(planned: Plan, row: str) -> None:
    with pytest.raises(
        SuiteError, match=f"row '{row}' does not exist or does not fit the target; rows that fit: base_z"
    ):
        candidate(planned, board(planned), exports=GGML, row=row)


def test_nothing_to_choose_from(planned: Plan) -> None:
    with pytest.raises(SuiteError, match="no model of this suite exports what the target runs; add one of: nemo"):
        candidate(planned, board(planned), exports=("nemo",), row=None)
    for known in ([], board(planned, lr1e_5=None, lr3e_5=None)):
        with pytest.raises(HarnessError, match="no fine-tuned row has a WER on dev yet; run the suite first") as caught:
            candidate(planned, known, exports=GGML, row=None)
        assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("wer", "before", "by_wer", "met"),
    [
        (0.15, 0.2, 0.0, True),
        (0.2, 0.2, 0.0, False),
        (0.21, 0.2, 0.0, False),
        (0.19, 0.2, 0.02, False),
        (0.17, 0.2, 0.02, True),
        # 0.105 - 0.1 is 0.00499… in floating point.
        (0.1, 0.105, 0.005, True),
        (0.1001, 0.105, 0.005, False),
        (None, 0.2, 0.0, False),
        (0.1, None, 0.0, False),
    ],
)
def test_gain_over_the_baseline(
    planned: Plan, wer: float | None, before: float | None, by_wer: float, *, met: bool
) -> None:
    first, *_ = judged(planned, "base_lr1e-5_ggml-f16", {"wer": wer}, {"wer": before}, by_wer=by_wer)
    assert (first.what, first.heldout, first.met) == ("WER gain over zero-shot", "test", met)
    assert first.limit == (f"≥ {by_wer:g}" if by_wer else "> 0")


@pytest.mark.parametrize("name", ["rtf", "latency_p95_ms", "peak_ram_mib", "peak_vram_mib", "size_mib"])
def test_limits(planned: Plan, name: str) -> None:
    for value, met in ((10.0, True), (9.0, True), (10.1, False), (None, False)):
        conditions = judged(planned, "base_lr1e-5_ggml-f16", {name: value, "wer": 0.1}, {}, **{name: {"max": 10}})
        assert conditions[-1] == Condition(name, "test", value, "≤ 10", met)
        assert len(conditions) == 3, "limits that the suite does not name are not judged"


def test_readings_of_sealed_sets_may_be_limited(planned: Plan) -> None:
    for count, met in ((1, True), (2, True), (3, False), (None, False)):
        figures = {"wer": 0.1, "sealed_readings": count}
        conditions = judged(planned, "base_lr1e-5_ggml-f16", figures, {}, max_sealed_readings=2)
        assert conditions[-1] == Condition("readings of the sealed set", "test", count, "≤ 2", met)
    assert len(judged(planned, "base_lr1e-5_ggml-f16", {"wer": 0.1, "sealed_readings": 9}, {})) == 2


def test_failed_utterances_are_never_promoted(planned: Plan) -> None:
    conditions = judged(planned, "base_lr1e-5_ggml-f16", {"num_failed": 1, "wer": 0.1}, {})
    assert [item.met for item in conditions] == [True, False]
    assert conditions[1] == Condition("num_failed", "test", 1, "= 0", met=False)


def test_every_test_set_is_judged(tmp_path: Path) -> None:
    planned = planned_from(tmp_path, SUITE.replace("  test: {", "  far: {from: aelita/test, role: test}\n  test: {"))
    known = board(planned, lr1e_5=0.1)
    chosen = candidate(planned, known, exports=GGML, row=None)
    for item in known:
        if item["heldout"] == "far" and item["row"] == chosen.row:
            item["wer"] = 0.3
    conditions = judge(planned.suite.gate, chosen=chosen, plan=planned, board=known)
    assert {(item.heldout, item.met) for item in conditions if item.what.startswith("WER")} == {
        ("far", False),
        ("test", True),
    }


def test_the_baseline_is_of_the_same_export_and_runtime(tmp_path: Path) -> None:
    done = finished(tmp_path)
    known = lines(done.plan, done.store, run_ids={})
    for item in known:
        if item["row"] == "base_zero-shot_onnx-fp32":
            item["wer"] = 0.9
    chosen = candidate(done.plan, known, exports=GGML, row=None)
    first, *_ = judge(done.plan.suite.gate, chosen=chosen, plan=done.plan, board=known)
    assert first.value == pytest.approx(10 / 237)


@pytest.mark.parametrize(
    ("demand", "difference", "limit", "met"),
    [
        ({}, (-0.05, -0.11, 0.01), "> 0", True),
        ({"superior": True}, (-0.05, -0.09, -0.01), "> 0, 95 % above 0", True),
        ({"superior": True}, (-0.05, -0.10, 0.0), "> 0, 95 % above 0", False),
        ({"superior": True}, None, "> 0, 95 % above 0", False),
        ({"superior": True, "by_wer": 0.06}, (-0.05, -0.09, -0.01), "≥ 0.06, 95 % above 0", False),
        ({"non_inferior_by": 0.02}, (-0.05, -0.11, 0.01), "95 % above -0.02", True),
        ({"non_inferior_by": 0.01}, (-0.05, -0.11, 0.01), "95 % above -0.01", False),
        ({"non_inferior_by": 0.02}, None, "95 % above -0.02", False),
    ],
)
def test_the_paired_interval_of_the_gain(
    planned: Plan, demand: dict[str, Any], difference: tuple[float, float, float] | None, limit: str, *, met: bool
) -> None:
    """The WER of the model minus that of the baseline; the gain is the reverse."""
    asked = []

    def paired(*rows: str) -> Difference | None:
        asked.append(rows)
        return difference and Difference(*difference)

    first = judged(planned, ROW, {"wer": 0.15}, {"wer": 0.2}, paired=paired, **demand)[0]
    interval = () if difference is None else (-difference[2], -difference[1])
    assert (first.value, first.limit, first.met) == (pytest.approx(0.05), limit, met)
    assert (first.lo, first.hi) == (interval or (None, None))
    assert first.told == ("0.05" + (" [{:.4g}, {:.4g}]".format(*interval) if interval else ""))
    assert asked == [(ROW, "base_zero-shot_ggml-f16", "test")]


def test_a_model_that_is_worse_may_be_no_worse_than_a_margin(planned: Plan) -> None:
    (first, _) = judged(
        planned, ROW, {"wer": 0.201}, {"wer": 0.2}, paired=lambda *_: Difference(0.001, -0.003, 0.004),
        non_inferior_by=0.005,
    )  # fmt: skip
    assert first.met


@pytest.mark.parametrize(("num_leaks", "met"), [(0, True), (3, False), (None, False)])
def test_leaks_into_training(planned: Plan, num_leaks: int | None, *, met: bool) -> None:
    *_, last = judged(planned, ROW, {"wer": 0.1}, {}, leakage_clean=True, num_leaks=num_leaks)
    assert last == Condition("leaks into training", "all", num_leaks, "= 0", met)
    assert bool(last.remedy) is (num_leaks is None)


CHECKPOINT = (
    SUITE.replace("[whisper_onnx,", "[whisper_checkpoint, whisper_onnx,")
    .replace("[onnx,", "[transformers, onnx,")
    .replace("gate: {", "gate: {export_loss: {max: 0.02}, ")
)


@pytest.mark.parametrize(
    ("own", "checkpoint", "value", "met"),
    [
        (0.12, 0.1, 0.02, True),
        (0.121, 0.1, 0.021, False),
        (0.1, 0.12, -0.02, True),
        (0.1, None, None, False),
        (None, 0.1, None, False),
    ],
)
def test_what_an_export_may_lose(
    tmp_path: Path, own: float | None, checkpoint: float | None, value: float | None, *, met: bool
) -> None:
    planned = planned_from(tmp_path, CHECKPOINT)
    chosen = next(item for item in planned.rows if item.row == ROW)
    known = [
        line(ROW, "test", wer=own),
        line("base_zero-shot_ggml-f16", "test"),
        line("base_lr1e-5_torch-fp32", "test", wer=checkpoint),
        line("base_lr3e-5_torch-fp32", "test", wer=0.0),
    ]
    gate = Gate.model_validate({"export_loss": {"max": 0.02}, "leakage_clean": False})
    *_, last = judge(gate, chosen=chosen, plan=planned, board=known, paired=lambda *rows: Difference(0.02, 0.01, 0.03))
    lo, hi = (None, None) if value is None else (0.01, 0.03)
    expected = None if value is None else pytest.approx(value)
    assert last == Condition("WER loss to its checkpoint", "test", expected, "≤ 0.02", met, lo, hi)
    assert ("add whisper_checkpoint or parakeet_nemo" in last.remedy) is (value is None)


def test_an_export_without_a_checkpoint_is_not_measured(planned: Plan) -> None:
    *_, last = judged(planned, ROW, {"wer": 0.1}, {}, export_loss={"max": 0.02})
    assert (last.value, last.met, last.told) == (None, False, "not measured")


def test_no_such_baseline(planned: Plan) -> None:
    with pytest.raises(
        SuiteError, match=r"gate\.better_than: 'base' has no variant 'old'; it has: zero-shot, lr1e-5, lr3e-5"
    ):
        judged(planned, "base_lr1e-5_ggml-f16", {}, {}, better_than="old")


def test_a_row_that_is_not_scored(planned: Plan) -> None:
    chosen = next(item for item in planned.rows if item.row == "base_lr1e-5_ggml-f16")
    with pytest.raises(
        HarnessError, match=r"row 'base_lr1e-5_ggml-f16' is not scored on test yet; run the suite first"
    ):
        judge(Gate(), chosen=chosen, plan=planned, board=[])
