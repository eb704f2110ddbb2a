"""A cluster of three nodes on one machine: the same plan by the same worker, whatever dies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from harness.core.estimates import Memory
from harness.engine import cluster as nodes
from harness.engine.cluster import GIB, VRAM, Demand, demand, lack
from harness.engine.ray import EAGER, LOOPBACK, LOOPBACK_ONLY, cluster
from harness.engine.walk import Outcome
from harness.errors import MissingError
from tests.conftest import AELITA, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ray.cluster_utils import Cluster

pytestmark = pytest.mark.timeout(600)
SUITE = """
suite: tiny
datasets: {clips: {kind: manifest, path: clips/manifest.jsonl, split: {dev: 0.2, test: 0.2, by: recording}}}
train: {from: clips/train}
heldout: {dev: {from: clips/dev, role: dev}, test: {from: clips/test, role: test}}
models:
  tiny:
    kind: whisper
    base: %BASE%
    zero_shot: false
    train: {batch_size: 2, max_steps: 30, eval_steps: 3, precision: fp32, packing: null}
    export: [whisper_ggml]
score: {runtimes: [whispercpp]}
"""
DEADLINE_S = 400
"""That nothing hangs; alone on two cores the longest test takes 80 s."""


@pytest.fixture(scope="module")
def suite(tiny_whisper: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("suite")
    rows = [json.loads(line) for line in (AELITA / "manifest.jsonl").read_text("utf-8").splitlines()]
    rows = sorted(rows, key=lambda row: row["duration"])[:14]
    (folder / "clips" / "clips").mkdir(parents=True)
    for row in rows:
        shutil.copyfile(AELITA / row["audio_filepath"], folder / "clips" / row["audio_filepath"])
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "clips" / "manifest.jsonl").write_text(lines, encoding="utf-8")
    path = folder / "tiny.yaml"
    path.write_text(SUITE.replace("%BASE%", json.dumps(str(tiny_whisper))), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[Cluster]:
    """A head without CPUs, so that no step runs there, and two nodes for them."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {**LOOPBACK_ONLY, **EAGER, "PYTHONPATH": str(ROOT)}.items():
            patched.setenv(name, value)
        from ray.cluster_utils import Cluster

        loopback = {"node_ip_address": LOOPBACK, "include_dashboard": False}
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **loopback})
        for _ in range(2):
            found.add_node(num_cpus=2, **loopback)
        yield found
        found.shutdown()


def run(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "harness", "run", *arguments]
    told = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=cwd, env=environment, text=True, encoding="utf-8", **told)


