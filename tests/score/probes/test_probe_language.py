"""Whisper's guess of the language, against transformers' own and on real speech."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from harness.core.artifact import Artifact, Work
from harness.core.manifests import read_jsonl, write_manifests
from harness.core.records import Utterance
from harness.errors import DataError
from harness.export import whisper_ggml, whisper_onnx
from harness.score import onnx, whispercpp
from harness.score.probes import language, recognisers
from harness.score.probes.language import Spec
from tests.conftest import AELITA, artifact
from tests.whispers import enlivened

if TYPE_CHECKING:
    from pathlib import Path

    from harness.suite.spec import ExportSpec

ROWS = [json.loads(line) for line in (AELITA / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def clip(number: int) -> np.ndarray:
    return soundfile.read(AELITA / ROWS[number]["audio_filepath"], dtype="float32")[0]


@pytest.fixture(scope="module")
def guessing(tiny_whisper: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Whisper whose guess depends on what it hears."""
    return enlivened(tiny_whisper, tmp_path_factory.mktemp("guessing") / "model")


def exported(model: Path, folder: Path, export: ExportSpec) -> Artifact:
    shutil.copytree(model, folder / "in" / "model")
    (folder / "out").mkdir()
    sys.modules[type(export).__module__].run(export, {"model": [artifact(folder / "in")]}, Work(folder / "out", folder))
    return artifact(folder / "out")


@pytest.fixture(scope="module")
def recognised(guessing: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The recognisers of both exports."""
    runtimes = {
        "onnx": (whisper_onnx.Spec(), onnx.Spec(device="cpu", threads=1)),
        "whispercpp": (whisper_ggml.Spec(), whispercpp.Spec(device="cpu", threads=1)),
    }
    return {
        name: recognisers.load(
            Spec(runtime=runtime), {"export": [exported(guessing, tmp_path_factory.mktemp(name), export)]}
        )
        for name, (export, runtime) in runtimes.items()
    }


NUM_CLIPS = 6


@pytest.fixture(scope="module")
def expected(guessing: Path) -> list[str]:
    """What transformers hears."""
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    model = WhisperForConditionalGeneration.from_pretrained(guessing)
    processor = WhisperProcessor.from_pretrained(guessing)
    found = []
    for number in range(NUM_CLIPS):
        features = processor(clip(number), sampling_rate=16_000, return_tensors="pt").input_features
        (token,) = model.detect_language(features)
        found.append(processor.tokenizer.decode([token])[2:-2])
    return found


def test_onnx_guesses_as_transformers_does(recognised: dict[str, object], expected: list[str]) -> None:
    assert [recognised["onnx"].detect_language(clip(number)) for number in range(NUM_CLIPS)] == expected
    assert len(set(expected)) > 1, "a model that always guesses the same would prove nothing"


def test_whisper_cpp_hears_russian(whisper_base: Path, tmp_path: Path) -> None:
    inputs = {"export": [exported(whisper_base, tmp_path, whisper_ggml.Spec())]}
    real = recognisers.load(Spec(runtime=whispercpp.Spec(device="cpu", threads=1)), inputs)
    assert real.detect_language(clip(0)) == "ru"


@pytest.mark.parametrize("name", ["onnx", "whispercpp"])
def test_both_know_whispers_languages(name: str, recognised: dict[str, object]) -> None:
    assert {"ru", "en", "de", "haw"} <= recognised[name].languages()
    assert len(recognised[name].languages()) in {99, 100}


def test_long_and_short_recordings(recognised: dict[str, object]) -> None:
    long = np.concatenate([clip(number) for number in range(6)])
    for recogniser in recognised.values():
        assert recogniser.detect_language(long) == recogniser.detect_language(long[: 30 * 16_000])
        assert recogniser.detect_language(long[:4000]) in recogniser.languages()


class Fake:
    """Hears English in recordings of over a second, Russian in the others."""

    def languages(self) -> set[str]:
        return {"ru", "en", "de"}

    def detect_language(self, samples: np.ndarray) -> str:
        return "en" if len(samples) > 16_000 else "ru"


def heldout(folder: Path, *lengths_s: float) -> Artifact:
    folder.mkdir()
    utterances = []
    for number, length_s in enumerate(lengths_s):
        soundfile.write(folder / f"{number}.wav", np.zeros(round(length_s * 16_000)), 16_000)
        utterances.append(Utterance(str(number), f"{number}.wav", "0" * 64, "да", length_s))
    write_manifests(folder, utterances)
    return artifact(folder)


@pytest.fixture
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognisers, "load", lambda _spec, _inputs: Fake())


@pytest.mark.usefixtures("_fake")
def test_the_share_of_all_clips(tmp_path: Path, work: Work) -> None:
    sets = [heldout(tmp_path / "en", 2, 2, 0.5), heldout(tmp_path / "de", 2)]
    found = language.run(Spec(languages=["en", "de"]), {"clips": sets}, work)
    assert found == {"language_accuracy": 0.5, "num_clips": 4}
    rows = list(read_jsonl(work.path / "probe.jsonl"))
    assert sorted((row["language"], row["heard"]) for row in rows) == [
        ("de", "en"), ("en", "en"), ("en", "en"), ("en", "ru"),
    ]  # fmt: skip


@pytest.mark.usefixtures("_fake")
def test_of_a_large_set_the_same_sample_is_taken(tmp_path: Path) -> None:
    large = heldout(tmp_path / "en", *[2] * 20)
    heard = []
    for name in ("one", "two"):
        out = tmp_path / name
        out.mkdir()
        assert language.run(Spec(languages=["en"], clips=5), {"clips": [large]}, Work(out, out))["num_clips"] == 5
        heard.append([row["id"] for row in read_jsonl(out / "probe.jsonl")])
    assert heard[0] == heard[1]
    assert len(set(heard[0])) == 5


@pytest.mark.usefixtures("_fake")
def test_a_language_that_the_model_does_not_know(tmp_path: Path, work: Work) -> None:
    with pytest.raises(DataError, match="the model does not know the language 'xx'; give the held-out set Whisper's"):
        language.run(Spec(languages=["en", "xx"]), {"clips": [heldout(tmp_path / "a", 1)] * 2}, work)


@pytest.mark.usefixtures("_fake")
def test_sets_without_clips(tmp_path: Path, work: Work) -> None:
    with pytest.raises(DataError, match="sets with a `language` have no clips; it needs at least 1"):
        language.run(Spec(languages=["en"]), {"clips": [heldout(tmp_path / "a")]}, work)


def test_an_error_of_whisper_cpp_is_not_taken_for_a_language(
    recognised: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    import _pywhispercpp

    loaded = recognised["whispercpp"]
    # Without a spectrogram there is nothing to encode.
    broken = SimpleNamespace(auto_detect_language=lambda _samples: _fail(loaded.model))
    with pytest.raises(DataError, match=r"whisper\.cpp: .*offset"):
        whispercpp.Recogniser(broken, timestamps=False).detect_language(np.zeros(16_000, np.float32))
    assert _pywhispercpp.whisper_lang_id("ru") >= 0


def _fail(model: object) -> tuple[tuple[str, float], dict[str, float]]:
    """An offset behind the end of the recording."""
    return model.auto_detect_language(np.zeros(16_000, np.float32), offset_ms=90_000)
