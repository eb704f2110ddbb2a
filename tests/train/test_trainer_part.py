"""Trainings of a tiny Whisper that a search cuts at its rungs: together they are the unbroken training."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.core.artifact import Artifact, Work
from harness.core.manifests import read_jsonl
from harness.errors import TrainingError
from harness.train import whisper
from harness.train.trainer_part import TrainerPart, last_checkpoint
from tests.conftest import artifact
from tests.trainings import short_clips

SMALL = {
    "max_steps": 4,
    "eval_steps": 2,
    "batch_size": 1,
    "warmup_steps": 1,
    "learning_rate": 1e-3,
    "precision": "fp32",
}
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def inputs(tiny_whisper: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Artifact]]:
    """Five of the shortest real clips to train on and two held out, and random weights."""
    root = tmp_path_factory.mktemp("sets")
    sets = {"train": short_clips(root / "train", num=5, skip=2), "dev": short_clips(root / "dev", num=2)}
    shutil.copytree(tiny_whisper, root / "base" / "model")
    return {"base": [artifact(root / "base")], **{role: [clips] for role, clips in sets.items()}}


@dataclass
class Trained:
    work: Work
    meta: dict[str, Any]

    @property
    def published(self) -> Artifact:
        return artifact(self.work.path, "train", **self.meta)

    @property
    def weights(self) -> bytes:
        return (self.work.path / "model" / "model.safetensors").read_bytes()

    @property
    def rows(self) -> list[dict[str, float]]:
        return list(read_jsonl(self.work.path / "curves.jsonl"))


def work_in(folder: Path) -> Work:
    """As the store opens it: what an attempt that was killed had handed over is in the scratch folder again."""
    work = Work(path=folder / "out", scratch=folder / "scratch")
    if (work.path / "checkpoints").is_dir():
        (work.path / "checkpoints").rename(work.scratch / "checkpoints")
    shutil.rmtree(work.path, ignore_errors=True)
    for path in (work.path, work.scratch):
        path.mkdir(parents=True, exist_ok=True)
    return work


def train(folder: Path, inputs: Any, *, until: int | None = None, after: tuple[Trained, ...] = (), **fields: Any):
    work = work_in(folder)
    spec = whisper.Training(**SMALL | fields) if until is None else whisper.Segment(**SMALL | fields, until=until)
    resumed = {"resume": [part.published for part in after]} if after else {}
    return Trained(work, whisper.run(spec, {**inputs, **resumed}, work))


@pytest.fixture(scope="module")
def unbroken(inputs: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("unbroken"), inputs)


def last_weights(trained: Trained, step: int) -> bytes:
    """Of the newest checkpoint, which need not be the best."""
    return (trained.work.scratch / "checkpoints" / f"checkpoint-{step}" / "model.safetensors").read_bytes()


class KilledError(BaseException):
    """Nobody catches it, as nobody catches a kill."""


def test_parts_end_as_an_unbroken_training(
    unbroken: Trained, inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut where it is evaluated anyway, and killed in both parts."""
    progress, killed = Work.progress, []

    def killing(work: Work, done: int, total: int, note: str = "") -> None:
        if done in {1, 3} and done not in killed:
            killed.append(done)
            raise KilledError
        progress(work, done, total, note)

    monkeypatch.setattr(Work, "progress", killing)
    with pytest.raises(KilledError):
        train(tmp_path / "first", inputs, until=2)
    first = train(tmp_path / "first", inputs, until=2)
    with pytest.raises(KilledError):
        train(tmp_path / "second", inputs, after=(first,))
    second = train(tmp_path / "second", inputs, after=(first,))
    assert killed == [1, 3]
    assert last_weights(second, 4) == last_weights(unbroken, 4)
    assert second.weights == unbroken.weights
    assert second.meta == unbroken.meta
    learned = [[row for row in item.rows if "loss" in row or "eval_wer" in row] for item in (second, unbroken)]
    timed = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    assert [{name: row[name] for name in row if name not in timed} for row in learned[0]] == [
        {name: row[name] for name in row if name not in timed} for row in learned[1]
    ]


