"""SIGKILL at random moments of one stage, again and again: whatever dies, what was done stays done."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from harness.engine.upkeep import faults
from tests.pipelines import board_of, ended, harness, start

STAGES = ("prepare", "train", "export", "transcribe", "score", "board")
WHOM = ("driver", "worker", "both")
MOST_KILLS = 3
"""Before a step may come to its end."""
LATE = 0.5
"""The share of a training's kills that wait for a checkpoint first: most of a tiny training is its start."""
LATE_SPAN = 0.2
"""Of the step's time: when such a kill comes, at most, after the checkpoint."""
ORPHANS_S = 20.0
TIMES = {"rtf", "latency_p50_ms", "latency_p95_ms", "load_s", "peak_vram_mib", "peak_ram_mib", "device"} | {
    "sealed_readings"
}
"""Columns that differ from run to run; every other one must come out the same, to the last digit.

A board that lacks a killed row is one more reading of a sealed set.
"""
TIMED = ("transcripts.jsonl", "hypotheses.jsonl", "curves.jsonl", "score.json", "tensorboard/", "card.", "report.")
"""Files that tell times or dates; every other one must have the same sha256."""


@dataclass
class Tally:
    """What a stage has stood."""

    rounds: int = 0
    """A step's artifact taken away, its runs killed, the last one finished and compared."""
    kills: int = 0
    hits: int = 0
    """Of the kills: in the middle of the step."""
    by_whom: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WHOM, 0))
    resumed: int = 0
    """Kills after which a training had a checkpoint to go on from."""
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "seconds": round(self.seconds, 1)}


