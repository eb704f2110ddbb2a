from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.artifact import Work
from harness.core.manifests import Utterance, read_jsonl, read_manifest
from harness.data import golos
from harness.data.golos import Spec
from harness.data.index import Row
from harness.data.published import GOLOS_OPUS
from harness.errors import DataError
from tests.corpora import Damage, Form, MemoryCorpus, build_golos, speech, write

Audio = Literal["opus", "wav"]
Tables = Literal["first", "last"]


def prepared(work: Work, path: Path, **fields: Any) -> tuple[dict[str, Any], list[Utterance]]:
    meta = golos.run(Spec(path=str(path), **fields), {}, work)
    return meta, read_manifest(work.path)


def counts(utterances: list[Utterance]) -> dict[tuple[str | None, str], int]:
    return Counter((item.split, item.tags["subset"]) for item in utterances)


LAYOUTS: dict[str, tuple[Form, Audio, Tables]] = {
    "golos_opus.tar": ("tar", "opus", "last"),
    "manifests first": ("tar", "opus", "first"),
    "compressed": ("tar.gz", "opus", "last"),
    "unpacked": ("folder", "opus", "last"),
    "WAV archives": ("tar", "wav", "last"),
    "unpacked WAV archives": ("folder", "wav", "first"),
}


@pytest.mark.parametrize(("form", "audio", "tables"), LAYOUTS.values(), ids=LAYOUTS)
def test_all_layouts_give_the_same(form: Form, audio: Audio, tables: Tables, work: Work, tmp_path: Path) -> None:
    path = build_golos(tmp_path / "golos", form=form, audio=audio, tables=tables)
    meta, utterances = prepared(work, path)
    assert counts(utterances) == {
        ("train", "crowd"): 6,
        ("train", "farfield"): 4,
        ("test", "crowd"): 3,
        ("test", "farfield"): 2,
    }
    assert (meta["num_lines"], meta["num_refused"], meta["num_duplicates"]) == (15, 0, 0)
    assert meta["licence"].startswith("Golos, https://github.com/salute-developers/golos")
    assert {item.text for item in utterances} == {speech(number)[1] for number in range(15)}
    assert {item.speaker for item in utterances} == {None}
    assert len({item.id for item in utterances}) == 15
    lasting = {item.text: item.duration_s for item in utterances}
    for number in range(15):
        samples, text = speech(number)
        assert lasting[text] == pytest.approx(len(samples) / 16_000, abs=0.001)


def test_a_folder_above_everything_is_passed(work: Work, tmp_path: Path) -> None:
    build_golos(tmp_path / "corpora" / "golos_opus", form="folder")
    meta, _ = prepared(work, tmp_path / "corpora")
    assert meta["num_utterances"] == 15


@pytest.mark.parametrize(
    ("form", "audio"), [("tar", "opus"), ("tar", "wav"), ("folder", "opus")], ids=["opus", "wav", "unpacked"]
)
def test_one_subset(form: Form, audio: Audio, work: Work, tmp_path: Path) -> None:
    path = build_golos(tmp_path / "golos", form=form, audio=audio)
    meta, utterances = prepared(work, path, subsets=["farfield"])
    assert counts(utterances) == {("train", "farfield"): 4, ("test", "farfield"): 2}
    assert meta["num_refused"] == 0


def test_archives_of_other_subsets_are_not_opened(tmp_path: Path) -> None:
    path = build_golos(tmp_path / "golos", audio="wav")
    names = {
        subset: [item.name for item in Spec(path=str(path), subsets=[subset]).archives()]
        for subset in ("crowd", "farfield")
    }
    assert names == {
        "crowd": ["test.tar", "train_crowd0.tar", "train_crowd9.tar"],
        "farfield": ["test.tar", "train_crowd9.tar", "train_farfield.tar"],  # the lists are in train_crowd9.tar
    }


