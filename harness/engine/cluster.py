"""What a cluster has, what a step asks of it, and whether its nodes are fit to run the plan."""

from __future__ import annotations

import hashlib
import math
import platform
import re
import secrets
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from harness.core.packages import installed
from harness.errors import MissingError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from harness.core.estimates import Memory
    from harness.engine.plan import Step

GIB = 2**30
MIB = 2**20
RAM = "memory"
"""Ray's name for it, in bytes."""
VRAM = "vram_gib"
"""A custom resource that nodes may declare: GiB of all their GPUs together. With it small trainings share a GPU."""
MAX_NAMED = 5
NODE_TIMEOUT_S = 120.0
"""How long a node may take to answer; a fresh one begins by starting a Python."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a task asks Ray for."""

    cpus: float
    gpus: float = 0.0
    custom: Mapping[str, float] = field(default_factory=dict)
    ram_mib: float = 0.0
    """0: not known."""

    def resources(self) -> dict[str, float]:
        """By Ray's names."""
        return {"CPU": self.cpus, "GPU": self.gpus, RAM: self.ram_mib * MIB, **self.custom}


def demand(
    step: Step, nodes: Sequence[Mapping[str, float]], *, memory: Memory | None = None, ram_mib: float = 0.0
) -> Demand:
    """A light step: one CPU. A heavy one: a GPU and its share of the CPUs, or a whole node where there is no GPU.

    A training on several devices takes as many whole GPUs of one node; another one, of which the memory is known, a
    part of a GPU, if the nodes say what theirs have. What is timed never shares: on a GPU it has that to itself, on
    CPUs a whole node. Heavy work that is not timed leaves the GPUs of its node to others; what can be divided is, so
    that it fits the smallest node. nodes: what each has. memory: of the training, as predicted. ram_mib: that the step
    will take; 0 where nobody knows.
    """
    return replace(_demand(step, nodes, memory), ram_mib=ram_mib)


