"""Walks a plan: what is done already is taken, independent steps go on when one fails, an executor does the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from harness.engine.plan import with_needs
from harness.engine.search import JUDGE, is_pruned

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.engine.plan import Step
    from harness.engine.store import Store

State = Literal["cached", "done", "failed", "skipped", "stopped", "pruned"]
"""pruned: a search has stopped the variant that the step belongs to; nothing went wrong."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended."""

    state: State
    wall_s: float = 0.0
    error: str = ""
    log: Path | None = None
    exit_code: int = 0


class Listener(Protocol):
    """Is told what happens while a plan runs."""

    def started(self, step: Step) -> None: ...
    def progressed(self, step: Step, *, done: int, total: int, note: str) -> None: ...
    def finished(self, step: Step, outcome: Outcome) -> None: ...


Environment = Callable[["Step"], Mapping[str, str]]
"""Step → environment variables for its process: where to log training curves."""
Job = Mapping[str, Any]
"""A step as `harness.engine.worker` takes it, from JSON."""


class Executor(Protocol):
    """Runs the worker's processes, here or elsewhere."""

    def startable(self, ready: Sequence[Step]) -> Sequence[Step]:
        """Those of the steps that may start beside what runs already."""

    def start(self, step: Step, job: Job) -> None: ...

    def poll(self, listener: Listener) -> Mapping[str, Outcome]:
        """Wait a moment; tell of progress; key → outcome of what has ended."""

    def stop(self) -> None:
        """End what still runs, and keep what it has done so far."""


def run_steps(steps: Sequence[Step], *, store: Store, executor: Executor, listener: Listener) -> dict[str, Outcome]:
    """Bring every step to an end; returns key → outcome.

    On KeyboardInterrupt the workers are ended, what they have done so far stays in the store, and the interrupt
    goes on to the caller.
    """
    outcomes: dict[str, Outcome] = {}
    waiting = list(steps)
    running: dict[str, Step] = {}
    for step in unneeded(steps, store=store):
        outcomes[step.key] = Outcome("cached")
        waiting.remove(step)
        listener.finished(step, outcomes[step.key])
    try:
        while waiting or running:
            _settle(waiting, outcomes, store=store, listener=listener)
            for step in executor.startable([step for step in waiting if _ready(step, outcomes)]):
                waiting.remove(step)
                left = {key for key, outcome in outcomes.items() if outcome.state in ("cached", "done")}
                executor.start(step, job_of(step, left, store=store))
                running[step.key] = step
                listener.started(step)
            for key, outcome in executor.poll(listener).items() if running else ():
                outcomes[key] = outcome
                listener.finished(running.pop(key), outcome)
    finally:
        executor.stop()
    return outcomes


def unneeded(steps: Sequence[Step], *, store: Store) -> list[Step]:
    """Steps that have done a piece of what is done: what they left may be gone."""
    joined = [step for step in steps if step.pieces and store.has(step.folder, key=step.key)]
    found = with_needs(piece for step in joined for pieces in step.pieces.values() for piece in pieces)
    return [step for step in steps if step.key in found]


def job_of(step: Step, left: set[str], *, store: Store) -> dict[str, Any]:
    """What a worker must know of a step. left: keys of the steps that have an artifact to read."""
    return {
        "name": step.name,
        "stage": step.stage,
        "key": step.key,
        "folder": step.folder,
        "store": str(store.root.resolve()),
        "remote": store.remote.url if store.remote else None,
        "spec_class": f"{type(step.spec).__module__}:{type(step.spec).__qualname__}",
        "spec": step.spec.model_dump(mode="json", by_alias=True, serialize_as_any=True),
        "inputs": {
            role: [str((store.root / item.folder).resolve()) for item in items if item.key in left]
            for role, items in step.reads.items()
        },
    }


def _settle(waiting: list[Step], outcomes: dict[str, Outcome], *, store: Store, listener: Listener) -> None:
    """Finish what needs no process: steps that the store has, dependants of failed ones, stopped variants."""
    pruned = {key for key, outcome in outcomes.items() if outcome.state == "pruned"}
    for step in list(waiting):
        ended = [need for need in step.needs if need.key in outcomes]
        failed = [need for need in ended if outcomes[need.key].state in ("failed", "skipped", "stopped")]
        if failed:
            outcome = Outcome("skipped", error=f"needs {failed[0].name}")
        elif len(ended) == len(step.needs) and is_pruned(step, pruned, store):
            outcome = Outcome("pruned")
            pruned.add(step.key)
        elif _ready(step, outcomes) and store.has(step.folder, key=step.key):
            outcome = Outcome("cached")
        else:
            continue
        waiting.remove(step)
        outcomes[step.key] = outcome
        listener.finished(step, outcome)


def _ready(step: Step, outcomes: dict[str, Outcome]) -> bool:
    passable = ("cached", "done", "pruned") if step.stage == JUDGE else ("cached", "done")
    return all(need.key in outcomes and outcomes[need.key].state in passable for need in step.needs)


def outcome_of(failure: Mapping[str, Any] | None, *, wall_s: float, log: Path) -> Outcome:
    """Of a step whose process has ended. failure: its `message` and `exit_code`."""
    if failure is None:
        return Outcome("done", wall_s, log=log)
    return Outcome("failed", wall_s, failure["message"], log, failure["exit_code"])


def log_file(logs: Path, step: Step) -> Path:
    """Where a step's output goes."""
    logs.mkdir(parents=True, exist_ok=True)
    return logs / f"{step.folder}.log"
