"""whisper.cpp hears whole recordings of any length, and says so when it cannot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import jiwer
import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from harness.core.artifact import Work
from harness.core.manifests import write_manifests
from harness.core.records import Utterance
from harness.core.text import normalise
from harness.errors import DataError, ExportError
from harness.export import whisper_ggml
from harness.score import whispercpp
from harness.score.transcribe import read_transcripts
from harness.score.whispercpp import Spec, load
from tests.conftest import AELITA, artifact

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [json.loads(line) for line in (AELITA / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def clip(number: int) -> np.ndarray:
    return soundfile.read(AELITA / ROWS[number]["audio_filepath"], dtype="float32")[0]


@pytest.fixture(scope="module")
def ggml(whisper_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an export of the real base weights."""
    return written(whisper_base, tmp_path_factory.mktemp("ggml"))


def written(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder / "in" / "model")
    work = Work(path=folder / "out", scratch=folder / "scratch")
    work.path.mkdir()
    work.scratch.mkdir()
    whisper_ggml.run(whisper_ggml.Spec(), {"model": [artifact(folder / "in")]}, work)
    return work.path


def heldout(folder: Path, recordings: dict[str, tuple[np.ndarray, str]]) -> Path:
    folder.mkdir()
    utterances = []
    for name, (samples, text) in recordings.items():
        soundfile.write(folder / f"{name}.wav", samples, 16_000, subtype="PCM_16")
        duration_s = len(samples) / 16_000
        utterances.append(Utterance(id=name, audio=f"{name}.wav", sha256="0" * 64, text=text, duration_s=duration_s))
    write_manifests(folder, utterances)
    return folder


def test_short_and_long_recordings_are_heard_whole(ggml, tmp_path, work):
    short = ROWS.index(min(ROWS, key=lambda row: row["duration"]))
    long, total = [], 0.0
    while total < 30.5:
        long.append(len(long))
        total += ROWS[long[-1]]["duration"]
    texts = {"short": ROWS[short]["text"], "long": " ".join(ROWS[number]["text"] for number in long)}
    recordings = {
        "short": (clip(short), texts["short"]),
        "long": (np.concatenate([clip(number) for number in long]), texts["long"]),
        "none": (np.zeros(400, np.float32), ""),
    }
    data = artifact(heldout(tmp_path / "data", recordings))
    meta = whispercpp.run(Spec(threads=2), {"heldout": [data], "export": [artifact(ggml)]}, work)
    heard = {item.id: item for item in read_transcripts(work.path)}
    assert not [item.error for item in heard.values() if item.error]
    for name in ("short", "long"):
        assert jiwer.cer(normalise(texts[name]), normalise(heard[name].text)) < 0.15
    last = normalise(texts["long"]).split()[-1]
    assert last[:4] in normalise(heard["long"].text)[-40:]
    assert meta["runtime"].startswith("whisper.cpp of pywhispercpp 1.5")
    assert {name: meta["decoding"][name] for name in ("strategy", "language", "no_timestamps", "temperature_inc")} == {
        "strategy": "greedy",
        "language": "ru",
        "no_timestamps": True,
        "temperature_inc": 0.0,
    }
    assert meta["decoding"]["threads"] == 2
    assert "2 threads" in meta["device"]
    json.dumps(meta)


def test_every_pinned_parameter_reaches_whisper_cpp(ggml):
    spec = Spec(threads=1, temperature_inc=0.2, timestamps=True)
    recogniser = load(ggml / "ggml-model.bin", spec=spec, threads=1)
    found = recogniser.model.get_params()
    expected = {**whispercpp.decoding(spec), "n_threads": 1, "no_timestamps": False, "print_progress": False}
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value) if isinstance(value, float) else value), name


@pytest.fixture(scope="module")
def tiny_ggml(tiny_whisper: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tiny_whisper, tmp_path_factory.mktemp("tiny-ggml"))


