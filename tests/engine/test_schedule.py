"""Simulated schedules: what bounds them, and what a described cluster must hold."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.artifact import Resources
from harness.engine.cluster import VRAM, Demand
from harness.engine.estimates import Estimate, Outlook
from harness.engine.schedule import Description, Schedule, read_cluster, schedule
from harness.errors import SuiteError

LIGHT, HEAVY, GPU = Resources(), Resources(whole_machine=True), Resources(whole_machine=True, gpu=True)


class Fake:
    """What a schedule reads of a step."""

    def __init__(self, key: str, needs: tuple[Fake, ...], resources: Resources) -> None:
        self.key = self.name = key
        self.stage = "train"
        self.needs = needs
        self.reads = {"all": needs}
        self.resources = resources
        self.spec = None


def outlook(seconds: dict[str, float | None], *, measured: tuple[str, ...] = ()) -> Outlook:
    steps = {key: Estimate(disk_b=100, wall_s=wall_s, is_measured=key in measured) for key, wall_s in seconds.items()}
    return Outlook(steps, {})


def simulate(steps: list[Any], seconds: dict[str, float | None], nodes: list[dict[str, Any]], **more: Any) -> Schedule:
    cluster = Description.model_validate({"nodes": nodes, "step_s": more.pop("step_s", {})})
    return schedule(steps, outlook(seconds, **more), cluster)


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[Fake], dict[str, float | None]]:
    steps: list[Fake] = []
    seconds: dict[str, float | None] = {}
    for number in range(draw(st.integers(1, 12))):
        needs = tuple(step for step in steps if draw(st.booleans()))[-3:]
        steps.append(Fake(f"s{number}", needs, draw(st.sampled_from([LIGHT, HEAVY, GPU]))))
        seconds[f"s{number}"] = float(draw(st.integers(0, 50)))
    return steps, seconds


@given(plans(), st.integers(1, 3), st.integers(0, 4))
def test_no_schedule_beats_its_bounds(plan: tuple[list[Fake], dict[str, float | None]], count: int, gpus: int) -> None:
    steps, seconds = plan
    found = simulate(steps, seconds, [{"count": count, "cpus": 8, "gpus": gpus}])
    slots = {slot.step.key: slot for slot in found.slots}
    assert set(slots) == set(seconds)
    for slot in found.slots:
        assert slot.end_s - slot.start_s == pytest.approx(seconds[slot.step.key])
        assert all(slots[need.key].end_s <= slot.start_s + 1e-9 for need in slot.step.needs), "its inputs are there"
        beside = [item for item in found.slots if item.node == slot.node and item.start_s <= slot.start_s < item.end_s]
        assert sum(item.step.resources.gpu for item in beside) <= max(gpus, 1), "a GPU is not lent twice"
    chain: dict[str, float] = {}
    for step in steps:
        chain[step.key] = seconds[step.key] + max((chain[need.key] for need in step.needs), default=0.0)
    assert found.makespan_s >= max(chain.values()) - 1e-9
    assert found.makespan_s <= sum(seconds.values()) + 1e-9, "never longer than one after the other"
    path = found.critical
    assert path[-1].end_s == pytest.approx(found.makespan_s)
    assert path[0].start_s == 0
    assert all(before.end_s == pytest.approx(after.start_s) for before, after in pairwise(path))


def test_more_gpus_shorten_a_grid_until_nothing_waits() -> None:
    base = Fake("base", (), LIGHT)
    grid = [Fake(f"lr{number}", (base,), GPU) for number in range(16)]
    seconds = {"base": 10.0, **{step.key: 100.0 for step in grid}}
    spans = {gpus: simulate([base, *grid], seconds, [{"cpus": 32, "gpus": gpus}]).makespan_s for gpus in (1, 4, 16, 32)}
    assert spans == {1: 1610, 4: 410, 16: 110, 32: 110}


@pytest.mark.parametrize(("share", "expected"), [(0.3, 40), (0.4, 60), (0.5, 60), (0.6, 120), (1.0, 120)])
def test_a_part_of_a_gpu_is_of_one_gpu(share: float, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.engine.schedule.demand", lambda *_arguments, **_options: Demand(1, share))
    grid = [Fake(f"lr{number}", (), GPU) for number in range(12)]
    found = simulate(grid, {step.key: 20.0 for step in grid}, [{"cpus": 32, "gpus": 2}])
    assert found.makespan_s == expected


def test_what_the_totals_say() -> None:
    first = Fake("first", (), LIGHT)
    second, third = Fake("second", (first,), GPU), Fake("third", (first,), GPU)
    found = simulate(
        [first, second, third],
        {"first": 5.0, "second": 60.0, "third": None},
        [{"cpus": 8, "gpus": 2}],
        measured=("first",),
        step_s={"train": 30.0},
    )
    assert {slot.step.key for slot in found.slots} == {"second", "third"}, "what is done takes no time"
    assert (found.makespan_s, found.gpu_s, found.num_gpus) == (60.0, 90.0, 2)
    assert (found.disk_b, found.read_b) == (200, 200)
    assert (found.assumed, found.unknown) == (("train",), ())
    assert simulate([first], {"first": None}, [{"cpus": 1}]).unknown == ("train",)


def test_a_step_that_fits_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.engine.schedule.demand", lambda *_arguments, **_options: Demand(1, 0.0, {VRAM: 30.0}))
    step = Fake("train large", (), LIGHT)
    with pytest.raises(SuiteError, match=r"too small for this suite\n  train large: asks for 1 CPU, 30 vram_gib"):
        simulate([step], {"train large": 1.0}, [{"cpus": 8, "gpus": 2, "vram_gib": 24}])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nodes: []", "nodes: List should have at least 1 item"),
        ("nodes: [{cpus: 0}]", "nodes.0.cpus: Input should be greater than or equal to 1"),
        ("nodes: [{cpus: 4, gpu: 1}]", "nodes.0.gpu: Extra inputs are not permitted"),
        ("- 1", "Input should be"),
        ("nodes: [", "cannot be read"),
    ],
)
def test_a_file_that_describes_no_cluster(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SuiteError) as refused:
        read_cluster(path)
    assert told in str(refused.value)
    assert str(path) in str(refused.value)


def test_the_command(harness: Any, tmp_path: Path) -> None:
    from tests.conftest import ROOT

    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("nodes: [{cpus: 32, gpus: 4, vram_gib: 24}]\nstep_s: {train: 3600}", encoding="utf-8")
    told = harness("plan", ROOT / "suites" / "whisper_4090.yaml", "--cluster", cluster)
    assert told.code == 0
    assert "makespan: ~" in told.out
    assert "GPU-hours on 4" in told.out
    assert "by `step_s` of the cluster's file, not measured: train" in told.out
    assert "not known, counted as 0 s; give `step_s`: base, export" in told.out
