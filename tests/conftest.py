"""Real clips, real base weights, and a tiny random Whisper for what must be fast."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from harness.core.artifact import Artifact, Work

# Sums of floats depend on the number of threads; and processes side by side with a thread for every core each wait for
# one another: tests took ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("COLUMNS", None)  # of the terminal of the process above

ROOT = Path(__file__).parent.parent
AELITA = ROOT / "suites" / "data" / "aelita"


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Harness = "Callable[..., Ended]"


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """A fresh folder for one step to fill."""
    (tmp_path / "out").mkdir()
    (tmp_path / "scratch").mkdir()
    return Work(path=tmp_path / "out", scratch=tmp_path / "scratch")


def artifact(path: Path, stage: str = "test", **meta: object) -> Artifact:
    """A folder dressed as a finished artifact."""
    return Artifact(key="0" * 64, stage=stage, path=path, files={}, meta=meta)


@pytest.fixture(scope="session")
def whisper_base() -> Path:
    """Real Whisper base weights as a Hugging Face folder, cached between runs."""
    from harness.train.weights import resolve

    return resolve("openai/whisper-base")


@pytest.fixture(scope="session")
def tiny_whisper(whisper_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Whisper, shaped as OpenAI shapes them, with the real tokenizer."""
    from tests.whispers import write_tiny

    return write_tiny(tmp_path_factory.mktemp("tiny-whisper"), like=whisper_base)


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Harness:
    """Runs a command in this process, in a folder of its own."""
    from harness import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("MLFLOW_TRACKING_URI", "HARNESS_RESULTS", "HARNESS_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("harness.console.TOLD", set())

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow is not the subject: it is away."""

    def refuse(_self: object) -> None:
        raise ConnectionError("no MLflow here\nand much more about it")

    monkeypatch.setattr("harness.board.mlflow.Projection._connect", refuse)
