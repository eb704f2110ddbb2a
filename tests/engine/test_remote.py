"""A real S3 server on loopback, and whatever may go wrong on the way to it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.core.manifests import write_manifests
from harness.core.records import Utterance
from harness.engine import remote as module
from harness.engine import worker
from harness.engine.remote import AwayError, Remote
from harness.engine.store import ARTIFACT_FILE, Store
from harness.engine.walk import job_of
from harness.errors import HarnessError, MissingError, SuiteError
from tests.boards import Finished, finished
from tests.buckets import BUCKET, gs_server, keys, objects, put, s3_server, url_of
from tests.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.core.artifact import Artifact
    from tests.conftest import Harness

KEY = "ab" * 32
FOLDER = "train-abababababababab"
PLAN = f"s3://{BUCKET}/plan"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture(scope="module", params=["s3", "gs"])
def bucket(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A kind of server and its address."""
    if request.param == "s3":
        yield "s3", request.getfixturevalue("server")
        return
    with gs_server() as address:
        yield "gs", address


@pytest.fixture
def url(bucket: tuple[str, str], tmp_path: Path) -> str:
    """A prefix of its own for each test."""
    return url_of(*bucket, tmp_path.name)


def publish(store: Store, *, text: str = "weights", adopted: dict[str, str] | None = None) -> Artifact:
    work = store.open(FOLDER)
    (work.path / "deep").mkdir()
    (work.path / "deep" / "модель 1.bin").write_text(text, encoding="utf-8")
    (work.path / "empty").touch()
    if adopted is not None:
        (work.scratch / "audio").mkdir()
        for name, content in adopted.items():
            (work.scratch / "audio" / name).write_text(content, encoding="utf-8")
        work.adopt("audio")
    return store.publish(FOLDER, key=KEY, stage="train", meta={"wer": 0.25}, about={"wall_s": 1.0})


def content(path: Path) -> dict[str, bytes | None]:
    """Every file with its bytes, and every folder."""
    return {
        item.relative_to(path).as_posix(): item.read_bytes() if item.is_file() else None for item in path.rglob("*")
    }


def stores(tmp_path: Path, url: str) -> tuple[Store, Store]:
    """Of two machines."""
    return Store(tmp_path / "one", remote=Remote(url)), Store(tmp_path / "two", remote=Remote(url))


@pytest.mark.parametrize("adopted", [None, {}, {"00000.tar": "clips", "00001.tar": "more"}])
@pytest.mark.parametrize("place", ["bucket", "file", "memory"])
def test_what_one_machine_publishes_another_finds(
    tmp_path: Path, url: str, place: str, adopted: dict[str, str] | None
) -> None:
    there = {"bucket": url, "file": (tmp_path / "shared").as_uri(), "memory": f"memory://{tmp_path.name}"}[place]
    one, two = stores(tmp_path, there)
    Remote(there).check()
    assert two.find(FOLDER, key=KEY) is None
    assert not Store(two.root, remote=Remote(there)).has(FOLDER, key=KEY)
    published = publish(one, adopted=adopted)
    assert Store(two.root, remote=Remote(there)).has(FOLDER, key=KEY)
    assert not two.root.joinpath(FOLDER).exists(), "asking downloads nothing"
    found = two.find(FOLDER, key=KEY)
    assert found is not None
    assert (found.files, found.meta, found.path) == (published.files, published.meta, two.root / FOLDER)
    assert content(found.path) == content(published.path)
    assert ("audio" in content(found.path)) == (adopted is not None)
    assert list((two.root / ".partial").iterdir()) == []


