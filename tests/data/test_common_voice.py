from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from harness.core.artifact import Work
from harness.core.manifests import Utterance, read_jsonl, read_manifest
from harness.data import common_voice
from harness.data.audio import _is_short
from harness.data.common_voice import MP3_PADDING_S, Spec
from harness.data.index import Row
from harness.errors import DataError
from tests.corpora import Damage, Form, MemoryCorpus, build_common_voice, encode, num_frames, speech, write

RU = "cv-corpus-23.0-2025-09-05/ru"


def prepared(work: Work, path: Path, **fields: Any) -> tuple[dict[str, Any], list[Utterance]]:
    meta = common_voice.run(Spec(path=str(path), **fields), {}, work)
    return meta, read_manifest(work.path)


def numbers(utterances: list[Utterance], *, split: str) -> list[int]:
    """Which recordings of the corpus a split has, by the order in which it was built."""
    return sorted(int(item.id.rpartition("_")[2]) - 18_849_003 for item in utterances if item.split == split)


def speaker(letter: str) -> str:
    return hashlib.sha512(letter.encode()).hexdigest()[:16]


LAYOUTS: dict[str, tuple[Form, Literal["first", "last"]]] = {
    "as downloaded": ("tar.gz", "first"),
    "tables last": ("tar.gz", "last"),
    "not compressed": ("tar", "last"),
    "unpacked": ("folder", "first"),
}


@pytest.mark.parametrize(("form", "tables"), LAYOUTS.values(), ids=LAYOUTS)
def test_all_layouts_give_the_same(form: Form, tables: Literal["first", "last"], work: Work, tmp_path: Path) -> None:
    path = build_common_voice(tmp_path / "cv", form=form, tables=tables)
    meta, utterances = prepared(work, path)
    assert (meta["num_utterances"], meta["num_refused"], meta["num_speakers"]) == (10, 0, 4)
    assert meta["licence"] == "CC0 1.0 (Mozilla Common Voice)"
    assert numbers(utterances, split="train") == [0, 1, 2, 3]
    assert numbers(utterances, split="dev") == [4, 5, 6]
    assert numbers(utterances, split="test") == [7, 8, 9]
    first = next(item for item in utterances if item.id == "common_voice_ru_18849003")
    assert (first.text, first.speaker) == (f"{speech(0)[1].capitalize()}.", speaker("a"))
    assert first.tags == {"up_votes": "3", "down_votes": "1", "age": "twenties", "locale": "ru"}
    assert meta["noted"] == {"resampled from 32000 Hz": 10}


@pytest.mark.parametrize("place", ["cv-corpus-23.0-2025-09-05", RU])
def test_the_folders_inside_may_be_named_too(place: str, work: Work, tmp_path: Path) -> None:
    path = build_common_voice(tmp_path / "cv", form="folder") / place
    meta, _ = prepared(work, path)
    assert meta["num_utterances"] == 10
    tables = ["clip_durations.tsv", "dev.tsv", "test.tsv", "train.tsv"]
    assert [item.name for item in Spec(path=str(path)).outside()] == tables


def test_text_is_as_the_corpus_means_it(work: Work, tmp_path: Path) -> None:
    _, utterances = prepared(work, build_common_voice(tmp_path / "cv"))
    texts = {item.id: item.text for item in utterances}
    composed = texts["common_voice_ru_18849004"]
    assert composed.endswith(" Чей?")
    assert "\u0306" not in composed
    # A quote that nobody closes is a letter; a CSV reader would swallow the lines behind it.
    assert texts["common_voice_ru_18849005"].startswith('"')
    assert len(texts) == 10


def test_validated_keeps_clear_of_held_out_speakers(work: Work, tmp_path: Path) -> None:
    path = build_common_voice(tmp_path / "cv")
    meta, utterances = prepared(work, path, train_from="validated")
    assert numbers(utterances, split="train") == [0, 1, 2, 3, 10, 13]
    heldout = {item.speaker for item in utterances if item.split in {"dev", "test"}}
    assert heldout == {speaker("c"), speaker("d")}
    assert not heldout & {item.speaker for item in utterances if item.split == "train"}
    assert meta["refused"] == {"held-out speaker": 2}


