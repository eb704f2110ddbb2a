from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest

from harness.core.artifact import Work
from harness.core.manifests import Utterance, read_manifest
from harness.data import hub
from harness.errors import DataError, MissingError
from tests.corpora import HTML, RATE_HZ, encode, speech

datasets = pytest.importorskip("datasets")


def table(count: int, *, start: int = 0, **columns: list[Any]) -> Any:
    """A dataset of some shipped recordings in WAV, Opus and MP3, with an Audio column."""
    clips = [speech(number) for number in range(start, start + count)]
    forms = ("wav", "opus", "mp3")
    encoded = [encode(samples, form=forms[number % 3]) for number, (samples, _) in enumerate(clips)]
    data = {
        "audio": [{"bytes": content, "path": f"{number}.ogg"} for number, content in enumerate(encoded)],
        "transcription": [text for _, text in clips],
        "client": [f"speaker {number % 2}" for number in range(count)],
        "seconds": [len(samples) / RATE_HZ for samples, _ in clips],
        "topic": [None, *("space" for _ in range(count - 1))],
        **columns,
    }
    return datasets.Dataset.from_dict(data).cast_column("audio", datasets.Audio(decode=False))


def write_parquet(path: Path, *, audio: list[dict[str, Any]], texts: list[str | None]) -> None:
    """As others write it: without the note of `datasets` that the column is audio."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"audio": pa.array(audio, kind), "transcription": pa.array(texts, pa.string())}), path)


def prepared(work: Work, **fields: Any) -> tuple[dict[str, Any], list[Utterance]]:
    meta = hub.run(hub.Spec(**{"text": "transcription", **fields}), {}, work)
    return meta, read_manifest(work.path)


def test_a_saved_dataset_end_to_end(work: Work, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    datasets.DatasetDict({"train": table(5), "validation": table(2, start=5)}).save_to_disk(saved)
    columns = {"speaker": "client", "duration": "seconds", "tags": ["topic"]}
    meta, utterances = prepared(work, path=str(saved), licence="CC0", **columns)
    assert (meta["num_utterances"], meta["num_refused"], meta["licence"]) == (7, 0, "CC0")
    assert sorted((item.id, item.split) for item in utterances) == [
        ("dev/00000000", "dev"),
        ("dev/00000001", "dev"),
        *((f"train/{number:08}", "train") for number in range(5)),
    ]
    third = next(item for item in utterances if item.id == "train/00000002")
    samples, text = speech(2)
    assert (third.text, third.speaker, third.tags) == (text, "speaker 0", {"topic": "space"})
    assert third.duration_s == pytest.approx(len(samples) / RATE_HZ, abs=0.001)
    assert next(item for item in utterances if item.id == "train/00000000").tags == {}


def test_parquet_files_and_chosen_splits(work: Work, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    table(3).to_parquet(tmp_path / "data" / "train-00000-of-00002.parquet")
    table(2, start=3).to_parquet(tmp_path / "data" / "train-00001-of-00002.parquet")
    table(2, start=5).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    table(1, start=7).to_parquet(tmp_path / "data" / "validation.parquet")
    meta, utterances = prepared(work, path=str(tmp_path / "data"), splits={"train": "train", "golden": "test"})
    assert sorted(item.split for item in utterances if item.split) == ["golden"] * 2 + ["train"] * 5
    assert meta["licence"] == ""


def test_a_single_parquet_file_is_train(work: Work, tmp_path: Path) -> None:
    table(2).to_parquet(tmp_path / "mine.parquet")
    _, utterances = prepared(work, path=str(tmp_path / "mine.parquet"))
    assert [item.split for item in utterances] == ["train", "train"]


def test_recordings_as_plain_bytes(work: Work, tmp_path: Path) -> None:
    contents = [encode(speech(number)[0], form="wav") for number in range(3)]
    datasets.Dataset.from_dict({"sound": contents, "transcription": ["раз", "два", "три"]}).save_to_disk(tmp_path / "s")
    _, utterances = prepared(work, path=str(tmp_path / "s"), audio="sound")
    assert [item.text for item in utterances] == ["раз", "два", "три"]


def test_bad_rows_are_refused_by_reason(work: Work, tmp_path: Path) -> None:
    good = encode(speech(0)[0], form="wav")
    outside = tmp_path / "outside.wav"
    outside.write_bytes(encode(speech(1)[0], form="wav"))
    audio = [
        {"bytes": good, "path": None},
        {"bytes": HTML, "path": "page.mp3"},
        {"bytes": None, "path": str(outside)},
        {"bytes": None, "path": None},
        {"bytes": good[:20_000], "path": None},
        {"bytes": good, "path": None},
        {"bytes": good, "path": None},
    ]
    texts = ["хорошо", "страница", "чужое", "ничего", "обрезано", None, " "]
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data" / "train.parquet", audio=audio, texts=texts)
    meta, utterances = prepared(work, path=str(tmp_path / "data"))
    assert [item.text for item in utterances] == ["хорошо"]
    assert meta["refused"] == {"missing text": 2, "missing file": 2, "not audio": 1, "truncated": 1}


def test_files_that_lie_in_the_dataset_are_read(work: Work, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encode(speech(0)[0], form="wav"))
    write_parquet(tmp_path / "b.parquet", audio=[{"bytes": None, "path": str(tmp_path / "a.wav")}], texts=["рядом"])
    _, utterances = prepared(work, path=str(tmp_path / "b.parquet"))
    assert [item.text for item in utterances] == ["рядом"]


def test_max_hours_takes_a_stable_sample_of_train(work: Work, tmp_path: Path) -> None:
    datasets.DatasetDict({"train": table(8), "test": table(2, start=8)}).save_to_disk(tmp_path / "saved")
    _, utterances = prepared(work, path=str(tmp_path / "saved"), duration="seconds", max_hours=5 / 3600)
    trained = [item for item in utterances if item.split == "train"]
    assert sum(item.duration_s for item in trained[:-1]) < 5 < sum(item.duration_s for item in trained) + 2.5
    assert sum(item.split == "test" for item in utterances) == 2


COLUMNS = {
    "audio": ({"audio": "audo"}, "split train: no column 'audo' for `audio`; did you mean 'audio'? (it has: audio, "),
    "speaker": ({"speaker": "nobody"}, "split train: no column 'nobody' for `speaker`"),
    "text": ({"text": "seconds"}, "split train: column 'seconds' holds double, not texts"),
    "recordings": ({"audio": "topic"}, "split train: column 'topic' holds string, not recordings"),
    "split": ({"splits": {"dev": "valid"}}, "no split 'valid' (it has: train)"),
}


@pytest.mark.parametrize(("fields", "message"), COLUMNS.values(), ids=COLUMNS)
def test_columns_and_splits_that_are_not_there(
    fields: dict[str, Any], message: str, work: Work, tmp_path: Path
) -> None:
    table(2).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=re.escape(message)):
        prepared(work, path=str(tmp_path / "saved"), **fields)


def test_places_that_hold_no_dataset(work: Work, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none: there is no such file or folder; `path` must name a saved dataset"):
        prepared(work, path=str(tmp_path / "none"))
    with pytest.raises(DataError, match="neither a folder of `save_to_disk` nor Parquet files"):
        prepared(work, path=str(tmp_path))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"broken\.parquet: cannot be read \("):
        prepared(work, path=str(tmp_path / "broken.parquet"))


@pytest.mark.parametrize("fields", [{}, {"id": "a/b", "path": "c"}])
def test_one_place_is_needed(fields: dict[str, str]) -> None:
    with pytest.raises(pydantic.ValidationError, match="give either `id`, a dataset of the hub, or `path`"):
        hub.Spec(**fields)


def test_what_counts_for_the_key(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": table(1)}).save_to_disk(tmp_path / "saved")
    names = [path.relative_to(tmp_path).as_posix() for path in hub.Spec(path=str(tmp_path / "saved")).outside()]
    assert "saved/train/data-00000-of-00001.arrow" in names
    assert hub.Spec(id="a/b").outside() == []
    assert hub.Spec(path=str(tmp_path / "none")).outside() == [tmp_path / "none"]
    assert hub.Spec(id="a/b").identity() != hub.Spec(id="a/b", revision="v2").identity()


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, str]]]:
    """A hub that says one thing to everything: status and error code."""
    said: list[tuple[int, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, code = said[0]
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{listening.server_port}")
    yield said
    listening.shutdown()
    listening.server_close()
    thread.join()


REFUSALS = {
    "gated": (
        (403, "GatedRepo"),
        MissingError,
        "accepted first: do so at https://huggingface.co/datasets/some/where, log",
    ),
    "revision": ((404, "RevisionNotFound"), DataError, "the hub has no revision 'v9' of it"),
    "unknown": ((404, "RepoNotFound"), DataError, "the hub has no such dataset, or it is private; check `id`"),
}


@pytest.mark.parametrize(("answer", "error", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_the_hub_refuses(
    answer: tuple[int, str], error: type[Exception], message: str, answers: list[tuple[int, str]], work: Work
) -> None:
    answers.append(answer)
    with pytest.raises(error, match=f"some/where: .*{re.escape(message)}"):
        prepared(work, id="some/where", revision="v9")


def test_without_a_network_and_without_a_copy(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError) as raised:
        prepared(work, id="nobody/has-this")
    assert str(raised.value).startswith("nobody/has-this: the hub is out of reach (ConnectionError: ")
    assert "run datasets.load_dataset('nobody/has-this').save_to_disk('FOLDER'), and give `path: FOLDER`" in str(
        raised.value
    )


ADVICE = {
    "Dataset scripts are no longer supported": "; nobody runs such scripts any more: look for a "
    "copy of the dataset in Parquet",
    "Config name is missing.": "; name one in `config`",
    "BuilderConfig 'en' not found. Available: ['ru']": "; name one in `config`",
    "something else": "",
}


@pytest.mark.parametrize(("said", "advice"), ADVICE.items())
def test_advice_on_what_the_library_says(said: str, advice: str) -> None:
    assert hub._advice(ValueError(said)) == advice
