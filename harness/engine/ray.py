"""Runs steps on a Ray cluster: each as a task that asks for what the step needs, in the same process as anywhere else.

A task that is lost with its node is started again on another by Ray, and finds the checkpoints of the first attempt in
the store, which all nodes share.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from harness.core.artifact import CPUS
from harness.engine.cluster import MIB, Demand, check_nodes, demand, lack
from harness.engine.process import StepProcess
from harness.engine.walk import Environment, Outcome, log_file, outcome_of
from harness.errors import MissingError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from harness.core.estimates import Memory
    from harness.engine.plan import Step
    from harness.engine.walk import Job, Listener

POLL_S = 0.2
ANSWER_S = 10.0
RETRIES = 3
"""How often a step is started again whose node or task was lost."""
LOOPBACK = "127.0.0.1"
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""For a cluster of this machine alone: Ray would otherwise listen on, and look for, the machine's outside address."""
EAGER = {"RAY_worker_niceness": "0"}
"""For nodes that are started here: Ray's workers would give way to all else on the machine, and steps are timed."""
LOCAL = "local"
"""Address: a cluster of this machine alone, for as long as the run takes."""


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Join the cluster at `address`, and leave it: auto, local, HOST:PORT or ray://HOST:PORT.

    Raises MissingError without Ray, or where no cluster answers.
    """
    os.environ.update(LOOPBACK_ONLY if address == LOCAL or address.startswith(LOOPBACK) else {})
    os.environ.update(EAGER if address == LOCAL else {})
    # Ray's word on GPUs that a task did not ask for: it will change, and Ray warns of that at each start.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    place: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {"address": address}
    try:
        import ray
    except ImportError as error:
        raise MissingError("Ray is not installed; run: pip install '.[ray]'") from error
    try:
        _knock(address)
        ray.init(**place, runtime_env=_environment(), logging_level="ERROR", log_to_driver=False)
    except (ConnectionError, TimeoutError, OSError, RuntimeError, ValueError) as error:
        raise MissingError(
            f"no Ray cluster answers at '{address}' ({first_line(error)}); start one: ray start --head, "
            "name another: --address HOST:PORT, or take this machine alone: --address local"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def attend(job: Job, environment: Mapping[str, str], told: Any) -> tuple[dict[str, Any] | None, float]:
    """On a node: run the worker on a step to its end, and send what it tells. Returns its failure or None, and seconds.

    told: the actor that collects.
    """
    import ray

    with TemporaryDirectory(prefix="harness-") as folder:
        path = Path(folder) / "step.log"
        with path.open("ab") as log:
            process = StepProcess(job, log=log, environment=environment)
        with path.open("rb") as printed:
            ended = False
            while not ended:
                ended = process.ended()
                text = printed.read()
                sent = told.tell.remote(job["key"], process.progress(), text)
                time.sleep(0 if ended else POLL_S)
        ray.get(sent)  # or the last lines would come after the end
        return process.failure(), process.wall_s


class Told:
    """An actor: what the steps under way have said since they were last asked for."""

    def __init__(self) -> None:
        self._progress: dict[str, dict[str, Any]] = {}
        self._printed: dict[str, bytes] = {}

    def tell(self, key: str, progress: dict[str, Any] | None, printed: bytes) -> None:
        if progress:
            self._progress[key] = progress
        self._printed[key] = self._printed.get(key, b"") + printed

    def take(self) -> tuple[dict[str, dict[str, Any]], dict[str, bytes]]:
        taken = self._progress, self._printed
        self._progress, self._printed = {}, {}
        return taken


@dataclass(slots=True)
class RayExecutor:
    """The cluster that this process is connected to."""

    logs: Path
    """Folder for a file a step."""
    environment: Environment = lambda _step: {}
    memories: Mapping[str, Memory | None] = field(default_factory=dict)
    """Key of a training → what it is predicted to take of a GPU."""
    rams_mib: Mapping[str, float] = field(default_factory=dict)
    """Key of a step → what it will take, where that is known."""
    _told: Any = field(init=False)
    _attend: Any = field(init=False)
    _nodes: list[dict[str, float]] = field(init=False)
    _running: dict[Any, Step] = field(default_factory=dict, init=False)
    """Reference of a task → its step."""

    def __post_init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # Where memory runs out, Ray may take this process: then a few lines are lost, not the run.
        lasting = {"max_restarts": -1, "max_task_retries": -1}
        self._told = ray.remote(num_cpus=0, **lasting)(Told).options(scheduling_strategy=here).remote()
        self._attend = ray.remote(max_retries=RETRIES)(attend)

    def check(self, steps: Sequence[Step], store: Path | None) -> None:
        """Raises MissingError unless every node can do its part: the same versions, the same store, enough of all.

        store: the folder that all must see; None where each has its own, and a remote store between them.
        """
        check_nodes(store)
        lacking = [lack(step.name, self._demand(step), self._nodes) for step in steps]
        if any(lacking):
            raise MissingError("\n".join(["the cluster is too small for this suite", *filter(None, lacking)]))

    def startable(self, ready: Sequence[Step]) -> Sequence[Step]:
        """All: Ray knows best what fits where."""
        return ready

    def start(self, step: Step, job: Job) -> None:
        asked = self._demand(step)
        resources = {"num_cpus": asked.cpus, "num_gpus": asked.gpus, "resources": dict(asked.custom)}
        task = self._attend.options(name=step.name, memory=int(asked.ram_mib * MIB), **resources)
        environment = {CPUS: str(int(asked.cpus)), **self.environment(step)}
        reference = task.remote(dict(job), environment, self._told)
        self._running[reference] = step

    def poll(self, listener: Listener) -> dict[str, Outcome]:
        import ray

        ended, _ = ray.wait(list(self._running), num_returns=1, timeout=POLL_S)
        self._listen(listener)
        found = {}
        for reference in ended:
            step = self._running.pop(reference)
            wall_s = 0.0
            try:
                failure, wall_s = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                failure = {"message": f"its task failed: {str(error).strip().splitlines()[-1]}", "exit_code": 1}
            except ray.exceptions.RayError as error:
                message = f"its task was lost {RETRIES + 1} times ({first_line(error)}); run again to go on"
                failure = {"message": message, "exit_code": 1}
            found[step.key] = outcome_of(failure, wall_s=wall_s, log=log_file(self.logs, step))
        return found

    def stop(self) -> None:
        import ray

        for reference in self._running:
            # Its worker ends with the task's process.
            ray.cancel(reference, force=True)
        self._running.clear()

    def _demand(self, step: Step) -> Demand:
        ram_mib = self.rams_mib.get(step.key, 0.0)
        return demand(step, self._nodes, memory=self.memories.get(step.key), ram_mib=ram_mib)

    def _listen(self, listener: Listener) -> None:
        import ray

        progress, printed = ray.get(self._told.take.remote())
        steps = {step.key: step for step in self._running.values()}
        for key, told in progress.items():
            if key in steps:
                listener.progressed(steps[key], **told)
        for key, text in printed.items():
            if key in steps and text:
                with log_file(self.logs, steps[key]).open("ab") as log:
                    log.write(text)


def _knock(address: str) -> None:
    """Raises OSError where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()


def _environment() -> dict[str, Any]:
    """How nodes find this very project, where it is not installed but lies on the path."""
    path = os.environ.get("PYTHONPATH")
    return {"env_vars": {"PYTHONPATH": path}} if path else {}
