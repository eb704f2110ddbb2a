"""What the commands tell of a search that stops variants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from harness.engine.digests import Digests
from harness.engine.plan import plan
from harness.suite.load import load
from tests.boards import SUITE
from tests.engine.test_stopping import ASHA, GRID, with_everything_but_verdicts

if TYPE_CHECKING:
    from pathlib import Path

AT_10 = "base lr1e-5: stopped at step 10: dev WER 0.400, 3rd of 4"
AT_50 = "base lr1e-4: stopped at step 50: dev WER 0.250, 2nd of 2"
PROMISE = "search of base: 4 variants, at most 2 pass step 10, at most 1 finish"


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite in the folder where commands run, with everything in its store but the verdicts."""
    path = tmp_path / "small.yaml"
    path.write_text(SUITE.replace(GRID, ASHA), encoding="utf-8")
    planned = plan(load(path), digest=Digests(tmp_path / "results" / "store" / "digests.json"))
    with_everything_but_verdicts(planned, tmp_path)
    return path


@pytest.mark.usefixtures("untracked")
def test_a_search_from_plan_to_promotion(harness: Any, suite: Path) -> None:
    before = harness("plan", suite)
    assert PROMISE in before.out
    assert "stopped at" not in before.out
    ran = harness("run", suite)
    assert (ran.code, ran.err.count("failed")) == (0, 0)
    assert AT_10 in ran.out
    assert AT_50 in ran.out
    summary = {line.split()[0]: line.split()[1:] for line in ran.out.splitlines() if line.startswith(("rung", "train"))}
    # cached: four variants to step 10, two to 50, one to its end; the other five parts never began.
    assert summary["train"][:2] == ["7", "5"]
    after = harness("plan", suite)
    assert "0 to do" in after.out
    assert PROMISE in after.out
    assert AT_50 in after.out
    board = harness("board", suite)
    assert AT_10 in board.out
    assert "lr3e-5_ggml-f16" in board.out
    assert "lr1e-4_ggml-f16" not in board.out
    csv = harness("board", suite, "--format", "csv")
    assert "stopped at" not in csv.out
    assert "lr1e-4" not in (suite.parent / "results" / "small" / "leaderboard.csv").read_text(encoding="utf-8")
    again = harness("run", suite)
    assert (again.code, again.out.count("start")) == (0, 0)
    gate = harness("promote", suite, "--dry-run")
    assert "base_lr3e-5_ggml-f16" in gate.out
    named = harness("promote", suite, "--dry-run", "--model", "base_lr1e-4_ggml-f16")
    assert named.code == 2
