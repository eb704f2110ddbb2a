from __future__ import annotations

import hashlib
import json
import time
import wave
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from harness.board.leaderboard import lines
from harness.errors import HarnessError
from harness.promote.bundle import Content, write_bundle
from harness.promote.gate import Condition
from harness.promote.provenance import content_of
from tests.boards import SUITE, Finished, finished, reference

if TYPE_CHECKING:
    from pathlib import Path

ROW = "base_lr1e-5_ggml-f16"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished(tmp_path_factory.mktemp("bundle"))


def content(done: Finished, run: str = "") -> Content:
    chosen = next(row for row in done.plan.rows if row.row == ROW)
    run_ids = {row.scored.key: run for row in done.plan.rows}
    return content_of(chosen, done.plan, lines(done.plan, done.store, run_ids=run_ids), done.store, suite=done.path)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.name.encode() + path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_what_a_bundle_holds(done: Finished, tmp_path: Path) -> None:
    folder = write_bundle(content(done), folder=tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.txt",
        "config.json",
        "ggml-model.bin",
        "manifest.json",
        "smoke.wav",
    ]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert folder.name == f"{ROW}-{sha256(folder / 'manifest.json')[:8]}"
    assert manifest["schema"] == 2
    assert manifest["files"] == {
        name: {"sha256": sha256(folder / name), "size": (folder / name).stat().st_size}
        for name in ("README.txt", "config.json", "ggml-model.bin", "smoke.wav")
    }
    assert manifest["model"] == ["config.json", "ggml-model.bin"]
    assert manifest["export_kind"] == "whisper_ggml"
    assert manifest["serving"]["kind"] == "whispercpp"
    assert manifest["serving"]["language"] == "ru"
    assert (manifest["forced"], manifest["fault"], manifest["onnx_asr"]) == (None, None, None)
    assert [(line["heldout"], line["row"], "run_id" in line) for line in manifest["leaderboard"]] == [
        ("test", ROW, False),
        ("dev", ROW, False),
    ]
    assert manifest["suite"] == "small"
    assert manifest["suite_sha256"] == sha256(done.path)
    assert manifest["base"] == "openai/whisper-base"
    assert manifest["licences"] == {"base model openai/whisper-base": "mit", "recordings aelita": "by permission"}
    assert manifest["runtime"] == "runtime 1.0"
    assert manifest["decoding"] == {"strategy": "greedy", "language": "ru", "threads": 2}


