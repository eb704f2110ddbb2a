"""Inputs made from seeds, each read in a child process whose time, memory and deeds are watched."""

from __future__ import annotations

import json
import math
import os
import queue
import random
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tests.fuzz.mutation import mutate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.fuzz.target import Target

ROOT = Path(__file__).parents[2]
LIMIT_S = 10.0
"""Of processor time for one input: a busy machine is no hang."""
STILL_S = 120.0
"""By the clock, for one that waits."""
START_S = 900.0
"""Of importing what reads the input, and reading the seeds; NeMo alone takes 15 s."""
MEMORY_BYTES = 2 << 30
FOLDERS = ("home", "here", "outside", "tmp", "inputs")


@dataclass
class Tally:
    """What became of a target's inputs."""

    accepted: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    peak_rss_mib: float = 0.0
    findings: list[dict[str, Any]] = field(default_factory=list)
    """`input`, its number, and `what` was wrong."""

    @property
    def num_inputs(self) -> int:
        return self.accepted + self.refused + len(self.findings)

    def add(self, number: int, told: dict[str, Any]) -> None:
        """told: what the child says of an input."""
        self.slowest_s = max(self.slowest_s, told["seconds"])
        self.peak_rss_mib = max(self.peak_rss_mib, told["peak_rss_mib"])
        what = told["what"]
        if told["seconds"] > LIMIT_S:
            what = f"takes {told['seconds']:.1f} s, over {LIMIT_S:g}"
        if told["peak_rss_mib"] * 2**20 > MEMORY_BYTES:
            what = what or f"takes {told['peak_rss_mib']:.0f} MiB"
        if what:
            self.findings.append({"input": number, "what": what})
        elif told["accepted"]:
            self.accepted += 1
        else:
            self.refused += 1

    def as_json(self) -> dict[str, Any]:
        return {
            "inputs": self.num_inputs,
            "accepted": self.accepted,
            "refused": self.refused,
            "slowest_s": round(self.slowest_s, 2),
            "peak_rss_mib": round(self.peak_rss_mib),
            "findings": self.findings,
        }


def make(target: Target, number: int, *, seed: int) -> bytes:
    """The input of this number."""
    rng = random.Random(f"{seed}/{target.name}/{number}")
    seeds = target.seeds()
    chosen = rng.choice(seeds)
    data = mutate(chosen, rng=rng, others=seeds, places=target.places(chosen))
    return target.mend(data) if rng.random() < 0.67 else data


def attack(
    inputs: Sequence[tuple[Target, int]], *, seed: int, base: Path, targets: str = "tests.fuzz.targets"
) -> dict[str, Tally]:
    """Read inputs by their targets and numbers, in one child process, or in one more after each that dies or hangs.

    base: an empty folder. targets: the module that has them as TARGETS. Returns the tally of each target.
    """
    tallies = {target.name: Tally() for target, _ in inputs}
    left = [(target.name, number) for target, number in inputs]
    while left:
        left = _one_child(left, seed=seed, base=base, tallies=tallies, targets=targets)
    return tallies


def _one_child(
    inputs: list[tuple[str, int]], *, seed: int, base: Path, tallies: dict[str, Tally], targets: str
) -> list[tuple[str, int]]:
    """Returns the inputs that it did not get to."""
    for name in FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    (base / "outside" / "secret").write_text("nobody may read or change this", encoding="utf-8")
    job = json.dumps({"targets": targets, "inputs": inputs, "seed": seed, "base": str(base)})
    (base / "job.json").write_text(job, encoding="utf-8")
    command = [sys.executable, "-B", "-m", "tests.fuzz.child", str(base / "job.json")]
    with (base / "log").open("wb") as log:
        child = subprocess.Popen(
            command, cwd=base / "here", env=_environment(base), stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        return _watch(child, inputs, tallies=tallies, log=base / "log")
    finally:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()
        for name in ("inputs", "tmp"):
            shutil.rmtree(base / name, ignore_errors=True)


def _watch(
    child: subprocess.Popen[str], inputs: list[tuple[str, int]], *, tallies: dict[str, Tally], log: Path
) -> list[tuple[str, int]]:
    next_line = _lines(child)
    for place, (name, number) in enumerate(inputs):
        # Before the first input of a kind its seeds are read, and what reads them is imported.
        if (not place or name != inputs[place - 1][0]) and next_line(START_S, math.inf) is None:
            ending = log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise RuntimeError(f"{name}: its seeds cannot be read: {ending}")
        told = next_line(STILL_S, LIMIT_S)
        if told is None:
            code = child.poll()
            ending = log.read_text(encoding="utf-8", errors="replace")[-300:].strip()
            what = f"hangs: over {LIMIT_S:g} s" if code is None else f"the process dies with {code}: {ending}"
            tallies[name].findings.append({"input": number, "what": what})
            return inputs[place + 1 :]
        tallies[name].add(number, told)
    return []


def _lines(child: subprocess.Popen[str]) -> Callable[[float, float], dict[str, Any] | None]:
    """Waits for the next line of a child, so long by the clock and by its processor time; None when there is none."""
    found: queue.Queue[str] = queue.Queue()

    def pump() -> None:
        for line in child.stdout or ():
            found.put(line)
        found.put("")

    threading.Thread(target=pump, daemon=True).start()

    def next_line(still_s: float, limit_s: float) -> dict[str, Any] | None:
        start, used_s = time.monotonic(), _used_s(child)
        line = None
        while line is None:
            try:
                line = found.get(timeout=1.0)
            except queue.Empty:
                if time.monotonic() - start > still_s or _used_s(child) - used_s > limit_s:
                    return None
        if not line:
            child.wait()
            return None
        return dict(json.loads(line))

    return next_line


def _used_s(child: subprocess.Popen[str]) -> float:
    try:
        times = psutil.Process(child.pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def _environment(base: Path) -> dict[str, str]:
    """A home of its own; no tracking server, no hub, few threads."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "HF_", "HARNESS_", "ORT_"))
    }
    home = str(base / "home")
    given = dict.fromkeys(("HOME", "USERPROFILE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "APPDATA", "LOCALAPPDATA"), home)
    given |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(base / "tmp"))
    given |= dict.fromkeys(("HF_HOME", "HARNESS_CACHE"), home)
    given |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
    return kept | given | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def shares(targets: Sequence[Target], count: int) -> Iterator[tuple[Target, int]]:
    """How many inputs each target gets; together at least `count`."""
    total = sum(target.weight for target in targets)
    for target in targets:
        yield target, max(1, int(-(-count * target.weight // total)))
