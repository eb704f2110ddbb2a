"""plan, board, report, promote and store, on a machine that has nothing but the URL of a bucket."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.core.manifests import UTTERANCES_FILE, read_manifest, write_manifests
from harness.engine.remote import Remote
from harness.engine.store import BULKY, Store
from harness.promote.runtime import Loaded
from tests.boards import MAKE, NUM_UTTERANCES, SUITE, Finished, finished
from tests.buckets import content_of, keys, put, s3_server, url_of
from tests.test_cli_promote import Echo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.core.artifact import Work
    from harness.engine.plan import Step
    from harness.promote.manifest import Manifest
    from tests.conftest import Harness

DAY_S = 24 * 3600.0
BEST = "base_lr1e-5_ggml-f16"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with s3_server() as address:
        yield url_of("s3", address, "commands")


@pytest.fixture(scope="module")
def sent(url: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A suite that has run on another machine, which has sent all of it; recordings lie in the corpus."""

    def prepare(work: Work, _step: Step) -> dict[str, Any]:
        MAKE["select"](work, _step)
        (work.path / UTTERANCES_FILE).unlink()
        return {"num_utterances": NUM_UTTERANCES, "audio_s": 2.0 * NUM_UTTERANCES}

    def select(work: Work, step: Step) -> dict[str, Any]:
        meta = MAKE["select"](work, step)
        (corpus,) = step.inputs["datasets"]
        for path in work.path.glob("*.wav"):
            path.unlink()
        items = [replace(item, audio=f"../{corpus.folder}/{item.audio}") for item in read_manifest(work.path)]
        write_manifests(work.path, items)
        return meta

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tests.boards.MAKE", {**MAKE, "prepare": prepare, "select": select})
        done = finished(tmp_path_factory.mktemp("sent"))
    Store(done.store.root, remote=Remote(url)).share([step.folder for step in done.plan.steps])
    return done


@pytest.fixture
def here(sent: Finished, tmp_path: Path) -> Finished:
    """The same suite, and no results."""
    return Finished(
        Path(shutil.copyfile(sent.path, tmp_path / sent.path.name)), sent.plan, Store(tmp_path / "results" / "store")
    )


def stages(done: Finished) -> set[str]:
    """Of the artifacts that are here as a whole."""
    return {path.name.split("-")[0] for path in done.store.root.glob("*-*")}


def heavy(done: Finished) -> list[str]:
    """Models and recordings, wherever they lie."""
    return [path.name for path in done.store.root.rglob("*") if path.suffix in {".bin", ".onnx", ".wav"}]


def test_a_plan_knows_what_is_done_and_downloads_records_alone(harness: Harness, here: Finished, url: str) -> None:
    without = harness("plan", here.path)
    assert f"{len(here.plan.steps)} to do, 0 cached" in without.out
    ended = harness("plan", here.path, "--store", url)
    assert (ended.code, ended.err) == (0, "")
    assert f"0 to do, {len(here.plan.steps)} cached" in ended.out
    assert "24" in next(line for line in ended.out.splitlines() if "select" in line), "clips, from the record"
    assert stages(here) == set()
    names = {path.name for path in here.store.root.rglob("*") if path.is_file()}
    assert names - {"digests.json"} <= {"artifact.json", "config.json", "curves.jsonl", "card.json"}