def test_others_are_splits_of_their_own(work: Work, tmp_path: Path) -> None:
    _, utterances = prepared(work, build_common_voice(tmp_path / "cv"), others=["other", "invalidated"])
    assert Counter(item.split for item in utterances) == {
        "train": 4,
        "dev": 3,
        "test": 3,
        "other": 1,
        "invalidated": 1,
    }
    assert numbers(utterances, split="invalidated") == [15]


def test_durations_are_used_and_may_be_lacking(work: Work, tmp_path: Path) -> None:
    damage: dict[int, Damage] = {1: "wrong duration"}
    path = build_common_voice(tmp_path / "with", damage=damage)
    meta, _ = prepared(work, path)
    assert meta["refused"] == {"truncated": 1}


def test_without_durations(work: Work, tmp_path: Path) -> None:
    path = build_common_voice(tmp_path / "without", durations=False, damage={1: "wrong duration"})
    meta, _ = prepared(work, path)
    assert meta["num_utterances"] == 10


@pytest.mark.parametrize("number", range(0, 20, 3))
def test_whole_frames_do_not_pass_for_truncation(number: int) -> None:
    """What the table says of an MP3 differs from what is decoded by less than what counts as truncated."""
    samples, _ = speech(number)
    for length in (16_000, 23_456, len(samples)):
        content = encode(samples[:length], form="mp3")
        decoded_s = soundfile.info(io.BytesIO(content)).duration
        counted = num_frames(content)
        # With the frame that the header stands in, or without: both are met.
        for num in (counted - 1, counted):
            listed_s = num * 0.036 - MP3_PADDING_S
            assert not _is_short(decoded_s, than_s=listed_s)
            assert not _is_short(listed_s, than_s=decoded_s)


DAMAGE: dict[int, Damage] = {
    0: "html",
    2: "missing audio",
    3: "truncated",
    5: "empty text",
    6: "silent",
    8: "duplicate",
    9: "two texts",
}


@pytest.mark.parametrize("form", ["tar.gz", "folder"])
def test_damage_is_counted_by_reason(form: Form, work: Work, tmp_path: Path) -> None:
    path = build_common_voice(tmp_path / "cv", form=form, damage=DAMAGE)
    meta, utterances = prepared(work, path)
    assert meta["refused"] == {
        "not audio": 1,
        "missing file": 1,
        "truncated": 1,
        "missing text": 1,
        "silent": 1,
        "two texts": 1,
    }
    assert meta["num_utterances"] == 5
    assert sum(meta["refused"].values()) + meta["num_duplicates"] + meta["num_utterances"] == meta["num_lines"] == 12
    assert numbers(utterances, split="train") == [1]


