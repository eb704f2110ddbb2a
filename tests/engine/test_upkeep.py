from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from harness.board.devices import model_digest
from harness.engine import upkeep
from harness.engine.store import ARTIFACT_FILE, Store
from harness.engine.upkeep import NEEDED_FILE, Waste, faults, inventory, keepers, needed, remove, wasted, write_needed
from harness.errors import HarnessError

if TYPE_CHECKING:
    from pathlib import Path

    from harness.core.artifact import Artifact

OLD_S = 1000.0
CHAIN = {"prepare": "1", "select": "2", "train": "3", "export": "4", "transcribe": "5", "score": "6"}
"""Stage → digit of its key; each is made of the one before."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def folder(stage: str, digit: str = "") -> str:
    return f"{stage}-{(digit or CHAIN[stage]) * 16}"


def publish(
    store: Store, stage: str, *, digit: str = "", inputs: tuple[str, ...] = (), adopted: bool = False
) -> Artifact:
    digit = digit or CHAIN[stage]
    work = store.open(folder(stage, digit))
    (work.path / "file.bin").write_bytes(digit.encode() * 100)
    if adopted:
        (work.scratch / "audio").mkdir()
        (work.scratch / "audio" / "1.flac").write_bytes(b"clip")
        work.adopt("audio")
    about = {"name": f"{stage} it", "inputs": {"of": list(inputs)}}
    return store.publish(folder(stage, digit), key=digit * 64, stage=stage, meta={}, about=about)


def chain(store: Store) -> None:
    before: tuple[str, ...] = ()
    for stage in CHAIN:
        publish(store, stage, inputs=before)
        before = (folder(stage),)


def grow_old(path: Path) -> None:
    for item in (path, *path.rglob("*")):
        os.utime(item, (time.time() - 2 * OLD_S,) * 2)


def test_the_inventory_tells_names_sizes_and_inputs(store: Store) -> None:
    assert inventory(store) == []
    publish(store, "prepare", adopted=True)
    publish(store, "select", inputs=(folder("prepare"),))
    (store.root / "digests.json").write_text("{}", encoding="utf-8")
    (store.root / "my-notes").mkdir()
    corpus, chosen = inventory(store)
    assert (corpus.folder, corpus.name, corpus.size, corpus.inputs) == (
        folder("prepare"),
        "prepare it",
        104,
        frozenset(),
    )
    assert (chosen.size, chosen.inputs) == (100, {folder("prepare")})
    (store.root / folder("select") / ARTIFACT_FILE).write_text("{", encoding="utf-8")
    damaged = inventory(store)[1]
    assert (damaged.folder, damaged.name, damaged.size) == (folder("select"), "", 101)


def test_what_a_board_refers_to_is_kept_with_all_that_it_was_made_of(store: Store) -> None:
    chain(store)
    publish(store, "train", digit="a", inputs=(folder("select"),))
    kept = keepers(inventory(store), boards={"board x": {folder("export")}}, models={}, digest=model_digest)
    assert kept == {folder(stage): {"board x"} for stage in ("prepare", "select", "train", "export")}


def test_what_was_promoted_is_kept_with_what_was_measured_of_it(store: Store) -> None:
    chain(store)
    publish(store, "train", digit="a", inputs=(folder("select"),))
    digest = model_digest(store.bring(folder("export")).files)
    kept = keepers(inventory(store), boards={}, models={"promotion x": {digest}}, digest=model_digest)
    assert kept == {folder(stage): {"promotion x"} for stage in CHAIN}


def test_artifacts_that_nobody_refers_to_are_waste(store: Store) -> None:
    chain(store)
    kept = {folder(stage) for stage in CHAIN} - {folder("score")}
    found = wasted(store, inventory(store), kept=kept, older_than_s=OLD_S)
    assert found == [Waste(store.root / folder("score"), "score it", 100, folder("score"))]
    assert (store.root / folder("score")).is_dir(), "looking deletes nothing"
    assert remove(store, found[0])
    assert not (store.root / folder("score")).exists()
    assert [path.name for path in (store.root / ".partial").iterdir() if path.is_dir()] == []
    assert all((store.root / name / "file.bin").is_file() for name in kept)


def test_what_a_process_has_locked_stays(store: Store) -> None:
    publish(store, "score")
    (waste,) = wasted(store, inventory(store), kept=(), older_than_s=OLD_S)
    with store.lock(folder("score")):
        assert wasted(Store(store.root), inventory(store), kept=(), older_than_s=OLD_S) == []
        assert not remove(Store(store.root), waste)
    assert (store.root / folder("score") / ARTIFACT_FILE).is_file()
    assert remove(store, waste)


@pytest.mark.parametrize(
    ("name", "old", "kept", "goes"),
    [
        (folder("train"), True, False, True),
        (folder("train"), False, False, False),
        (folder("train"), True, True, False),
        (f"{folder('train')}.in-0123", True, True, True),
        (f"{folder('train')}.in-0123", False, False, False),
        (f"{folder('train')}.out-0123", True, True, True),
        (f"{folder('train')}.of-0123", True, True, True),
        (f"{folder('train')}.of-0123", False, False, False),
    ],
)
def test_leftovers_of_killed_processes(store: Store, name: str, *, old: bool, kept: bool, goes: bool) -> None:
    """A planned training goes on from its checkpoint, however long ago it was killed."""
    path = store.partial(name)
    (path / "scratch").mkdir(parents=True)
    (path / "scratch" / "checkpoint").write_bytes(b"x" * 50)
    store.lock(folder("train")).acquire().lock.release()
    if old:
        grow_old(path)
    found = wasted(store, [], kept={folder("train")} if kept else (), older_than_s=OLD_S)
    assert [(item.path, item.size) for item in found] == ([(path, 50)] if goes else [])
    for item in found:
        assert remove(store, item)
    assert path.exists() is not goes


def test_a_leftover_in_use_stays_however_old(store: Store) -> None:
    path = store.partial(folder("train"))
    path.mkdir(parents=True)
    with store.lock(folder("train")):
        grow_old(path)
        assert wasted(Store(store.root), [], kept=(), older_than_s=OLD_S) == []


def test_a_whole_artifact_has_no_faults(store: Store) -> None:
    assert faults(publish(store, "prepare", adopted=True).path) == []


def test_every_fault_is_named(store: Store) -> None:
    path = publish(store, "prepare", adopted=True).path
    (path / "file.bin").write_bytes(b"1" * 99 + b"2")
    (path / "more").write_text("?", encoding="utf-8")
    (path / "audio" / "2.flac").write_bytes(b"clip")
    damaged, weight, extra = faults(path)
    assert damaged.startswith("file.bin is damaged: its sha256 is ")
    assert weight == "audio/ is damaged: it has 2 files, 8 bytes, recorded are 1 files, 4 bytes"
    assert extra == "more does not belong to it"
    (path / "file.bin").unlink()
    assert faults(path)[0] == "file.bin is missing"
    (path / ARTIFACT_FILE).write_text("{", encoding="utf-8")
    assert "cannot be read" in faults(path)[0]
    (path / ARTIFACT_FILE).unlink()
    assert faults(path) == [f"{ARTIFACT_FILE} is missing: the rest of an artifact that was deleted"]


def test_an_artifact_in_the_folder_of_another(store: Store) -> None:
    path = publish(store, "prepare").path
    moved = path.rename(path.with_name(folder("prepare", "9")))
    assert faults(moved) == [f"is 'prepare' with key {'1' * 64}, which belongs into another folder"]


class Named:
    """What `write_needed` reads of a step."""

    def __init__(self, name: str) -> None:
        self.folder = name


def test_what_a_board_needs_is_noted(tmp_path: Path) -> None:
    assert needed(tmp_path) is None
    write_needed([Named("b"), Named("a")], folder=tmp_path)  # type: ignore[list-item]
    assert json.loads((tmp_path / NEEDED_FILE).read_text("utf-8")) == {"schema": upkeep.SCHEMA, "artifacts": ["a", "b"]}
    write_needed([Named("c")], folder=tmp_path, beside=True)  # type: ignore[list-item]
    assert needed(tmp_path) == {"a", "b", "c"}, "a run that has begun keeps what the board still shows"
    write_needed([Named("c")], folder=tmp_path)  # type: ignore[list-item]
    assert needed(tmp_path) == {"c"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"artifacts": 1}'])
def test_a_damaged_note(tmp_path: Path, text: str) -> None:
    (tmp_path / NEEDED_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(HarnessError, match=r"plan\.json: cannot be read \(.*\); remove it and run the suite again"):
        needed(tmp_path)