def test_the_smoke_clip_is_one_that_the_model_heard_right(done: Finished, tmp_path: Path) -> None:
    folder = write_bundle(content(done), folder=tmp_path)
    smoke = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["smoke"]
    # It misheard the first two; all are equally long, so the first id in order counts.
    assert smoke == {"audio": "smoke.wav", "text": reference(10), "reference": reference(10)}
    with wave.open(str(folder / "smoke.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (16_000, 1, 32_000)


def test_a_model_that_heard_nothing_has_no_smoke_clip(tmp_path: Path) -> None:
    done = finished(tmp_path, heard=lambda *_: None)
    with pytest.raises(HarnessError, match="failed on every recording of dev; there is no clip to try it out with"):
        content(done)


def test_of_wrong_texts_the_nearest_is_the_smoke_clip(tmp_path: Path) -> None:
    def hear(_row: str, _heldout: str, number: int, text: str) -> str:
        return text.replace("окном", "окнам") if number == 7 else "совсем другое"

    assert content(finished(tmp_path, heard=hear)).smoke.text == reference(7).replace("окном", "окнам")


def test_non_commercial_is_said(tmp_path: Path) -> None:
    done = finished(tmp_path, suite=SUITE.replace("by permission", "CC BY-NC 4.0 (OpenSTT)"))
    folder = write_bundle(content(done), folder=tmp_path / "out")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["non_commercial"] == ["recordings aelita"]
    assert "NOT FOR COMMERCIAL USE, because of: recordings aelita" in (folder / "README.txt").read_text("utf-8")


def test_what_was_judged_and_forced_is_in_it(done: Finished, tmp_path: Path) -> None:
    condition = Condition("rtf", "test", 2.0, "≤ 1", met=False)
    chosen = next(row for row in done.plan.rows if row.row == ROW)
    board = lines(done.plan, done.store, run_ids={})
    forced = content_of(
        chosen, done.plan, board, done.store, suite=done.path, conditions=[condition], forced="a demo tomorrow"
    )
    folder = write_bundle(forced, folder=tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    judged = {"what": "rtf", "heldout": "test", "value": 2.0, "limit": "≤ 1", "met": False, "lo": None, "hi": None}
    assert manifest["gate"] == [judged]
    assert manifest["forced"] == "a demo tomorrow"
    assert "FORCED: the gate refused this model. Reason given: a demo tomorrow" in (folder / "README.txt").read_text(
        "utf-8"
    )


def test_readme_is_for_people(done: Finished, tmp_path: Path) -> None:
    text = (write_bundle(content(done), folder=tmp_path) / "README.txt").read_text(encoding="utf-8")
    assert text.startswith(f"{ROW}\n\nBase model: openai/whisper-base\nSuite: small\n")
    assert "  test: WER 0.0084 [0.0000, 0.02" in text
    assert "  recordings aelita: by permission\n" in text


def test_folder_and_zip_hold_the_same(done: Finished, tmp_path: Path) -> None:
    folder = write_bundle(content(done), folder=tmp_path)
    with zipfile.ZipFile(f"{folder}.zip") as archive:
        assert archive.testzip() is None
        inside = {name: archive.read(name) for name in archive.namelist()}
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {(info.create_system, info.external_attr >> 16) for info in archive.infolist()} == {(3, 0o644)}
    assert inside == {f"{folder.name}/{path.name}": path.read_bytes() for path in folder.iterdir()}


def test_equal_content_equal_bytes(done: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = write_bundle(content(done, run="a"), folder=tmp_path / "one")
    # Another day, another tracking run.
    monkeypatch.setattr(time, "time", lambda: 0.0)
    two = write_bundle(content(done, run="b"), folder=tmp_path / "two")
    assert one.name == two.name
    assert all_bytes(one) == all_bytes(two)
    assert sha256(one.with_name(f"{one.name}.zip")) == sha256(two.with_name(f"{two.name}.zip"))
    other = write_bundle(replace(content(done), base="openai/whisper-tiny"), folder=tmp_path / "one")
    assert other.name != one.name


def test_made_again_it_stays_as_it_is(done: Finished, tmp_path: Path) -> None:
    folder = write_bundle(content(done), folder=tmp_path)
    (folder / "README.txt").write_text("mine", encoding="utf-8")
    assert write_bundle(content(done), folder=tmp_path) == folder
    assert (folder / "README.txt").read_text(encoding="utf-8") == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, f"{folder.name}.zip"}


def test_nothing_of_this_machine_is_in_it(tmp_path: Path) -> None:
    """Not even where somebody keeps base weights of their own."""
    base = tmp_path / "somebody" / "my-whisper"
    base.mkdir(parents=True)
    done = finished(tmp_path / "suite", suite=SUITE.replace("openai/whisper-base", str(base)))
    folder = write_bundle(content(done), folder=tmp_path / "out")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["base"] == "my-whisper"
    assert manifest["licences"]["base model my-whisper"] == "mit"
    for place in (str(tmp_path), "somebody", str(done.store.root)):
        assert place.encode() not in all_bytes(folder), place


def test_licences_that_nobody_declared(tmp_path: Path) -> None:
    done = finished(tmp_path, suite=SUITE.replace("licence: by permission, ", ""))
    assert content(done).licences["recordings aelita"] == "not declared"


def test_a_row_that_is_not_finished(tmp_path: Path) -> None:
    done = finished(tmp_path, but=lambda step: step.stage == "export")
    with pytest.raises(HarnessError, match="score base_lr1e-5_ggml-f16 dev is not finished; run the suite first"):
        content(done)
