"""Faults that take a whole run, of minutes: `make chaos`, or `HARNESS_CHAOS=1` for the tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.pipelines import comparable, ended, harness, partial, start, until, write_suite

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.skipif(os.environ.get("HARNESS_CHAOS") != "1", reason="takes minutes; set HARNESS_CHAOS=1"),
    pytest.mark.timeout(1800),
]
NUM_ROWS = 8


@pytest.fixture(scope="module")
def suite(tiny_whisper: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("suite"), base=tiny_whisper)


@contextmanager
def served(folder: Path, *, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's own server over a database in the folder, once it answers."""
    folder.mkdir(exist_ok=True)
    database = f"sqlite:///{(folder / 'mlflow.db').as_posix()}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--port", str(port)]
    command += ["--workers", "1", "--artifacts-destination", str(folder / "artifacts")]
    silent = subprocess.DEVNULL
    server = subprocess.Popen(command, cwd=folder, stdout=silent, stderr=silent, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while True:
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield server
    finally:
        stop(server)


def stop(server: subprocess.Popen[bytes]) -> None:
    """With its own workers."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(server.pid)
        for process in [*parent.children(recursive=True), parent]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    server.wait()


def test_mlflow_gone_in_the_middle_and_back(suite: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }
    with served(tmp_path / "server", port=port) as server:
        process = start("run", str(suite), cwd=tmp_path, environment=environment)
        until(partial("train"), process, cwd=tmp_path)
        stop(server)
        result = ended(process)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "the results are safe; later: harness board SUITE --rebuild" in result.stderr
    unbroken = tmp_path / "unbroken"
    unbroken.mkdir()
    shutil.copytree(tmp_path / "results" / "store", unbroken / "results" / "store")
    assert harness("run", str(suite), cwd=unbroken).returncode == 0
    assert comparable(tmp_path) == comparable(unbroken)
    with served(tmp_path / "server", port=port):
        result = harness("board", str(suite), "--rebuild", cwd=tmp_path, environment=environment)
        assert result.returncode == 0, result.stderr
        client = MlflowClient(environment["MLFLOW_TRACKING_URI"])
        experiment = client.get_experiment_by_name("tiny")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id], "tags.stage = 'score'")
        assert len(runs) == NUM_ROWS
        assert all(run.data.metrics["wer"] >= 0 for run in runs)
