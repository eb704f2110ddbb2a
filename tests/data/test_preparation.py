"""The pass over archives and folders, with short noises as recordings, in the form of the kind `manifest`."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from harness.core.manifests import read_jsonl, read_manifest
from harness.core.recordings import read_samples
from harness.data import decoding, index, manifest, preparation
from harness.data.archives import HostileArchiveError
from harness.data.index import Index, Row, stable_order
from harness.data.storage import PartWriter
from harness.errors import DataError
from tests.noises import NAMES, corpus, fresh, pack, recording, spec


@pytest.mark.parametrize("storage", ["wav", "flac", "shards"])
def test_tar_compressed_tar_and_folder_give_the_same(tmp_path: Path, storage: str) -> None:
    found = []
    for form in ("a.tar", "a.tar.gz", "folder"):
        work = fresh(tmp_path / f"work-{form}")
        meta = manifest.run(spec(pack(tmp_path / form, corpus()), storage=storage), {}, work)
        assert (meta["num_utterances"], meta["num_lines"], meta["num_refused"]) == (24, 24, 0)
        utterances = read_manifest(work.path)
        for item in utterances[::7]:
            samples = read_samples(work.path / item.audio)
            assert len(samples) == 4000
            assert decoding.read_recording(recording(NAMES.index(item.text[6:])), name="a").sha256 == item.sha256
        found.append({(item.id, item.text, item.sha256, item.duration_s, item.split) for item in utterances})
    assert found[0] == found[1] == found[2]
    assert {name for name, *_ in found[0]} == {f"set/{name}.wav" for name in NAMES}  # stems are not unique


def test_shards_are_tars_that_nemo_reads(tmp_path: Path) -> None:
    work = fresh(tmp_path / "work")
    manifest.run(spec(pack(tmp_path / "a.tar", corpus()), storage="shards"), {}, work)
    shards = sorted((work.path / "audio").iterdir())
    assert [item.name for item in shards] == ["00000.tar", "00001.tar"]
    for row in read_jsonl(work.path / "manifest.jsonl"):
        with tarfile.open(shards[row["shard_id"]]) as tar:
            member = tar.extractfile(row["audio_filepath"])
            assert member is not None
            assert soundfile.info(io.BytesIO(member.read())).duration == row["duration"]


def test_many_recordings_take_the_way_over_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / "a.tar.gz", corpus())
    manifest.run(spec(path), {}, one := fresh(tmp_path / "one"))
    monkeypatch.setattr(preparation, "FEW", 0)
    manifest.run(spec(path), {}, two := fresh(tmp_path / "two"))
    files = [{item.relative_to(work.path): item.read_bytes() for item in work.path.rglob("*.*")} for work in (one, two)]
    assert files[0] == files[1]


def test_a_killed_run_goes_on_at_its_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MIN_PART", 5)
    path = pack(tmp_path / "a.tar.gz", corpus())
    manifest.run(spec(path), {}, whole := fresh(tmp_path / "whole"))
    work = fresh(tmp_path / "killed")
    decoded = []

    def until_killed(part: decoding.Part) -> int:
        if len(decoded) == 2:
            raise KeyboardInterrupt
        decoded.append(part.number)
        return decoding.decode_part(part)

    monkeypatch.setattr(preparation, "decode_part", until_killed)
    with pytest.raises(KeyboardInterrupt):
        manifest.run(spec(path), {}, work)
    # The third part had begun when it was killed.
    (work.scratch / "audio" / "00002").mkdir()
    (work.scratch / "audio" / "00002" / "half.wav").write_bytes(b"RIFF")
    again: list[int] = []
    monkeypatch.setattr(
        preparation, "decode_part", lambda part: again.append(part.number) or decoding.decode_part(part)
    )
    meta = manifest.run(spec(path), {}, work)
    assert (decoded, again) == ([0, 1], [2, 3, 4])
    assert meta["num_utterances"] == 24
    for name in ("utterances.parquet", "manifest.jsonl"):
        assert (work.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_an_index_that_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    with Index(tmp_path / "index.sqlite") as started:
        started.add_rows([Row(line=1, audio="a.wav", text="да")])
    with Index(tmp_path / "index.sqlite") as again:
        assert again.num_lines == 0
    (tmp_path / "index.sqlite").write_bytes(b"SQLite format 3\0 and then nothing")
    with Index(tmp_path / "index.sqlite") as damaged:
        damaged.add_rows([Row(line=1, audio="a.wav", text="да")])
        damaged.finish(in_folder=True, max_hours=None, size_of=len)
        assert (damaged.num_lines, damaged.num_parts) == (1, 1)


def test_a_full_disk_is_told_and_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / "a.tar", corpus())
    work = fresh(tmp_path / "work")
    add = PartWriter.add

    def full(self: PartWriter, name: str, *, samples: np.ndarray) -> str:
        if (work.scratch / "rows" / "00000.parquet").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return add(self, name, samples=samples)

    monkeypatch.setattr(PartWriter, "add", full)
    with pytest.raises(
        DataError, match=r"the disk is full: .*; free some space and run again, what is decoded is kept"
    ):
        manifest.run(spec(path), {}, work)
    monkeypatch.setattr(PartWriter, "add", add)
    assert manifest.run(spec(path), {}, work)["num_utterances"] == 24


def die(part: decoding.Part) -> int:
    os._exit(9)


def test_a_process_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "FEW", 0)
    monkeypatch.setattr(preparation, "decode_part", die)
    with pytest.raises(DataError, match="a process that decodes recordings died"):
        manifest.run(spec(pack(tmp_path / "a.tar", corpus())), {}, fresh(tmp_path / "work"))


def test_a_hostile_archive_beside_a_good_one_stops_everything(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pack(tmp_path / "in" / "a.tar", corpus())
    pack(tmp_path / "in" / "b.tar.gz", {"../../escaped.wav": recording(1)})
    work = fresh(tmp_path / "work")
    with pytest.raises(HostileArchiveError, match="leads out of the archive"):
        manifest.run(spec(tmp_path / "in", on_bad="skip"), {}, work)
    assert not list(work.path.iterdir())
    assert not list(tmp_path.rglob("escaped.wav"))


def test_what_a_cut_off_archive_still_has(tmp_path: Path) -> None:
    files = corpus()
    tables = {name: files.pop(name) for name in list(files) if name.endswith(".jsonl")}
    path = pack(tmp_path / "a.tar", tables | files)
    path.write_bytes(path.read_bytes()[: 1024 * 40])
    meta = manifest.run(spec(path, on_bad="skip"), {}, fresh(tmp_path / "work"))
    assert 0 < meta["num_utterances"] < 24
    assert meta["refused"] == {"missing file": 24 - meta["num_utterances"]}
    assert "a.tar: it ends too early or is damaged" in meta["notes"][0]


def test_links_that_lead_out_of_an_unpacked_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(recording(99))
    folder = pack(tmp_path / "folder", corpus())
    inside = folder / "set" / "crowd" / "00.wav"
    inside.unlink()
    try:
        inside.symlink_to(tmp_path / "secret.wav")
    except OSError:
        pytest.skip("this system gives no links to this user")
    meta = manifest.run(spec(folder, on_bad="skip"), {}, fresh(tmp_path / "work"))
    assert meta["refused"] == {"outside the folder": 1}


@pytest.mark.parametrize("durations", [True, False])
@pytest.mark.parametrize("form", ["a.tar", "folder"])
def test_max_hours_is_a_stable_sample(tmp_path: Path, durations: bool, form: str) -> None:
    path = pack(tmp_path / form, corpus(durations=durations))
    taken = []
    for number in (4, 9):
        work = fresh(tmp_path / str(number))
        meta = manifest.run(spec(path, max_hours=number * 0.25 / 3600), {}, work)
        taken.append({item.id for item in read_manifest(work.path)})
        assert len(taken[-1]) == number
        assert meta["audio_s"] == number * 0.25
    assert taken[0] < taken[1]
    assert taken[0] == set(sorted((f"set/{name}.wav" for name in NAMES), key=stable_order)[:4])


def test_a_part_of_which_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MIN_PART", 1)
    files = corpus()
    files["set/far/00.wav"] = files["set/crowd/00.wav"]
    meta = manifest.run(spec(pack(tmp_path / "a.tar", files), on_bad="skip"), {}, fresh(tmp_path / "work"))
    assert (meta["num_utterances"], meta["refused"]) == (23, {"two texts": 1})


def test_held_out_splits_stay_whole(tmp_path: Path) -> None:
    files = corpus()
    files["set/far/manifest.jsonl"] = files["set/far/manifest.jsonl"].replace(b'"train"', b'"test"')
    work = fresh(tmp_path / "work")
    manifest.run(spec(pack(tmp_path / "a.tar", files), max_hours=0.0001), {}, work)
    splits = [item.split for item in read_manifest(work.path)]
    assert (splits.count("train"), splits.count("test")) == (2, 12)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such manifest"):
        manifest.run(spec(tmp_path / "none.tar"), {}, fresh(tmp_path / "work"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nothing is listed there"):
        manifest.run(spec(tmp_path / "empty"), {}, fresh(tmp_path / "two"))