def test_a_board_downloads_the_scores_and_no_models(
    harness: Harness, sent: Finished, here: Finished, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_STORE", url)
    ended = harness("board", here.path, "--format", "csv")
    assert (ended.code, ended.err) == (0, "")
    monkeypatch.delenv("HARNESS_STORE")
    there = harness("board", sent.path, "--results", sent.store.root.parent, "--format", "csv")
    assert ended.out == there.out
    assert stages(here) == {"score"}
    assert heavy(here) == []


def test_a_report_shows_curves_and_downloads_no_models(harness: Harness, here: Finished, url: str) -> None:
    ended = harness("report", here.path, "--store", url)
    assert (ended.code, ended.err) == (0, "")
    page = (here.path.parent / "results" / "small" / "report.html").read_text("utf-8")
    assert '"dev_wer":[[100,0.1]]' in page.replace(" ", "")
    assert stages(here) == {"score", "select", "leakage"}
    assert heavy(here) == []
    assert harness("report", here.path, "--store", url, "--audio").code == 0
    assert len([name for name in heavy(here) if name.endswith(".wav")]) == NUM_UTTERANCES


@pytest.mark.parametrize("command", ["plan", "board", "report"])
def test_a_bucket_may_be_read_only(
    harness: Harness, here: Finished, url: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("it writes")

    monkeypatch.setattr(Remote, "_write", refuse)
    before = keys(url)
    assert harness(command, here.path, "--store", url).code == 0
    assert keys(url) == before
    told = harness(command, here.path, "--store", "s3://team/x?endpoint_override=127.0.0.1:1&scheme=http")
    assert told.code == 3
    assert "cannot be used as a store: " in told.err


def test_a_machine_with_nothing_promotes_from_the_bucket(
    harness: Harness, sent: Finished, here: Finished, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_payload: Path, *, manifest: Manifest, **_: Any) -> Loaded:
        return Loaded(Echo(manifest.smoke.text), "runtime 1.0", "a CPU")

    for name in ("harness.promote.smoke.load", "harness.promote.runtime.load"):
        monkeypatch.setattr(name, load)
    monkeypatch.setattr("harness.promote.fitness.check", lambda *_, **__: None)
    assert "run the suite first" in harness("promote", here.path, "--candidate").err
    ended = harness("promote", here.path, "--store", url, "--to", "models")
    assert (ended.code, ended.err) == (0, "")
    assert f"installed: {Path('models') / 'whisper-russian-ggml.bin'}: {BEST}-" in ended.out
    exported = next(row.exported.folder for row in here.plan.rows if row.row == BEST)
    weights = (sent.store.root / exported / "ggml-model.bin").read_bytes()
    assert Path("models", "whisper-russian-ggml.bin").read_bytes() == weights
    assert BULKY & stages(here) == {"export"}
    assert len(list(here.store.root.glob("export-*"))) == 1
    assert len([name for name in heavy(here) if name.endswith(".wav")]) == 1, "the smoke clip alone"
    (made,) = (here.path.parent / "results" / "small" / "bundles").glob("*.zip")
    elsewhere = harness("promote", sent.path, "--results", sent.store.root.parent, "--candidate")
    assert elsewhere.code == 0
    assert (sent.store.root.parent / "small" / "bundles" / made.name).read_bytes() == made.read_bytes()


def shared_folder(done: Finished, folder: Path) -> str:
    """A copy of the suite's store as another scheme has it, whose objects can grow old."""
    url = (folder / "shared").as_uri()
    Store(done.store.root, remote=Remote(url)).share([step.folder for step in done.plan.steps])
    return url


def grow_old(folder: Path, *, days: float) -> None:
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (time.time() - days * DAY_S,) * 2)


def test_store_list(harness: Harness, sent: Finished, here: Finished, url: str) -> None:
    ended = harness("store", "list", "--store", url)
    assert (ended.code, ended.err) == (0, "")
    lines = {line.split()[0]: line for line in ended.out.splitlines() if line}
    assert all(lines[step.folder].rstrip().endswith("nobody") for step in here.plan.steps), "no board is here"
    assert f"{len(here.plan.steps)} artifacts, " in ended.out
    assert ended.out.rstrip().endswith(f" in {url}")
    assert not here.store.root.exists()


def test_store_verify(harness: Harness, here: Finished, url: str) -> None:
    ended = harness("store", "verify", "--store", url)
    assert (ended.code, ended.err.strip()) == (0, "")
    assert f"{len(here.plan.steps)} artifacts, " in ended.out
    name = next(name for name in keys(url) if name.endswith("ggml-model.bin"))
    held = content_of(url, name)
    put(url, name, held[:-1] + b"?")
    ended = harness("store", "verify", "--store", url)
    put(url, name, held)
    assert ended.code == 1
    assert f"{url}: 1 of {len(here.plan.steps)} artifacts damaged" in ended.err
    assert f"  {name.split('/')[0]}: {url}/{name}: is damaged: its index says {len(held)} bytes" in ended.err


def test_store_gc_takes_what_uploads_have_left(harness: Harness, sent: Finished, tmp_path: Path) -> None:
    url = shared_folder(sent, tmp_path)
    row = sent.plan.rows[0]
    Remote(url).send(row.scored.folder, source=sent.store.root / row.scored.folder, hashes={})
    grow_old(tmp_path / "shared", days=5)
    before = set((tmp_path / "shared").rglob("*"))
    assert "nothing to free" in harness("store", "gc", "--store", url).out
    ended = harness("store", "gc", "--store", url, "--older-than", "4")
    assert f"unused:  {row.scored.folder}/" in ended.out
    assert f"do it: harness store gc --older-than 4 --store {url} --delete" in ended.out
    assert set((tmp_path / "shared").rglob("*")) == before
    listed = harness("store", "list", "--store", url).out
    assert f"left:  {row.scored.folder}/" in listed
    assert "upload in whose place another came" in listed
    ended = harness("store", "gc", "--store", url, "--older-than", "4", "--delete")
    assert ended.out.count("freed:  ") == 1
    assert harness("store", "verify", "--store", url).code == 0
    assert "nothing to free" in harness("store", "gc", "--store", url, "--older-than", "4").out


@pytest.mark.usefixtures("untracked")
def test_store_gc_of_artifacts_needs_the_flag_and_keeps_what_this_machine_knows(
    harness: Harness, sent: Finished, here: Finished, tmp_path: Path
) -> None:
    url = shared_folder(sent, tmp_path)
    grow_old(tmp_path / "shared", days=9)
    gc = ("store", "gc", "--store", url, "--unreferenced", "--delete")
    ended = harness(*gc)
    assert ended.code == 2
    assert "so all would go; name suites: harness store gc SUITE" in ended.err
    here.path.write_text(SUITE.replace("learning_rate: [1e-5, 3e-5]", "learning_rate: [1e-5]"), encoding="utf-8")
    needs = {step.folder for step in finished(tmp_path / "again", suite=here.path.read_text("utf-8")).plan.steps}
    ended = harness(*gc, here.path)
    assert (ended.code, ended.err) == (0, "")
    kept = {path.parent.name for path in (tmp_path / "shared").glob("*/artifact.json")}
    assert kept == needs
    gone = {step.folder for step in sent.plan.steps} - kept
    assert {name.split("-")[0] for name in gone} == {"train", "export", "transcribe", "score"}
    assert all(f"freed:  {folder}  " in ended.out for folder in gone)
    assert harness("board", here.path, "--store", url).code == 0
    assert harness("store", "verify", "--store", url).code == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["gc", "--older-than", "0.5"], "--older-than 0.5: with --store at least 1: another machine may be uploading"),
        (["gc", "small.yaml"], "suites say what --unreferenced keeps"),
    ],
)
def test_what_gc_of_a_bucket_refuses(harness: Harness, options: list[str], told: str, tmp_path: Path) -> None:
    ended = harness("store", *options, "--store", tmp_path.as_uri())
    assert ended.code == 2
    assert told in ended.err
    ended = harness("store", "gc", "--unreferenced")
    assert "--unreferenced is for --store URL; of the store of this machine that goes anyway" in ended.err


def test_the_store_commands_take_no_bucket_from_the_environment(
    harness: Harness, sent: Finished, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is deleted lies where the command says."""
    monkeypatch.setenv("HARNESS_STORE", url)
    ended = harness("store", "list", "--results", sent.store.root.parent)
    assert ended.out.replace("\n", "").rstrip().endswith(f" in {sent.store.root}")
