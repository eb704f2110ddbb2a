"""A plan on a cluster that is only described: how long, on what, and which steps the rest waits for. Nothing runs.

Steps ask for what they would ask Ray for (`harness.engine.cluster`); where several may start, the one that most work
waits for goes first.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml
from pydantic import Field, ValidationError

from harness.engine.cluster import VRAM, demand, lack
from harness.errors import SuiteError
from harness.suite.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from harness.engine.cluster import Demand
    from harness.engine.estimates import Outlook
    from harness.engine.plan import Step


class Nodes(Spec):
    """Nodes that are alike."""

    count: int = Field(default=1, ge=1)
    cpus: int = Field(ge=1)
    gpus: int = Field(default=0, ge=0)
    vram_gib: float | None = Field(default=None, gt=0, description="Of one GPU.")

    def resources(self) -> dict[str, float]:
        """Of one of them, by Ray's names."""
        vram = {VRAM: self.vram_gib * self.gpus} if self.vram_gib and self.gpus else {}
        return {"CPU": float(self.cpus), "GPU": float(self.gpus), **vram}


class Description(Spec):
    """A cluster in a file."""

    nodes: list[Nodes] = Field(min_length=1)
    step_s: dict[str, float] = Field(default={}, description="Stage → seconds of a step whose time is not known.")


@dataclass(frozen=True, slots=True)
class Slot:
    """When and where a step runs."""

    step: Step
    node: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """What became of it."""

    slots: tuple[Slot, ...]
    """In the order of their starts; steps that the store has take no time and are left out."""
    critical: tuple[Slot, ...]
    """Each began when the one before it ended, because it needs its artifact or its place; the last one ends last."""
    gpu_s: float
    num_gpus: float
    disk_b: int
    """Of all new artifacts, as far as it is known."""
    read_b: int
    """What steps read of each other, which a shared store sends over the network, as far as it is known."""
    assumed: tuple[str, ...]
    """Stages with steps whose time the file gives."""
    unknown: tuple[str, ...]
    """Stages with steps of unknown time, which count as 0 s."""

    @property
    def makespan_s(self) -> float:
        return max((slot.end_s for slot in self.slots), default=0.0)


