from __future__ import annotations

import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Literal, get_args

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.artifact import Work
from harness.core.manifests import Utterance, read_manifest
from harness.data import openstt
from harness.data.index import Row
from harness.data.openstt import HELDOUT, Spec, SubsetName
from harness.data.published import OPENSTT
from harness.errors import DataError
from tests.corpora import Damage, Form, MemoryCorpus, build_openstt, speech

BOOKS, TUBE, VAL = "private_buriy_audiobooks_2", "public_youtube700", "public_youtube700_val"
WHOLE = {("train", "audiobook_2"): 5, ("train", TUBE): 5, (VAL, VAL): 4}


def prepared(work: Work, path: Path, **fields: Any) -> tuple[dict[str, Any], list[Utterance]]:
    meta = openstt.run(Spec(path=str(path), **fields), {}, work)
    return meta, read_manifest(work.path)


def counts(utterances: list[Utterance]) -> dict[tuple[str | None, str], int]:
    return Counter((item.split, item.tags["subset"]) for item in utterances)


@pytest.mark.parametrize("form", ["tar.gz", "tar", "folder"])
@pytest.mark.parametrize("columns", [3, 4])
def test_all_layouts_give_the_same(form: Form, columns: Literal[3, 4], work: Work, tmp_path: Path) -> None:
    path = build_openstt(tmp_path / "open_stt", form=form, columns=columns)
    meta, utterances = prepared(work, path)
    assert counts(utterances) == WHOLE
    assert (meta["num_lines"], meta["num_refused"]) == (14, 0)
    assert meta["licence"].startswith("CC BY-NC 4.0")
    assert {item.text for item in utterances} == {speech(number)[1].replace("ё", "е") for number in range(14)}
    assert {item.tags["subset"]: item.tags["annotation"] for item in utterances} == {
        "audiobook_2": "aligned",
        TUBE: "subtitles",
        VAL: "manual",
    }


@pytest.mark.parametrize("form", ["tar.gz", "folder"])
def test_one_subset_alone_may_be_named(form: Form, work: Work, tmp_path: Path) -> None:
    path = build_openstt(tmp_path / "open_stt", form=form)
    one = path / (TUBE if form == "folder" else f"{TUBE}.{form}")
    _, utterances = prepared(work, one)
    assert counts(utterances) == {("train", TUBE): 5}


def test_archives_and_manifests_in_folders_of_their_own(work: Work, tmp_path: Path) -> None:
    """As the authors' download script leaves them."""
    path = build_openstt(tmp_path / "open_stt", damage={7: "wrong duration"})
    for kind, pattern in (("archives", "*.tar.gz"), ("manifests", "*.csv")):
        (path / kind).mkdir()
        for item in list(path.glob(pattern)):
            item.rename(path / kind / item.name)
    meta, _ = prepared(work, path)
    assert (meta["num_utterances"], meta["refused"]) == (13, {"truncated": 1})


SUBSETS: dict[str, tuple[list[str], dict[tuple[str, str], int]]] = {
    "a training one, and all held-out ones": ([TUBE], {("train", TUBE): 5, (VAL, VAL): 4}),
    "with a held-out one": (["audiobook_2", VAL], {("train", "audiobook_2"): 5, (VAL, VAL): 4}),
    "a held-out one alone": ([VAL], {(VAL, VAL): 4}),
}


@pytest.mark.parametrize(("subsets", "expected"), SUBSETS.values(), ids=SUBSETS)
@pytest.mark.parametrize("form", ["tar.gz", "folder"])
def test_subsets(
    form: Form, subsets: list[str], expected: dict[tuple[str, str], int], work: Work, tmp_path: Path
) -> None:
    path = build_openstt(tmp_path / "open_stt", form=form)
    meta, utterances = prepared(work, path, subsets=subsets)
    assert counts(utterances) == expected
    assert meta["num_refused"] == 0


def test_only_wanted_archives_are_opened(tmp_path: Path) -> None:
    path = build_openstt(tmp_path / "open_stt")
    assert [item.name for item in Spec(path=str(path), subsets=[TUBE]).archives()] == [
        f"{TUBE}.tar.gz",
        f"{VAL}.tar.gz",
    ]
    assert len(Spec(path=str(path)).archives()) == 3
    (path / TUBE).mkdir()
    assert [item.name for item in Spec(path=str(path), subsets=[TUBE]).archives()] == [f"{VAL}.tar.gz"]


