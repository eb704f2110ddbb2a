from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import harness.core.russian_wer as metric

PROGRAM = """
import sys, evaluate
loaded = evaluate.load(sys.argv[1])
values = loaded.compute(predictions=["Мама мыла раму.", "5 елок"], references=["мама мыла рамы", "пять ёлок"])
assert values == {"wer": 1 / 5, "cer": 1 / 23}, values
"""


def test_evaluate_loads_it_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("evaluate")
    folder = Path(metric.__file__).parent
    # Nothing listens on port 9: whatever asked the hub would fail.
    apart = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONUTF8": "1"}
    root = str(folder.parents[2])
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)], check=True, env={**os.environ, **apart, "PYTHONPATH": root}
    )