def test_nothing_is_seen_before_the_index_is_there(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The writer dies between the files and the index; the next run sends all of it."""
    one, two = stores(tmp_path, url)
    with monkeypatch.context() as patched:

        def die(*_arguments: object) -> None:
            raise SystemExit

        patched.setattr(Remote, "_write", die)
        with pytest.raises(SystemExit):
            publish(one)
    assert sorted(name.rpartition("/")[2] for name in objects(url)) == [ARTIFACT_FILE, "empty", "модель 1.bin"]
    assert all(name.count("/") >= 2 for name in objects(url)), "files of an upload, and no index"
    assert two.find(FOLDER, key=KEY) is None
    assert one.find(FOLDER, key=KEY) is not None, "what was done stays done"
    one.share([FOLDER])
    assert two.find(FOLDER, key=KEY) is not None
    before = objects(url)
    one.share([FOLDER, "train-0000000000000000"])
    assert objects(url) == before, "what is there is not sent again"
    assert [item for item in caplog.records if item.name.startswith("harness")] == []


SHARE = """
import sys
from pathlib import Path
from harness.engine.remote import Remote
from harness.engine.store import Store
Store(Path(sys.argv[1]), remote=Remote(sys.argv[2])).share([sys.argv[3]])
"""
SLOWLY = """
import time
from harness.engine.remote import Remote
upload = Remote._upload
def wait(*arguments, **named):
    time.sleep(0.2)
    return upload(*arguments, **named)
Remote._upload = wait
"""
"""What comes before it, so that nobody is quick enough to finish."""


def test_a_killed_upload_leaves_nothing_that_can_be_seen(tmp_path: Path, url: str) -> None:
    one = Store(tmp_path / "one")
    published = publish(one, adopted={f"{number}.tar": "x" * 1000 for number in range(60)})
    process = subprocess.Popen([sys.executable, "-c", SLOWLY + SHARE, str(one.root), url, FOLDER], cwd=ROOT)
    while len(names := keys(url)) < 3:
        assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.wait()
    assert len(names) < 60
    assert f"{FOLDER}/{ARTIFACT_FILE}" not in keys(url)
    two = Store(tmp_path / "two", remote=Remote(url))
    assert two.find(FOLDER, key=KEY) is None
    subprocess.run([sys.executable, "-c", SHARE, str(one.root), url, FOLDER], cwd=ROOT, check=True)
    found = two.find(FOLDER, key=KEY)
    assert found is not None
    assert content(found.path) == content(published.path)


def test_of_two_writers_the_last_wins_and_both_are_whole(tmp_path: Path, url: str) -> None:
    one, two = stores(tmp_path, url)
    for store, text in ((one, "of one"), (two, "of two")):
        store.remote, shared = None, store.remote
        published = publish(store, text=text)
        assert shared is not None
        shared.send(FOLDER, source=published.path, hashes=published.files)
        third = Store(tmp_path / f"third {text}", remote=Remote(url)).find(FOLDER, key=KEY)
        assert third is not None
        assert (third.path / "deep" / "модель 1.bin").read_text("utf-8") == text


def test_two_that_download_at_once_end_with_one_artifact(tmp_path: Path, url: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    one, two = stores(tmp_path, url)
    publish(one, adopted={"a.tar": "a"})
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: Store(two.root, remote=Remote(url)).find(FOLDER, key=KEY), range(4)))
    assert len({item.path for item in found if item}) == 1
    assert content(two.root / FOLDER) == content(one.root / FOLDER)
    assert list((two.root / ".partial").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("deep/модель 1.bin", "flip"),
        ("audio/a.tar", "flip"),
        (ARTIFACT_FILE, "flip"),
        ("audio/a.tar", "cut"),
        ("audio/a.tar", "longer"),
        ("audio/a.tar", "gone"),
    ],
)
def test_a_damaged_object_is_refused_by_name(tmp_path: Path, url: str, name: str, harm: str) -> None:
    one, two = stores(tmp_path, url)
    publish(one, adopted={"a.tar": "recordings"})
    (victim,) = (item for item in objects(url) if item.endswith(name) and item.count("/") >= 2)
    held = objects(url)[victim]
    flipped = bytes([held[0] ^ 1]) + held[1:]
    put(url, victim, {"flip": flipped, "cut": held[:-1], "longer": held + b"x" * 100, "gone": None}[harm])
    with pytest.raises(HarnessError) as refused:
        two.find(FOLDER, key=KEY)
    place = url.partition("?")[0]
    assert f"{place}/{victim}: " in str(refused.value)
    assert ("is gone" if harm == "gone" else "is damaged: its index says ") in str(refused.value)
    assert str(refused.value).endswith(f"delete {place}/{FOLDER} and run again")
    assert not (two.root / FOLDER).exists()
    assert list((two.root / ".partial").iterdir()) == []


LISTED = {"size": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"files": {"../../evil": LISTED}}, r"'../../evil' is a path that leaves the artifact"),
        ({"files": {"/etc/evil": LISTED}}, "leaves the artifact"),
        ({"files": {"a/../../evil": LISTED}}, "leaves the artifact"),
        ({"files": {"..\\evil": LISTED}}, "leaves the artifact"),
        ({"files": {"C:evil": LISTED}}, "leaves the artifact"),
        ({"files": {"a\0b": LISTED}}, "leaves the artifact"),
        ({"folders": ["../evil"]}, "leaves the artifact"),
        ({"upload": "../../other"}, "should match pattern"),
        ({"files": {"a": {"size": -1, "sha256": "0" * 64}}}, "greater than or equal to 0"),
        ({"files": {"a": {"size": 1, "sha256": "x"}}}, "should match pattern"),
        ({"folders": ["a" * 300]}, r"shared/train-.*/a+: cannot be written here \(.+\)$"),
        ({"folders": ["a" * 9000]}, "^.{,600}$"),
        ({"folders": [ARTIFACT_FILE]}, r"artifact\.json: cannot be written here \("),
        ({"files": {"a": LISTED}}, "it names no artifact.json, the record of what was done"),
        ({"schema": 2}, "Input should be 1"),
        (
            {"files": {ARTIFACT_FILE: {"size": 10**18, "sha256": "0" * 64}}},
            "has 1,000,000,000,000,000,000 bytes, and .* are free",
        ),
    ],
)
def test_an_index_is_not_trusted(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    one, two = stores(tmp_path, (tmp_path / "shared").as_uri())
    publish(one)
    path = tmp_path / "shared" / FOLDER / ARTIFACT_FILE
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), encoding="utf-8")
    before = content(tmp_path)
    with pytest.raises(HarnessError, match=told):
        two.find(FOLDER, key=KEY)
    shutil.rmtree(two.root, ignore_errors=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_index(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "shared" / FOLDER).mkdir(parents=True)
    (tmp_path / "shared" / FOLDER / ARTIFACT_FILE).write_bytes(text)
    store = Store(tmp_path / "one", remote=Remote((tmp_path / "shared").as_uri()))
    with pytest.raises(
        HarnessError, match=rf"{FOLDER}/artifact\.json: cannot be used \(.*delete file://.* and run again"
    ):
        store.find(FOLDER, key=KEY)


def test_an_index_that_is_too_long(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(Store(tmp_path / "one", remote=Remote(url)))
    monkeypatch.setattr(module, "MAX_INDEX_B", 100)
    with pytest.raises(HarnessError, match="has more than 100 bytes"):
        Store(tmp_path / "two", remote=Remote(url)).find(FOLDER, key=KEY)


def test_an_artifact_in_the_place_of_another(tmp_path: Path, url: str) -> None:
    publish(Store(tmp_path / "one", remote=Remote(url)))
    for name, held in objects(url).items():
        put(url, name.replace(FOLDER, "train-cdcdcdcdcdcdcdcd"), held)
    with pytest.raises(HarnessError, match=f"holds 'train' with key {KEY}"):
        Store(tmp_path / "two", remote=Remote(url)).find("train-cdcdcdcdcdcdcdcd", key="cd" * 32)


@pytest.mark.parametrize(("name", "value"), [("key", None), ("key", 1.5), ("stage", {})])
def test_a_record_that_does_not_say_what_it_is_of(tmp_path: Path, name: str, value: object) -> None:
    url = (tmp_path / "shared").as_uri()
    published = publish(Store(tmp_path / "one"))
    path = published.path / ARTIFACT_FILE
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {name: value}), encoding="utf-8")
    Remote(url).send(FOLDER, source=published.path, hashes={})
    with pytest.raises(HarnessError, match=r"artifact\.json: cannot be read \(its key or its stage is no text\)"):
        Store(tmp_path / "two", remote=Remote(url)).find(FOLDER, key=KEY)


def test_what_was_damaged_here_is_not_sent(tmp_path: Path, url: str) -> None:
    published = publish(Store(tmp_path / "one"))
    (published.path / "empty").write_text("no more", encoding="utf-8")
    with pytest.raises(
        HarnessError, match=r"empty: is not what was published, and is not sent; remove .* and run again"
    ):
        Store(tmp_path / "one", remote=Remote(url)).share([FOLDER])
    assert f"{FOLDER}/{ARTIFACT_FILE}" not in objects(url)


def test_a_server_that_goes_away_costs_no_work(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    away = Store(tmp_path / "one", remote=Remote(f"s3://{BUCKET}/away"))
    published = publish(away)
    assert (published.path / ARTIFACT_FILE).is_file()
    assert f"s3://{BUCKET}/away/{FOLDER}" in caplog.text
    with pytest.raises(HarnessError, match=r"cannot be read \(OSError: .*\); run again"):
        away.share([FOLDER])
    assert away.find("train-0000000000000000", key="0" * 64) is None
    assert not away.has("train-0000000000000000", key="0" * 64)
    with pytest.raises(HarnessError, match="cannot be read"):
        away.bring("train-0000000000000000")
    # A board must not show less of it.
    brief = Store(tmp_path / "two", remote=away.remote, brief={"export"})
    for call in (brief.find, brief.has):
        with pytest.raises(AwayError, match="cannot be read"):
            call("train-0000000000000000", key="0" * 64)


def test_recordings_come_with_the_set_that_names_them(tmp_path: Path, url: str) -> None:
    one, two = stores(tmp_path, url)
    corpus, other, chosen = (
        f"{stage}-{digit * 16}" for stage, digit in (("prepare", "1"), ("prepare", "2"), ("select", "3"))
    )
    for folder in (corpus, other):
        work = one.open(folder)
        (work.path / "1.wav").write_text("a clip", encoding="utf-8")
        one.publish(folder, key=folder[-1] * 64, stage="prepare", meta={}, about={})
    work = one.open(chosen)
    names = [f"../{corpus}/1.wav", "own.wav", f"../{corpus}/audio/00001.tar/a.flac@1+2", "../../etc/passwd"]
    write_manifests(
        work.path,
        (Utterance(id=name, audio=name, sha256="0" * 64, text="да", duration_s=1.0) for name in names),
    )
    one.publish(chosen, key="3" * 64, stage="select", meta={}, about={})
    two.find(chosen, key="3" * 64)
    assert not (two.root / corpus).exists(), "a corpus is not downloaded for its names"
    assert two.bring(chosen).path == two.root / chosen
    assert (two.root / corpus / "1.wav").is_file()
    assert not (two.root / other).exists()
    with pytest.raises(HarnessError, match=r"train-.*: is gone, from the remote store too; run again"):
        two.bring(FOLDER)


def test_a_recording_comes_alone(tmp_path: Path, url: str) -> None:
    one, two = stores(tmp_path, url)
    corpus, chosen = "prepare-1111111111111111", "select-3333333333333333"
    work = one.open(corpus)
    (work.path / "audio").mkdir()
    for name in ("1.wav", "2.wav", "audio/00001.tar"):
        (work.path / name).write_text(f"in {name}", encoding="utf-8")
    one.publish(corpus, key="1" * 64, stage="prepare", meta={}, about={})
    work = one.open(chosen)
    (work.path / "own.wav").write_text("own", encoding="utf-8")
    one.publish(chosen, key="3" * 64, stage="select", meta={}, about={})
    held = two.find(chosen, key="3" * 64)
    assert held is not None
    assert two.recording(held, "own.wav") == held.path / "own.wav"
    for _ in range(2):
        assert two.recording(held, f"../{corpus}/1.wav").read_text("utf-8") == "in 1.wav"
    member = two.recording(held, f"../{corpus}/audio/00001.tar/a.flac@1+2")
    assert (member.name, member.parent.read_text("utf-8")) == ("a.flac@1+2", "in audio/00001.tar")
    assert list(two.root.rglob("2.wav")) == []
    assert two.find(corpus, key="1" * 64) is not None, "what came alone is not taken for all of it"
    assert two.recording(held, f"../{corpus}/2.wav") == held.path / f"../{corpus}/2.wav"
    for name in (f"../{corpus}/3.wav", "../prepare-9999999999999999/1.wav", "../../../etc/nothing", "gone.wav"):
        with pytest.raises(HarnessError, match=r": is gone, from the remote store too; run again"):
            two.recording(held, name)
        with pytest.raises(HarnessError, match=r": is gone; run again"):
            Store(two.root).recording(held, name)


def test_of_some_stages_next_to_nothing_is_downloaded(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = stores(tmp_path, url)
    published = publish(one)
    brief = Store(two.root, remote=two.remote, brief={"train"})
    found = brief.find(FOLDER, key=KEY)
    assert found is not None
    assert (found.key, found.files, found.meta) == (published.key, published.files, published.meta)
    assert content(found.path).keys() == {ARTIFACT_FILE}
    assert not (two.root / FOLDER).exists()
    with monkeypatch.context() as patched:
        patched.setattr(Remote, "download", lambda *_, **__: pytest.fail("it is here already"))
        assert brief.find(FOLDER, key=KEY) == found
    assert one.remote is not None
    one.remote.send(FOLDER, source=published.path, hashes={})
    brief = Store(two.root, remote=two.remote, brief={"train"})
    again = brief.find(FOLDER, key=KEY)
    assert again is not None
    assert again.path != found.path, "another upload may have other files"
    assert brief.find("train-0000000000000000", key="0" * 64) is None
    with pytest.raises(HarnessError, match=f"holds key {KEY}, wanted {'0' * 64}"):
        brief.find(FOLDER, key="0" * 64)
    whole = two.find(FOLDER, key=KEY)
    assert whole is not None
    assert brief.find(FOLDER, key=KEY) == whole


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("store", "is no place for a store; it begins with s3://, gs://, file://"),
        ("ftp://host/x", "is no place for a store"),
        ("s3://", "is no place for a store"),
        ("simplecache::s3://team/x", "is no place for a store"),
        ("s3://key:secret@team/x", "credentials do not belong into a URL; .*AWS_ACCESS_KEY_ID"),
        (
            "s3://team/x?region=eu-west-1&acl=public",
            r"unknown option 'acl'; s3:// has: endpoint_override, region, scheme",
        ),
    ],
)
def test_what_is_no_url_of_a_store(url: str, told: str) -> None:
    with pytest.raises(SuiteError, match=told) as refused:
        Remote(url)
    assert "secret@" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    ["s3://absent/x", "s3://team/x?endpoint_override=127.0.0.1:1&scheme=http",
     "gs://team/x?endpoint_override=127.0.0.1:1&scheme=http&anonymous=true"],
)  # fmt: skip
def test_a_store_that_cannot_be_used_is_told_at_once(
    harness: Harness, tmp_path: Path, server: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECT_S", 1.0)
    done = finished(tmp_path, but=lambda _: True)
    told = harness("run", done.path, "--store", url)
    assert told.code == 3
    assert f"{url}: cannot be used as a store: " in told.err
    assert "the bucket must exist and be writable; credentials: " in told.err
    assert told.out == ""


def test_a_server_that_never_answers_is_told_of_soon(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    monkeypatch.setattr(module, "CONNECT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(MissingError, match="s3://team/x: cannot be used as a store"):
            Remote("s3://team/x").check()


def test_wrong_credentials_are_told_at_once(
    harness: Harness, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import urllib.request

    def demand(count: str) -> None:
        """From which request on the server asks who it is."""
        asked = urllib.request.Request(f"http://{server}/moto-api/reset-auth", data=count.encode())
        asked.add_header("Content-Type", "text/plain")
        urllib.request.urlopen(asked)  # noqa: S310  # of this process

    done = finished(tmp_path, but=lambda _: True)
    monkeypatch.setenv("HARNESS_STORE", f"s3://{BUCKET}/private")
    demand("0")
    try:
        told = harness("run", done.path)
    finally:
        demand("inf")
    assert told.code == 3
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in told.err
    assert "INVALID_ACCESS_KEY_ID" in told.err or "InvalidAccessKeyId" in told.err


@pytest.fixture(scope="module")
def sent(server: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished suite whose artifacts lie in the bucket too."""
    done = finished(tmp_path_factory.mktemp("sent"))
    Store(done.store.root, remote=Remote(PLAN)).share([step.folder for step in done.plan.steps])
    return done


@pytest.fixture
def shared(sent: Finished, tmp_path: Path) -> Finished:
    """The same suite on a machine with an empty store."""
    path = Path(shutil.copyfile(sent.path, tmp_path / sent.path.name))
    return Finished(path, sent.plan, Store(tmp_path / "results" / "store", remote=Remote(PLAN)))


def test_a_plan_that_is_done_elsewhere_starts_nothing(harness: Harness, untracked: None, shared: Finished) -> None:
    told = harness("run", shared.path, "--store", PLAN)
    assert told.code == 0, told.err
    assert "start" not in told.out
    assert not (shared.path.parent / "results" / "small" / "logs").exists()
    assert len((shared.path.parent / "results" / "small" / "leaderboard.csv").read_text("utf-8").splitlines()) == 13
    here = {path.name.split("-")[0] for path in shared.store.root.glob("*-*")}
    assert "prepare" not in here, "no corpus is downloaded for a board"
    assert "score" in here


def test_a_worker_takes_its_inputs_from_there_and_leaves_its_result(sent: Finished, shared: Finished) -> None:
    import boto3

    scored = shared.plan.rows[0].scored
    boto3.client("s3").delete_object(Bucket=BUCKET, Key=f"plan/{scored.folder}/{ARTIFACT_FILE}")
    job = job_of(scored, {step.key for step in shared.plan.steps}, store=shared.store)
    made = worker.run(json.loads(json.dumps(job)))
    assert made.path == shared.store.root.resolve() / scored.folder
    before = sent.store.find(scored.folder, key=scored.key)
    assert before is not None
    assert (made.meta, made.files) == (before.meta, before.files)
    assert Remote(PLAN).has(scored.folder)
