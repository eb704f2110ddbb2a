"""The checkpoint itself on transformers, beside its export to ONNX, on real clips."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydantic import ValidationError

from harness.core.artifact import Artifact, Work
from harness.errors import ExportError, MissingError
from harness.export import whisper_checkpoint, whisper_onnx
from harness.score import onnx, transformers
from harness.score.transformers import Recogniser, Spec
from tests.conftest import artifact
from tests.runtimes import heard_by, heldout_of, recordings
from tests.whispers import enlivened

if TYPE_CHECKING:
    pass

CLIPS = ("ru_0001", "ru_0002")


@pytest.fixture(scope="module")
def trained(tiny_whisper, tmp_path_factory) -> Artifact:
    """As training leaves it."""
    folder = tmp_path_factory.mktemp("trained")
    enlivened(tiny_whisper, folder / "model")
    return artifact(folder)


@pytest.fixture(scope="module")
def heldout(tmp_path_factory) -> Artifact:
    """Real clips."""
    return heldout_of(recordings(CLIPS), folder=tmp_path_factory.mktemp("heldout"))


def test_the_checkpoint_says_what_its_fp32_export_says(trained, heldout, tmp_path, monkeypatch):
    assert transformers.MAX_TOKENS == onnx.MAX_TOKENS
    monkeypatch.setattr(transformers, "MAX_TOKENS", 60)  # random weights find no end, and torch takes its time
    meta, texts = heard_by(transformers, Spec(device="cpu", threads=1), trained, heldout, tmp_path / "torch")
    assert meta["decoding"] == {
        "strategy": "greedy",
        "language": "ru",
        "task": "transcribe",
        "timestamps": False,
        "suppress_tokens": None,
        "max_tokens": 60,
        "window_s": 30.0,
        "threads": 1,
    }
    assert meta["runtime"].startswith("transformers 5.")
    assert "torch 2." in meta["runtime"]
    assert meta["device"].endswith(", 1 thread")
    work = Work(path=tmp_path / "export", scratch=tmp_path)
    work.path.mkdir()
    exported = artifact(work.path, **whisper_onnx.run(whisper_onnx.Spec(), {"model": [trained]}, work))
    _, expected = heard_by(onnx, onnx.Spec(device="cpu", threads=1), exported, heldout, tmp_path / "onnx")
    assert {name: text[:100] for name, text in texts.items()} == {name: text[:100] for name, text in expected.items()}
    assert len(set(texts.values())) == len(texts)
    assert min(map(len, texts.values())) > 100


def test_the_pieces_of_a_long_recording_become_one_text():
    lengths = []

    class Piecewise(Recogniser):
        def _transcribe(self, samples: np.ndarray) -> str:
            lengths.append(len(samples))
            return str(len(lengths)) if len(lengths) != 2 else ""

    samples = np.ones(100 * 16_000, np.float32)
    text = Piecewise(None, None, "ru").transcribe(samples)
    assert sum(lengths) == len(samples)
    assert max(lengths) <= 30 * 16_000
    assert text.split(" ") == [str(number + 1) for number in range(len(lengths)) if number != 1]


def test_an_unknown_language_is_refused_before_the_first_utterance(trained, heldout, work):
    with pytest.raises(ExportError, match=r"no token <\|rus\|> for language 'rus'; use Whisper's code"):
        transformers.run(Spec(language="rus", device="cpu"), {"export": [trained], "heldout": [heldout]}, work)


def test_a_checkpoint_in_half_precision_runs_in_float32(trained, tmp_path):
    import torch
    from transformers import WhisperForConditionalGeneration

    shutil.copytree(trained.path / "model", tmp_path / "model")
    half = WhisperForConditionalGeneration.from_pretrained(tmp_path / "model", dtype=torch.float16)
    half.save_pretrained(tmp_path / "model")
    loaded = transformers.load(tmp_path / "model", device="cpu", threads=1, language="ru")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


def test_cuda_that_is_not_there_is_named_with_its_remedy(trained, heldout, work, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingError, match=r"runtime transformers: device is 'cuda', but torch 2\..* finds none"):
        transformers.run(Spec(device="cuda"), {"export": [trained], "heldout": [heldout]}, work)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingError, match=r"runtime transformers needs torch: pip install '\.\[train\]'"):
        transformers.run(Spec(), {"export": [trained], "heldout": [heldout]}, work)


def test_the_specs():
    specs = [Spec(), Spec(device="cpu"), Spec(threads=1), Spec(language="en")]
    assert len({json.dumps(spec.identity(), sort_keys=True) for spec in specs}) == len(specs)
    for wrong in ({"threads": -1}, {"device": "coreml"}, {"beam_size": 5}):
        with pytest.raises(ValidationError):
            Spec(**wrong)
    assert Spec.accepts == (whisper_checkpoint.Spec().kind,)
    assert whisper_checkpoint.Spec().label == "torch-fp32"


def test_the_kinds_load_nothing_heavy():
    code = "import sys, harness.score.transformers, harness.export.whisper_checkpoint; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "torch", "transformers", "soundfile"} & {*loaded}


def test_a_batch_hears_what_one_by_one_is_heard(trained, monkeypatch):
    monkeypatch.setattr(transformers, "MAX_TOKENS", 60)
    loaded = transformers.recogniser(Spec(device="cpu", threads=1), trained)
    clips = [samples.astype(np.float32) / 2**15 for samples in recordings(CLIPS).values()]
    texts = loaded.transcribe_batch(clips)
    assert [text[:100] for text in texts] == [loaded.transcribe(samples)[:100] for samples in clips]
    assert len(set(texts)) == len(clips)
