"""The NeMo runtime, and the same model in ONNX beside it, on a tiny random Parakeet and real clips."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from harness.core.artifact import Artifact, Work
from harness.core.nemo_file import decode_greedily, restore, transcribe
from harness.errors import DataError, MissingError
from harness.export import parakeet_onnx
from harness.export.parakeet_parity import same_text
from harness.score import nemo, onnx
from harness.score.nemo import Recogniser, Spec
from harness.train import reference
from tests.conftest import artifact
from tests.parakeets import build_parakeet
from tests.runtimes import heard_by, heldout_of, recordings

CLIPS = ("ru_0002", "ru_0003", "ru_0005")


@pytest.fixture(scope="module")
def parakeet(tmp_path_factory) -> Artifact:
    """As training leaves it."""
    folder = tmp_path_factory.mktemp("parakeet")
    path = build_parakeet(folder / "made")
    (folder / "model").mkdir()
    path.rename(folder / "model" / "model.nemo")
    return artifact(folder)


@pytest.fixture(scope="module")
def served(parakeet) -> Artifact:
    """As `parakeet_nemo` leaves it."""
    return artifact(parakeet.path / "model")


@pytest.fixture(scope="module")
def exported(parakeet, tmp_path_factory) -> Artifact:
    work = Work(path=tmp_path_factory.mktemp("onnx"), scratch=tmp_path_factory.mktemp("scratch"))
    return artifact(work.path, **parakeet_onnx.run(parakeet_onnx.Spec(), {"model": [parakeet]}, work))


@pytest.fixture(scope="module")
def heldout(tmp_path_factory) -> Artifact:
    """Real clips, and one of 31 s, which Whisper would have to cut."""
    samples = recordings(CLIPS)
    samples["31 s"] = np.resize(samples["ru_0003"], 31 * 16_000)
    return heldout_of(samples, folder=tmp_path_factory.mktemp("heldout"))


@pytest.fixture(scope="module")
def heard(served, heldout, tmp_path_factory) -> tuple[dict, dict[str, str]]:
    return heard_by(nemo, Spec(device="cpu", threads=1), served, heldout, tmp_path_factory.mktemp("nemo"))


def test_a_set_is_transcribed_with_pinned_decoding(heard):
    meta, texts = heard
    assert list(texts) == [*CLIPS, "31 s"]
    assert len(set(texts.values())) == len(texts)
    assert meta["decoding"] == {"strategy": "greedy", "dither": 0.0, "window_s": 300.0, "threads": 1}
    assert meta["device"].endswith(", 1 thread")
    assert meta["runtime"].startswith("NeMo 3.")
    assert "torch 2." in meta["runtime"]


def test_onnx_hears_the_same_at_the_same_length(heard, exported, heldout, tmp_path):
    meta, texts = heard_by(onnx, onnx.Spec(device="cpu", threads=1), exported, heldout, tmp_path)
    assert all(same_text(texts[name], expected) for name, expected in heard[1].items())
    assert meta["decoding"] == {"strategy": "greedy", "window_s": 300.0, "threads": 1}


def test_a_published_folder_is_run_as_an_export_is(heard, exported, heldout, tmp_path):
    """`kind: reference` from a local folder: no training, no NeMo."""
    placed = Work(path=tmp_path / "placed", scratch=tmp_path)
    placed.path.mkdir()
    published = artifact(placed.path, **reference.run(reference.Spec(base=str(exported.path)), {}, placed))
    assert published.meta["onnx_asr"] == {"type": "nemo-conformer-tdt", "quantization": None}
    _, texts = heard_by(onnx, onnx.Spec(device="cpu", threads=1), published, heldout, tmp_path / "run")
    assert all(same_text(texts[name], expected) for name, expected in heard[1].items())


def test_both_greedy_strategies_and_nemos_own_transcribe_say_the_same(served, heard, heldout):
    model = restore(served.path / "model.nemo")
    samples = {name: soundfile.read(heldout.path / f"{name}.wav", dtype="float32")[0] for name in CLIPS}
    for strategy in ("greedy", "greedy_batch"):
        decode_greedily(model, strategy=strategy)
        assert not any(module.training for module in model.modules())
        assert {name: transcribe(model, clip) for name, clip in samples.items()} == {
            name: heard[1][name] for name in CLIPS
        }
    own = model.transcribe(list(samples.values()), batch_size=1, verbose=False)
    assert [item.text for item in own] == [heard[1][name] for name in CLIPS]


def test_the_pieces_of_a_long_recording_become_one_text(monkeypatch):
    lengths = []

    def piece(model: object, samples: np.ndarray) -> str:
        lengths.append(len(samples))
        return f" {len(lengths)} " if len(lengths) != 2 else ""

    monkeypatch.setattr(nemo, "transcribe", piece)
    samples = np.ones(900 * 16_000, np.float32)
    text = Recogniser(None).transcribe(samples)
    assert sum(lengths) == len(samples)
    assert max(lengths) <= 300 * 16_000
    assert text.split() == [str(number + 1) for number in range(len(lengths)) if number != 1]
    assert "  " not in text


def test_a_damaged_file_is_refused(served, heldout, tmp_path, work):
    whole = (served.path / "model.nemo").read_bytes()
    (tmp_path / "model.nemo").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="no whole tar archive"):
        nemo.run(Spec(device="cpu"), {"export": [artifact(tmp_path)], "heldout": [heldout]}, work)


@pytest.mark.parametrize(
    ("wanted", "available", "expected"),
    [("auto", False, "cpu"), ("auto", True, "cuda"), ("cuda", True, "cuda"), ("cpu", True, "cpu")],
)
def test_the_device(wanted, available, expected, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert nemo._device(Spec(device=wanted)) == expected


def test_cuda_that_is_not_there_is_named_with_its_remedy(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        MissingError, match=r"device is 'cuda', but torch 2\..* finds none; install the driver and a build"
    ):
        nemo._device(Spec(device="cuda"))


def test_the_spec():
    specs = [Spec(), Spec(device="cpu"), Spec(threads=1), Spec(strategy="greedy_batch")]
    assert len({json.dumps(spec.identity(), sort_keys=True) for spec in specs}) == len(specs)
    for wrong in ({"threads": -1}, {"device": "coreml"}, {"strategy": "beam"}):
        with pytest.raises(ValidationError):
            Spec(**wrong)


def test_the_kind_loads_nothing_heavy():
    code = "import sys, harness.score.nemo; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "torch", "nemo", "omegaconf", "lightning", "soundfile"} & {*loaded}


def test_a_run_prints_nothing(served, heldout, tmp_path):
    """In a fresh process, where NeMo, Lightning and their telemetry are imported for the first time."""
    job = f"""
from pathlib import Path
from harness.core.artifact import Artifact, Work
from harness.score import nemo
def artifact(path):
    return Artifact(key="0", stage="test", path=Path(path), files={{}}, meta={{}})
work = Work(path=Path({str(tmp_path)!r}), scratch=Path({str(tmp_path)!r}))
inputs = {{"export": [artifact({str(served.path)!r})], "heldout": [artifact({str(heldout.path)!r})]}}
nemo.run(nemo.Spec(device="cpu", threads=1), inputs, work)
"""
    done = subprocess.run([sys.executable, "-c", job], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("strategy", ["greedy", "greedy_batch"])
def test_a_batch_hears_what_one_by_one_is_heard(served, exported, strategy):
    clips = [samples.astype(np.float32) / 2**15 for samples in recordings(CLIPS).values()]
    for loaded in (
        nemo.recogniser(Spec(device="cpu", threads=1, strategy=strategy), served),
        onnx.recogniser(onnx.Spec(device="cpu", threads=1), exported),
    ):
        texts = loaded.transcribe_batch(clips)
        assert texts == [loaded.transcribe(samples) for samples in clips]
        assert len(set(texts)) == len(clips)
