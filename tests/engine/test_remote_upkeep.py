"""What uploads that came to nothing have left in a bucket, and what of it goes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.engine import remote as module
from harness.engine.remote import INDEX_FILE, AwayError, Remote
from harness.engine.remote_upkeep import Removable, holdings, removable, remove
from harness.engine.store import Store
from harness.errors import HarnessError
from tests.buckets import place_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.buckets import Place

DAY_S = 24 * 3600.0
CORPUS, MODEL, SCORE = "prepare-1111111111111111", "train-2222222222222222", "score-3333333333333333"
NEVER, REPLACED = "upload that was never finished", "upload in whose place another came"


@pytest.fixture(scope="module", params=["file", "s3", "gs"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place_of(request.param) as found:
        yield found


@pytest.fixture
def store(place: Place, tmp_path: Path) -> Store:
    """Of a machine that has sent a corpus and a model that was trained on it."""
    return sent(tmp_path, place(tmp_path))


@pytest.fixture
def local(tmp_path: Path) -> Store:
    """The same in a shared folder, whose files a test can damage and let grow old."""
    return sent(tmp_path, (tmp_path / "shared").as_uri())


def sent(folder: Path, url: str) -> Store:
    store = Store(folder / "store", remote=Remote(url))
    publish(store, CORPUS)
    publish(store, MODEL, inputs=[CORPUS])
    return store


def publish(store: Store, folder: str, *, inputs: list[str] | None = None) -> None:
    stage, _, key = folder.partition("-")
    work = store.open(folder)
    (work.path / "deep").mkdir()
    (work.path / "deep" / "file.bin").write_bytes(b"x" * 1000)
    (work.path / "empty").touch()
    about = {"name": f"{stage} it", "inputs": {"of": inputs or []}}
    store.publish(folder, key=key[0] * 64, stage=stage, meta={}, about=about)


def send(store: Store, folder: str, *, dying: bool = False) -> None:
    """As another machine that has it too. dying: before it writes the index."""
    remote = Remote(of(store).url)
    with pytest.MonkeyPatch.context() as patched:
        if not dying:
            remote.send(folder, source=store.root / folder, hashes={})
            return

        def die(*_arguments: object) -> None:
            raise SystemExit

        patched.setattr(remote, "_write", die)
        with pytest.raises(SystemExit):
            remote.send(folder, source=store.root / folder, hashes={})


def of(store: Store) -> Remote:
    assert store.remote is not None
    return store.remote


def left(store: Store) -> set[str]:
    """Names of all objects."""
    return {item.name for item in of(store).objects()}


def leave_all_sorts(store: Store) -> None:
    """A replaced upload, one that never ended, a token; beside them, what is not the project's."""
    send(store, MODEL)
    remote, store.remote = of(store), None
    publish(store, SCORE)
    store.remote = remote
    send(store, SCORE, dying=True)
    remote._write(remote._files, remote._token(), b"token")
    remote._write(remote._files, f"{remote._path}/notes.txt", b"of somebody")


def test_what_lies_there(store: Store) -> None:
    assert holdings(of(store)).leftovers == []
    leave_all_sorts(store)
    before = left(store)
    held = holdings(of(store))
    corpus, model = held.artifacts
    assert (corpus.folder, corpus.name, corpus.inputs) == (CORPUS, "prepare it", frozenset())
    assert (model.folder, model.name, model.inputs) == (MODEL, "train it", {CORPUS})
    assert model.files.keys() == {"deep/file.bin", "empty"}
    size = sum(path.stat().st_size for path in (store.root / MODEL).rglob("*") if path.is_file())
    assert model.size == size > 1000
    assert all(abs(item.modified_s - time.time()) < 60 for item in [*held.artifacts, *held.leftovers])
    found = {item.name.split("/")[0].split("-")[0]: (item.what, item.size) for item in held.leftovers}
    scored = sum(path.stat().st_size for path in (store.root / SCORE).rglob("*") if path.is_file())
    assert found == {"train": (REPLACED, size), "score": (NEVER, scored), ".token": ("left by a killed process", 5)}
    assert left(store) == before, "looking deletes nothing"


def test_only_what_is_old_goes_and_all_that_an_index_names_stays(store: Store, tmp_path: Path) -> None:
    whole = left(store)
    leave_all_sorts(store)
    before, now_s = left(store), of(store).check()
    assert abs(now_s - time.time()) < 60
    held = holdings(of(store))
    assert removable(held, now_s=now_s, older_than_s=DAY_S) == []
    found = removable(held, now_s=now_s + 2 * DAY_S, older_than_s=DAY_S)
    assert found == held.leftovers
    assert all(remove(of(store), item) for item in found)
    after = left(store)
    assert len(whole & after) == len(whole) / 2 + 1, "of the corpus all; of the model the index, which is another now"
    assert after < before
    assert "notes.txt" in after
    assert holdings(of(store)).leftovers == []
    other = Store(tmp_path / "other", remote=Remote(of(store).url))
    assert all(other.bring(folder).files for folder in (CORPUS, MODEL))
    assert not other.has(SCORE, key="3" * 64)
    store.share([SCORE])
    assert other.bring(SCORE).files


