from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from harness.core.estimates import Size
from harness.data.select import Part
from harness.engine.digests import Digests
from harness.engine.estimates import (
    FLAC_SHARE,
    LEAKAGE_S_PER_CLIP,
    LEAKAGE_S_PER_PAIR,
    LONG_S,
    PREPARED_PER_CORE,
    SELECT_S_PER_CLIP,
    START_S,
    WAV_B_PER_S,
    Estimate,
    Outlook,
    outlook,
    split_size,
)
from harness.engine.plan import Plan, plan
from harness.engine.store import ARTIFACT_FILE, Store
from harness.suite.load import load
from harness.suite.spec import Split
from tests.boards import SUITE, finish

if TYPE_CHECKING:
    from pathlib import Path

    from harness.engine.plan import Step

WHOLE = Size(100, 1000.0)
OWN = Size(100, 1000.0, {"train": Size(80, 800.0), "test": Size(20, 200.0)})
PARTLY = Size(100, 1000.0, {"": Size(60, 600.0), "test": Size(40, 400.0)})
RULE = Split(dev=0.1, test=0.2)
CLIP_S = 3.0


@pytest.mark.parametrize(
    ("size", "split", "rule", "own_splits", "expected"),
    [
        # Nobody has divided it: the rule does.
        (WHOLE, "train", RULE, None, Size(70, 700.0)),
        (WHOLE, "dev", RULE, None, Size(10, 100.0)),
        (WHOLE, "train", None, None, None),
        (WHOLE, "other", RULE, None, None),
        # It has splits, but not how large they are.
        (WHOLE, "train", None, ("train", "test"), None),
        (WHOLE, "train", RULE, ("train", "test"), None),
        # It has splits; the rule takes what is lacking out of train.
        (OWN, "train", None, ("train", "test"), Size(80, 800.0)),
        (OWN, "test", RULE, ("train", "test"), Size(20, 200.0)),
        (OWN, "dev", RULE, ("train", "test"), Size(8, 80.0)),
        (OWN, "train", RULE, ("train", "test"), Size(72, 720.0)),
        (OWN, "dev", None, ("train", "test"), None),
        (OWN, "dev", RULE, None, Size(8, 80.0)),
        # Some clips have one, the rule divides the others.
        (PARTLY, "test", RULE, None, Size(52, 520.0)),
        (PARTLY, "train", RULE, None, Size(42, 420.0)),
    ],
)
def test_what_lies_in_a_split(
    size: Size, split: str, rule: Split | None, own_splits: tuple[str, ...] | None, expected: Size | None
) -> None:
    found = split_size(size, Part(dataset="a", split=split, rule=rule), own_splits=own_splits)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert (found.num_clips, found.audio_s) == (expected.num_clips, pytest.approx(expected.audio_s))


def planned(folder: Path, *changes: tuple[str, str], num_clips: int | None = 200) -> tuple[Plan, Store]:
    """The small suite with some of its text replaced; its manifest lists clips of CLIP_S, or is not there."""
    content = SUITE
    for old, new in changes:
        assert content.count(old) == 1, old
        content = content.replace(old, new)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    if num_clips is not None:
        rows = [{"audio_filepath": f"{number}.wav", "text": "да", "duration": CLIP_S} for number in range(num_clips)]
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / "clips" / "manifest.jsonl").write_text(lines, encoding="utf-8")
    (folder / "small.yaml").write_text(content, encoding="utf-8")
    store = Store(folder / "store")
    return plan(load(folder / "small.yaml"), digest=Digests(folder / "digests.json")), store


def step(plan_: Plan, name: str) -> Step:
    return next(item for item in plan_.steps if item.name == name)


def ran(store: Store, done: Step, *, wall_s: float, **meta: object) -> None:
    """As if a step had run so long."""
    artifact = finish(done, store)
    record = json.loads((artifact.path / ARTIFACT_FILE).read_text(encoding="utf-8"))
    record |= {
        "meta": record["meta"] | meta,
        "wall_s": wall_s,
        "spec": done.spec.model_dump(mode="json", by_alias=True),
        "inputs": {role: [item.folder for item in items] for role, items in done.inputs.items()},
    }
    (artifact.path / ARTIFACT_FILE).write_text(json.dumps(record), encoding="utf-8")


def test_a_plan_that_nothing_has_run_of(tmp_path: Path) -> None:
    suite, store = planned(tmp_path)
    found = outlook(suite, store).steps
    prepared = found[step(suite, "prepare aelita").key]
    assert (prepared.num_clips, prepared.audio_s, prepared.is_measured) == (200, 600.0, False)
    assert prepared.wall_s == pytest.approx(START_S + 600 / PREPARED_PER_CORE / (os.cpu_count() or 1))
    assert prepared.disk_b == pytest.approx(600 * WAV_B_PER_S, rel=0.02)
    train = found[step(suite, "select train").key]
    assert (train.num_clips, train.audio_s) == (140, pytest.approx(420.0))
    assert train.wall_s == pytest.approx(START_S + 200 * SELECT_S_PER_CLIP)
    checked = found[step(suite, "leakage train against held-out").key]
    assert checked.wall_s == pytest.approx(START_S + 140 * (LEAKAGE_S_PER_CLIP + 60 * LEAKAGE_S_PER_PAIR))
    unknown = [item for item in suite.steps if item.stage not in {"prepare", "select", "leakage"}]
    assert all(found[item.key] == Estimate() for item in unknown), "not known is not 0"