@dataclass
class Campaign:
    """A finished run, and what it must always come back to."""

    suite: Path
    cwd: Path
    rng: random.Random
    span_s: dict[str, float] = field(default_factory=dict)
    """Stage → how long its step took the last time."""
    expected: dict[str, Any] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        return self.cwd / "results" / "store"

    def begin(self) -> None:
        """The unbroken run."""
        result = harness("run", str(self.suite), cwd=self.cwd)
        if result.returncode:
            raise RuntimeError(result.stdout + result.stderr)
        self.expected = self.found()

    def found(self) -> dict[str, Any]:
        """The board and the hashes of every artifact, without what tells times."""
        return {
            "board": sorted(
                tuple(value for name, value in line.items() if name not in TIMES) for line in board_of(self.cwd)
            ),
            "hashes": {
                f"{path.parent.name}/{name}": entry["sha256"]
                for path in sorted(self.store.glob("*-*/artifact.json"))
                for name, entry in json.loads(path.read_text("utf-8"))["files"].items()
                if not name.startswith(TIMED)
            },
        }

    def round(self, stage: str, tally: Tally) -> None:
        """Take away a step's artifact, kill the runs that would make it again, let the last one through, compare."""
        began = time.monotonic()
        victim = self._take_away(stage)
        command = ("board", str(self.suite), "--rebuild") if stage == "board" else ("run", str(self.suite))
        before = self._state(victim)
        for _ in range(self.rng.randint(1, MOST_KILLS) if stage in self.span_s else 0):
            self._kill(stage, victim, command, tally)
            after = self._state(victim)
            self._check(before, after, tally)
            tally.resumed += bool(after["checkpoint"])
            before = after
            if not self.store.joinpath(victim, "artifact.json").is_file() and stage != "board":
                continue
            if stage != "board":
                break
        self._finish(stage, command, tally)
        tally.rounds += 1
        tally.seconds += time.monotonic() - began

    def _take_away(self, stage: str) -> str:
        """Returns the folder of the step under attack."""
        if stage == "board":
            return ""
        victim = self.rng.choice(sorted(self.store.glob(f"{stage}-*"))).name
        for path in self.store.glob("score-*"):
            if victim in json.loads((path / "artifact.json").read_text("utf-8"))["inputs"].get("transcripts", ()):
                shutil.rmtree(path)  # so that the board is computed from what comes now
        shutil.rmtree(self.store / victim)
        return victim

    def _state(self, victim: str) -> dict[str, Any]:
        """What a kill must not take away: what is published, and the newest checkpoint."""
        published = {path.parent.name for path in self.store.glob("*-*/artifact.json")}
        states = self.store.glob(f".partial/{victim}/scratch/checkpoints/checkpoint-*/trainer_state.json")
        steps = [int(path.parent.name.rpartition("-")[2]) for path in states]
        return {"published": published, "checkpoint": max(steps, default=0), "victim": victim}

    def _check(self, before: dict[str, Any], after: dict[str, Any], tally: Tally) -> None:
        if lost := before["published"] - after["published"]:
            tally.failures.append(f"lost: {sorted(lost)}")
        if before["checkpoint"] > after["checkpoint"] and before["victim"] not in after["published"]:
            tally.failures.append(f"checkpoint {before['checkpoint']} lost; newest is {after['checkpoint']}")
        for folder in sorted(path for path in self.store.glob("*-*") if path.is_dir()):
            tally.failures += [f"{folder.name}: {fault}" for fault in faults(folder)]

    def _kill(self, stage: str, victim: str, command: tuple[str, ...], tally: Tally) -> None:
        """Run until a random moment of the step, and kill."""
        whom = "driver" if stage == "board" else self.rng.choice(WHOM)
        moment_s = self.rng.uniform(0, self.span_s[stage])
        process = start(*command, cwd=self.cwd)
        if stage != "board":
            job = self.store / ".partial" / victim / "job.json"
            job.unlink(missing_ok=True)  # of the killed run before this
            while not job.is_file() and process.poll() is None:
                time.sleep(0.01)
        if stage == "train" and self.rng.random() < LATE:
            newest = self._state(victim)["checkpoint"]
            while self._state(victim)["checkpoint"] == newest and process.poll() is None:
                time.sleep(0.01)
            moment_s *= LATE_SPAN
        time.sleep(moment_s)
        workers = [] if process.poll() is not None else psutil.Process(process.pid).children(recursive=True)
        running = bool(workers) or (stage == "board" and process.poll() is None)
        if whom != "worker":
            process.kill()
        for worker in workers if whom != "driver" else ():
            worker.kill()
        result = ended(process)
        tally.kills += 1
        tally.by_whom[whom] += 1
        hit = running and not (victim and (self.store / victim / "artifact.json").is_file())
        tally.hits += hit
        _, alive = psutil.wait_procs(workers, timeout=ORPHANS_S)
        tally.failures += [f"a worker outlives its driver: {item.cmdline()[1:4]}" for item in alive]
        if whom == "worker" and hit and ("run again to go on" not in result.stderr or result.returncode != 1):
            tally.failures.append(f"a killed worker is told with {result.returncode}: {result.stderr[-300:]}")

    def _finish(self, stage: str, command: tuple[str, ...], tally: Tally) -> None:
        began = time.monotonic()
        result = harness(*command, cwd=self.cwd)
        if stage == "board":
            self.span_s[stage] = time.monotonic() - began
        else:
            times = [line.split() for line in result.stdout.splitlines() if f"done    {stage}" in line]
            if times and times[0][-1] == "s":
                self.span_s[stage] = min(float(times[0][-2]), 2 * self.span_s.get(stage, float("inf")))
        if result.returncode:
            tally.failures.append(f"the last run ends with {result.returncode}: {result.stderr[-500:]}")
            return
        found = self.found()
        if stage == "board":  # its MLflow runs are new ones
            found["board"], self.expected["board"] = self._same_runs(found["board"])
        for name, expected in self.expected.items():
            if found[name] != expected:
                tally.failures.append(f"{name}: {_difference(expected, found[name])}")
        if left := [path.parent.name for path in self.store.glob(".partial/*/out")]:
            tally.failures.append(f"left behind: {left}")

    def _same_runs(self, board: list[tuple[str, ...]]) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
        """The board and the expected one with the new board's runs, the last column."""
        old = self.expected["board"]
        return board, sorted((*one[:-1], other[-1]) for one, other in zip(sorted(old), sorted(board), strict=True))


def _difference(expected: Any, found: Any) -> str:
    """What a person needs to look at."""
    one, other = (set(item.items()) if isinstance(item, dict) else set(item) for item in (expected, found))
    return f"expected {sorted(one - other)}, found {sorted(other - one)}"[:2000]


Progress = Callable[[str, Tally], None]


def attack(campaign: Campaign, stage: str, *, kills: int, until_s: float, told: Progress) -> Tally:
    """Rounds until so many kills, or until the clock is there, or something fails. until_s: of `time.monotonic`."""
    tally = Tally()
    while tally.kills < kills and time.monotonic() < until_s and not tally.failures:
        campaign.round(stage, tally)
        told(stage, tally)
    return tally