def read_cluster(path: Path) -> Description:
    """Raises SuiteError if the file describes no cluster."""
    try:
        return Description.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        told = [f"  {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise SuiteError("\n".join([f"{path}: describes no cluster; docs/scale.md has an example", *told])) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SuiteError(f"{path}: cannot be read ({error}); docs/scale.md has an example") from error


def schedule(steps: Sequence[Step], expected: Outlook, description: Description) -> Schedule:
    """Give each step a node and a time. steps: of a plan, in its order.

    Raises SuiteError, which names the steps that no node is large enough for.
    """
    nodes = [kind.resources() for kind in description.nodes for _ in range(kind.count)]
    todo = {step.key: step for step in steps if not expected.steps[step.key].is_measured}
    asked = {key: demand(step, nodes, memory=expected.memories.get(key)) for key, step in todo.items()}
    lacking = [told for key, step in todo.items() if (told := lack(step.name, asked[key], nodes))]
    if lacking:
        raise SuiteError("\n".join(["the cluster is too small for this suite", *lacking]))
    known = {key: expected.steps[key].wall_s for key in todo}
    assumed = {step.stage for key, step in todo.items() if known[key] is None and step.stage in description.step_s}
    unknown = {step.stage for key, step in todo.items() if known[key] is None} - assumed
    seconds = {
        key: wall_s if (wall_s := known[key]) is not None else description.step_s.get(todo[key].stage, 0.0)
        for key in todo
    }
    slots, critical = _place(todo, asked, seconds, nodes)
    disk = {step.key: expected.steps[step.key].disk_b or 0 for step in steps}
    return Schedule(
        slots=slots,
        critical=critical,
        gpu_s=sum(asked[key].gpus * seconds[key] for key in todo),
        num_gpus=sum(node["GPU"] for node in nodes),
        disk_b=sum(disk[key] for key in todo),
        read_b=sum(disk.get(need.key, 0) for step in todo.values() for items in step.reads.values() for need in items),
        assumed=tuple(sorted(assumed)),
        unknown=tuple(sorted(unknown)),
    )


def _place(
    todo: Mapping[str, Step], asked: Mapping[str, Demand], seconds: Mapping[str, float], nodes: list[dict[str, float]]
) -> tuple[tuple[Slot, ...], tuple[Slot, ...]]:
    """Every step's slot, and those that the end waited for."""
    after = _work_after(todo, seconds)
    free = [_Free(node) for node in nodes]
    waiting = sorted(todo.values(), key=lambda step: -after[step.key])
    running: list[tuple[float, int, Slot]] = []
    done: dict[str, Slot] = {}
    before: dict[str, Slot] = {}
    """Step → what it had to wait for."""
    last: Slot | None = None
    now_s = 0.0
    while waiting or running:
        for step in list(waiting):
            needs = [need for need in step.needs if need.key in todo]
            if any(need.key not in done for need in needs):
                continue
            node = next((number for number, has in enumerate(free) if has.take(step.key, asked[step.key])), None)
            if node is None:
                continue
            waiting.remove(step)
            slot = Slot(step, node, now_s, now_s + seconds[step.key])
            heapq.heappush(running, (slot.end_s, len(done) + len(running), slot))
            if last is not None:
                before[step.key] = max((done[need.key] for need in needs), key=lambda item: item.end_s, default=last)
                if before[step.key].end_s < now_s:
                    before[step.key] = last
        now_s, _, last = heapq.heappop(running)
        done[last.step.key] = last
        free[last.node].give_back(last.step.key, asked[last.step.key])
    path = [last] if last else []
    while path and path[-1].step.key in before:
        path.append(before[path[-1].step.key])
    return tuple(sorted(done.values(), key=lambda slot: slot.start_s)), tuple(reversed(path))


def _work_after(todo: Mapping[str, Step], seconds: Mapping[str, float]) -> dict[str, float]:
    """Step → seconds of the longest chain that begins with it."""
    longest = dict(seconds)
    for step in reversed(list(todo.values())):
        for need in step.needs:
            if need.key in todo:
                longest[need.key] = max(longest[need.key], seconds[need.key] + longest[step.key])
    return longest


class _Free:
    """What is left of a node. A part of a GPU is of one GPU, as Ray gives it."""

    def __init__(self, node: Mapping[str, float]) -> None:
        self._gpus = [1.0] * int(node.get("GPU", 0))
        self._other = {what: amount for what, amount in node.items() if what != "GPU"}
        self._lent: dict[str, list[int]] = {}

    def take(self, key: str, asked: Demand) -> bool:
        """Whether there was room for a step, which then has it."""
        share, count = min(asked.gpus, 1.0), math.ceil(asked.gpus)
        fitting = [number for number, left in enumerate(self._gpus) if left >= share - 1e-9]
        if len(fitting) < count or any(self._other.get(what, 0.0) < amount - 1e-9 for what, amount in _beside(asked)):
            return False
        # The fullest first: whole GPUs stay whole.
        self._lent[key] = sorted(fitting, key=lambda number: self._gpus[number])[:count]
        self._change(key, asked, sign=-1)
        return True

    def give_back(self, key: str, asked: Demand) -> None:
        self._change(key, asked, sign=1)
        del self._lent[key]

    def _change(self, key: str, asked: Demand, *, sign: int) -> None:
        for number in self._lent[key]:
            self._gpus[number] += sign * min(asked.gpus, 1.0)
        for what, amount in _beside(asked):
            self._other[what] += sign * amount


def _beside(asked: Demand) -> list[tuple[str, float]]:
    """All that is asked for but GPUs."""
    return [(what, amount) for what, amount in asked.resources().items() if what != "GPU" and amount]