def test_what_is_unpacked_beside_its_archive_counts_once(work: Work, tmp_path: Path) -> None:
    path = build_openstt(tmp_path / "open_stt")
    build_openstt(path, form="folder")
    meta, utterances = prepared(work, path)
    assert counts(utterances) == WHOLE
    assert meta["num_duplicates"] == 0


def test_manifests_of_absolute_and_foreign_paths(work: Work, tmp_path: Path) -> None:
    """The authors' own machines show in some manifests; only the last three parts of a path count."""
    path = build_openstt(tmp_path / "open_stt", damage={5: "wrong duration"})
    manifest = path / f"{TUBE}.csv"
    text = manifest.read_text(encoding="utf-8").replace(f"{TUBE}/", f"../../../nvme/stt/data/{TUBE}/")
    manifest.write_text(f",wav_path,text_path,duration\n{text}not,a,line\nx,y,nan\n", encoding="utf-8")
    meta, _ = prepared(work, path)
    assert meta["refused"] == {"truncated": 1}
    assert meta["num_utterances"] == 13


@given(st.lists(st.binary() | st.sampled_from([b"a/bb/c.wav,a/bb/c.txt,2.5", b"1,x/a/bb/d.wav,t,1e3"]), max_size=20))
def test_whatever_a_manifest_says_no_recording_is_lost(lines: list[bytes]) -> None:
    names = [f"{TUBE}/a/bb/{letter}.opus" for letter in "cde"]
    tables = {f"{TUBE}.csv": [line.replace(b"\n", b" ") for line in lines]}
    found = list(openstt.rows(Spec(path="open_stt", subsets=[TUBE]), MemoryCorpus(tables, recordings=names)))
    assert [(item.line, item.audio) for item in found if isinstance(item, Row)] == list(enumerate(names, start=1))
    durations = {item.audio: item.duration_s for item in found if isinstance(item, Row)}
    assert durations[names[0]] == (2.5 if b"a/bb/c.wav,a/bb/c.txt,2.5" in lines else None)
    assert durations[names[2]] is None


DAMAGE: dict[int, Damage] = {
    0: "html",
    1: "silent",
    2: "empty text",
    6: "missing audio",
    7: "wrong duration",
    8: "truncated",
}


@pytest.mark.parametrize("form", ["tar.gz", "tar", "folder"])
def test_damage_is_counted_by_reason(form: Form, work: Work, tmp_path: Path) -> None:
    path = build_openstt(tmp_path / "open_stt", form=form, damage=DAMAGE)
    meta, utterances = prepared(work, path)
    assert meta["refused"] == {
        "not audio": 1,
        "silent": 1,
        "empty transcript": 1,
        "missing file": 1,
        "truncated": 1,
        "unreadable": 1,
    }
    assert counts(utterances) == {("train", "audiobook_2"): 2, ("train", TUBE): 2, (VAL, VAL): 4}


