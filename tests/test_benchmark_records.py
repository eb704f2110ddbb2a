"""What `make bench` stores of a machine: enough to compare with, nothing that names it or its user."""

from __future__ import annotations

import getpass
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BENCHMARK = "def test_sum(benchmark):\n    benchmark.extra_info['limit'] = 5\n    benchmark(sum, range(100))\n"


def test_a_record_names_neither_host_nor_user_nor_folder(tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "tests" / "benchmarks" / "conftest.py", tmp_path / "conftest.py")
    (tmp_path / "test_sum.py").write_text(BENCHMARK, encoding="utf-8")
    git = ("git", "-c", "user.name=Somebody", "-c", "user.email=somebody@example.com")
    subprocess.run([*git, "init", "--quiet", "--initial-branch=secret-branch"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message=x"], cwd=tmp_path, check=True)
    options = ["--benchmark-json=out.json", "--benchmark-min-rounds=2", "--benchmark-max-time=0.01"]
    # Told that it is one of several side by side, the inner pytest would time nothing.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    command = [sys.executable, "-m", "pytest", "-q", *options]
    subprocess.run(command, cwd=tmp_path, env=alone, check=True, capture_output=True)
    text = (tmp_path / "out.json").read_text("utf-8")
    stored = json.loads(text)

    for name in (str(tmp_path), tmp_path.name, "Somebody", "example.com", "secret-branch"):
        assert name not in text
    values = json.dumps([stored["machine_info"], stored["commit_info"]]).split('"')
    assert not {getpass.getuser(), platform.node()} & set(values)
    assert len(text) < 5000

    (benchmark,) = stored["benchmarks"]
    assert benchmark["fullname"] == "test_sum.py::test_sum"
    assert benchmark["extra_info"] == {"limit": 5}
    assert benchmark["stats"]["rounds"] >= 2
    assert stored["machine_info"]["python_version"] == platform.python_version()
    assert stored["machine_info"]["cpu"]["count"] >= 1
    assert set(stored["machine_info"]["packages"]) >= {"numpy", "onnxruntime"}
    assert len(stored["commit_info"]["id"]) == 40


def test_the_folder_is_there_and_tracked() -> None:
    """pytest-benchmark does not make it."""
    place = "results/benchmarks/benchmarks.json"
    assert f"--benchmark-json={place}" in (ROOT / "Makefile").read_text("utf-8")
    assert (ROOT / place).parent.is_dir()
    patterns = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert patterns.index("!/results/benchmarks/") > patterns.index("/results/*")
