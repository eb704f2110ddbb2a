from __future__ import annotations

import json
from typing import TYPE_CHECKING

from harness.engine.ram import peaks_mib
from harness.engine.store import Store
from tests.engine.test_plan import small

if TYPE_CHECKING:
    from pathlib import Path


def test_as_much_as_the_hungriest_step_like_it_took(tmp_path: Path) -> None:
    planned = small(tmp_path)
    steps = {step.name: step for step in planned.steps}
    trained = steps["train base lr1e-5"]
    (base,) = trained.inputs["base"]
    for number, (stage, kind, read, peak_mib) in enumerate(
        [
            ("train", None, [base.folder], 3000.5),
            ("train", None, [base.folder], 2000.0),
            ("train", None, ["base-of-another"], 9000.0),
            ("export", "whisper_onnx", [], 700.0),
            ("score", None, [], 0.0),
        ]
    ):
        folder = tmp_path / "store" / f"{stage}-{number}"
        folder.mkdir(parents=True)
        inputs = {"base": read} if read else {"model": ["base-0"]}
        record = {"stage": stage, "spec": {"kind": kind} if kind else {}, "inputs": inputs, "peak_ram_mib": peak_mib}
        (folder / "artifact.json").write_text(json.dumps(record), encoding="utf-8")
    for number, text in enumerate(("{", "[]", '{"stage": "train"}')):
        (tmp_path / "store" / f"train-damaged{number}").mkdir()
        (tmp_path / "store" / f"train-damaged{number}" / "artifact.json").write_text(text, encoding="utf-8")
    found = peaks_mib(planned.steps, Store(tmp_path / "store"))
    onnx = {step.key: 700.0 for step in planned.steps if getattr(step.spec, "kind", "") == "whisper_onnx"}
    assert onnx
    assert found == {trained.key: 3000.5, steps["train base lr3e-5"].key: 3000.5, **onnx}