@pytest.mark.parametrize("form", ["tar.gz", "tar"])
def test_names_that_are_not_utf8_are_told(form: Form, work: Work, tmp_path: Path) -> None:
    path = build_openstt(tmp_path / "open_stt", form=form, damage={1: "not UTF-8 name"})
    meta, utterances = prepared(work, path)
    assert len(utterances) == 13
    assert f"{BOOKS}.{form}: 2 names are not UTF-8; these files were left out" in meta["notes"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_a_name_in_a_folder_that_is_not_utf8(work: Work, tmp_path: Path) -> None:
    path = build_openstt(tmp_path / "open_stt", form="folder")
    recording = next((path / BOOKS).rglob("*.opus"))
    recording.rename(recording.with_name(os.fsdecode(b"\xff\xfe.opus")))
    meta, _ = prepared(work, path)
    assert (meta["num_utterances"], meta["refused"]) == (13, {"name not UTF-8": 1})


def test_texts_that_are_not_there(work: Work, tmp_path: Path) -> None:
    path = build_openstt(tmp_path / "open_stt", subsets={"radio_v4": 2, VAL: 1}, damage={0: "missing text"})
    meta, utterances = prepared(work, path)
    assert meta["num_refused"] == 1
    assert counts(utterances) == {("train", "radio_v4"): 1, (VAL, VAL): 1}


def test_a_folder_of_no_subset(work: Work, tmp_path: Path) -> None:
    path = build_openstt(tmp_path / "open_stt", form="folder", subsets={"mine": 2, VAL: 1})
    meta, utterances = prepared(work, path)
    assert meta["refused"] == {"unknown subset": 2}
    assert len(utterances) == 1


def test_a_listed_subset_that_is_not_there(work: Work, tmp_path: Path) -> None:
    path = build_openstt(tmp_path / "open_stt")
    message = (
        "neither an archive nor a folder of radio_2; expected radio_2.tar.gz: fetch it from "
        "https://github.com/snakers4/open_stt, or set `download: true`"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        prepared(work, path, subsets=["radio_2", TUBE])
    with pytest.raises(DataError, match=r"expected radio_v4_manifest\.tar\.gz: fetch it from \S+$"):
        prepared(work, path, subsets=["radio_v4"])


DOWNLOADS = {
    "everything": (None, "download: true would fetch 342 GB; name the `subsets` that you want"),
    "textless": (
        ["public_speech", "radio_2"],
        "the texts of public_speech are given out by a form (https://forms.gle/nosMaNgj8MWKm99d9), so it cannot be",
    ),
}


@pytest.mark.parametrize(("subsets", "message"), DOWNLOADS.values(), ids=DOWNLOADS)
def test_what_cannot_be_downloaded(subsets: list[SubsetName] | None, message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=re.escape(message)):
        Spec(path="open_stt", download=True, subsets=subsets)


def test_a_download_has_one_key_before_and_after_it(tmp_path: Path) -> None:
    spec = Spec(path=str(tmp_path / "open_stt"), download=True, subsets=[TUBE])
    before = (spec.identity(), spec.outside())
    build_openstt(tmp_path / "open_stt")
    assert (spec.identity(), spec.outside()) == before
    assert spec.identity()["md5"] == [OPENSTT[name].md5 for name in (TUBE, *HELDOUT)]


def test_what_counts_for_the_key(tmp_path: Path) -> None:
    packed = build_openstt(tmp_path / "packed")
    names = [item.name for item in Spec(path=str(packed)).outside()]
    assert names == [f"{BOOKS}.tar.gz", f"{TUBE}.tar.gz", f"{VAL}.tar.gz", f"{TUBE}.csv"]
    unpacked = build_openstt(tmp_path / "unpacked", form="folder")
    outside = Spec(path=str(unpacked)).outside()
    assert outside[0] == unpacked / f"{TUBE}.csv"
    assert [item.relative_to(unpacked).parts[0] for item in outside[1:]] == [BOOKS, TUBE, VAL]
    assert all(list(item.glob("*.txt")) for item in outside[1:])
    assert Spec(path=str(tmp_path / "none")).outside() == [tmp_path / "none"]


SIZES: dict[str, tuple[dict[str, Any], int, float]] = {
    "all": ({}, 16_495_675, 20_064.1),
    "one": ({"subsets": ["radio_2"]}, 651_645 + 28_111, 1_439 + 17.1),
    "max_hours": ({"subsets": ["radio_2"], "max_hours": 143.9}, 65_164 + 28_111, 143.9 + 17.1),
    "held-out": ({"subsets": [VAL], "max_hours": 1}, 7_311, 4.5),
}


@pytest.mark.parametrize(("fields", "num_clips", "hours"), SIZES.values(), ids=SIZES)
def test_size_as_published(fields: dict[str, Any], num_clips: int, hours: float) -> None:
    size = openstt.size(Spec(path="nowhere", **fields))
    assert size.num_clips == pytest.approx(num_clips, abs=1)
    assert size.audio_s == pytest.approx(hours * 3600)


def test_size_of_what_is_there(tmp_path: Path) -> None:
    path = build_openstt(tmp_path / "open_stt")
    assert openstt.size(Spec(path=str(path))).num_clips == 1_149_404 + 759_483 + 7_311


def test_the_names_in_a_suite_are_the_published_ones() -> None:
    assert get_args(SubsetName) == tuple(OPENSTT)
    assert [name for name, subset in OPENSTT.items() if subset.annotation == "manual"] == list(HELDOUT)
    assert all(re.fullmatch(r"[0-9a-f]{32}", subset.md5) for subset in OPENSTT.values())
    assert len({subset.md5 for subset in OPENSTT.values()}) == len(OPENSTT)
