"""Checkpoints on their way from one machine to another: what arrives, what is left out, and what goes in the end."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.core.artifact import CHECKPOINT_FILE, Work
from harness.engine import relay
from harness.engine import remote as module
from harness.engine.relay import relayed
from harness.engine.remote import INDEX_FILE, AwayError, Remote
from harness.engine.remote_upkeep import holdings, remove
from harness.engine.store import Store, folder_name
from tests.buckets import place_of, s3_server, url_of
from tests.pipelines import ended, harness, model_hashes, start, write_suite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.buckets import Place

KEY = "ab" * 32
TOLD: list[str] = []
STEP: dict[str, Any] = {"stage": "train", "key": KEY, "name": "train it", "tell": TOLD.append}
FOLDER, PLACE = folder_name("train", KEY), folder_name("checkpoint", KEY)
NAMES = ("checkpoints", "tensorboard", "micro_batch.json", "what never was")
DEADLINE_S = 60


@pytest.fixture(scope="module", params=["file", "s3", "gs"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with place_of(request.param) as found:
        yield found


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "POLL_S", 0.01)
    TOLD.clear()


class KilledError(BaseException):
    """Nobody catches it, as nobody catches a kill."""


def machine(folder: Path, url: str) -> Store:
    return Store(folder, remote=Remote(url))


def write(work: Work, step: int) -> None:
    """What a training leaves at a step."""
    for name in (f"checkpoints/{step}/weights", f"checkpoints/{step}/state", "tensorboard/events", "micro_batch.json"):
        (work.scratch / name).parent.mkdir(parents=True, exist_ok=True)
        (work.scratch / name).write_text(f"{name} at {step}", encoding="utf-8")
    (work.scratch / "cache").write_text("can be made again", encoding="utf-8")
    work.checkpointed(step, NAMES)


def arrived(store: Store, step: int) -> None:
    """Wait until the bucket has it."""
    remote, deadline = store.remote, time.monotonic() + DEADLINE_S
    assert remote is not None
    while (index := remote.index(PLACE)) is None or f"checkpoints/{step}/state" not in index.files:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def killed_at(store: Store, *steps: int) -> None:
    """A training that has sent its checkpoints and dies."""
    work = store.open(FOLDER)

    def dying() -> None:
        with relayed(store, work, **STEP):
            for step in steps:
                write(work, step)
                arrived(store, step)
            raise KilledError

    with pytest.raises(KilledError):
        dying()


def held(work: Work) -> dict[str, str]:
    return {
        path.relative_to(work.scratch).as_posix(): path.read_text("utf-8")
        for path in work.scratch.rglob("*")
        if path.is_file()
    }


def expected(step: int, *steps: int) -> dict[str, str]:
    names = ["tensorboard/events", "micro_batch.json", f"checkpoints/{step}/weights", f"checkpoints/{step}/state"]
    found = {name: f"{name} at {step}" for name in names}
    for other in steps:
        found |= {
            name: f"{name} at {other}" for name in (f"checkpoints/{other}/{item}" for item in ("weights", "state"))
        }
    return found | {CHECKPOINT_FILE: str(step)}


def test_another_machine_goes_on_and_the_finished_step_leaves_nothing(tmp_path: Path, place: Place) -> None:
    url = place(tmp_path)
    killed_at(machine(tmp_path / "one", url), 100, 200)
    other = machine(tmp_path / "two", url)
    work = other.open(FOLDER)
    with relayed(other, work, **STEP):
        assert held(work) == expected(200, 100)
        assert f"goes on from step 200, which another process has left at {Remote(url).place}" in "\n".join(TOLD)
        write(work, 300)
        arrived(other, 300)
        (work.path / "model").write_text("done", encoding="utf-8")
        other.publish(FOLDER, key=KEY, stage="train", meta={}, about={})
    there = holdings(Remote(url))
    assert [item.folder for item in there.artifacts] == [FOLDER]
    assert there.leftovers == []
    assert list(other.partial("").glob("*.in-*")) == []


def test_what_a_machine_has_itself_is_not_fetched_again(tmp_path: Path) -> None:
    url = (tmp_path / "shared").as_uri()
    one, two = machine(tmp_path / "one", url), machine(tmp_path / "two", url)
    killed_at(one, 100)
    killed_at(two, 200)
    assert held(two.open(FOLDER)).keys() >= expected(200, 100).keys()
    for store, step in ((two, 200), (one, 200)):
        work = store.open(FOLDER)
        (work.scratch / "checkpoints" / "own").touch()
        with pytest.raises(KilledError), relayed(store, work, **STEP):
            raise KilledError
        assert (work.scratch / "checkpoints" / "own").exists() == (store is two), "the older one is replaced as a whole"
        assert (work.scratch / CHECKPOINT_FILE).read_text("utf-8") == str(step)


def test_a_kill_while_a_checkpoint_arrives_lets_the_next_one_fetch_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = (tmp_path / "shared").as_uri()
    killed_at(machine(tmp_path / "one", url), 100)
    two = machine(tmp_path / "two", url)
    work = two.open(FOLDER)

    def killed(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(relay, "replace_text", killed)
        with pytest.raises(KilledError), relayed(two, work, **STEP):
            pass
    with relayed(two, work, **STEP):
        assert held(work) == expected(100)


def test_a_kill_while_one_is_sent_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = (tmp_path / "shared").as_uri()
    one = machine(tmp_path / "one", url)
    killed_at(one, 100)
    work = one.open(FOLDER)

    def dies(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(Remote, "_write", dies)
    with relayed(one, work, **STEP):
        write(work, 200)
    two = machine(tmp_path / "two", url)
    with relayed(two, work := two.open(FOLDER), **STEP):
        assert held(work) == expected(100)


def test_only_the_newest_of_those_that_wait_is_sent(tmp_path: Path) -> None:
    work = Work(tmp_path / "out", tmp_path / "scratch", tmp_path / "outbox")
    (tmp_path / "outbox").mkdir()
    for step in (100, 200, 300):
        write(work, step)
    assert [path.name for path in (tmp_path / "outbox").iterdir()] == ["300"]


def test_without_a_remote_store_or_for_other_stages_nothing_is_kept_twice(tmp_path: Path) -> None:
    alone = Store(tmp_path / "alone")
    url = (tmp_path / "shared").as_uri()
    for store, stage in ((alone, "train"), (machine(tmp_path / "one", url), "score")):
        work = store.open(FOLDER)
        with relayed(store, work, **{**STEP, "stage": stage}):
            write(work, 100)
        assert work.outbox is None
    assert not (tmp_path / "shared").exists()


@pytest.mark.parametrize("harm", ["damaged", "of another step", "no number"])
def test_what_cannot_be_used_costs_its_steps_and_nothing_else(tmp_path: Path, harm: str) -> None:
    url = (tmp_path / "shared").as_uri()
    killed_at(machine(tmp_path / "one", url), 100)
    (upload,) = (path for path in (tmp_path / "shared" / PLACE).iterdir() if path.is_dir())
    if harm == "damaged":
        (upload / "checkpoints" / "100" / "weights").write_text("x", encoding="utf-8")
    else:
        record = json.loads((upload / INDEX_FILE).read_text("utf-8"))
        record |= {"key": "cd" * 32} if harm == "of another step" else {"meta": {"step": "100"}}
        (upload / INDEX_FILE).write_text(json.dumps(record), encoding="utf-8")
        shutil.move(upload, tmp_path / "changed")
        Remote(url).send(PLACE, source=tmp_path / "changed", hashes={})
    two = machine(tmp_path / "two", url)
    with relayed(two, work := two.open(FOLDER), **STEP):
        assert held(work) == {}
        write(work, 50)
        arrived(two, 50)
    assert "its checkpoint is not used" in "\n".join(TOLD)
    assert list(two.partial("").glob("*.in-*")) == []


def test_a_server_that_is_away_is_told_at_the_start_and_borne_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server() as address:
        url = url_of("s3", address, tmp_path.name)
        monkeypatch.setattr(module, "ATTEMPTS", 1)
        one = machine(tmp_path / "one", url)
        work = one.open(FOLDER)
        with relayed(one, work, **STEP):
            monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
            one.remote = None  # as published without one
            monkeypatch.setattr(module.Remote, "send", _away)
            write(work, 100)
            deadline = time.monotonic() + DEADLINE_S
            while "the newest checkpoint stays on this machine" not in "\n".join(TOLD):
                assert time.monotonic() < deadline
                time.sleep(0.02)
        gone = machine(tmp_path / "two", url)
        with pytest.raises(AwayError, match="cannot be read"), relayed(gone, gone.open(FOLDER), **STEP):
            raise AssertionError


def _away(*_: object, **__: object) -> None:
    raise AwayError("it is away")


def test_a_checkpoint_that_outlives_its_step_is_collected(tmp_path: Path, place: Place) -> None:
    """Its machine dies between the end of the step and the removal."""
    url = place(tmp_path)
    one = machine(tmp_path / "one", url)
    killed_at(one, 100)
    assert holdings(Remote(url)).leftovers == [], "others go on from it"
    one.open(FOLDER)
    one.publish(FOLDER, key=KEY, stage="train", meta={}, about={})
    (left,) = holdings(Remote(url)).leftovers
    assert (left.name, left.what) == (PLACE, "checkpoint of a finished step")
    assert remove(Remote(url), left)
    assert [item.folder for item in holdings(Remote(url)).artifacts] == [FOLDER]
    assert holdings(Remote(url)).leftovers == []


@pytest.mark.timeout(600)
def test_a_training_whose_machine_is_gone_ends_elsewhere_with_the_same_files(
    tmp_path: Path, tiny_whisper: Path
) -> None:
    """The whole command, killed after its first checkpoint has been sent; the other machine has a folder of its own."""
    suite = write_suite(tmp_path, base=tiny_whisper)
    shared, training = tmp_path / "shared", ("run", str(suite), "--only", "train")
    for name in ("alone", "one", "two"):
        (tmp_path / name).mkdir()
    told = harness(*training, cwd=tmp_path / "alone")
    assert told.returncode == 0, told.stderr
    store = ("--store", shared.as_uri())
    process, deadline = start(*training, *store, cwd=tmp_path / "one"), time.monotonic() + 240
    while not any(shared.glob("checkpoint-*/artifact.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    ended(process)
    shutil.rmtree(tmp_path / "one")
    told = harness(*training, *store, cwd=tmp_path / "two")
    assert told.returncode == 0, told.stderr
    (log,) = (tmp_path / "two" / "results" / "tiny" / "logs").glob("train-*.log")
    assert "goes on from step" in log.read_text("utf-8")
    assert model_hashes(tmp_path / "two") == model_hashes(tmp_path / "alone") != {}
    assert list(shared.glob("checkpoint-*/artifact.json")) == []
