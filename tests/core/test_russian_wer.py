from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import harness.core.russian_wer as metric
from harness.board.leaderboard import lines, publish
from harness.core.alternatives import first_wording
from tests import boards
from tests.boards import mishear, reference

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


PUBLISHED = """
import sys, evaluate, pathlib
from harness.board.leaderboard import read_csv
from harness.core.manifests import read_jsonl
metric, folder = evaluate.load(sys.argv[1]), pathlib.Path(sys.argv[2])
lines = read_csv(folder / "leaderboard.csv")
assert len(lines) == 12
for line in lines:
    rows = list(read_jsonl(folder / "hypotheses" / f"{line['row']}__{line['heldout']}.jsonl"))
    texts = {"predictions": [row["hypothesis"] for row in rows], "references": [row["reference"] for row in rows]}
    for profile, mark in (("ru", ""), ("ru-strict", "@ru-strict"), ("ru-no-digits", "@ru-no-digits")):
        values = metric.compute(**texts, profile=profile)
        assert values == {"wer": line["wer" + mark], "cer": line["cer" + mark]}, (profile, values, line)
"""


def test_it_gives_the_figures_of_the_board(tmp_path: Path) -> None:
    """On published hypotheses, one of which failed; references allow wordings; some have digits."""
    pytest.importorskip("evaluate")

    def heard(row: str, heldout: str, number: int, text: str) -> str | None:
        said = first_wording(text)
        return None if number == 3 else mishear(row, heldout, number, str(said)).replace("ветер", "вётер")

    def said(number: int) -> str:
        return re.sub("номер (.*)", r"{номер \1|конец}", reference(number)).replace("холодный", "Холодный,")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boards, "reference", lambda number: said(number) if number % 2 else "да и нет")
        suite = boards.SUITE.replace("resamples: 200", "resamples: 200, also: [ru-strict, ru-no-digits]")
        done = boards.finished(tmp_path, suite=suite, heard=heard)
    board = lines(done.plan, done.store, run_ids={})
    publish(board, done.plan, done.store, folder=tmp_path / "out")
    folder = Path(metric.__file__).parent
    apart = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONUTF8": "1"}
    subprocess.run(
        [sys.executable, "-c", PUBLISHED, str(folder), str(tmp_path / "out")],
        check=True,
        env={**os.environ, **apart, "PYTHONPATH": str(folder.parents[2])},
    )
