"""What fewer bits cost: WER and size of each export of Whisper base on shipped recordings, which it has not seen."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from harness.core.artifact import Artifact, Work
from harness.core.recordings import read_samples
from harness.core.text import normalise
from harness.core.wer import count_errors, pool
from harness.export import whisper_ggml, whisper_onnx
from harness.score import onnx, whispercpp
from harness.score.significance import paired_difference
from tests.conftest import AELITA, artifact

if TYPE_CHECKING:
    from pathlib import Path

EVERY = 8
"""Clips taken: 24 of 190."""
SPECS = [
    *(whisper_ggml.Spec(quantize=kind) for kind in ("f16", "q8_0", "q5_0", "q4_0")),
    *(whisper_onnx.Spec(quantize=precision) for precision in ("fp32", "int8")),
]
MAX_LOST = {"ggml-q5_0": ("ggml-f16", 0.02)}
MIB = 2**20


@pytest.fixture(scope="module")
def exports(whisper_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("whisper")
    shutil.copytree(whisper_base, folder / "in" / "model")
    found = {}
    for spec in SPECS:
        work = Work(path=folder / spec.label, scratch=folder)
        work.path.mkdir()
        kind = whisper_ggml if isinstance(spec, whisper_ggml.Spec) else whisper_onnx
        found[spec.label] = artifact(work.path, **kind.run(spec, {"model": [artifact(folder / "in")]}, work))
    return found


def load(exported: Artifact, label: str) -> Any:
    if label.startswith("ggml"):
        return whispercpp.load(exported.path / "ggml-model.bin", spec=whispercpp.Spec(device="cpu"), threads=2)
    return onnx.load(exported, device="cpu", threads=2, language="ru")


def test_what_fewer_bits_cost(benchmark: Any, exports: dict[str, Artifact]) -> None:
    lines = (AELITA / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines][::EVERY]
    clips = [read_samples(AELITA / row["audio_filepath"]) for row in rows]
    references = [normalise(row["text"]) for row in rows]
    heard: dict[str, list[str]] = {}

    def listen() -> None:
        for label, exported in exports.items():
            recogniser = load(exported, label)
            heard[label] = [normalise(recogniser.transcribe(clip)) for clip in clips]

    benchmark.pedantic(listen, rounds=1)
    counts = {label: count_errors(references, texts) for label, texts in heard.items()}
    wer = {label: pool(found).rate for label, found in counts.items()}
    size = {label: exported.meta["size_bytes"] / MIB for label, exported in exports.items()}
    print(f"\n{len(clips)} clips, {pool(counts['ggml-f16']).num_reference} words")  # noqa: T201
    for label in exports:
        first = "ggml-f16" if label.startswith("ggml") else "onnx-fp32"
        errors = [[item.errors for item in counts[name]] for name in (label, first)]
        words = [item.num_reference for item in counts[label]]
        lost = paired_difference(*errors, words, seed=17)
        changed = sum(mine != other for mine, other in zip(heard[label], heard[first], strict=True))
        print(  # noqa: T201
            f"{label:<10} {size[label]:6.1f} MiB  WER {wer[label]:.3f}  against {first} {lost.delta:+.3f} "
            f"[{lost.lo:+.3f}, {lost.hi:+.3f}], other words in {changed} clips"
        )
    for label, (first, most) in MAX_LOST.items():
        assert wer[label] - wer[first] <= most
    assert size["ggml-q8_0"] < 0.56 * size["ggml-f16"]
    assert size["ggml-q5_0"] < 0.40 * size["ggml-f16"]
    assert size["onnx-int8"] < 0.30 * size["onnx-fp32"]
