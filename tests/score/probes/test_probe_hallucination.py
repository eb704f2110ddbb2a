from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

from harness.core import text
from harness.core.artifact import Artifact, Work
from harness.core.manifests import read_jsonl
from harness.export import whisper_ggml
from harness.score import onnx, whispercpp
from harness.score.probes import hallucination, recognisers, sounds
from harness.score.probes.hallucination import Spec, words_per_minute
from harness.suite.kinds import kinds
from tests.conftest import artifact

if TYPE_CHECKING:
    from pathlib import Path


class Fake:
    """Writes a word for every second that is louder than a quiet room."""

    def transcribe(self, samples: np.ndarray, /) -> str:
        loud = np.sqrt(np.mean(np.square(samples))) > 0.002
        return ", ".join(["Слово"] * (len(samples) // 16_000)) + "..." if loud else " ... "


def test_words_are_counted_after_the_normaliser(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognisers, "load", lambda _spec, _inputs: Fake())
    found = hallucination.run(Spec(lengths_s=[2.0, 4.0]), {}, work)
    assert found == {"silence_wpm": 0.0, "noise_wpm": 60.0, "music_wpm": 60.0}
    rows = {row["id"]: row for row in read_jsonl(work.path / "probe.jsonl")}
    assert len(rows) == 24
    assert rows["melody-2s"] == {
        "id": "melody-2s", "category": "music", "duration_s": 2.0, "hypothesis": "Слово, Слово...", "num_words": 2,
    }  # fmt: skip
    assert rows["digital-silence-4s"]["num_words"] == 0


def test_words_and_minutes_are_pooled() -> None:
    rows = [
        {"category": "silence", "num_words": 3, "duration_s": 30.0},
        {"category": "silence", "num_words": 0, "duration_s": 60.0},
    ]
    assert words_per_minute(rows) == {"silence_wpm": pytest.approx(2.0)}


@pytest.fixture(scope="module")
def babbling(tiny_whisper: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A model of random weights, which writes whatever it hears."""
    folder = tmp_path_factory.mktemp("tiny-ggml")
    shutil.copytree(tiny_whisper, folder / "in" / "model")
    (folder / "out").mkdir()
    whisper_ggml.run(whisper_ggml.Spec(), {"model": [artifact(folder / "in")]}, Work(folder / "out", folder))
    return artifact(folder / "out")


def test_a_model_that_babbles_is_found_out(babbling: Artifact, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    one_each = {sound.category: sound for sound in sounds.sounds([1.0])}
    monkeypatch.setattr(sounds, "sounds", lambda _lengths_s: one_each.values())
    spec = Spec(runtime=whispercpp.Spec(threads=1, device="cpu"))
    found = hallucination.run(spec, {"export": [babbling]}, work)
    assert min(found.values()) > 60
    for row in read_jsonl(work.path / "probe.jsonl"):
        assert found[f"{row['category']}_wpm"] == 60 * len(text.normalise(row["hypothesis"]).split())


def test_versions_and_the_runtime_count(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Spec(runtime=whispercpp.Spec())
    before = spec.identity()
    assert before["runtime"] == whispercpp.Spec().identity()
    assert Spec(runtime=onnx.Spec()).identity() != before
    for module, name in ((whispercpp, "runtime_version"), (sounds, "sounds"), (text, "normaliser")):
        with monkeypatch.context() as patch:
            patch.setattr(module, "VERSION", module.VERSION + 1)
            assert {field for field in before if before[field] != spec.identity()[field]} == {name}


def test_a_worker_reads_the_runtime_back() -> None:
    spec = Spec(runtime=whispercpp.Spec(beam_size=3))
    assert Spec.model_validate(spec.model_dump(mode="json", serialize_as_any=True)) == spec


@pytest.mark.parametrize("name", kinds("runtime"))
def test_every_runtime_gives_probes_its_recogniser(name: str) -> None:
    assert callable(kinds("runtime")[name].recogniser)


def test_a_probe_without_a_runtime_is_a_bug(work: Work) -> None:
    with pytest.raises(TypeError, match="probe hallucination has no runtime"):
        hallucination.run(Spec(), {}, work)
