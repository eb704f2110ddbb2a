"""A corpus of short noises, in the form of the kind `manifest`: for what does not depend on speech."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import soundfile

from harness.core.artifact import Work
from harness.data import manifest

RATE_HZ = 16_000
NAMES = [f"{folder}/{number:02}" for folder in ("crowd", "far") for number in range(12)]


def recording(seed: int, *, duration_s: float = 0.25, form: str = "WAV") -> bytes:
    samples = np.random.default_rng(seed).uniform(-0.3, 0.3, int(duration_s * RATE_HZ))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE_HZ, format=form, subtype="OPUS" if form == "OGG" else None)
    return buffer.getvalue()


def corpus(*, durations: bool = True, form: str = "WAV") -> dict[str, bytes]:
    """Two manifests beside their recordings, which stand between them."""
    files: dict[str, bytes] = {}
    for seed, name in enumerate(NAMES):
        files[f"set/{name}.wav"] = recording(seed, form=form)
    for part in ("crowd", "far"):
        rows = [
            {"audio_filepath": f"{name.partition('/')[2]}.wav", "text": f"слово {name}", "split": "train"}
            | ({"duration": 0.25} if durations else {})
            for name in NAMES
            if name.startswith(part)
        ]
        files[f"set/{part}/manifest.jsonl"] = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    return files


def pack(path: Path, files: dict[str, bytes]) -> Path:
    if not path.suffix:
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        return path
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def fresh(folder: Path) -> Work:
    (folder / "out").mkdir(parents=True)
    (folder / "scratch").mkdir()
    return Work(path=folder / "out", scratch=folder / "scratch")


def spec(path: Path, **fields: object) -> manifest.Spec:
    return manifest.Spec.model_validate({"path": str(path), **fields})
