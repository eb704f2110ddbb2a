from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from harness.cli import app
from harness.errors import HarnessError
from tests.boards import finished


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands run; MLflow is in there too, if anywhere."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "HARNESS_RESULTS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def report(path: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["report", str(path), *options])


@pytest.mark.parametrize("options", [[], ["--audio"]])
def test_it_writes_a_page_and_says_where(folder: Path, options: list[str]) -> None:
    ended = report(finished(folder).path, *options)
    page = folder / "results" / "small" / "report.html"
    assert (ended.exit_code, ended.output.split()) == (0, ["report:", str(Path("results/small/report.html"))])
    content = page.read_text(encoding="utf-8")
    assert "It meets all 5 conditions of the gate, and would be promoted." in content
    assert 'id="exports"' in content
    assert ('id="clips-0"' in content) == bool(options)


def test_before_anything_is_scored(folder: Path) -> None:
    done = finished(folder, but=lambda step: step.stage == "score")
    ended = report(done.path)
    assert isinstance(ended.exception, HarnessError)
    assert f"no row of {done.path} is scored yet; run it first: harness run {done.path}" in str(ended.exception)
    assert not (folder / "results" / "small").exists()
