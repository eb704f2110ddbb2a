"""Trainings of a tiny Parakeet that a search cuts at its rungs: together they are the unbroken training."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from harness.core.artifact import Artifact, Work
from harness.core.manifests import read_jsonl
from harness.core.nemo_file import quiet, restore
from harness.errors import TrainingError
from harness.train import nemo_weights, parakeet
from tests.conftest import artifact
from tests.trainings import short_clips

if TYPE_CHECKING:
    from pathlib import Path

SMALL: dict[str, Any] = {
    "max_steps": 4,
    "eval_steps": 2,
    "batch_duration_s": 20.0,
    "max_clip_s": 20.0,
    "warmup_steps": 1,
    "learning_rate": 1e-3,
}
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Artifact]]:
    """The shortest real clips, six to train on and two held out, and the shipped architecture with random weights."""
    root = tmp_path_factory.mktemp("sets")
    sets = {"train": short_clips(root / "train", num=6, skip=2), "dev": short_clips(root / "dev", num=2)}
    for name in ("base", "scratch"):
        (root / name).mkdir()
    with quiet():
        nemo_weights.run(
            nemo_weights.Spec(config="parakeet-nano"), {}, Work(path=root / "base", scratch=root / "scratch")
        )
    return {"base": [artifact(root / "base")], **{role: [clips] for role, clips in sets.items()}}


def train(
    folder: Path, inputs: Any, *, until: int | None = None, after: tuple[Artifact, ...] = (), **fields: Any
) -> Artifact:
    work = Work(path=folder / "out", scratch=folder / "scratch")
    if (work.path / "checkpoints").is_dir():
        (work.path / "checkpoints").rename(work.scratch / "checkpoints")  # as the store does
    shutil.rmtree(work.path, ignore_errors=True)
    for path in (work.path, work.scratch):
        path.mkdir(parents=True, exist_ok=True)
    spec = parakeet.Training(**SMALL | fields) if until is None else parakeet.Segment(**SMALL | fields, until=until)
    meta = parakeet.run(spec, {**inputs, **({"resume": list(after)} if after else {})}, work)
    return artifact(work.path, "train", **meta)


def weights(trained: Artifact) -> dict[str, Any]:
    with quiet():
        found: dict[str, Any] = restore(trained.path / "model" / "model.nemo").state_dict()
    return found


def curves(trained: Artifact) -> list[dict[str, float]]:
    return list(read_jsonl(trained.path / "curves.jsonl"))


class KilledError(BaseException):
    """Nobody catches it, as nobody catches a kill."""


def test_parts_end_as_an_unbroken_training(inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, dither and masks, all of which are drawn; killed in the second part."""
    import torch

    unbroken = train(tmp_path / "unbroken", inputs)
    first = train(tmp_path / "first", inputs, until=2)
    progress = Work.progress

    def killing(work: Work, done: int, total: int, note: str = "") -> None:
        if done >= 3:
            raise KilledError
        progress(work, done, total, note)

    with monkeypatch.context() as patched:
        patched.setattr(Work, "progress", killing)
        with pytest.raises(KilledError):
            train(tmp_path / "second", inputs, after=(first,))
    second = train(tmp_path / "second", inputs, after=(first,))
    assert curves(second) == curves(unbroken)
    assert second.meta == unbroken.meta
    expected, found = weights(unbroken), weights(second)
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []
    assert first.meta["dev_wer"] == next(row["eval_wer"] for row in curves(first) if "eval_wer" in row)
    assert not (first.path / "model").exists()


def test_a_rung_is_evaluated_whatever_eval_steps_says(inputs: Any, tmp_path: Path) -> None:
    first = train(tmp_path / "first", inputs, until=1)
    second = train(tmp_path / "second", inputs, until=3, after=(first,))
    third = train(tmp_path / "third", inputs, after=(second, first))
    assert [row["step"] for row in curves(third) if "eval_wer" in row][:2] == [1, 2]
    assert [item.meta["final_step"] for item in (first, second, third)] == [1, 3, 4]
    steps = {int(row["step"]): row["eval_wer"] for row in curves(third) if "eval_wer" in row}
    assert 3 in steps
    assert third.meta["best_dev_wer"] == min(steps.values())
    assert third.meta["best_step"] == min(steps, key=lambda step: (steps[step], step))
    assert {path.name for path in (second.path / "checkpoints" / "last").iterdir()} == {"3.ckpt"}
    # Killed between its end and its publication, it is only published again.
    again = train(tmp_path / "second", inputs, until=3, after=(first,))
    assert again.meta == second.meta


def test_a_training_that_had_stopped_early_is_not_continued(inputs: Any, tmp_path: Path) -> None:
    flat = {"learning_rate": 1e-12, "min_lr": 0.0, "eval_steps": 1, "early_stopping_patience": 1}
    first = train(tmp_path / "first", inputs, until=3, **flat)
    assert (first.meta["final_step"], first.meta["best_step"]) == (2, 1)
    last = train(tmp_path / "last", inputs, after=(first,), **flat)
    assert (last.meta["final_step"], last.meta["best_step"]) == (2, 1)
    assert weights(last)


def test_a_loss_that_breaks_before_a_rung_has_no_dev_wer(
    inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise TrainingError("step 1 of 4: the loss became nan")

    monkeypatch.setattr(parakeet, "_fit", broken)
    part = train(tmp_path, inputs, until=2)
    assert (part.meta["dev_wer"], part.meta["dev_loss"], part.meta["final_step"]) == (None, None, 0)
    assert any("it stays behind at step 2: step 1 of 4: the loss became nan" in note for note in part.meta["notes"])