def mended(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")


def test_lines_that_do_not_fit_their_table(work: Work, tmp_path: Path) -> None:
    path = build_common_voice(tmp_path / "cv", form="folder")
    train = path / RU / "train.tsv"
    lines = train.read_bytes().splitlines(keepends=True)
    more = [
        lines[1].replace(b"\n", b"\tone more\n"),
        b"only\tthree\tcolumns\n",
        lines[1].replace("Корреспондент".encode(), b"\xff\xfe"),
        lines[1].replace(b"common_voice_ru_18849003.mp3", b"../../../../etc/passwd"),
        lines[1].replace(b"common_voice_ru_18849003.mp3", b"/etc/passwd"),
    ]
    train.write_bytes(b"\xef\xbb\xbf" + b"".join([*lines, *more]).replace(b"\n", b"\r\n"))
    meta, utterances = prepared(work, path)
    assert meta["refused"] == {"wrong columns": 2, "not UTF-8": 1, "outside the folder": 2}
    assert numbers(utterances, split="train") == [0, 1, 2, 3]
    told = [row["message"] for row in read_jsonl(work.path / "report.jsonl") if row["what"] == "refused"]
    assert told[0] == f"line 6 of {RU}/train.tsv has 14 columns, not 13 as the first"
    assert told[2] == f"byte 191 of line 8 of {RU}/train.tsv is not UTF-8"


FIELDS = st.lists(st.binary(max_size=8).filter(lambda part: b"\t" not in part and b"\n" not in part), max_size=5)


@given(st.lists(FIELDS.map(b"\t".join), max_size=20), st.lists(FIELDS.map(b"\t".join), max_size=5))
def test_whatever_a_table_says_is_a_row_or_refused(lines: list[bytes], durations: list[bytes]) -> None:
    tables = {"ru/train.tsv": [b"client_id\tpath\tsentence", *lines], "ru/clip_durations.tsv": durations}
    found = list(common_voice.rows(Spec(path="cv"), MemoryCorpus(tables)))
    assert [item.line for item in found] == [number for number, line in enumerate(lines, start=2) if line.strip()]
    for item in found:
        if isinstance(item, Row):
            assert not item.audio.startswith("/")
            assert ".." not in item.audio.split("/")
            assert item.text is not None
            assert item.text.strip()


def test_tables_of_another_kind(work: Work, tmp_path: Path) -> None:
    path = build_common_voice(tmp_path / "cv", form="folder")
    mended(path / RU / "train.tsv", lambda text: text.replace("sentence\t", "text\t", 1))
    with pytest.raises(
        DataError, match=f"{RU}/train.tsv: no column sentence; it has client_id, path, sentence_id, text"
    ):
        prepared(work, path)


def test_no_tables(work: Work, tmp_path: Path) -> None:
    path = write(tmp_path, name="cv", files={"ru/test.tsv": b"client_id\tpath\tsentence\n"}, form="tar.gz")
    message = r"no train\.tsv; expected what Common Voice's archive holds, cv-corpus-…/ru/train\.tsv and clips/\*\.mp3"
    with pytest.raises(DataError, match=message):
        prepared(work, path)


def test_two_releases_in_one_folder(work: Work, tmp_path: Path) -> None:
    build_common_voice(tmp_path / "cv")
    build_common_voice(tmp_path / "cv" / "be", form="folder")
    with pytest.raises(DataError, match=rf"it holds several corpora \(be/{RU}, {RU}\); name one of them in `path`"):
        prepared(work, tmp_path / "cv")


CONTRADICTIONS = {
    "download": (
        {"download": True},
        "Common Voice cannot be fetched for you: its terms must be accepted, with a login",
    ),
    "refuse": (
        {"train_from": "validated", "on_bad": "refuse"},
        "train_from: validated leaves out the speakers of dev and test",
    ),
}


@pytest.mark.parametrize(("fields", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_what_a_suite_cannot_ask(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=re.escape(message)):
        Spec(path="cv.tar.gz", **fields)


def test_what_counts_for_the_key(tmp_path: Path) -> None:
    archive = build_common_voice(tmp_path / "cv")
    assert Spec(path=str(archive)).outside() == [archive]
    assert Spec(path=str(archive.parent)).outside() == [archive]
    assert Spec(path=str(tmp_path / "none")).outside() == [tmp_path / "none"]


SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "train": ({}, 26_721 + 2 * 10_253),
    "validated": ({"train_from": "validated"}, 172_808 + 2 * 10_253),
    "others": ({"others": ["other"]}, 26_721 + 2 * 10_253 + 17_446),
    "max_hours": ({"train_from": "validated", "max_hours": 24.913}, 17_281 + 2 * 10_253),
}


@pytest.mark.parametrize(("fields", "num_clips"), SIZES.values(), ids=SIZES)
def test_size_as_published(fields: dict[str, Any], num_clips: int) -> None:
    size = common_voice.size(Spec(path="nowhere", **fields))
    assert size.num_clips == pytest.approx(num_clips, abs=1)
    assert size.audio_s == pytest.approx(num_clips * 5.19, rel=1e-4)
