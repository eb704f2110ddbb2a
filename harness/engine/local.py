"""Runs steps on this machine: each in a child process, light ones side by side, a heavy one alone."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.engine.process import StepProcess, stop
from harness.engine.walk import Environment, Outcome, log_file, outcome_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.engine.plan import Step
    from harness.engine.walk import Job, Listener

POLL_S = 0.1


@dataclass(slots=True)
class LocalExecutor:
    """Child processes of this one."""

    logs: Path
    """Folder for a file a step."""
    jobs: int
    """Light steps that run side by side."""
    environment: Environment = lambda _step: {}
    _running: dict[str, tuple[Step, StepProcess]] = field(default_factory=dict, init=False)

    def startable(self, ready: Sequence[Step]) -> Sequence[Step]:
        """Light steps, up to `jobs`; a step that needs the whole machine alone, when nothing else runs."""
        if any(step.resources.whole_machine for step, _ in self._running.values()):
            return []
        light = [step for step in ready if not step.resources.whole_machine][: self.jobs - len(self._running)]
        if light or self._running:
            return light
        return ready[:1]

    def start(self, step: Step, job: Job) -> None:
        with log_file(self.logs, step).open("ab") as log:
            self._running[step.key] = step, StepProcess(job, log=log, environment=self.environment(step))

    def poll(self, listener: Listener) -> dict[str, Outcome]:
        time.sleep(POLL_S)
        found = {}
        for step, process in list(self._running.values()):
            if process.ended():
                del self._running[step.key]
                found[step.key] = outcome_of(process.failure(), wall_s=process.wall_s, log=log_file(self.logs, step))
            elif told := process.progress():
                listener.progressed(step, **told)
        return found

    def stop(self) -> None:
        stop([process for _, process in self._running.values()])
