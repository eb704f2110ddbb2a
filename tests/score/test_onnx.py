"""The ONNX runtime on a tiny random model and real clips."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from harness.core.artifact import Artifact, Work
from harness.core.manifests import write_manifests
from harness.core.records import Utterance
from harness.errors import ExportError, MissingError
from harness.export import whisper_onnx
from harness.score import onnx
from harness.score.onnx import Recogniser, Spec
from harness.score.providers import CUDA
from harness.score.transcribe import read_transcripts
from harness.train import reference
from tests.conftest import AELITA, artifact


@pytest.fixture(scope="module")
def exported(tiny_whisper, tmp_path_factory) -> Artifact:
    folder = tmp_path_factory.mktemp("tiny-export")
    shutil.copytree(tiny_whisper, folder / "in" / "model")
    work = Work(path=folder / "out", scratch=folder)
    work.path.mkdir()
    whisper_onnx.run(whisper_onnx.Spec(), {"model": [artifact(folder / "in")]}, work)
    return artifact(work.path)


@pytest.fixture(scope="module")
def heldout(tmp_path_factory) -> Artifact:
    """A real clip, and one of 33 s made by repeating it."""
    folder = tmp_path_factory.mktemp("heldout")
    samples, rate_hz = soundfile.read(AELITA / "clips" / "ru_0001.opus", dtype="int16")
    recordings = [samples, np.resize(samples, 33 * rate_hz)]
    utterances = []
    for number, recording in enumerate(recordings):
        soundfile.write(folder / f"{number}.wav", recording, rate_hz)
        utterances.append(Utterance(str(number), f"{number}.wav", "0" * 64, "да", len(recording) / rate_hz))
    write_manifests(folder, utterances)
    return artifact(folder)


def test_a_set_is_transcribed_with_pinned_decoding(exported, heldout, work):
    meta = onnx.run(Spec(device="cpu", threads=2), {"export": [exported], "heldout": [heldout]}, work)
    assert [(item.id, item.error) for item in read_transcripts(work.path)] == [("0", None), ("1", None)]
    assert meta["decoding"] == {
        "strategy": "greedy",
        "language": "ru",
        "task": "transcribe",
        "timestamps": False,
        "max_tokens": 448,
        "window_s": 30.0,
        "threads": 2,
    }
    assert meta["device"].endswith(", 2 threads")
    assert meta["runtime"].startswith("onnxruntime 1.")
    assert "onnx-asr 0.12" in meta["runtime"]
    assert json.loads(json.dumps(meta)) == meta


@pytest.mark.parametrize("window_s", [30.0, 25.0])
def test_the_pieces_of_a_long_recording_become_one_text(window_s):
    class Model:
        def recognize(self, samples: np.ndarray, *, language: str) -> str:
            assert len(samples) <= window_s * 16_000
            return f" {language} {len(samples)} " if len(samples) > 16_000 * 12 else ""

    samples = np.ones(70 * 16_000, np.float32)
    text = Recogniser(Model(), {"language": "ru"}, window_s).transcribe(samples)
    assert sum(map(int, text.split()[1::2])) <= len(samples)
    assert text.startswith("ru ")
    assert "  " not in text
    assert len(text.split()) >= 4


def test_a_published_folder_is_run_as_an_export_is(exported, heldout, tmp_path):
    """`kind: reference` from a local folder, whose config.json says that it is a Whisper."""
    texts = {}
    placed = Work(path=tmp_path / "placed", scratch=tmp_path)
    placed.path.mkdir()
    meta = reference.run(reference.Spec(base=str(exported.path)), {}, placed)
    for name, export in (("export", exported), ("reference", artifact(placed.path, **meta))):
        work = Work(path=tmp_path / name, scratch=tmp_path / name / "scratch")
        work.scratch.mkdir(parents=True)
        onnx.run(Spec(device="cpu", threads=1), {"export": [export], "heldout": [heldout]}, work)
        texts[name] = [item.text for item in read_transcripts(work.path)]
    assert texts["reference"] == texts["export"]
    assert any(texts["reference"])


def test_cuda_that_is_not_there_is_named_with_its_remedy(exported, heldout, work, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingError, match=r"device is 'cuda', .* has only CPUExecutionProvider; .*onnxruntime-gpu"):
        onnx.run(Spec(device="cuda"), {"export": [exported], "heldout": [heldout]}, work)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_cuda_that_does_not_start_is_no_cpu_score(exported):
    import onnxruntime

    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this machine has CUDA")
    with pytest.raises(MissingError, match=r"WhisperHf runs on the CPU: either cuda's libraries did not load \(pip"):
        onnx.load(exported, device="cuda", threads=1, language="ru")


def test_a_folder_that_is_not_what_its_export_says_is_named(exported, tmp_path):
    other = artifact(tmp_path, onnx_asr={"type": "nemo-conformer-tdt", "quantization": "int8"})
    with pytest.raises(ExportError, match=r"onnx-asr cannot load it as nemo-conformer-tdt: File 'encoder-model\?int8"):
        onnx.load(other, device="cpu", threads=1, language="ru")


@pytest.mark.parametrize(
    ("served", "device", "expected"),
    [
        ({"type": "nemo-conformer-tdt"}, "cpu", {"window_s": 300.0}),
        ({"type": "nemo-conformer-tdt"}, "tensorrt", {"window_s": 30.0}),
        ({"type": "gigaam-v3-rnnt", "quantization": "int8"}, "cuda", {"window_s": 25.0}),
        ({"type": "nemo-canary-1b-v2"}, "cpu", {"language": "ru", "window_s": 40.0}),
    ],
)
def test_the_decoding_of_other_models(served, device, expected):
    decoding = onnx._decoding(onnx._served(artifact(AELITA, onnx_asr=served)), device=device, language="ru")
    assert decoding == {"strategy": "greedy", **expected}


def test_an_unknown_language_is_refused_before_the_first_utterance(exported, heldout, work):
    with pytest.raises(ExportError, match=r"no token <\|rus\|> for language 'rus'; use Whisper's code"):
        onnx.run(Spec(language="rus"), {"export": [exported], "heldout": [heldout]}, work)


@pytest.mark.parametrize("field", [{"threads": -1}, {"device": "tpu"}, {"device": None}, {"beam": 5}])
def test_the_spec_is_strict(field):
    with pytest.raises(ValidationError):
        Spec(**field)


def test_every_field_counts_for_the_key():
    specs = [Spec(), Spec(device="cpu"), Spec(device="coreml"), Spec(threads=1), Spec(language="en")]
    assert len({json.dumps(spec.identity(), sort_keys=True) for spec in specs}) == len(specs)


def test_the_kinds_load_nothing_heavy():
    code = "import sys, harness.score.onnx, harness.export.whisper_onnx; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "torch", "transformers", "onnx", "onnxruntime", "onnx_asr", "soundfile", "pynvml"} & {*loaded}


def test_a_batch_hears_what_one_by_one_is_heard(exported):
    loaded = onnx.recogniser(Spec(device="cpu", threads=1), exported)
    clip, _ = soundfile.read(AELITA / "clips" / "ru_0001.opus", dtype="float32")
    clips = [clip, clip[: len(clip) // 2], np.resize(clip, 33 * 16_000)]
    texts = loaded.transcribe_batch(clips)
    assert [text[:100] for text in texts] == [loaded.transcribe(samples)[:100] for samples in clips]
    assert all(texts)
