"""Models that are scored as they are published: one row each, no training, no export, never promoted."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.engine.plan import Plan, plan
from harness.errors import SuiteError
from harness.promote import gate
from harness.promote.targets import TARGETS
from harness.suite.load import load
from tests.boards import SUITE

GIGAAM = "  gigaam: {kind: reference, base: gigaam-v3-rnnt, quantization: int8}\n"
SCORE = "\nscore:"


def planned(folder: Path, *models: str, changes: tuple[tuple[str, str], ...] = ()) -> Plan:
    text = SUITE.replace(SCORE, f"\n{''.join(models)}{SCORE.strip()}", 1)
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "small.yaml").write_text(text, encoding="utf-8")
    return plan(load(folder / "small.yaml"), digest=str)


def mistakes(folder: Path, *models: str, changes: tuple[tuple[str, str], ...] = ()) -> list[str]:
    with pytest.raises(SuiteError) as caught:
        planned(folder, *models, changes=changes)
    return [f"{item.where}: {item.message}" for item in caught.value.problems]


def test_it_is_one_row_on_each_set_and_its_files_are_run_as_they_are(tmp_path):
    found = planned(tmp_path, GIGAAM)
    rows = [row for row in found.rows if row.model == "gigaam"]
    assert {row.heldout for row in rows} == {row.heldout for row in found.rows}
    for row in rows:
        assert (row.row, row.family, row.variant) == ("gigaam_zero-shot_onnx-int8", "reference", "zero-shot")
        assert (row.export, row.runtime, row.trained) == ("onnx-int8", "onnx", None)
        assert row.exported.name == "base gigaam-v3-rnnt"
        assert row.exported.needs == ()
        assert row.scored.inputs["export"] == (row.exported,)
    assert not [step for step in found.steps if "gigaam" in step.name and step.stage in {"train", "export"}]


def test_it_changes_no_key_of_the_other_models(tmp_path):
    alone, beside = planned(tmp_path), planned(tmp_path, GIGAAM)
    assert {step.key for step in alone.steps} < {step.key for step in beside.steps}


def test_the_quantization_counts_and_a_folder_is_relative_to_the_suite(tmp_path):
    (tmp_path / "published").mkdir()
    local = "  local: {kind: reference, base: published, type: vosk}\n"
    found = planned(tmp_path, GIGAAM, GIGAAM.replace("gigaam:", "again:").replace("int8", "fp16"), local)
    steps = {row.model: row.exported for row in found.rows}
    assert steps["gigaam"].key != steps["again"].key
    assert steps["local"].spec.outside() == [tmp_path / "published"]


def test_it_is_never_promoted_and_the_gate_asks_nothing_of_it(tmp_path):
    found = planned(tmp_path, GIGAAM, changes=(("{better_than: zero-shot", "{better_than: lr1e-5"),))
    with pytest.raises(SuiteError, match="row 'gigaam_zero-shot_onnx-int8' does not exist or does not fit the target"):
        gate.candidate(found, [], exports=tuple(TARGETS["mimir"].slots), row="gigaam_zero-shot_onnx-int8")


@pytest.mark.parametrize(
    ("model", "mistake"),
    [
        ("{kind: reference, base: a, train: {}}", "models.gigaam.train: unknown key 'train'"),
        ("{kind: reference, base: a, export: [whisper_onnx]}", "models.gigaam.export: unknown key 'export'"),
        ("{kind: reference, base: a, zero_shot: false}", "models.gigaam.zero_shot: unknown key 'zero_shot'"),
        ("{kind: reference}", "models.gigaam.base: this key is required"),
        ("{kind: referense, base: a}", "models.gigaam.kind: unknown kind 'referense'; did you mean 'reference'?"),
    ],
)
def test_what_only_trained_models_have_is_refused(tmp_path, model, mistake):
    assert any(item.startswith(mistake) for item in mistakes(tmp_path, f"  gigaam: {model}\n"))


def test_a_runtime_is_needed_and_one_for_it_alone_is_enough(tmp_path):
    only_ggml = (("[onnx, whispercpp]", "[whispercpp]"),)
    found = mistakes(tmp_path, GIGAAM, changes=only_ggml)
    assert "models.gigaam: no runtime of score.runtimes runs 'reference'; add one of: onnx" in found
    only_reference = (("[whisper_onnx, whisper_ggml]", "[whisper_ggml]"),)
    assert planned(tmp_path, GIGAAM, changes=only_reference).rows


def test_a_device_that_the_suite_asks_for_is_part_of_the_row(tmp_path):
    found = planned(
        tmp_path, GIGAAM, changes=(("[onnx, whispercpp]", "[onnx, {kind: onnx, device: tensorrt}, whispercpp]"),)
    )
    rows = {(row.row, row.runtime) for row in found.rows if row.model == "gigaam"}
    assert rows == {
        ("gigaam_zero-shot_onnx-int8_onnx", "onnx"),
        ("gigaam_zero-shot_onnx-int8_onnx-tensorrt", "onnx-tensorrt"),
    }