def test_a_shorter_list(work: Work, tmp_path: Path) -> None:
    path = build_golos(tmp_path / "golos")
    _, utterances = prepared(work, path, train="10min")
    trained = [item for item in utterances if item.split == "train"]
    assert sorted(item.text for item in trained) == sorted([speech(0)[1], speech(6)[1]])
    assert len(utterances) - len(trained) == 5


def test_opus_manifests_that_name_the_wav_files(work: Work, tmp_path: Path) -> None:
    path = build_golos(tmp_path / "golos", form="folder")
    for manifest in path.rglob("*.jsonl"):
        manifest.write_text(manifest.read_text(encoding="utf-8").replace(".opus", ".wav"), encoding="utf-8")
    meta, _ = prepared(work, path)
    assert (meta["num_utterances"], meta["num_refused"]) == (15, 0)


DAMAGE: dict[int, Damage] = {
    0: "html",
    1: "truncated",
    2: "missing audio",
    3: "missing text",
    4: "empty text",
    5: "duplicate",
    6: "two texts",
    10: "silent",
    11: "wrong duration",
}


@pytest.mark.parametrize(("form", "audio"), [("tar", "opus"), ("tar.gz", "opus"), ("folder", "opus"), ("tar", "wav")])
def test_damage_is_counted_by_reason(form: Form, audio: Audio, work: Work, tmp_path: Path) -> None:
    path = build_golos(tmp_path / "golos", form=form, audio=audio, damage=DAMAGE)
    meta, utterances = prepared(work, path)
    # Half an Opus file is no file; half a WAV is half a recording.
    halves = {"unreadable": 1, "truncated": 1} if audio == "opus" else {"truncated": 2}
    others = {"missing text": 2, "not audio": 1, "missing file": 1, "two texts": 1, "silent": 1}
    assert meta["refused"] == {**others, **halves}
    assert (meta["num_lines"], meta["num_duplicates"], meta["num_utterances"]) == (17, 1, 8)
    assert {item.text for item in utterances} == {speech(number)[1] for number in (5, 6, 7, 8, 9, 12, 13, 14)}
    lines = [row["line"] for row in read_jsonl(work.path / "report.jsonl") if row["what"] == "refused"]
    assert len(set(lines)) == len(lines) == 8


