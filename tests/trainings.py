"""Small real trainings on a few shipped recordings."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import soundfile

from harness.core.artifact import Artifact, Work
from harness.core.manifests import read_jsonl, write_manifests
from harness.core.records import Utterance
from harness.train import whisper
from tests.conftest import AELITA, artifact

if TYPE_CHECKING:
    from collections.abc import Callable


def short_clips(folder: Path, *, num: int, skip: int = 0, is_float: bool = False, text: str | None = None) -> Artifact:
    """A set of the shortest shipped recordings.

    is_float: as numbers that can be infinite. text: of all of them, in place of their own.
    """
    rows = sorted(read_jsonl(AELITA / "manifest.jsonl"), key=lambda row: row["duration"])[skip : skip + num]
    (folder / "audio").mkdir(parents=True)
    utterances = []
    for number, row in enumerate(rows):
        name = f"audio/{Path(row['audio_filepath']).stem}.wav"
        samples, rate_hz = soundfile.read(AELITA / row["audio_filepath"], dtype="float32" if is_float else "int16")
        soundfile.write(folder / name, samples, rate_hz, subtype="FLOAT" if is_float else "PCM_16")
        seconds = len(samples) / rate_hz
        utterances.append(Utterance(name, name, f"{skip + number:064x}", text or row["text"], seconds))
    write_manifests(folder, utterances)
    return artifact(folder)


def inputs(folder: Path, base: Path) -> dict[str, tuple[Artifact, ...]]:
    """What a training takes: six clips, and two others for dev."""
    shutil.copytree(base, folder / "base" / "model")
    return {
        "base": (artifact(folder / "base"),),
        "train": (short_clips(folder / "train", num=6),),
        "dev": (short_clips(folder / "dev", num=2, skip=6),),
    }


def settings(**changes: Any) -> whisper.Training:
    """Four windows a step, two steps, an evaluation after each."""
    fields = {"max_steps": 2, "batch_size": 4, "eval_steps": 1, "precision": "fp32", "packing": None, "warmup_steps": 1}
    return whisper.Training.model_validate({**fields, "learning_rate": 1e-3, **changes})


def kill_at_step(step: int, run: Callable[..., Any], spec: Any, sets: Any, work: Work) -> list[psutil.Process]:
    """Start a training in a process of its own and kill that at a step; returns what it had started, all of it gone."""
    worker = multiprocessing.get_context("spawn").Process(target=run, args=(spec, sets, work))
    worker.start()
    while worker.is_alive() and _step(work) < step:
        time.sleep(0.02)
    started = psutil.Process(worker.pid).children(recursive=True)
    worker.kill()
    _, alive = psutil.wait_procs(started, timeout=20)
    assert alive == []
    return started


def _step(work: Work) -> int:
    try:
        return int(json.loads((work.scratch / "progress.json").read_text("utf-8"))["done"])
    except (OSError, ValueError):
        return 0


def work_in(folder: Path) -> Work:
    (folder / "out").mkdir(parents=True)
    (folder / "scratch").mkdir()
    return Work(path=folder / "out", scratch=folder / "scratch")


def weights_of(folder: Path) -> dict[str, Any]:
    """The trained weights, by name."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(folder / "model" / "model.safetensors")
    return tensors
