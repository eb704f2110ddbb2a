"""What a Ray cluster costs, and what its second machine brings. `make bench` runs it; ratios are of one run."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.engine.digests import Digests
from harness.engine.local import LocalExecutor
from harness.engine.plan import plan, with_needs
from harness.engine.ray import EAGER, LOOPBACK, LOOPBACK_ONLY, RayExecutor, cluster
from harness.engine.store import Store
from harness.engine.walk import run_steps
from harness.suite.load import load
from tests.boards import SUITE
from tests.conftest import AELITA, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.engine.plan import Step
    from harness.engine.walk import Executor, Outcome

pytestmark = pytest.mark.timeout(1800)
COPIES = 32
"""So many times the Aelita clips, so that starting processes does not weigh; copies are dropped at the end."""
NUM_STEPS = 10


class Quiet:
    """Nobody watches."""

    def started(self, step: Step) -> None: ...
    def progressed(self, step: Step, *, done: int, total: int, note: str) -> None: ...
    def finished(self, step: Step, outcome: Outcome) -> None:
        assert outcome.state in {"done", "cached"}, outcome.error


@contextmanager
def nodes(count: int) -> Iterator[str]:
    """The address of a cluster whose nodes have one CPU each."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {**LOOPBACK_ONLY, **EAGER, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}.items():
            patched.setenv(name, value)
        from ray.cluster_utils import Cluster

        loopback = {"node_ip_address": LOOPBACK, "include_dashboard": False}
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **loopback})
        try:
            for _ in range(count):
                found.add_node(num_cpus=1, **loopback)
            with cluster(found.address):
                yield found.address
        finally:
            found.shutdown()


def planned(folder: Path, *changes: tuple[str, str]) -> list[Step]:
    text = SUITE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "small.yaml").write_text(text, encoding="utf-8")
    return list(plan(load(folder / "small.yaml"), digest=Digests(folder / "digests.json")).steps)


def seconds(steps: list[Step], store: Path, executor: Executor) -> float:
    started = time.perf_counter()
    run_steps(steps, store=Store(store), executor=executor, listener=Quiet())
    return time.perf_counter() - started


def prepared(steps: list[Step]) -> list[Step]:
    return list(with_needs(step for step in steps if step.stage == "prepare").values())


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """The manifest of Aelita, `COPIES` times."""
    folder = tmp_path / "clips"
    folder.mkdir()
    lines = []
    for line in (AELITA / "manifest.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        for copy in range(COPIES):
            name = f"{copy}_{Path(row['audio_filepath']).name}"
            shutil.copyfile(AELITA / row["audio_filepath"], folder / name)
            lines.append(json.dumps({**row, "audio_filepath": name}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_a_second_node_prepares_a_corpus_almost_twice_as_fast(benchmark: Any, clips: Path, tmp_path: Path) -> None:
    """At least 1.8 times, with the steps that list and join."""
    steps = prepared(planned(tmp_path, ("kind: manifest,", "kind: manifest, tasks: 2, storage: shards, on_bad: skip,")))
    took: dict[int, float] = {}
    stores = {count: tmp_path / f"store-{count}" for count in (1, 2)}

    def once() -> None:
        for count, store in stores.items():
            with nodes(count):
                executor = RayExecutor(tmp_path / "logs")
                executor.check(steps, store)
                took[count] = seconds(steps, store, executor)

    benchmark.pedantic(once, rounds=1)
    times = took[1] / took[2]
    benchmark.extra_info.update(one_node_s=took[1], two_nodes_s=took[2], times=times, num_clips=190 * COPIES)
    print(f"\n{190 * COPIES} clips on one node {took[1]:.1f} s, on two {took[2]:.1f} s: {times:.2f} times")  # noqa: T201
    manifests = [next(store.glob("prepare-*/utterances.parquet")).read_bytes() for store in stores.values()]
    assert manifests[0] == manifests[1]
    assert times >= 1.8


def test_ray_adds_less_than_a_second_to_a_step(benchmark: Any, tmp_path: Path) -> None:
    """Light steps one after the other, on one node and without Ray."""
    shutil.copytree(AELITA, tmp_path / "clips")
    suites = [planned(tmp_path, ("seed: 5", f"seed: {seed}")) for seed in range(NUM_STEPS)]
    everything = suites[0]
    steps = [step for suite in suites for step in suite if step.name == "select dev"]
    assert len({step.key for step in steps}) == NUM_STEPS
    here = tmp_path / "here"
    executor = LocalExecutor(tmp_path / "logs", jobs=1)
    seconds(prepared(everything), here, executor)
    shutil.copytree(here, tmp_path / "there")
    took: dict[str, float] = {}

    def once() -> None:
        took["here"] = seconds([*prepared(everything), *steps], here, executor)
        with nodes(1):
            away = RayExecutor(tmp_path / "logs")
            away.check(steps, tmp_path / "there")
            took["there"] = seconds([*prepared(everything), *steps], tmp_path / "there", away)

    benchmark.pedantic(once, rounds=1)
    more_s = (took["there"] - took["here"]) / NUM_STEPS
    benchmark.extra_info.update(overhead_s_per_step=more_s, local_s_per_step=took["here"] / NUM_STEPS)
    print(f"\na light step takes {took['here'] / NUM_STEPS:.2f} s here, and {more_s:.2f} s more through Ray")  # noqa: T201
    assert more_s < 1
