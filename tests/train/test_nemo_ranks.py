"""A Parakeet on two processes, with gloo, against one with twice the batches: the same training, whatever ends it."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from harness.core.manifests import read_jsonl
from harness.core.nemo_file import quiet, restore
from harness.errors import MissingError
from harness.train import parakeet, ranks
from harness.train.nemo_trainer import Schedule
from harness.train.parakeet import Segment, Training
from harness.train.speech_batches import Batches, Dealt
from tests.conftest import artifact
from tests.parakeets import build_parakeet
from tests.trainings import kill_at_step, short_clips, work_in

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from harness.core.artifact import Artifact, Work

pytestmark = pytest.mark.timeout(600)
AUGMENT = {"speed": {"p": 0.5}, "noise": {"p": 0.5}, "gain": {"p": 0.5}}
Sets = dict[str, tuple["Artifact", ...]]


def fields(**changes: Any) -> dict[str, Any]:
    """One clip in a batch."""
    short = {"batch_duration_s": 10.0, "max_clip_s": 10.0, "warmup_steps": 1, "max_steps": 10, "eval_steps": 4}
    return {**short, "learning_rate": 1e-4, "augment": AUGMENT, "average_checkpoints": 2, **changes}


TWO = Training.model_validate(fields(devices=2))
FIRST = TWO.model_copy(update={"max_steps": 1})


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Sets:
    """A model with dropout and masks, and an odd number of clips for dev."""
    folder = tmp_path_factory.mktemp("sets")
    with quiet():
        path = build_parakeet(folder, dropout=0.1)
    (folder / "model").mkdir()
    path.rename(folder / "model" / "model.nemo")
    return {
        "base": (artifact(folder),),
        "train": (short_clips(folder / "train", num=12, skip=3),),
        "dev": (short_clips(folder / "dev", num=3),),
    }


@pytest.fixture(scope="module")
def few(sets: Sets, tmp_path_factory: pytest.TempPathFactory) -> Sets:
    """Fewer dev clips than devices."""
    return {**sets, "dev": (short_clips(tmp_path_factory.mktemp("few") / "dev", num=1),)}


@pytest.fixture(scope="module")
def broken(sets: Sets, tmp_path_factory: pytest.TempPathFactory) -> Sets:
    """The first of four clips is no sound."""
    train = short_clips(tmp_path_factory.mktemp("broken") / "train", num=4, is_float=True)
    bad = min((train.path / "audio").iterdir())
    samples, rate_hz = soundfile.read(bad, dtype="float32")
    soundfile.write(bad, np.full_like(samples, np.inf), rate_hz, subtype="FLOAT")
    return {**sets, "train": (train,)}


@pytest.fixture(scope="module")
def on_two(
    sets: Sets, few: Sets, broken: Sets, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, Any], Path]]:
    """Three trainings of the same two processes, whose start takes longer: their metas and folders."""
    short = Segment.model_validate(fields(devices=2, max_steps=4, eval_steps=2, until=4))
    trainings = {"whole": (TWO, sets), "few": (FIRST, few), "broken": (short, broken)}
    works = {name: work_in(tmp_path_factory.mktemp(name) / "work") for name in trainings}
    asked = [(*training, works[name]) for name, training in trainings.items()]
    metas = ranks.run_ranks(_train_all, asked, count=2)
    return {name: (meta, works[name].path) for name, meta in zip(trainings, metas, strict=True)}


def _train_all(asked: list[tuple[Training, Sets, Work]]) -> list[dict[str, Any]]:
    return [parakeet._train(*each) for each in asked]


def on_one(training: Training, sets: Sets, folder: Path) -> tuple[dict[str, Any], Path]:
    """With as many batches in a step."""
    alone = training.model_copy(update={"devices": 1, "gradient_accumulation_steps": 2})
    work = work_in(folder)
    return parakeet.run(alone, sets, work), work.path


def rows_of(folder: Path) -> list[dict[str, float]]:
    return list(read_jsonl(folder / "curves.jsonl"))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    with quiet():
        found: dict[str, torch.Tensor] = restore(folder / "model" / "model.nemo").state_dict()
    return found


def test_two_devices_learn_what_one_does_with_twice_the_batches(sets: Sets, on_two: Any, tmp_path: Path) -> None:
    """Draws, learnt weights, statistics of batch norms, and what is measured on dev."""
    (meta, folder), (expected_meta, expected_folder) = on_two["whole"], on_one(TWO, sets, tmp_path / "one")
    rows, expected = rows_of(folder), rows_of(expected_folder)
    assert [row["step"] for row in rows if "loss" in row] == [*range(1, 11)]
    assert [row["step"] for row in rows if "eval_wer" in row] == [4, 8, 10]
    assert all(0 < row["eval_cer"] < 1 < row["eval_wer"] for row in rows if "eval_cer" in row)
    for row, other in zip(rows, expected, strict=True):
        exact = {"step", "epoch", "eval_wer", "eval_cer"} & row.keys()
        assert {name: row[name] for name in exact} == {name: other[name] for name in exact}
        if "loss" in row:
            assert row["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert row == pytest.approx(other, rel=1e-5)
    weights, expected_weights = weights_of(folder), weights_of(expected_folder)
    assert weights.keys() == expected_weights.keys()
    for name, tensor in expected_weights.items():
        np.testing.assert_allclose(weights[name], tensor, atol=1e-5, rtol=1e-5, err_msg=name)
    assert meta == expected_meta


def test_dev_may_have_fewer_batches_than_there_are_devices(few: Sets, on_two: Any, tmp_path: Path) -> None:
    meta, folder = on_two["few"]
    _, expected = on_one(FIRST, few, tmp_path / "one")
    assert meta["final_step"] == 1
    for row, other in zip(rows_of(folder), rows_of(expected), strict=True):
        assert row == pytest.approx(other, rel=1e-5)


def test_a_clip_that_breaks_one_rank_ends_both_and_is_named(broken: Sets, on_two: Any) -> None:
    meta, folder = on_two["broken"]
    bad = min((broken["train"][0].path / "audio").iterdir())
    (note,) = [note for note in meta["notes"] if "the loss became nan" in note]
    assert note.startswith("it stays behind at step 4: step ")
    assert f"The clips of the step: audio/{bad.name}. If it breaks" in note
    assert meta["dev_wer"] is None
    assert (folder / "checkpoints").is_dir()


def test_killed_it_leaves_no_process_and_resumed_it_ends_as_unbroken(sets: Sets, on_two: Any, tmp_path: Path) -> None:
    _, unbroken = on_two["whole"]
    work = work_in(tmp_path / "work")
    assert len(kill_at_step(6, parakeet.run, TWO, sets, work)) >= 2
    assert (work.scratch / "checkpoints" / "last" / "4.ckpt").is_file()
    parakeet.run(TWO, sets, work)
    assert rows_of(work.path) == rows_of(unbroken)
    expected, found = weights_of(unbroken), weights_of(work.path)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@given(num_batches=st.integers(1, 20), num_ranks=st.integers(1, 5))
def test_batches_are_dealt_in_turn_and_all_ranks_have_equally_many(num_batches: int, num_ranks: int) -> None:
    batches = [[row] for row in range(num_batches)]
    shares = [Dealt(batches, rank, num_ranks) for rank in range(num_ranks)]
    dealt = [list(share) for share in shares]
    assert {len(share) for share in dealt} == {len(share) for share in shares} == {len(shares[0])}
    own = [share[: about.num_own] for share, about in zip(dealt, shares, strict=True)]
    in_turn = [item for item in chain.from_iterable(zip_longest(*own)) if item is not None]
    assert in_turn == [*enumerate(batches)]


def test_resumed_ranks_go_on_with_the_batches_after_the_last_step(sets: Sets, tmp_path: Path) -> None:
    clips = parakeet.read_clips(
        sets["train"][0],
        policy=TWO.text,
        vocabulary=parakeet.Vocabulary(encode=lambda text: [len(text)], letters=frozenset(), writes_everything=True),
        max_clip_s=10.0,
        cache=tmp_path,
        role="train",
    )
    whole = Batches(clips, seconds=10.0, seed=1, num_batches=30)
    for rank in range(3):
        unbroken = list(Dealt(whole, rank, 3))
        assert len(unbroken) == len(Dealt(whole, rank, 3)) == 10
        assert list(Dealt(replace(whole, start=12), rank, 3)) == unbroken[4:]


def test_a_step_is_shared_by_the_devices() -> None:
    shared = Training.model_validate({"devices": 4, "gradient_accumulation_steps": 2, "epochs": 3})
    schedule = Schedule.of(shared, batches_per_epoch=100)
    assert (schedule.batches_per_step, schedule.max_steps) == (8, 38)


def test_a_training_on_one_device_keeps_the_key_it_had_before_there_was_a_choice() -> None:
    one, two = Training().identity(), Training(devices=2).identity()
    assert {**one, "devices": 2} == two
    assert "devices" not in one


def test_more_devices_than_gpus(monkeypatch: pytest.MonkeyPatch, sets: Sets, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(MissingError, match=r"devices is 2, but this machine has 1 GPU; set devices: 1, with more"):
        parakeet.run(TWO, sets, work_in(tmp_path / "work"))
