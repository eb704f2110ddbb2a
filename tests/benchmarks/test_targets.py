"""The project's speed and fidelity targets, measured on this machine by `make bench` after `make demo`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jiwer
import pytest

from harness.core.artifact import Work
from harness.data import manifest

ROOT = Path(__file__).parent.parent.parent
SUITE = ROOT / "suites" / "quickstart.yaml"
RESULTS = ROOT / "results" / "quickstart"


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "harness", *arguments], cwd=ROOT, check=True, capture_output=True)


def median_s(benchmark: Any) -> float:
    return float(benchmark.stats.stats.median)


@pytest.mark.parametrize(("arguments", "limit_s"), [(["--help"], 0.5), (["check", str(SUITE)], 0.5)])
def test_the_command_line_starts_fast(benchmark: Any, arguments: list[str], limit_s: float) -> None:
    benchmark.pedantic(run, args=arguments, rounds=5, warmup_rounds=1)
    assert median_s(benchmark) < limit_s


def test_a_second_run_takes_under_five_seconds(benchmark: Any) -> None:
    if not (RESULTS / "leaderboard.csv").is_file():
        pytest.skip("needs a finished run: make demo")
    benchmark.pedantic(run, args=["run", str(SUITE)], rounds=3)
    assert median_s(benchmark) < 5.0


def test_preparing_clips(benchmark: Any, tmp_path: Path) -> None:
    """Beyond ten times the 5.3 clips/s of a process per clip, which is what guides do."""
    spec = manifest.Spec(path=str(SUITE.parent / "data" / "aelita" / "manifest.jsonl"))
    count = iter(range(100))

    def prepare() -> None:
        folder = tmp_path / str(next(count))
        (folder / "out").mkdir(parents=True)
        (folder / "scratch").mkdir()
        manifest.run(spec, {}, Work(path=folder / "out", scratch=folder / "scratch"))

    benchmark.pedantic(prepare, rounds=3)
    assert 190 / median_s(benchmark) > 53


def greedy_texts(model_folder: Path, heldout: Path) -> dict[str, str]:
    """What the checkpoint itself hears: id → text, greedy, without timestamps."""
    import soundfile
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    from harness.core.manifests import read_manifest

    processor = WhisperProcessor.from_pretrained(model_folder)
    model = WhisperForConditionalGeneration.from_pretrained(model_folder, dtype=torch.float32)
    texts = {}
    for item in read_manifest(heldout):
        samples, rate = soundfile.read(heldout / item.audio, dtype="float32")
        features = processor.feature_extractor(samples, sampling_rate=rate, return_tensors="pt").input_features
        ids = model.generate(features, language="ru", task="transcribe", num_beams=1, do_sample=False)
        texts[item.id] = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip()
    return texts


def variants() -> list[Any]:
    """One row of the plan per variant and export, on the test set, if the demo has run."""
    from harness.engine.digests import Digests
    from harness.engine.plan import plan
    from harness.suite.load import load

    planned = plan(load(SUITE), digest=Digests(ROOT / "results" / "store" / "digests.json"))
    return [row for row in planned.rows if row.split_role == "test"]


def test_exports_say_what_their_checkpoints_say(benchmark: Any) -> None:
    """ONNX: the same text on 95 % of the clips. ggml: WER within 0.02 of the checkpoint's."""
    from harness.core.text import normalise

    if not (RESULTS / "leaderboard.csv").is_file():
        pytest.skip("needs a finished run: make demo")
    store = ROOT / "results" / "store"
    texts: dict[str, dict[str, str]] = {}

    def listen() -> None:
        for row in variants():
            model = row.exported.inputs["model"][0].folder
            if model not in texts:
                heldout = store / row.scored.inputs["heldout"][0].folder
                texts[model] = greedy_texts(store / model / "model", heldout)

    benchmark.pedantic(listen, rounds=1)
    for row in variants():
        own = texts[row.exported.inputs["model"][0].folder]
        path = RESULTS / "hypotheses" / f"{row.row}__{row.heldout}.jsonl"
        heard = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        same = sum(line["hypothesis"].strip() == own[line["id"]] for line in heard) / len(heard)
        references = [line["reference_norm"] for line in heard]
        wer = jiwer.wer(references, [line["hypothesis_norm"] for line in heard])
        checkpoint_wer = jiwer.wer(references, [normalise(own[line["id"]]) for line in heard])
        print(f"{row.row}: same text {same:.3f}, WER {wer:.4f}, its checkpoint's {checkpoint_wer:.4f}")  # noqa: T201
        if row.export.startswith("onnx"):
            assert same >= 0.95
        assert abs(wer - checkpoint_wer) <= 0.02
