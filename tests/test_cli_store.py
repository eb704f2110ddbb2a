"""The commands over the store of a suite that has run."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from harness.engine.store import Store
from harness.engine.upkeep import NEEDED_FILE, inventory
from tests.boards import SUITE, Finished, finished
from tests.conftest import Harness


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished(tmp_path_factory.mktemp("template"))


@pytest.fixture
def done(template: Finished, tmp_path: Path, harness: Harness, untracked: None) -> Finished:
    """A suite that has run, where the commands run, and one artifact of a variant that it no longer has."""
    shutil.copytree(template.path.parent, tmp_path, dirs_exist_ok=True)
    store = Store(tmp_path / "results" / "store")
    assert harness("run", tmp_path / template.path.name).code == 0
    work = store.open("train-0123456789abcdef")
    (work.path / "weights").write_bytes(b"x" * 12_345)
    store.publish(
        "train-0123456789abcdef", key="0123456789abcdef" * 4, stage="train", meta={}, about={"name": "train base gone"}
    )
    return Finished(tmp_path / template.path.name, template.plan, store)


def held(done: Finished) -> set[str]:
    return {item.folder for item in inventory(done.store)}


def test_list(harness: Harness, done: Finished) -> None:
    ended = harness("store", "list")
    assert (ended.code, ended.err) == (0, "")
    lines = {line.split()[0]: line for line in ended.out.splitlines() if line}
    gone = lines["train-0123456789abcdef"]
    assert "train base gone" in gone
    assert "12.3 kB" in gone
    assert gone.rstrip().endswith("nobody")
    assert all("board small" in lines[step.folder] for step in done.plan.steps)
    assert f"{len(done.plan.steps) + 1} artifacts, " in ended.out


def test_verify(harness: Harness, done: Finished) -> None:
    ended = harness("store", "verify")
    assert ended.code == 0
    assert f"{len(done.plan.steps) + 1} artifacts, " in ended.out
    path = done.store.root / "train-0123456789abcdef" / "weights"
    path.write_bytes(b"x" * 12_344 + b"y")
    ended = harness("store", "verify")
    assert ended.code == 1
    assert f"1 of {len(done.plan.steps) + 1} artifacts damaged" in ended.err
    assert "train-0123456789abcdef (train base gone): weights is damaged: its sha256 is " in ended.err
    assert "remove these folders and run the suite again" in ended.err


def test_gc_says_what_would_go_and_takes_nothing_else(harness: Harness, done: Finished) -> None:
    before = held(done)
    ended = harness("store", "gc")
    assert (ended.code, ended.err) == (0, "")
    assert "unused:  train-0123456789abcdef  train base gone  12.3 kB" in ended.out
    assert "would free 12.3 kB; do it: harness store gc --delete" in ended.out
    assert held(done) == before
    ended = harness("store", "gc", "--delete")
    assert "freed:  train-0123456789abcdef" in ended.out
    assert held(done) == before - {"train-0123456789abcdef"}
    assert "nothing to free" in harness("store", "gc", "--delete").out
    assert "start" not in harness("run", done.path).out, "a run still finds all of it"


def test_gc_keeps_what_the_old_board_shows_until_there_is_a_new_one(harness: Harness, done: Finished) -> None:
    changed = SUITE.replace("learning_rate: [1e-5, 3e-5]", "learning_rate: [1e-5]")
    done.path.write_text(changed, encoding="utf-8")
    planned = {step.folder for step in done.plan.steps}
    harness("store", "gc", done.path, "--delete")
    assert held(done) == planned
    harness("run", done.path)
    harness("store", "gc", "--delete")
    gone = planned - held(done)
    assert {name.split("-")[0] for name in gone} == {"train", "export", "transcribe", "score"}
    assert held(done) == {step.folder for step in finished(done.path.parent / "again", suite=changed).plan.steps}


def test_gc_never_takes_what_was_promoted(harness: Harness, done: Finished, tmp_path: Path) -> None:
    row = "base_lr1e-5_ggml-f16"
    ended = harness("promote", done.path, "--model", row, "--candidate")
    assert ended.code == 0, ended.err
    done.path.write_text(SUITE.replace("learning_rate: [1e-5, 3e-5]", "learning_rate: [3e-5]"), encoding="utf-8")
    harness("run", done.path)
    harness("store", "gc", "--delete")
    kept = [item for item in done.plan.rows if item.row == row]
    assert kept[0].exported.folder in held(done)
    other = [item.exported.folder for item in done.plan.rows if item.row == "base_lr1e-5_onnx-fp32"]
    assert not set(other) & held(done)
    (tmp_path / "results" / "small" / "promotions.jsonl").unlink()
    harness("store", "gc", "--delete")
    assert kept[0].exported.folder in held(done), "the bundle itself still refers to it"


def test_gc_of_a_store_without_boards_names_the_way(harness: Harness, done: Finished, tmp_path: Path) -> None:
    (tmp_path / "results" / "small" / NEEDED_FILE).unlink()
    ended = harness("store", "gc")
    assert ended.code == 2
    assert "its board was written before boards noted which artifacts they refer to" in ended.err
    shutil.rmtree(tmp_path / "results" / "small")
    ended = harness("store", "gc", "--delete")
    assert ended.code == 2
    assert "so all would go; name suites: harness store gc SUITE" in ended.err
    assert harness("store", "gc", done.path, "--delete").code == 0
    assert held(done) == {step.folder for step in done.plan.steps}


def test_gc_of_leftovers(harness: Harness, done: Finished) -> None:
    path = done.store.partial("export-0123456789abcdef")
    (path / "out").mkdir(parents=True)
    (path / "out" / "half").write_bytes(b"x" * 700)
    assert "half" not in harness("store", "gc").out
    for item in (path, *path.rglob("*")):
        os.utime(item, (time.time() - 3 * 24 * 3600,) * 2)
    assert "left by a killed process" not in harness("store", "gc").out
    ended = harness("store", "gc", "--older-than", "2", "--delete")
    assert "freed:  export-0123456789abcdef  left by a killed process: export-0123456789abcdef  700 bytes" in ended.out
    assert not path.exists()


@pytest.mark.parametrize("command", ["list", "verify", "gc"])
def test_no_store(harness: Harness, command: str) -> None:
    ended = harness("store", command, "--results", "nowhere")
    assert ended.code == 1
    assert "there is no store; name its folder: --results DIR" in ended.err