def test_beam_search_and_timestamps_run_silently(ggml, capfd):
    spec = Spec(beam_size=2, timestamps=True)
    recogniser = load(ggml / "ggml-model.bin", spec=spec, threads=2)
    assert jiwer.cer(normalise(ROWS[2]["text"]), normalise(recogniser.transcribe(clip(2)))) < 0.2
    assert whispercpp.decoding(spec)["beam_search"] == {"beam_size": 2, "patience": -1.0}
    assert capfd.readouterr() == ("", "")


def test_the_interpreter_ends_cleanly_with_a_model_loaded(tiny_ggml):
    code = (
        "import sys; from pathlib import Path; from harness.score import whispercpp as kind\n"
        "recogniser = kind.load(Path(sys.argv[1]), spec=kind.Spec(), threads=1)"
    )
    command = [sys.executable, "-c", code, str(tiny_ggml / "ggml-model.bin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_samples_that_are_not_finite_are_refused(tiny_ggml):
    recogniser = load(tiny_ggml / "ggml-model.bin", spec=Spec(), threads=1)
    with pytest.raises(DataError, match="the samples hold NaN or infinity"):
        recogniser.transcribe(np.full(16_000, np.nan, np.float32))


def test_an_error_of_whisper_cpp_is_not_taken_for_silence(tiny_ggml):
    recogniser = load(tiny_ggml / "ggml-model.bin", spec=Spec(), threads=1)
    # More audio context than the model has.
    recogniser.model.transcribe(np.zeros(16_000, np.float32), audio_ctx=2000)
    with pytest.raises(DataError, match=r"whisper.cpp: .*audio_ctx is larger"):
        recogniser.transcribe(np.zeros(16_000, np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda whole: b"", "cannot load it: it ends too early"),
        (lambda whole: b"GGUF" + whole[4:], "cannot load it: it begins with 0x46554747"),
        (lambda whole: whole[:500_000], "cannot load it: it ends too early"),
        (lambda whole: whole[: len(whole) // 2], r"cannot load it: it ends at byte \d+, in the middle of its weights"),
    ],
)
def test_a_file_that_is_damaged_is_refused(tiny_ggml, tmp_path, content, message):
    (tmp_path / "x.bin").write_bytes(content((tiny_ggml / "ggml-model.bin").read_bytes()))
    with pytest.raises(ExportError, match=message):
        load(tmp_path / "x.bin", spec=Spec(), threads=1)


def test_a_file_that_was_cut_off_is_refused(tiny_ggml, work):
    size = (tiny_ggml / "ggml-model.bin").stat().st_size
    inputs = {"export": [artifact(tiny_ggml, size_bytes=size + 9)], "heldout": []}
    with pytest.raises(ExportError, match=f"{size} bytes, but the export wrote {size + 9}"):
        whispercpp.run(Spec(), inputs, work)


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"x\.bin does not exist; export the model again"):
        load(tmp_path / "x.bin", spec=Spec(), threads=1)


def test_an_unknown_language_is_refused(tiny_ggml):
    with pytest.raises(ExportError, match="does not know the language 'xx'"):
        load(tiny_ggml / "ggml-model.bin", spec=Spec(language="xx"), threads=1)


@pytest.mark.parametrize("field", [{"threads": -1}, {"beam_size": 0}, {"beam_size": 9}, {"temperature_inc": 2.0}])
def test_fields_out_of_range_are_refused(field):
    with pytest.raises(ValidationError):
        Spec(**field)


def test_a_build_for_the_cpu_has_no_gpu_backend(monkeypatch):
    monkeypatch.setattr("_pywhispercpp.whisper_print_system_info", lambda: "WHISPER : | CPU : AVX = 1 | ")
    assert whispercpp.gpu_backend() is None
    monkeypatch.setattr("_pywhispercpp.whisper_print_system_info", lambda: "WHISPER : | MTL : EMBED = 1 | CPU : ")
    assert whispercpp.gpu_backend() == "Metal"
