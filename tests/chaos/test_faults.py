"""Faults on purpose: disks, signals, clocks, two runs at once. What was done stays done, and the message is clear."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from harness.engine.store import Store, read_artifact
from harness.engine.upkeep import faults
from harness.errors import HarnessError, refused_by_disk
from tests.pipelines import ROOT, ended, harness, start, write_suite

if TYPE_CHECKING:
    from collections.abc import Iterator

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="tmpfs, RLIMIT_CPU and /proc are Linux's")
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
AT_ONCE_S = 2.0


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No step that loads its model runs here."""
    return write_suite(tmp_path_factory.mktemp("suite"), base=Path("no-model"))


@pytest.fixture(scope="module")
def prepared(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unbroken preparation."""
    cwd = tmp_path_factory.mktemp("prepared")
    assert prepare(suite, cwd=cwd).returncode == 0
    return cwd


def prepare(suite: Path, *, cwd: Path, results: str = "results", **environment: str) -> subprocess.CompletedProcess:
    result = harness("run", str(suite), "--only", "prepare", "--results", results, cwd=cwd, environment=environment)
    assert "Traceback" not in result.stderr
    return result


def store_of(cwd: Path) -> Path:
    return cwd / "results" / "store"


def made(store: Path) -> dict[str, str]:
    """`<artifact>/<file>` → sha256, without what tells dates; every artifact is whole."""
    found = {}
    for path in store.glob("*-*/artifact.json"):
        assert faults(path.parent) == []
        files = read_artifact(path.parent).files
        found |= {f"{path.parent.name}/{name}": sha256 for name, sha256 in files.items() if not name.startswith("card")}
    assert found
    return found


@pytest.fixture
def copied(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory, of 1 MiB: the prepared recordings take 2.3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if sys.platform != "linux" or shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607  # where it lies differs


def remount(folder: Path, *options: str) -> None:
    subprocess.run(["mount", "-o", ",".join(["remount", *options]), str(folder)], check=True)  # noqa: S607


def test_a_full_disk(suite: Path, prepared: Path, small_disk: Path, tmp_path: Path) -> None:
    """A real one, in a real run; more room, and the run goes on."""
    result = prepare(suite, cwd=tmp_path, results=str(small_disk))
    assert result.returncode == 1
    assert "no space left on device; free some space and run again: what is finished is kept" in result.stderr
    assert not list((small_disk / "store").glob("*-*"))
    remount(small_disk, "size=64m")
    result = prepare(suite, cwd=tmp_path, results=str(small_disk))
    assert result.returncode == 0, result.stderr
    assert made(small_disk / "store") == made(store_of(prepared))


def test_a_disk_that_may_not_be_written(suite: Path, small_disk: Path, prepared: Path, tmp_path: Path) -> None:
    """Mounted read-only: permissions do not bind every user."""
    remount(small_disk, "size=64m")
    shutil.copytree(store_of(prepared), small_disk / "store")
    shutil.rmtree(next((small_disk / "store").glob("prepare-*")))
    remount(small_disk, "ro")
    before = sorted(small_disk.rglob("*"))
    result = prepare(suite, cwd=tmp_path, results=str(small_disk))
    assert result.returncode == 1
    assert "read-only file system; make it writable, or choose another place with --results" in result.stderr
    assert sorted(small_disk.rglob("*")) == before


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(28, "No space left on device", "a/b.wav"), "a/b.wav: no space left on device; free some space"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "a file of the store: no space left"),
        (OSError(30, "Read-only file system", "a"), "a: read-only file system; make it writable"),
        (FileNotFoundError(2, "No such file or directory", "a"), None),
        (OSError("told without a number"), None),
        (ValueError("of a bug"), None),
    ],
)
def test_what_a_disk_refuses(error: Exception, remedy: str | None) -> None:
    told = refused_by_disk(error)
    assert (told is None) if remedy is None else str(told).startswith(remedy)


def test_a_file_that_was_cut_is_noticed_before_it_is_read(suite: Path, copied: Path) -> None:
    (path,) = store_of(copied).glob("prepare-*/utterances.parquet")
    size = path.stat().st_size
    os.truncate(path, size - 1)
    result = prepare(suite, cwd=copied)
    assert result.returncode == 1
    assert f"utterances.parquet: has {size - 1} bytes, recorded are {size}; remove " in result.stderr
    path.unlink()
    with pytest.raises(HarnessError, match=r"utterances\.parquet: is missing; remove .* and run again"):
        Store(store_of(copied)).bring(path.parent.name)


def test_a_flipped_bit_is_named_and_its_artifact_made_anew(suite: Path, prepared: Path, copied: Path) -> None:
    (path,) = store_of(copied).glob("prepare-*/utterances.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = harness("store", "verify", cwd=copied)
    assert result.returncode == 1
    assert f"{path.parent.name} (prepare clips): utterances.parquet is damaged" in result.stderr
    shutil.rmtree(path.parent)
    assert prepare(suite, cwd=copied).returncode == 0
    assert made(store_of(copied)) == made(store_of(prepared))


COUNTING = """
import os, sys
if "harness.engine.worker" in sys.orig_argv:
    from harness.engine import store
    real = store.Store.open
    def counted(self, folder):
        with open(os.environ["OPENED"], "a") as file:
            file.write(folder + chr(10))
        return real(self, folder)
    store.Store.open = counted
"""
"""Run by every interpreter as it starts: notes the steps that are begun."""
CLOCK = """
import sys, time
if "harness.engine.worker" in sys.orig_argv:
    real = time.time
    time.time = lambda: real() - 3600.0 * (time.monotonic() > began + 0.5)
    began = time.monotonic()
"""
"""Half a second after a worker has begun, its clock goes back by an hour."""
LIMIT = """
import resource, sys, threading
if "harness.engine.worker" in sys.orig_argv:
    resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
    threading.Thread(target=lambda: all(iter(lambda: True, False)), daemon=True).start()
    sys.setswitchinterval(0.001)
"""
"""The kernel kills the worker, as it does when memory is short: SIGKILL, after a second of work. A thread takes half of
it: a quick machine prepares so few clips in a little less.
"""


def injected(folder: Path, program: str) -> dict[str, str]:
    """An environment in which every interpreter runs the program first."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(program, encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def test_two_runs_on_one_store_at_once(suite: Path, prepared: Path, tmp_path: Path) -> None:
    environment = injected(tmp_path / "site", COUNTING) | {"OPENED": str(tmp_path / "opened")}
    command = ("run", str(suite), "--only", "prepare")
    runs = [start(*command, cwd=tmp_path, environment=environment) for _ in range(2)]
    for result in [ended(run) for run in runs]:
        assert result.returncode == 0, result.stdout + result.stderr
    steps = (tmp_path / "opened").read_text("utf-8").split()
    assert len(steps) == len(set(steps)) == 1, "each step is computed once"
    assert made(store_of(tmp_path)) == made(store_of(prepared))


def test_a_run_beside_one_that_has_just_published(suite: Path, copied: Path) -> None:
    """Its worker finds the folder with its job cleared away."""
    (path,) = store_of(copied).glob("prepare-*")
    job = Store(store_of(copied)).partial(path.name) / "job.json"
    command = [sys.executable, "-m", "harness.engine.worker", str(job)]
    for code in (0, 1):
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as worker:
            assert worker.wait() == code
        shutil.rmtree(path, ignore_errors=True)  # never published: that is no end


def test_a_clock_set_back(suite: Path, prepared: Path, tmp_path: Path) -> None:
    environment = injected(tmp_path / "site", CLOCK)
    result = prepare(suite, cwd=tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    records = [json.loads(path.read_text("utf-8")) for path in store_of(tmp_path).glob("*-*/artifact.json")]
    assert all(0 <= record["wall_s"] < 300 for record in records)
    assert made(store_of(tmp_path)) == made(store_of(prepared))


@LINUX
def test_a_worker_that_the_kernel_kills(suite: Path, prepared: Path, tmp_path: Path) -> None:
    result = prepare(suite, cwd=tmp_path, **injected(tmp_path / "site", LIMIT))
    assert result.returncode == 1
    assert "failed: prepare clips: its process ended with signal 9 (out of memory?); run again to go on" in (
        " ".join(result.stderr.split())
    )
    assert prepare(suite, cwd=tmp_path).returncode == 0
    assert made(store_of(tmp_path)) == made(store_of(prepared))


@POSIX
def test_a_second_ctrl_c_waits_for_nobody(suite: Path, tmp_path: Path) -> None:
    """The worker stands still, so that it does not end when it is asked to."""
    process = start("run", str(suite), "--only", "prepare", cwd=tmp_path)
    assert process.stdout is not None
    assert "start   prepare clips" in process.stdout.readline()
    (worker,) = psutil.Process(process.pid).children()
    worker.suspend()
    while worker.status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None, "the first waits for the worker"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    result = ended(process)
    assert time.monotonic() - began < AT_ONCE_S
    assert result.returncode == 130
    assert "go on with: harness run" in result.stderr
    assert "Traceback" not in result.stderr
    assert psutil.wait_procs([worker], timeout=1)[1] == []