def ended(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, out
    return out


def weights_of(cwd: Path) -> dict[str, str]:
    (record,) = (cwd / "results" / "store").glob("train-*/artifact.json")
    files = json.loads(record.read_text("utf-8"))["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}


def training_process(run: subprocess.Popen[str], cwd: Path) -> psutil.Process:
    """The process that trains, once it has left a checkpoint."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        assert run.poll() is None, run.communicate()
        if any(
            (cwd / "results" / "store" / ".partial").glob("train-*/scratch/checkpoints/checkpoint-*/trainer_state.json")
        ):
            for process in psutil.process_iter(["cmdline"]):
                line = process.info["cmdline"] or []
                if "harness.engine.worker" in line and str(cwd.resolve()) in line[-1] and "train-" in line[-1]:
                    return process
        time.sleep(0.05)
    raise AssertionError("no checkpoint came")


def node_of(process: psutil.Process, found: Cluster) -> Any:
    above = {parent.pid for parent in process.parents()}
    for node in found.list_all_nodes():
        if any(item.process.pid in above for items in node.all_processes.values() for item in items):
            return node
    raise AssertionError("no node runs it")


def test_a_node_that_dies_in_the_middle_of_training_costs_nothing(
    three_nodes: Cluster, suite: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    process = run(str(suite), "--only", "train", "--executor", "ray", "--address", three_nodes.address, cwd=there)
    training = training_process(process, there)
    node = node_of(training, three_nodes)
    three_nodes.remove_node(node, allow_graceful=False)
    told = ended(process)
    three_nodes.add_node(num_cpus=2, node_ip_address=LOOPBACK, include_dashboard=False)
    assert "done    train tiny" in told
    logged = next((there / "results" / "tiny" / "logs").glob("train-*.log")).read_text("utf-8")
    assert logged.count("train tiny") == 2, "started twice"
    state = json.loads(next((there / "results" / "store").glob("train-*/artifact.json")).read_text("utf-8"))
    assert state["meta"]["final_step"] == 30
    ended(run(str(suite), "--only", "train", cwd=here))
    assert weights_of(here) == weights_of(there), "the same weights as of a training that nothing broke"


def test_a_run_with_everything_done_starts_nothing(three_nodes: Cluster, suite: Path, tmp_path: Path) -> None:
    address = ("--executor", "ray", "--address", three_nodes.address)
    ended(run(str(suite), "--only", "select", *address, cwd=tmp_path))
    assert "start" not in ended(run(str(suite), "--only", "select", *address, cwd=tmp_path))


def test_several_nodes_prepare_one_corpus(three_nodes: Cluster, suite: Path, tmp_path: Path) -> None:
    several = suite.with_name("several.yaml")
    text = suite.read_text("utf-8").replace("kind: manifest,", "kind: manifest, tasks: 2,")
    several.write_text(text, encoding="utf-8")
    address = ("--executor", "ray", "--address", three_nodes.address)
    told = ended(run(str(several), "--only", "prepare", *address, cwd=tmp_path))
    assert all(f"done    {step}" in told for step in ("list clips", "decode clips 1/2", "decode clips 2/2"))
    found = (tmp_path / "results" / "store").glob("decode-*/artifact.json")
    # Fewer recordings than a part holds: one of the shares is empty.
    assert sorted(json.loads(path.read_text("utf-8"))["meta"]["num_recordings"] for path in found) == [0, 14]
    # The corpus has the key that it has without `tasks`, and what has been a piece of it is asked for no more.
    told = ended(run(str(suite), "--only", "prepare", cwd=tmp_path))
    assert "start" not in told


def test_nodes_are_compared_before_work_starts(
    three_nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster(three_nodes.address):
        nodes.check_nodes(tmp_path / "store")
        nodes.check_nodes(None)
        assert list((tmp_path / "store").iterdir()) == []
        own = nodes.identity(["torch"])
        with monkeypatch.context() as patched:
            patched.setattr(nodes, "identity", lambda _names: {**own, "torch": "1.0", "Python": "3.9.1"})
            with pytest.raises(MissingError) as refused:
                nodes.check_nodes(tmp_path / "store")
        assert str(refused.value).count(f"Python {own['Python']}, here 3.9.1; torch {own['torch']}, here 1.0") == 3
        with monkeypatch.context() as patched:
            patched.setattr(Path, "write_text", lambda *_arguments, **_options: 0)
            with pytest.raises(
                MissingError, match=r"does not see the store .*store; mount it there under the same path"
            ):
                nodes.check_nodes(tmp_path / "store")


def test_a_cluster_that_does_not_answer(harness: Any, suite: Path) -> None:
    told = harness("run", suite, "--executor", "ray", "--address", "127.0.0.1:1")
    assert told.code == 3
    assert "no Ray cluster answers at '127.0.0.1:1'" in told.err
    assert "ray start --head" in told.err


CPU_NODES = [{"CPU": 4.0}, {"CPU": 16.0}]
GPU_NODES = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0}]
CARDS = [{"CPU": 16.0, "GPU": 2.0, VRAM: 48.0}]


class Fake:
    """What `demand` reads of a step."""

    def __init__(
        self,
        *,
        whole_machine: bool = False,
        gpu: bool = False,
        divisible: bool = False,
        device: str = "auto",
        devices: int = 1,
    ) -> None:
        from harness.core.artifact import Resources

        self.resources = Resources(whole_machine=whole_machine, gpu=gpu, divisible=divisible)
        self.spec = type("Spec", (), {"device": device, "devices": devices})()


@pytest.mark.parametrize(
    ("step", "has", "gib", "expected"),
    [
        (Fake(), CPU_NODES, None, Demand(1)),
        (Fake(whole_machine=True), CPU_NODES, None, Demand(16.0)),
        (Fake(whole_machine=True), GPU_NODES, None, Demand(8)),
        (Fake(whole_machine=True, divisible=True), [{}, *CPU_NODES], None, Demand(4.0)),
        (Fake(whole_machine=True, divisible=True), GPU_NODES, None, Demand(8)),
        (Fake(whole_machine=True, gpu=True), CPU_NODES, None, Demand(16.0)),
        (Fake(whole_machine=True, gpu=True), GPU_NODES, None, Demand(8, 1.0)),
        (Fake(whole_machine=True, gpu=True, device="cpu"), GPU_NODES, None, Demand(16.0)),
        (Fake(whole_machine=True, gpu=True), GPU_NODES, 6.0, Demand(8, 1.0)),
        (Fake(whole_machine=True, gpu=True), CARDS, 6.0, Demand(2, 0.25, {VRAM: 6.0})),
        (Fake(whole_machine=True, gpu=True), CARDS, 23.9, Demand(8, 1.0, {VRAM: 23.9})),
        (Fake(whole_machine=True, gpu=True), CARDS, None, Demand(8, 1.0)),
        (Fake(whole_machine=True, gpu=True, devices=2), CARDS, 6.0, Demand(16, 2.0)),
        (Fake(whole_machine=True, gpu=True, devices=2), CPU_NODES, None, Demand(16.0)),
    ],
)
def test_what_a_step_asks_for(step: Any, has: Any, gib: float | None, expected: Demand) -> None:
    memory = Memory({"all": int(gib * GIB)}) if gib else None
    asked = demand(step, has, memory=memory)
    assert (asked.cpus, asked.gpus) == (expected.cpus, expected.gpus)
    assert asked.custom == pytest.approx(expected.custom)
    assert lack("it", asked, has) is None


def test_what_no_node_has() -> None:
    asked = demand(Fake(whole_machine=True, gpu=True), CARDS, memory=Memory({"all": 30 * GIB}))  # type: ignore[arg-type]
    assert lack("train large", asked, CARDS) == (
        "  train large: asks for 8 CPU, 1 GPU, 30 vram_gib; no node has that, "
        "the most that there is: 16 CPU, 2 GPU, 24 vram_gib; add a node that has it"
    )
    assert lack("it", Demand(32), CPU_NODES) == (
        "  it: asks for 32 CPU; no node has that, the most that there is: 16 CPU; add a node that has it"
    )
    hungry = demand(Fake(), [{"CPU": 4.0, "memory": 2.0 * GIB}], ram_mib=3072)  # type: ignore[arg-type]
    assert lack("score it", hungry, [{"CPU": 4.0, "memory": 2.0 * GIB}]) == (
        "  score it: asks for 1 CPU, 3 GiB of RAM; no node has that, "
        "the most that there is: 4 CPU, 2 GiB of RAM; add a node that has it"
    )


def test_a_step_too_large_for_the_cluster_is_told_before_work_starts(
    three_nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.engine.ray import RayExecutor

    monkeypatch.setattr("harness.engine.ray.demand", lambda *_arguments, **_options: Demand(64))
    step = type("Step", (), {"name": "train it", "key": "0"})()
    with cluster(three_nodes.address):
        executor = RayExecutor(tmp_path)
        with pytest.raises(MissingError, match="train it: asks for 64 CPU; no node has that"):
            executor.check([step], tmp_path / "store")


def test_a_collector_that_dies_is_replaced(three_nodes: Cluster, tmp_path: Path) -> None:
    import ray

    from harness.engine.ray import RayExecutor

    step: Any = type("Step", (), {"name": "it", "key": "0", "folder": "it-0"})()
    with cluster(three_nodes.address):
        executor = RayExecutor(tmp_path)
        executor._running["reference"] = step
        for line in (b"before\n", b"after\n"):
            collector = psutil.Process(ray.get(executor._told.__ray_call__.remote(lambda _: os.getpid())))
            collector.kill()
            collector.wait(DEADLINE_S)  # or the line would be told to the one that dies
            ray.get(executor._told.tell.remote("0", None, line))
            executor._listen(None)  # type: ignore[arg-type]  # only a log is written
        executor._running.clear()
    assert (tmp_path / "it-0.log").read_bytes() == b"before\nafter\n"


def test_a_task_that_is_lost_again_and_again_is_a_failure(
    three_nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray gives a task that kills its own process up after some attempts; nothing waits forever."""
    import ray

    from harness.engine import ray as module

    def dies(_job: Any, _environment: Any, _told: Any) -> None:
        os._exit(1)

    monkeypatch.setattr(module, "attend", dies)
    monkeypatch.setattr(module, "RETRIES", 1)
    step: Any = type("Step", (), {"name": "it", "key": "0", "folder": "it-0"})()
    monkeypatch.setattr(module, "demand", lambda *_arguments, **_options: Demand(1))
    with cluster(three_nodes.address):
        executor = module.RayExecutor(tmp_path)
        executor.start(step, {"key": "0"})
        found: dict[str, Outcome] = {}
        while not found:
            found = executor.poll(listener=None)  # type: ignore[arg-type]  # nobody listens: nothing is told
        assert ray.is_initialized()
    assert found["0"].state == "failed"
    assert "its task was lost 2 times (WorkerCrashedError" in found["0"].error