def _demand(step: Step, nodes: Sequence[Mapping[str, float]], memory: Memory | None) -> Demand:
    with_gpu = [node for node in nodes if node.get("GPU")]
    cpus = max(1, min((int(node["CPU"] // node["GPU"]) for node in with_gpu), default=1))
    if step.resources.gpu and with_gpu and _device(step.spec) != "cpu":
        devices: int = getattr(step.spec, "devices", 1)
        if devices > 1:
            return Demand(cpus * devices, float(devices))
        cards = [_of_one(node, VRAM) for node in with_gpu if VRAM in node]
        if memory is None or not cards:
            return Demand(cpus, 1.0)
        gib = memory.total_b / GIB
        # Of the smallest card that it fits; Ray takes hundredths.
        share = max((math.ceil(100 * gib / card) / 100 for card in cards if card >= gib), default=1.0)
        return Demand(max(1, int(cpus * share)), share, {VRAM: gib})
    if step.resources.whole_machine and with_gpu and not step.resources.gpu:
        return Demand(cpus)
    if step.resources.whole_machine:
        sizes = [node["CPU"] for node in nodes if node.get("CPU")] or [1]
        return Demand(min(sizes) if step.resources.divisible else max(sizes))
    return Demand(1)


def lack(name: str, asked: Demand, nodes: Sequence[Mapping[str, float]]) -> str | None:
    """A sentence on a step that no node is large enough for."""
    wanted = {what: amount for what, amount in asked.resources().items() if amount}
    if any(all(_of_one(node, what) >= amount for what, amount in wanted.items()) for node in nodes):
        return None
    most = {what: max((_of_one(node, what) for node in nodes), default=0) for what in wanted}
    told, there = (", ".join(_told(what, amount) for what, amount in items.items()) for items in (wanted, most))
    return f"  {name}: asks for {told}; no node has that, the most that there is: {there}; add a node that has it"


def _told(what: str, amount: float) -> str:
    return f"{amount / GIB:.4g} GiB of RAM" if what == RAM else f"{amount:.4g} {what}"


def _of_one(node: Mapping[str, float], what: str) -> float:
    """What one task can have of a node: of its VRAM no more than one GPU's."""
    return node.get(what, 0.0) / (node.get("GPU", 0.0) or 1.0 if what == VRAM else 1.0)


def check_nodes(store: Path | None) -> None:
    """Let every node of the connected cluster compare itself with this process.

    store: must lie under the same path on every node, if it is shared as a folder. Raises MissingError, which names
    each unfit node and why.
    """
    names = sorted(_closure())
    own = identity(names)
    with _token(store) as token:
        asked = _ask_nodes(names, token)
        unfit = [fault for reference, node in asked.items() for fault in _faults(reference, node, own, token)]
    if unfit:
        raise MissingError("\n".join(["not every node can run this suite", *unfit]))


@contextmanager
def _token(store: Path | None) -> Iterator[Path | None]:
    """A file in the store for a moment, by which nodes prove that they see it."""
    if store is None:
        yield None
        return
    store.mkdir(parents=True, exist_ok=True)
    token = store.resolve() / f".token-{secrets.token_hex(8)}"
    token.write_text("seen", encoding="utf-8")
    try:
        yield token
    finally:
        token.unlink(missing_ok=True)


def _ask_nodes(names: list[str], token: Path | None) -> dict[Any, str]:
    """Reference of what a node answers → its name."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(_look)
    return {
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            names, str(token or "")
        ): f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        for node in ray.nodes()
        if node["Alive"]
    }


def identity(names: Iterable[str]) -> dict[str, str]:
    """What must be alike on all nodes: Python, the project's code, and the versions of the packages named."""
    code = hashlib.sha256()
    root = Path(harness.__file__).parent
    for path in sorted(root.rglob("*.py")):
        code.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n"))
    return {
        "Python": platform.python_version(),
        "harness": f"{harness.__version__} with code {code.hexdigest()[:12]}",
        **{name: installed(name) or "not installed" for name in names},
    }


def _look(names: list[str], token: str) -> tuple[dict[str, str], bool]:
    """On a node: what it is, and whether it sees the store."""
    return identity(names), not token or Path(token).is_file()


def _faults(reference: Any, node: str, own: Mapping[str, str], token: Path | None) -> Iterator[str]:
    import ray

    try:
        theirs, sees = ray.get(reference, timeout=NODE_TIMEOUT_S)
    except ray.exceptions.GetTimeoutError:
        yield f"  {node}: has not answered in {NODE_TIMEOUT_S:g} s; remove it from the cluster, or start it again"
        return
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        yield f"  {node}: cannot run harness ({reason}); install it there as here: pip install '.[train,parakeet,ray]'"
        return
    differing = [name for name in own if own[name] != theirs[name]]
    if differing:
        told = "; ".join(f"{name} {theirs[name]}, here {own[name]}" for name in differing[:MAX_NAMED])
        more = f" and {len(differing) - MAX_NAMED} more" if len(differing) > MAX_NAMED else ""
        yield f"  {node}: has {told}{more}; install the same: pip install -c constraints.txt '.[train,parakeet,ray]'"
    if token and not sees:
        yield f"  {node}: does not see the store {token.parent}; mount it there under the same path, or give --store"


def _device(spec: Any) -> str:
    """cpu, where a suite wants a runtime to leave the GPU alone."""
    return str(getattr(getattr(spec, "runtime", None) or spec, "device", "auto"))


def _closure() -> set[str]:
    """The installed packages that the project is built on, and those that they are built on."""
    found: set[str] = set()
    pending = ["harness"]
    while pending:
        name = pending.pop()
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in requirements:
            other = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")
            if other not in found and installed(other):
                found.add(other)
                pending.append(other)
    # Where the project lies on the path without being installed, everything is compared.
    return found - {"harness"} or {str(item.name) for item in metadata.distributions()}