def test_a_rung_is_evaluated_whatever_eval_steps_says(unbroken: Trained, inputs: Any, tmp_path: Path) -> None:
    first = train(tmp_path / "first", inputs, until=1)
    second = train(tmp_path / "second", inputs, until=3, after=(first,))
    third = train(tmp_path / "third", inputs, after=(second, first))
    assert [row["step"] for row in third.rows if "eval_wer" in row] == [1, 2, 3, 4]
    (at_rung,) = [row for row in first.rows if "eval_wer" in row]
    assert (first.meta["dev_wer"], first.meta["dev_loss"]) == (at_rung["eval_wer"], at_rung["eval_loss"])
    assert [item.meta["final_step"] for item in (first, second, third)] == [1, 3, 4]
    assert [item.meta["num_steps"] for item in (first, second, third)] == [4, 4, 4]
    # The rates are those of the whole schedule, and so are the weights at its end.
    rates = [[row["learning_rate"] for row in item.rows if "loss" in row] for item in (third, unbroken)]
    assert rates[0] == rates[1]
    assert last_weights(third, 4) == last_weights(unbroken, 4)


def test_what_a_part_leaves(inputs: Any, tmp_path: Path) -> None:
    part = train(tmp_path, inputs, until=3, eval_steps=1)
    best = part.meta["best_step"]
    folders = {path.name for path in (part.work.path / "checkpoints").iterdir()}
    assert folders == {f"checkpoint-{best}", "checkpoint-3"}
    assert not (part.work.path / "model").exists()
    assert not (part.work.scratch / "checkpoints").exists(), "moved, not copied"
    last = part.work.path / "checkpoints" / "checkpoint-3"
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt"} <= {path.name for path in last.iterdir()}
    assert str(tmp_path) not in (last / "trainer_state.json").read_text(encoding="utf-8")
    if best != 3:
        assert not (part.work.path / "checkpoints" / f"checkpoint-{best}" / "optimizer.pt").exists()
    # Killed between its end and its publication, it is only published again.
    again = train(tmp_path, inputs, until=3, eval_steps=1)
    assert again.meta == part.meta


def test_a_training_that_had_stopped_early_is_not_continued(inputs: Any, tmp_path: Path) -> None:
    flat = {"learning_rate": 1e-12, "eval_steps": 1, "early_stopping_patience": 1}
    first = train(tmp_path / "first", inputs, until=3, **flat)
    assert (first.meta["final_step"], first.meta["best_step"]) == (2, 1)
    assert first.meta["dev_wer"] == first.meta["best_dev_wer"]
    last = train(tmp_path / "last", inputs, after=(first,), **flat)
    assert (last.meta["final_step"], last.meta["best_step"]) == (2, 1)
    assert last.weights


def test_a_loss_that_breaks_before_a_rung_has_no_dev_wer(
    inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise TrainingError("step 1 of 4: the loss became nan")

    monkeypatch.setattr("transformers.Seq2SeqTrainer.train", broken)
    part = train(tmp_path, inputs, until=2)
    assert (part.meta["dev_wer"], part.meta["dev_loss"], part.meta["final_step"]) == (None, None, 0)
    assert any("it stays behind at step 2: step 1 of 4: the loss became nan" in note for note in part.meta["notes"])
    with pytest.raises(TrainingError, match="the loss became nan"):
        train(tmp_path / "whole", inputs, after=(part,))


def checkpoint(folder: Path, step: int, state: str | None) -> None:
    (folder / f"checkpoint-{step}").mkdir(parents=True)
    if state is not None:
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(state, encoding="utf-8")


@pytest.mark.parametrize("torn", [None, '{"global_step": 30', "{}"])
def test_a_checkpoint_torn_by_a_kill_is_passed_over_and_removed(tmp_path: Path, torn: str | None) -> None:
    checkpoint(tmp_path, 10, json.dumps({"global_step": 10}))
    checkpoint(tmp_path, 20, json.dumps({"global_step": 20}))
    checkpoint(tmp_path, 30, torn)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-20")
    assert not (tmp_path / "checkpoint-30").exists()


def test_no_checkpoint_means_a_start_from_the_beginning(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "checkpoints") is None


def test_averaging_over_the_last_checkpoints_keeps_their_weights(tmp_path: Path) -> None:
    work = work_in(tmp_path)
    folder = work.scratch / "checkpoints"
    state = {"log_history": [{"step": 40, "eval_wer": 0.5}], "best_metric": 0.4, "best_global_step": 10}
    for step in (10, 20, 30, 40):
        checkpoint(folder, step, json.dumps({**state, "global_step": step}))
        (folder / f"checkpoint-{step}" / "optimizer.pt").touch()
    spec = whisper.Segment(**SMALL, until=40, average_checkpoints=2)
    TrainerPart.of(spec, {}, work).finish(work)
    left = {path.parent.name for path in (work.path / "checkpoints").glob("*/trainer_state.json")}
    assert left == {"checkpoint-10", "checkpoint-30", "checkpoint-40"}
    assert [path.parent.name for path in (work.path / "checkpoints").glob("*/optimizer.pt")] == ["checkpoint-40"]
