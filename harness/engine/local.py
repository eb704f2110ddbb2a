"""Runs a plan on this machine: each step in a child process, independent steps go on when one fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from harness.core.artifact import PROGRESS_FILE
from harness.engine.search import JUDGE, is_pruned
from harness.engine.worker import ERROR_FILE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.engine.plan import Step
    from harness.engine.store import Store

State = Literal["cached", "done", "failed", "skipped", "stopped", "pruned"]
"""pruned: a search has stopped the variant that the step belongs to; nothing went wrong."""
POLL_S = 0.1
GRACE_S = 10.0
"""How long a stopped worker may take to end by itself."""


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


@dataclass(slots=True)
class _Running:
    step: Step
    process: subprocess.Popen[bytes]
    started: float
    log: Path


def run_steps(
    steps: Sequence[Step],
    *,
    store: Store,
    logs: Path,
    listener: Listener,
    jobs: int,
    environment: Environment = lambda _step: {},
) -> dict[str, Outcome]:
    """Bring every step to an end; returns key → outcome.

    On KeyboardInterrupt the workers are ended, what they have done so far stays in the store, and the interrupt
    goes on to the caller.
    """
    outcomes: dict[str, Outcome] = {}
    waiting = list(steps)
    running: list[_Running] = []
    logs.mkdir(parents=True, exist_ok=True)
    try:
        while waiting or running:
            _settle(waiting, outcomes, store=store, listener=listener)
            for step in _startable(waiting, outcomes, running, jobs=jobs):
                waiting.remove(step)
                left = {key for key, outcome in outcomes.items() if _succeeded(outcome)}
                running.append(_start(step, left, store=store, logs=logs, environment=environment))
                listener.started(step)
            if running:
                time.sleep(POLL_S)
            for item in list(running):
                outcome = _poll(item, store=store, listener=listener)
                if outcome is not None:
                    running.remove(item)
                    outcomes[item.step.key] = outcome
                    listener.finished(item.step, outcome)
    finally:
        _stop(running)
    return outcomes


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
        elif _ready(step, outcomes) and store.find(step.folder, key=step.key):
            outcome = Outcome("cached")
        else:
            continue
        waiting.remove(step)
        outcomes[step.key] = outcome
        listener.finished(step, outcome)


def _startable(waiting: list[Step], outcomes: dict[str, Outcome], running: list[_Running], *, jobs: int) -> list[Step]:
    """Light steps side by side, up to `jobs`; a step that needs the whole machine alone, when nothing else runs."""
    if any(item.step.resources.whole_machine for item in running):
        return []
    ready = [step for step in waiting if _ready(step, outcomes)]
    light = [step for step in ready if not step.resources.whole_machine][: jobs - len(running)]
    if light or running:
        return light
    return ready[:1]


def _ready(step: Step, outcomes: dict[str, Outcome]) -> bool:
    passable = ("cached", "done", "pruned") if step.stage == JUDGE else ("cached", "done")
    return all(need.key in outcomes and outcomes[need.key].state in passable for need in step.needs)


def _succeeded(outcome: Outcome) -> bool:
    return outcome.state in ("cached", "done")


def _start(step: Step, left: set[str], *, store: Store, logs: Path, environment: Environment) -> _Running:
    """left: keys of the steps that have an artifact to read."""
    partial = store.partial(step.folder)
    (partial / "scratch").mkdir(parents=True, exist_ok=True)
    (partial / "scratch" / PROGRESS_FILE).unlink(missing_ok=True)
    (partial / ERROR_FILE).unlink(missing_ok=True)
    job = {
        "name": step.name,
        "stage": step.stage,
        "key": step.key,
        "folder": step.folder,
        "store": str(store.root.resolve()),
        "spec_class": f"{type(step.spec).__module__}:{type(step.spec).__qualname__}",
        "spec": step.spec.model_dump(mode="json", by_alias=True, serialize_as_any=True),
        "inputs": {
            role: [str((store.root / item.folder).resolve()) for item in items if item.key in left]
            for role, items in step.inputs.items()
        },
    }
    (partial / "job.json").write_text(json.dumps(job, ensure_ascii=False), encoding="utf-8")
    log = logs / f"{step.folder}.log"
    with log.open("ab") as file:
        file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {step.name}\n".encode())
        file.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.engine.worker", str(partial / "job.json")],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUTF8": "1", "TOKENIZERS_PARALLELISM": "false", **environment(step)},
        )
    return _Running(step, process, time.monotonic(), log)


def _poll(item: _Running, *, store: Store, listener: Listener) -> Outcome | None:
    partial = store.partial(item.step.folder)
    code = item.process.poll()
    if code is None:
        try:
            told = json.loads((partial / "scratch" / PROGRESS_FILE).read_text(encoding="utf-8"))
            listener.progressed(item.step, **told)
        except (OSError, ValueError):
            pass  # nothing told yet, or half a line: look again in a moment
        return None
    wall_s = time.monotonic() - item.started
    if item.process.stdin:
        item.process.stdin.close()
    if code == 0:
        return Outcome("done", wall_s, log=item.log)
    try:
        failure = json.loads((partial / ERROR_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # No word from the worker: it crashed or was killed from outside.
        by = f"signal {-code}" if code < 0 else f"exit code {code}"
        hint = " (out of memory?)" if code == -9 else ""
        failure = {"message": f"its process ended with {by}{hint}; run again to go on", "exit_code": 1}
    return Outcome("failed", wall_s, failure["message"], item.log, failure["exit_code"])


def _stop(running: list[_Running]) -> None:
    for item in running:
        item.process.terminate()
    deadline = time.monotonic() + GRACE_S
    for item in running:
        try:
            item.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            item.process.kill()
            item.process.wait()
