"""What scoring adds to onnx-asr, and what int8 changes, on a small random Parakeet: ratios, within one process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from harness.core.artifact import Artifact, Work
from harness.core.manifests import write_manifests
from harness.core.recordings import read_samples
from harness.core.records import Utterance
from harness.core.text import normalise
from harness.core.wer import count_errors, pool
from harness.export import parakeet_onnx
from harness.score import onnx
from harness.score.transcribe import transcribe_set
from tests.conftest import AELITA, artifact
from tests.parakeets import build_parakeet

if TYPE_CHECKING:
    from pathlib import Path

NUM_CLIPS = 10
ROUNDS = 20


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("parakeet")
    (folder / "model").mkdir()
    # NVIDIA's small FastConformer, a fortieth of Parakeet: what scoring adds would be less with a larger one.
    path = build_parakeet(folder / "made", num_mels=128, layers=16, width=176)
    path.rename(folder / "model" / "model.nemo")
    found = {}
    for quantize in ("fp32", "int8"):
        work = Work(path=folder / quantize, scratch=folder / f"{quantize}-scratch")
        work.path.mkdir()
        work.scratch.mkdir()
        meta = parakeet_onnx.run(parakeet_onnx.Spec(quantize=quantize), {"model": [artifact(folder)]}, work)
        found[quantize] = artifact(work.path, **meta)
    return found


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("heldout")
    utterances = []
    for path in sorted((AELITA / "clips").iterdir())[:NUM_CLIPS]:
        samples, rate_hz = soundfile.read(path, dtype="int16")
        soundfile.write(folder / f"{path.stem}.wav", samples, rate_hz)
        utterances.append(Utterance(path.stem, f"{path.stem}.wav", "0" * 64, "да", len(samples) / rate_hz))
    write_manifests(folder, utterances)
    return artifact(folder)


def test_scoring_adds_at_most_three_percent_to_onnx_asr(
    benchmark: Any, exports: dict[str, Artifact], heldout: Artifact, tmp_path: Path
) -> None:
    """The same recordings, one at a time, on the same loaded model; the two take turns, and their best times count."""
    recogniser = onnx.load(exports["fp32"], device="cpu", threads=1, language="ru")
    paths = sorted(heldout.path.glob("*.wav"))
    plain_s: list[float] = []
    scored_s: list[float] = []

    def take_turns() -> None:
        start = time.perf_counter()
        for path in paths:
            recogniser.model.recognize(read_samples(path))
        plain_s.append(time.perf_counter() - start)
        work = Work(path=tmp_path / str(len(scored_s)), scratch=tmp_path / f"{len(scored_s)}-scratch")
        work.path.mkdir()
        work.scratch.mkdir()
        start = time.perf_counter()
        meta = transcribe_set(heldout, load=lambda: recogniser, work=work, runtime="", device="", decoding={})
        # The warm-up is one utterance more, and is not part of what is timed.
        scored_s.append(time.perf_counter() - start - meta["warm_up_s"])

    benchmark.pedantic(take_turns, rounds=ROUNDS, warmup_rounds=1)
    print(f"scoring: {min(scored_s) / min(plain_s):.4f} of onnx-asr's own time")  # noqa: T201
    assert min(scored_s) <= 1.03 * min(plain_s)


def test_int8_against_fp32(exports: dict[str, Artifact], heldout: Artifact, benchmark: Any) -> None:
    """Noise for weights, so that a text says less than the outputs do: both are printed, the outputs are judged."""
    samples = [read_samples(path) for path in sorted(heldout.path.glob("*.wav"))]
    texts: dict[str, list[str]] = {}

    def listen() -> None:
        for quantize, exported in exports.items():
            recogniser = onnx.load(exported, device="cpu", threads=1, language="ru")
            texts[quantize] = [normalise(recogniser.transcribe(clip)) for clip in samples]

    benchmark.pedantic(listen, rounds=1)
    delta = pool(count_errors(texts["fp32"], texts["int8"], unit="char")).rate
    errors = {quantize: exported.meta["encoder_error"] for quantize, exported in exports.items()}
    print(f"int8 against fp32: CER {delta:.3f}, error of the encoder's outputs {errors['int8']:.4f}")  # noqa: T201
    assert errors["int8"] < 0.05
    assert np.isfinite(delta)