def test_an_upload_that_was_replaced_is_as_old_as_what_took_its_place(local: Store, tmp_path: Path) -> None:
    """A machine may be downloading it that has read the index before."""
    for path in (tmp_path / "shared").rglob("*"):
        os.utime(path, (time.time() - 9 * DAY_S,) * 2)
    send(local, MODEL)
    (item,) = holdings(of(local)).leftovers
    assert item.what == REPLACED
    assert removable(holdings(of(local)), now_s=time.time(), older_than_s=DAY_S) == []
    os.utime(tmp_path / "shared" / MODEL / INDEX_FILE, (time.time() - 2 * DAY_S,) * 2)
    assert [left.name for left in removable(holdings(of(local)), now_s=time.time(), older_than_s=DAY_S)] == [item.name]


def test_an_upload_that_goes_on_is_as_young_as_its_newest_object(local: Store, tmp_path: Path) -> None:
    (tmp_path / "shared" / MODEL / INDEX_FILE).unlink()
    for path in (tmp_path / "shared").rglob("*"):
        os.utime(path, (time.time() - 9 * DAY_S,) * 2)
    assert len(removable(holdings(of(local)), now_s=time.time(), older_than_s=DAY_S)) == 1
    (newest,) = (tmp_path / "shared" / MODEL).glob("*/empty")
    os.utime(newest)
    assert removable(holdings(of(local)), now_s=time.time(), older_than_s=DAY_S) == []


def test_an_upload_that_is_finished_after_all_stays(store: Store) -> None:
    index = of(store).index(MODEL)
    assert index is not None
    before = left(store)
    assert not remove(of(store), Removable(f"{MODEL}/{index.upload}", NEVER, 0, 0.0))
    assert left(store) == before


def test_artifacts_go_only_by_request_and_the_index_first(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, late_s = holdings(of(store)), time.time() + 2 * DAY_S
    assert removable(held, now_s=late_s, older_than_s=DAY_S) == []
    assert removable(held, now_s=time.time(), older_than_s=DAY_S, kept={CORPUS}) == [], "it has just been sent"
    (item,) = removable(held, now_s=late_s, older_than_s=DAY_S, kept={CORPUS})
    assert (item.name, item.what, item.size) == (MODEL, "train it", held.artifacts[1].size)

    deletes = []

    def delete_one(remote: Remote, name: str) -> None:
        deletes.append(name)
        if len(deletes) == 2:
            raise SystemExit
        original(remote, name)

    original = Remote.delete
    with monkeypatch.context() as patched:
        patched.setattr(Remote, "delete", delete_one)
        with pytest.raises(SystemExit):
            remove(of(store), item)
    assert deletes[0] == f"{MODEL}/{INDEX_FILE}"
    assert Store(tmp_path / "other", remote=Remote(of(store).url)).find(MODEL, key="2" * 64) is None
    (orphan,) = holdings(of(store)).leftovers
    assert (orphan.name, orphan.what) == (deletes[1], NEVER)
    store.share([MODEL])
    assert remove(of(store), orphan), "another upload has come since"
    assert remove(of(store), item)
    assert not any(name.startswith(MODEL) for name in left(store))
    assert any(name.startswith(CORPUS) for name in left(store))


def test_what_is_whole_has_no_faults(store: Store) -> None:
    assert of(store).faults(MODEL) == []
    assert of(store).faults("train-9999999999999999") == [], "gone while we looked"


def test_every_fault_is_named(local: Store, tmp_path: Path) -> None:
    (upload,) = (path for path in (tmp_path / "shared" / MODEL).iterdir() if path.is_dir())
    place = f"{of(local).place}/{MODEL}/{upload.name}"
    (upload / "deep" / "file.bin").write_bytes(b"x" * 999 + b"y")
    (upload / "empty").unlink()
    damaged, gone = of(local).faults(MODEL)
    assert damaged.startswith(f"{place}/deep/file.bin: is damaged: its index says 1000 bytes with sha256 ")
    assert gone.startswith(f"{place}/empty: is gone, and its index names it")
    (upload / INDEX_FILE).write_text("{", encoding="utf-8")
    assert [item.name for item in holdings(of(local)).artifacts] == ["prepare it", ""]
    (upload.parent / INDEX_FILE).write_text("{", encoding="utf-8")
    assert "cannot be used" in of(local).faults(MODEL)[0]


def test_of_an_index_that_cannot_be_read_every_upload_stays(local: Store, tmp_path: Path) -> None:
    send(local, MODEL)
    index = tmp_path / "shared" / MODEL / INDEX_FILE
    index.write_text("{", encoding="utf-8")
    held = holdings(of(local))
    assert held.leftovers == []
    (damaged,) = (item for item in held.artifacts if item.folder == MODEL)
    assert damaged.size == 2 * sum(path.stat().st_size for path in (local.root / MODEL).rglob("*") if path.is_file())
    (upload, _) = (path for path in index.parent.iterdir() if path.is_dir())
    assert not remove(of(local), Removable(f"{MODEL}/{upload.name}", REPLACED, 0, 0.0))
    assert remove(of(local), Removable(MODEL, "", 0, 0.0))
    assert [item.what for item in holdings(of(local)).leftovers] == [NEVER, NEVER]


def test_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    away = "s3://team/x?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1"
    with pytest.raises(AwayError, match=r"s3://team/x: cannot be listed \(OSError: .*\); run again"):
        holdings(Remote(away))
    with pytest.raises(AwayError, match="cannot be read"):
        Remote(away).faults(MODEL)
    with pytest.raises(AwayError, match=r"artifact\.json: cannot be deleted"):
        Remote(away).delete(f"{MODEL}/{INDEX_FILE}")
    with pytest.raises(HarnessError, match="cannot be used as a store: "):
        Remote(away).check_reading()