def test_lines_that_lie(work: Work, tmp_path: Path) -> None:
    path = build_golos(tmp_path / "golos", form="folder")
    secret = tmp_path / "secret.wav"
    secret.write_bytes(b"RIFF")
    lines = [
        {"audio_filepath": "../../../secret.wav", "text": "чужое"},
        {"audio_filepath": str(secret), "text": "чужое"},
        {"audio_filepath": "studio/1.opus", "text": "чужое"},
        {"audio_filepath": "crowd/0/1.opus", "text": "нет", "duration": "long"},
        {"text": "без записи"},
    ]
    with (path / "train_opus" / "manifest.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
        file.write("{not json\n")
    meta, _ = prepared(work, path)
    assert meta["refused"] == {
        "outside the folder": 2,
        "unknown subset": 1,
        "bad field": 1,
        "missing field": 1,
        "not JSON": 1,
    }
    assert meta["num_utterances"] == 15


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
LINES = st.binary() | st.builds(
    lambda row: json.dumps(row).encode(),
    SCALARS
    | st.lists(SCALARS)
    | st.fixed_dictionaries(
        {},
        optional={
            "audio_filepath": SCALARS
            | st.sampled_from(["crowd/1.wav", "../farfield/1.wav", "/crowd/1.wav", "C:/crowd"]),
            "text": SCALARS | st.just("да"),
            "duration": SCALARS,
            "id": SCALARS,
        },
    ),
)


@given(st.lists(LINES, max_size=20))
def test_whatever_a_manifest_says_is_a_row_or_refused(lines: list[bytes]) -> None:
    corpus = MemoryCorpus({"train/manifest.jsonl": [line.replace(b"\n", b" ") for line in lines]})
    found = list(golos.rows(Spec(path="golos"), corpus))
    assert len({item.line for item in found}) == len(found)
    assert len(found) == sum(bool(line.strip()) for line in lines)
    for item in found:
        if isinstance(item, Row):
            assert item.audio.startswith(("train/crowd/", "train/farfield/"))
            assert ".." not in item.audio.split("/")
            assert item.tags["subset"] in {"crowd", "farfield"}


def test_training_archives_without_their_lists(work: Work, tmp_path: Path) -> None:
    path = build_golos(tmp_path / "golos", audio="wav")
    (path / "train_crowd9.tar").unlink()
    message = r"training recordings, but not their list manifest\.jsonl; the WAV form has it in train_crowd9\.tar: put"
    with pytest.raises(DataError, match=message):
        prepared(work, path)


def test_test_archives_alone_will_do(work: Work, tmp_path: Path) -> None:
    path = build_golos(tmp_path / "golos", audio="wav")
    for archive in path.glob("train_*.tar"):
        archive.unlink()
    _, utterances = prepared(work, path)
    assert counts(utterances) == {("test", "crowd"): 3, ("test", "farfield"): 2}


def test_another_corpus(work: Work, tmp_path: Path) -> None:
    path = write(tmp_path, name="other", files={"train/list.jsonl": b"{}\n"}, form="tar")
    message = "no manifest of Golos; expected train_opus/manifest.jsonl and test_opus/crowd/manifest.jsonl, or the same"
    with pytest.raises(DataError, match=f"{re.escape(str(path))}: {message}"):
        prepared(work, path)


def test_what_counts_for_the_key(tmp_path: Path) -> None:
    opus = build_golos(tmp_path / "opus")
    unpacked = build_golos(tmp_path / "unpacked", form="folder")
    assert Spec(path=str(opus)).outside() == [opus]
    assert [item.relative_to(unpacked).as_posix() for item in Spec(path=str(unpacked)).outside()] == [
        "test_opus/crowd/manifest.jsonl",
        "test_opus/farfield/manifest.jsonl",
        "train_opus/100hours.jsonl",
        "train_opus/10min.jsonl",
        "train_opus/manifest.jsonl",
    ]
    assert Spec(path=str(tmp_path / "none")).outside() == [tmp_path / "none"]


def test_a_download_has_one_key_before_and_after_it(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "golos"), download=True)
    before = (spec.identity(), spec.outside())
    build_golos(tmp_path / "golos")
    assert (spec.identity(), spec.outside()) == before
    assert spec.identity()["md5"] == GOLOS_OPUS.md5
    assert spec.archives() == [tmp_path / "golos" / "golos_opus.tar"]


def test_a_download_needs_a_folder() -> None:
    message = r"download: true needs a folder in `path`, not an archive \(golos_opus\.tar\)"
    with pytest.raises(pydantic.ValidationError, match=message):
        Spec(path="data/golos_opus.tar", download=True)


def test_a_download_checks_what_is_there(work: Work, tmp_path: Path) -> None:
    build_golos(tmp_path / "golos")
    with pytest.raises(DataError, match=f"published is {GOLOS_OPUS.md5}; it is cut off or another file"):
        prepared(work, tmp_path / "golos", download=True)


SIZES: dict[str, tuple[dict[str, Any], int, float]] = {
    "all": ({}, 979_796 + 124_003 + 9_994 + 1_916, 1_095 + 132.4 + 11.2 + 1.4),
    "crowd": ({"subsets": ["crowd"]}, 979_796 + 9_994, 1_095 + 11.2),
    "100hours": ({"train": "100hours"}, 90_000 + 11_910, 112.6),
    "max_hours": ({"max_hours": 122.74}, round(1_103_799 / 10) + 11_910, 122.74 + 12.6),
    "more than there is": ({"train": "1hour", "max_hours": 5}, 900 + 11_910, 13.6),
}


@pytest.mark.parametrize(("fields", "num_clips", "hours"), SIZES.values(), ids=SIZES)
def test_size_as_published(fields: dict[str, Any], num_clips: int, hours: float) -> None:
    size = golos.size(Spec(path="nowhere", **fields))
    assert size.num_clips == num_clips
    assert size.audio_s == pytest.approx(hours * 3600)
