from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from harness.core.artifact import Work
from harness.core.manifests import read_jsonl, read_manifest
from harness.data import manifest
from harness.data.audio import read_recording
from harness.errors import DataError

AELITA = Path(__file__).parents[2] / "suites" / "data" / "aelita"
RATE_HZ = 16_000
Rows = list[dict | str]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with five recordings: noises of 1 s."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for seed, name in enumerate("abcde"):
        samples = np.random.default_rng(seed).uniform(-0.5, 0.5, RATE_HZ).astype(np.float32)
        soundfile.write(folder / f"{name}.wav", samples, RATE_HZ)
    return folder


def write(folder: Path, rows: Rows) -> manifest.Spec:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest.Spec(path=str(path))


def line(name: str, text: str, **more: object) -> dict:
    return {"audio_filepath": name, "text": text, **more}


def test_aelita_end_to_end(work: Work) -> None:
    spec = manifest.Spec(path=str(AELITA / "manifest.jsonl"), licence="festvox")
    meta = manifest.run(spec, {}, work)
    assert meta == {
        "num_utterances": 190,
        "audio_s": pytest.approx(1763.43, abs=0.01),
        "num_speakers": 1,
        "licence": "festvox",
        "notes": [],
        "num_lines": 190,
        "num_refused": 0,
        "num_duplicates": 0,
        "refused": {},
        "noted": {},
    }
    utterances = read_manifest(work.path)
    first = utterances[0]
    assert (first.id, first.audio, first.speaker, first.source) == ("ru_0001", "audio/00000/ru_0001.wav", "nsh", "")
    assert first.tags["source_text"].startswith("Корреспондент")
    assert len({item.sha256 for item in utterances}) == 190
    for item in utterances[::30]:
        info = soundfile.info(work.path / item.audio)
        assert (info.samplerate, info.channels, info.subtype, info.format) == (RATE_HZ, 1, "PCM_16", "WAV")
        assert read_recording(work.path / item.audio, name=item.id).sha256 == item.sha256
    nemo = next(read_jsonl(work.path / "manifest.jsonl"))
    hugging_face = next(read_jsonl(work.path / "manifest.hf.jsonl"))
    assert nemo["audio_filepath"] == "audio/00000/ru_0001.wav"
    assert hugging_face["audio"] == {"path": "audio/00000/ru_0001.wav", "sampling_rate": RATE_HZ}
    assert hugging_face["sentence"] == nemo["text"]


def test_what_is_converted_or_noted(corpus: Path, work: Work) -> None:
    stereo = np.random.default_rng(9).uniform(-0.5, 0.5, (44_100, 2))
    soundfile.write(corpus / "stereo.flac", stereo, 44_100)
    shutil.copy(corpus / "a.wav", corpus / "again.wav")
    rows: Rows = [
        line("a.wav", "да"),
        line("stereo.flac", "нет"),
        line("b.wav", "Windows 95"),
        "",
        line("again.wav", "да"),
        line("a.wav", "да"),
    ]
    meta = manifest.run(write(corpus, rows), {}, work)
    assert (meta["num_lines"], meta["num_utterances"], meta["num_refused"], meta["num_duplicates"]) == (5, 3, 0, 2)
    told = list(read_jsonl(work.path / "report.jsonl"))
    assert [(item["line"], item["note"]) for item in told if item["what"] == "noted"] == [
        (2, "downmixed from 2 channels"),
        (2, "resampled from 44100 Hz"),
        (3, "Latin letters in the text"),
        (3, "digits in the text"),
    ]
    assert [(item["line"], item["of_line"]) for item in told if item["what"] == "duplicate"] == [(5, 1), (6, 1)]
    assert kept_files(work) == ["a.wav", "b.wav", "stereo.wav"]
    assert [item.duration_s for item in read_manifest(work.path)] == [1.0, 1.0, 1.0]


