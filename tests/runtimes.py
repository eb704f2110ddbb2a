"""Held-out sets for runtimes, and what these hear in them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import soundfile

from harness.core.artifact import Artifact, Work
from harness.core.manifests import write_manifests
from harness.core.records import Utterance
from harness.score.transcribe import read_transcripts
from tests.conftest import AELITA, artifact

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import numpy as np

RATE_HZ = 16_000


def recordings(names: Iterable[str]) -> dict[str, np.ndarray]:
    """Shipped clips by name, int16 [num_samples]."""
    return {name: soundfile.read(AELITA / "clips" / f"{name}.opus", dtype="int16")[0] for name in names}


def heldout_of(samples: Mapping[str, np.ndarray], *, folder: Path) -> Artifact:
    """A held-out set of these recordings, whose texts do not matter."""
    utterances = []
    for name, clip in samples.items():
        soundfile.write(folder / f"{name}.wav", clip, RATE_HZ)
        utterances.append(Utterance(name, f"{name}.wav", "0" * 64, "да", len(clip) / RATE_HZ))
    write_manifests(folder, utterances)
    return artifact(folder)


def heard_by(
    runtime: Any, spec: Any, export: Artifact, heldout: Artifact, folder: Path
) -> tuple[dict[str, Any], dict[str, str | None]]:
    """A runtime's step: its meta, and the text of each utterance, none of which may fail."""
    work = Work(path=folder / "out", scratch=folder / "scratch")
    work.path.mkdir(parents=True)
    work.scratch.mkdir()
    meta = runtime.run(spec, {"export": [export], "heldout": [heldout]}, work)
    assert json.loads(json.dumps(meta)) == meta
    transcripts = read_transcripts(work.path)
    assert [item.error for item in transcripts] == [None] * len(transcripts)
    return meta, {item.id: item.text for item in transcripts}
