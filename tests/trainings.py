"""Small real trainings of a tiny Whisper on a few shipped recordings."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import soundfile

from harness.core.artifact import Artifact, Work
from harness.core.manifests import write_manifests
from harness.core.records import Utterance
from harness.train import whisper
from tests.conftest import AELITA, artifact

if TYPE_CHECKING:
    from pathlib import Path

RATE_HZ = 16_000


def short_clips(folder: Path, *, num: int, skip: int = 0) -> Artifact:
    """A set of the shortest shipped recordings."""
    rows = [json.loads(line) for line in (AELITA / "manifest.jsonl").read_text("utf-8").splitlines()]
    (folder / "audio").mkdir(parents=True)
    utterances = []
    for number, row in enumerate(sorted(rows, key=lambda row: row["duration"])[skip : skip + num]):
        samples, _ = soundfile.read(AELITA / row["audio_filepath"])
        soundfile.write(folder / "audio" / f"{number}.wav", samples, RATE_HZ, subtype="PCM_16")
        seconds = len(samples) / RATE_HZ
        utterances.append(Utterance(str(number), f"audio/{number}.wav", f"{number:064x}", row["text"], seconds))
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


def work_in(folder: Path) -> Work:
    (folder / "out").mkdir(parents=True)
    (folder / "scratch").mkdir()
    return Work(path=folder / "out", scratch=folder / "scratch")


def weights_of(folder: Path) -> dict[str, Any]:
    """The trained weights, by name."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(folder / "model" / "model.safetensors")
    return tensors