@pytest.fixture
def bad(corpus: Path) -> manifest.Spec:
    """One good line, then one of each mistake."""
    broken = np.zeros(RATE_HZ, np.float32)
    broken[5] = np.nan
    soundfile.write(corpus / "nan.wav", broken, RATE_HZ, subtype="FLOAT")
    soundfile.write(corpus / "zero.wav", broken[:0], RATE_HZ)
    cut = (corpus / "e.wav").read_bytes()
    (corpus / "cut.wav").write_bytes(cut[: len(cut) // 2])
    shutil.copy(corpus / "a.wav", corpus / "twin.wav")
    return write(
        corpus,
        [
            line("a.wav", "хорошая", id="good"),
            line("none.wav", "нет файла"),
            line("cut.wav", "обрезана"),
            line("b.wav", "обрезана", duration=1.5),
            line("c.wav", "  "),
            line("d.wav", "тот же номер", id="good"),
            "{not json",
            line("nan.wav", "не число"),
            line("zero.wav", "пусто"),
            line("twin.wav", "другой текст"),
            line("../../etc/passwd", "чужое"),
        ],
    )


def kept_files(work: Work) -> list[str]:
    return sorted(item.name for item in (work.path / "audio").rglob("*") if item.is_file())


PROBLEMS = {
    2: ("missing file", "there is no file none.wav in"),
    3: ("truncated", "cut.wav is cut off: its header promises 32000 bytes, 15978 are there"),
    4: ("truncated", "b.wav is cut off: 1.00 s decoded, manifest says 1.50 s"),
    5: ("empty transcript", "the transcript of c.wav has no words: ''; leave it out"),
    6: ("duplicate id", "the id 'good' is taken by line 1"),
    7: ("not JSON", "it is not JSON (Expecting property name"),
    8: ("NaN samples", "1 of 16000 samples of nan.wav are NaN or infinite"),
    9: ("empty audio", "zero.wav holds no samples"),
    10: ("two texts", "twin is the recording of line 1 with another text: 'другой текст', there 'хорошая'"),
    11: ("outside the folder", "'../../etc/passwd' leads out of the corpus's folder"),
}


def test_all_mistakes_are_told_at_once(bad: manifest.Spec, work: Work) -> None:
    with pytest.raises(DataError) as caught:
        manifest.run(bad, {}, work)
    message = str(caught.value)
    assert message.startswith(f"{bad.path}: 10 of 11 lines cannot be used; mend them, or leave them out with `on_bad:")
    for number, (reason, text) in PROBLEMS.items():
        assert f"  line {number}: {reason}: {text}" in message
    assert str(work.scratch / "report.jsonl") in message
    assert_report(work.scratch / "report.jsonl")


def test_skipping_them_counts_them(bad: manifest.Spec, work: Work) -> None:
    meta = manifest.run(bad.model_copy(update={"on_bad": "skip"}), {}, work)
    assert [item.id for item in read_manifest(work.path)] == ["good"]
    assert (meta["num_utterances"], meta["num_refused"]) == (1, 10)
    assert meta["refused"]["truncated"] == 2
    assert sum(meta["refused"].values()) == 10
    assert meta["notes"][0].startswith("10 of 11 lines left out (")
    assert "truncated: 2" in meta["notes"][0]
    assert kept_files(work) == ["good.wav"]
    assert_report(work.path / "report.jsonl")


def assert_report(path: Path) -> None:
    problems = [item for item in read_jsonl(path) if item["what"] == "refused"]
    assert [item["line"] for item in problems] == list(PROBLEMS)
    for item in problems:
        reason, text = PROBLEMS[item["line"]]
        assert item["reason"] == reason
        assert item["message"].startswith(text)


def test_a_long_list_of_mistakes_is_cut_in_the_message(corpus: Path, work: Work) -> None:
    spec = write(corpus, ["oops"] * 25)
    with pytest.raises(DataError) as caught:
        manifest.run(spec, {}, work)
    assert "  line 20: " in str(caught.value)
    assert "  line 21: " not in str(caught.value)
    assert "  … and 5 more" in str(caught.value)
    assert sum(1 for _ in read_jsonl(work.scratch / "report.jsonl")) == 25


@pytest.mark.parametrize(
    ("rows", "on_bad", "message"),
    [
        ([], "refuse", "nothing is listed there"),
        ([{"text": "да"}], "skip", "1 of 1 lines cannot be used; none is left"),
    ],
)
def test_nothing_left(corpus: Path, work: Work, rows: Rows, on_bad: str, message: str) -> None:
    spec = write(corpus, rows).model_copy(update={"on_bad": on_bad})
    with pytest.raises(DataError, match=message):
        manifest.run(spec, {}, work)


def test_no_manifest(work: Work) -> None:
    with pytest.raises(DataError, match="there is no such manifest"):
        manifest.run(manifest.Spec(path="/nowhere/m.jsonl"), {}, work)


def test_a_byte_order_mark_is_no_mistake(corpus: Path, work: Work) -> None:
    spec = write(corpus, [line("a.wav", "да")])
    path = Path(spec.path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert manifest.run(spec, {}, work)["num_utterances"] == 1


def test_equal_recordings_give_equal_artifacts(corpus: Path, tmp_path: Path) -> None:
    spec = write(corpus, [line(f"{name}.wav", name) for name in "abcde"])
    contents = []
    for turn in ("one", "two"):
        made = Work(path=tmp_path / turn, scratch=tmp_path / f"{turn}-scratch")
        made.path.mkdir()
        made.scratch.mkdir()
        manifest.run(spec, {}, made)
        files = sorted(item for item in made.path.rglob("*") if item.is_file())
        contents.append([(item.relative_to(made.path), item.read_bytes()) for item in files])
    assert contents[0] == contents[1]
    assert len(contents[0]) == 5 + 7


def test_identity(corpus: Path, bad: manifest.Spec) -> None:
    plain = {"kind": "manifest", "licence": "", "on_bad": "refuse", "storage": "wav", "max_hours": None}
    assert bad.identity() == plain
    outside = bad.outside()
    assert outside[0] == Path(bad.path)
    # In the manifest's order, what is missing included: once it is there, the key is another one.
    names = ["a", "none", "cut", "b", "c", "d", "nan", "zero", "twin"]
    assert outside[1:] == [corpus / f"{name}.wav" for name in names]
    assert manifest.Spec(path="/nowhere/m.jsonl").outside() == [Path("/nowhere/m.jsonl").resolve()]
