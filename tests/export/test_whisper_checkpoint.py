"""A checkpoint is scored where it lies: no step copies it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.engine.plan import Plan, plan
from harness.errors import SuiteError
from harness.suite.load import load
from tests.boards import SUITE

if TYPE_CHECKING:
    from pathlib import Path

BOTH = SUITE.replace("[whisper_onnx, whisper_ggml]", "[whisper_checkpoint, whisper_onnx]").replace(
    "[onnx, whispercpp]", "[onnx, transformers]"
)


def planned(folder: Path, suite: str) -> Plan:
    (folder / "small.yaml").write_text(suite, encoding="utf-8")
    return plan(load(folder / "small.yaml"), digest=lambda path: path.name)


def test_the_artifact_of_the_model_is_what_is_run(tmp_path):
    found = planned(tmp_path, BOTH)
    rows = [row for row in found.rows if row.export == "torch-fp32"]
    assert {row.variant for row in rows} == {"zero-shot", "lr1e-5", "lr3e-5"}
    for row in rows:
        assert row.exported is (row.trained or next(step for step in found.steps if step.stage == "base"))
        assert (row.runtime, row.row) == ("transformers", f"base_{row.variant}_torch-fp32")
        (heard,) = row.scored.inputs["transcripts"]
        assert heard.inputs["export"] == row.scored.inputs["export"] == (row.exported,)
    assert len([step for step in found.steps if step.stage == "export"]) == 3, "the three of whisper_onnx"


def test_it_needs_a_runtime_and_a_whisper(tmp_path):
    with pytest.raises(SuiteError, match="whisper_checkpoint"):
        planned(tmp_path, BOTH.replace("[onnx, transformers]", "[onnx]"))
    parakeet = BOTH.replace("kind: whisper\n", "kind: parakeet\n").replace("{max_steps: 100}", "{}")
    with pytest.raises(SuiteError, match="whisper_checkpoint"):
        planned(tmp_path, parakeet)
