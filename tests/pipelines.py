"""The main job on fourteen real clips, with a tiny Whisper: the suite, the command, and what a run must give again."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr

from tests.conftest import AELITA

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).parent.parent
DEADLINE_S = 240
MEASURED = (
    "wer",
    "wer_lo",
    "wer_hi",
    "cer",
    "num_utterances",
    "num_failed",
    "audio_s",
    "tied_with_best",
    "rank",
    "row",
)
"""Columns that the same models must give again; times and memory differ from run to run."""

SUITE = """
suite: tiny
datasets:
  clips:
    kind: manifest
    path: clips/manifest.jsonl
    split: {dev: 0.2, test: 0.2, by: recording}
train: {from: clips/train}
heldout:
  dev: {from: clips/dev, role: dev}
  test: {from: clips/test, role: test}
models:
  tiny:
    kind: whisper
    base: %BASE%
    train: {batch_size: 2, max_steps: 6, eval_steps: 2, precision: fp32, packing: {window_s: 29.5, singles: 0.5}}
    grid: {learning_rate: [1e-3], warmup_steps: [2]}
    export: [whisper_onnx, whisper_ggml]
score: {runtimes: [onnx, whispercpp]}
promote: {target: mimir}
"""


def write_suite(folder: Path, *, base: Path) -> Path:
    """Fourteen short clips of the shipped recordings and a suite over them."""
    rows = [json.loads(line) for line in (AELITA / "manifest.jsonl").read_text("utf-8").splitlines()]
    rows = sorted(rows, key=lambda row: row["duration"])[:14]
    (folder / "clips" / "clips").mkdir(parents=True)
    for row in rows:
        shutil.copyfile(AELITA / row["audio_filepath"], folder / "clips" / row["audio_filepath"])
    samples, rate_hz = soundfile.read(AELITA / rows[0]["audio_filepath"])
    stereo = np.stack([soxr.resample(samples, rate_hz, 44_100)] * 2, axis=1)
    rows[0]["audio_filepath"] = "clips/stereo.wav"
    soundfile.write(folder / "clips" / "clips" / "stereo.wav", stereo, 44_100)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "clips" / "manifest.jsonl").write_text(lines, encoding="utf-8")
    path = folder / "tiny.yaml"
    path.write_text(SUITE.replace("%BASE%", json.dumps(str(base))), encoding="utf-8")
    return path


def start(*arguments: str, cwd: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """The command in a folder of its own. environment: beside what this process has."""
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    own = {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"} | dict(environment or {})
    pipe = subprocess.PIPE
    # Under a shell's `&` this process ignores SIGINT, and a child would inherit that; a handler is not inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "harness", *arguments], cwd=cwd, env=inherited | own,
            stdout=pipe, stderr=pipe, text=True, encoding="utf-8",
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=DEADLINE_S)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def harness(
    *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return ended(start(*arguments, cwd=cwd, environment=environment))


def board_of(cwd: Path) -> list[dict[str, str]]:
    with (cwd / "results" / "tiny" / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def comparable(cwd: Path) -> list[tuple[str, ...]]:
    return sorted(tuple(line[name] for name in ("heldout", *MEASURED)) for line in board_of(cwd))


def model_hashes(cwd: Path) -> dict[str, str]:
    """Name of each trained or exported artifact → sha256 of its weights, from its record."""
    records = [json.loads(path.read_text("utf-8")) for path in (cwd / "results" / "store").glob("*/artifact.json")]
    return {
        f"{record['name']} {name}": entry["sha256"]
        for record in records
        if record["stage"] in ("train", "export")
        for name, entry in record["files"].items()
        if name.endswith((".safetensors", ".onnx", ".bin"))
    }


def until(reached: Callable[[Path], bool], process: subprocess.Popen[str], *, cwd: Path) -> None:
    """Wait for a moment of a run."""
    deadline = time.monotonic() + DEADLINE_S
    while not reached(cwd):
        assert process.poll() is None, "the run has ended before: " + "".join(process.communicate())
        assert time.monotonic() < deadline
        time.sleep(0.02)


def partial(stage: str) -> Callable[[Path], bool]:
    return lambda cwd: any((cwd / "results" / "store" / ".partial").glob(f"{stage}-*/job.json"))
