from __future__ import annotations

import hashlib
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from filelock import Timeout

from harness.engine import store as module
from harness.engine.store import ARTIFACT_FILE, Store, read_artifact, read_record
from harness.errors import HarnessError

if TYPE_CHECKING:
    from pathlib import Path

    from harness.core.artifact import Artifact

KEY = "ab" * 32
FOLDER = "train-abababababababab"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def publish(store: Store, *, files: dict[str, str] | None = None, **meta: Any) -> Artifact:
    work = store.open(FOLDER)
    for name, text in (files or {"a.txt": "ä"}).items():
        (work.path / name).parent.mkdir(parents=True, exist_ok=True)
        (work.path / name).write_text(text, encoding="utf-8")
    return store.publish(FOLDER, key=KEY, stage="train", meta=meta, about={"wall_s": 2.5})


def test_published_and_found(store: Store) -> None:
    assert store.find(FOLDER, key=KEY) is None
    published = publish(store, files={"b/c.txt": "x", "a.txt": "ä"}, wer=0.25, text="ё")
    assert store.find(FOLDER, key=KEY) == published
    assert (published.key, published.stage, published.meta) == (KEY, "train", {"wer": 0.25, "text": "ё"})
    assert published.path == store.root / FOLDER
    assert list(published.files.items()) == [
        ("a.txt", hashlib.sha256("ä".encode()).hexdigest()),
        ("b/c.txt", hashlib.sha256(b"x").hexdigest()),
    ]
    assert read_record(published.path)["wall_s"] == 2.5
    assert not store.partial(FOLDER).exists()


def test_scratch_survives_and_out_does_not(store: Store) -> None:
    work = store.open(FOLDER)
    (work.scratch / "checkpoint").write_text("1", encoding="utf-8")
    (work.path / "half").write_text("1", encoding="utf-8")
    again = store.open(FOLDER)
    assert [item.name for item in again.scratch.iterdir()] == ["checkpoint"]
    assert list(again.path.iterdir()) == []
    assert store.find(FOLDER, key=KEY) is None


def test_a_reader_sees_nothing_or_all(store: Store) -> None:
    """While an artifact of many files is published, no reader ever meets a part of it."""
    names = [f"{number}.txt" for number in range(300)]
    seen: list[int] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            found = store.find(FOLDER, key=KEY)
            seen.append(0 if found is None else sum((found.path / name).is_file() for name in found.files))

    readers = [threading.Thread(target=look) for _ in range(3)]
    for reader in readers:
        reader.start()
    publish(store, files=dict.fromkeys(names, "x"))
    while not seen[-1:] > [0]:
        time.sleep(0.01)
    stop.set()
    for reader in readers:
        reader.join()
    assert set(seen) == {0, 300}


def test_a_rest_of_a_deleted_artifact_is_replaced(store: Store) -> None:
    published = publish(store)
    (published.path / ARTIFACT_FILE).unlink()
    assert store.find(FOLDER, key=KEY) is None
    assert list(publish(store, files={"new.txt": "y"}).files) == ["new.txt"]
    assert sorted(item.name for item in published.path.iterdir()) == [ARTIFACT_FILE, "new.txt"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"schema": "1"}', '{"schema": 1, "key": "k", "stage": "s", "meta": {}, "files": []}',
     '{"schema": 1, "key": "k", "stage": "s", "meta": {}, "files": {"a": 1}}'],
)  # fmt: skip
def test_a_damaged_record(store: Store, text: str) -> None:
    path = publish(store).path
    (path / ARTIFACT_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(HarnessError, match=r"artifact\.json: cannot be read \(.*\); remove the folder and run again"):
        store.find(FOLDER, key=KEY)


def test_a_record_of_a_newer_harness(store: Store) -> None:
    path = publish(store).path
    record = json.loads((path / ARTIFACT_FILE).read_text(encoding="utf-8"))
    (path / ARTIFACT_FILE).write_text(json.dumps({**record, "schema": 99}), encoding="utf-8")
    with pytest.raises(HarnessError, match="schema 99 is newer than 1; update harness"):
        read_artifact(path)


def test_another_key_in_the_folder(store: Store) -> None:
    publish(store)
    with pytest.raises(HarnessError, match=f"holds key {KEY}, wanted cdcd.*; remove this folder and run again"):
        store.find(FOLDER, key="cd" * 32)


def test_meta_is_json_without_nan(store: Store) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        publish(store, wer=float("nan"))
    assert store.find(FOLDER, key=KEY) is None


def test_one_worker_holds_the_lock(store: Store) -> None:
    with store.lock(FOLDER), pytest.raises(Timeout):
        Store(store.root).lock(FOLDER).acquire(timeout=0)
    with Store(store.root).lock(FOLDER).acquire(timeout=0):
        pass


def test_rename_waits_for_a_scanner(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to rename a folder while a virus scanner reads in it."""
    busy = iter([True, True, False])
    rename = type(store.root).rename

    def refuse(source: Path, target: Path) -> Path:
        if next(busy):
            raise PermissionError("in use")
        return rename(source, target)

    monkeypatch.setattr(type(store.root), "rename", refuse)
    monkeypatch.setattr(module.time, "sleep", lambda _seconds: None)
    assert publish(store).key == KEY


def test_rename_gives_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_source: Path, _target: Path) -> Path:
        raise PermissionError("in use")

    monkeypatch.setattr(type(store.root), "rename", refuse)
    monkeypatch.setattr(module.time, "sleep", lambda _seconds: None)
    with pytest.raises(PermissionError):
        publish(store)
    assert store.find(FOLDER, key=KEY) is None