def test_flac_takes_less(tmp_path: Path) -> None:
    wav, flac = (
        outlook(*planned(tmp_path / storage, ("kind: manifest,", f"kind: manifest, storage: {storage},"))).total(
            "disk_b"
        )
        for storage in ("wav", "flac")
    )
    assert wav is not None
    assert flac is not None
    assert wav - flac == pytest.approx(600 * WAV_B_PER_S * (1 - FLAC_SHARE))


@pytest.mark.parametrize(
    ("share", "seconds"), [("all", 420.0), ("0.05h", 180.0), ("500h", 420.0), ("3", 1260.0), ("0.5", 210.0)]
)
def test_a_mix_takes_what_it_says_but_no_more_than_there_is(tmp_path: Path, share: str, seconds: float) -> None:
    suite, store = planned(tmp_path, ("train: {from: aelita/train}", f"train: {{mix: {{aelita: {share}}}}}"))
    found = outlook(suite, store).steps[step(suite, "select train").key]
    assert found.audio_s == pytest.approx(seconds)


def test_a_tag_says_nothing_about_how_much_it_is(tmp_path: Path) -> None:
    suite, store = planned(
        tmp_path, ("test: {from: aelita/test, role: test}", "test: {from: aelita/test, where: {a: b}, role: test}")
    )
    found = outlook(suite, store).steps
    assert found[step(suite, "select test").key].num_clips is None
    assert found[step(suite, "leakage train against held-out").key].wall_s is not None


def test_recordings_that_are_not_there(tmp_path: Path) -> None:
    suite, store = planned(tmp_path, num_clips=None)
    found = outlook(suite, store)
    assert found.missing == {"aelita": ((tmp_path / "clips" / "manifest.jsonl").resolve(), 1)}
    assert set(found.steps.values()) == {Estimate()}
    suite, store = planned(tmp_path, num_clips=3)
    assert outlook(suite, store).missing == {"aelita": ((tmp_path / "clips" / "0.wav").resolve(), 3)}
    finish(suite.steps[0], store)
    assert outlook(suite, store).missing == {}, "what is prepared needs them no more"


def test_what_has_run_is_measured(tmp_path: Path) -> None:
    suite, store = planned(tmp_path)
    prepare, train = step(suite, "prepare aelita"), step(suite, "select train")
    ran(store, prepare, wall_s=5.0, num_utterances=190, audio_s=1764.0)
    found = outlook(suite, store).steps
    files = [path for path in (store.root / prepare.folder).rglob("*") if path.name != ARTIFACT_FILE and path.is_file()]
    weight = sum(path.stat().st_size for path in files)
    assert found[prepare.key] == Estimate(190, 1764.0, weight, 5.0, is_measured=True)
    # Its splits are on its card; without one, the rule divides what was counted.
    assert found[train.key].num_clips == 133


def test_the_rate_is_that_of_earlier_preparations(tmp_path: Path) -> None:
    earlier, store = planned(tmp_path / "a")
    ran(store, step(earlier, "prepare aelita"), wall_s=100.0, num_utterances=10, audio_s=5000.0)
    suite, _ = planned(tmp_path / "b", num_clips=1000)
    found = outlook(suite, store).steps[step(suite, "prepare aelita").key]
    assert found.wall_s == pytest.approx(START_S + 3000 / 50)
    # One so short mostly was the start of a process.
    ran(Store(tmp_path / "c"), step(earlier, "prepare aelita"), wall_s=LONG_S / 2, num_utterances=10, audio_s=5000.0)
    found = outlook(suite, Store(tmp_path / "c")).steps[step(suite, "prepare aelita").key]
    assert found.wall_s == pytest.approx(START_S + 3000 / PREPARED_PER_CORE / (os.cpu_count() or 1))


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ("{max_steps: 50}", 100.0),
        ("{max_steps: 50, learning_rate: 1.0e-3, seed: 3}", 100.0),
        ("{max_steps: 50, batch_size: 8}", 50.0),
        ("{max_steps: 50, gradient_accumulation_steps: 4}", 400.0),
        ("{max_steps: 50, freeze: encoder}", None),
        ("{max_steps: 50, packing: null}", None),
        ("{epochs: 2}", None),
    ],
)
def test_a_training_is_as_fast_as_the_last_one_like_it(tmp_path: Path, training: str, expected: float | None) -> None:
    earlier, store = planned(tmp_path / "a")
    for done in earlier.steps:
        if done.stage in {"prepare", "select", "leakage", "base"}:
            finish(done, store)
    first = next(item for item in earlier.steps if item.stage == "train")
    ran(store, first, wall_s=200.0, final_step=100)
    suite, _ = planned(tmp_path / "a", ("train: {max_steps: 100}", f"train: {training}"))
    found = [outlook(suite, store).steps[item.key] for item in suite.steps if item.stage == "train"]
    assert [item.wall_s for item in found] == [pytest.approx(expected)] * 2


def test_totals_are_of_what_is_to_do_and_known() -> None:
    done = Estimate(wall_s=100.0, disk_b=7, is_measured=True)
    found = Outlook({"a": done, "b": Estimate(wall_s=1.0), "c": Estimate(wall_s=2.0), "d": Estimate()}, {})
    assert (found.total("wall_s"), found.total("disk_b")) == (3.0, None)
