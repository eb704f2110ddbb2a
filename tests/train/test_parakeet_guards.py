"""Trainings of a tiny Parakeet that break, are augmented, and are averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from harness.core.artifact import Artifact, Work
from harness.core.manifests import read_jsonl
from harness.core.nemo_file import quiet, restore
from harness.errors import TrainingError
from harness.train import nemo_averaging, parakeet
from harness.train.averaging import mean_weights
from harness.train.parakeet import Training
from tests.conftest import artifact
from tests.parakeets import build_parakeet
from tests.trainings import short_clips

pytestmark = pytest.mark.timeout(300)
AUGMENT = {"speed": {"p": 0.5}, "noise": {"p": 0.5}, "gain": {"p": 0.5}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("ctc")
    with quiet():
        build_parakeet(folder, kind="ctc")
    (folder / "model").mkdir()
    next(folder.glob("*.nemo")).rename(folder / "model" / "model.nemo")
    return artifact(folder)


@pytest.fixture
def inputs(base: Artifact, tmp_path: Path) -> dict[str, list[Artifact]]:
    """The shortest real clips, as floating-point numbers, which can be infinite: six to train on, two held out."""
    return {
        "base": [base],
        "train": [short_clips(tmp_path / "train", num=6, skip=2, is_float=True)],
        "dev": [short_clips(tmp_path / "dev", num=2, is_float=True)],
    }


def spec(**fields: Any) -> Training:
    """One clip in a batch."""
    small = {"max_steps": 4, "eval_steps": 1, "batch_duration_s": 20.0, "max_clip_s": 20.0, "warmup_steps": 1}
    return Training.model_validate({**small, "learning_rate": 1e-3, **fields})


def fresh(folder: Path) -> Work:
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True)
    return Work(path=folder / "out", scratch=folder / "scratch")


def weights(work: Work) -> dict[str, torch.Tensor]:
    with quiet():
        return restore(work.path / "model" / "model.nemo").state_dict()


def unequal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in one if not torch.equal(one[name], other[name])]


def checkpoints(work: Work, folder: str) -> dict[int, dict[str, torch.Tensor]]:
    files = (work.scratch / "checkpoints" / folder).glob("*.ckpt")
    return {int(path.stem): torch.load(path, weights_only=True)["state_dict"] for path in files}


def test_a_damaged_clip_ends_the_training_and_a_mended_one_lets_it_go_on(
    inputs: dict[str, list[Artifact]], tmp_path: Path
) -> None:
    good = {path: soundfile.read(path, dtype="float32") for path in (tmp_path / "train" / "audio").iterdir()}
    last = max(good, key=lambda path: len(good[path][0]))
    soundfile.write(last, np.full_like(good[last][0], np.inf), good[last][1], subtype="FLOAT")
    work = fresh(tmp_path / "broken")
    with pytest.raises(TrainingError) as caught:
        parakeet.run(spec(max_steps=20), inputs, work)
    message = str(caught.value)
    assert f"audio/{last.name}" in message.partition("The clips of the step: ")[2]
    step = int(message.split()[1])
    assert message.startswith(f"step {step} of 20: the loss became nan")
    saved = checkpoints(work, "last")
    assert list(saved) == ([step - 1] if step > 1 else [])
    assert all(tensor.isfinite().all() for state in saved.values() for tensor in state.values())
    soundfile.write(last, *good[last], subtype="FLOAT")
    parakeet.run(spec(max_steps=20), inputs, work)
    unbroken = fresh(tmp_path / "unbroken")
    parakeet.run(spec(max_steps=20), inputs, unbroken)
    assert unequal(weights(work), weights(unbroken)) == []


@pytest.mark.parametrize(("what", "poisoned"), [("gradient", "grad"), ("weights", "data")])
def test_what_is_broken_is_never_saved(
    inputs: dict[str, list[Artifact]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, poisoned: str
) -> None:
    """The second step, after its backward pass or at its end."""
    from lightning.pytorch import Callback

    class Poison(Callback):
        def on_after_backward(self, trainer: Any, model: Any) -> None:
            if trainer.global_step == 1 and what == "gradient":
                next(model.decoder.parameters()).grad.view(-1)[0] = torch.inf

        def on_train_batch_end(self, trainer: Any, model: Any, *_: Any) -> None:
            if trainer.global_step == 2 and what == "weights":
                next(model.decoder.parameters()).data.view(-1)[0] = torch.inf

    plain = parakeet.build_trainer

    def built(*arguments: Any, **options: Any) -> Any:
        trainer = plain(*arguments, **options)
        trainer.callbacks.insert(0, Poison())
        return trainer

    monkeypatch.setattr(parakeet, "build_trainer", built)
    work = fresh(tmp_path / "work")
    with pytest.raises(TrainingError, match=rf"^step 2 of 4: the {what} became inf.*/last/1\.ckpt, and the next run"):
        parakeet.run(spec(), inputs, work)
    assert list(checkpoints(work, "last")) == [1]


class KilledError(BaseException):
    """Nobody catches it, as nobody catches a kill."""


def test_a_killed_training_with_everything_ends_as_an_unbroken_one(
    inputs: dict[str, list[Artifact]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = spec(augment=AUGMENT, average_checkpoints=2)
    works = {name: fresh(tmp_path / name) for name in ("unbroken", "killed")}
    parakeet.run(training, inputs, works["unbroken"])

    def killing(_work: Work, done: int, *_: Any) -> None:
        if done == 3:
            raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(Work, "progress", killing)
        with pytest.raises(KilledError):
            parakeet.run(training, inputs, works["killed"])
    parakeet.run(training, inputs, works["killed"])
    assert unequal(*map(weights, works.values())) == []
    rows = [list(read_jsonl(work.path / "curves.jsonl")) for work in works.values()]
    assert rows[0] == rows[1]
    plain = fresh(tmp_path / "plain")
    parakeet.run(spec(), inputs, plain)
    assert next(read_jsonl(plain.path / "curves.jsonl")) != rows[0][0]


@pytest.mark.parametrize("taken", [True, False])
def test_the_mean_is_taken_if_it_is_no_worse_than_the_best(
    inputs: dict[str, list[Artifact]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    measured = nemo_averaging._dev_wer
    wers: list[float] = []

    def shifted(*arguments: Any, **options: Any) -> float:
        wers.append(measured(*arguments, **options))
        return 0.0 if taken else 9.0

    monkeypatch.setattr(nemo_averaging, "_dev_wer", shifted)
    work = fresh(tmp_path / "work")
    meta = parakeet.run(spec(average_checkpoints=3), inputs, work)
    recent = checkpoints(work, "recent")
    assert sorted(recent) == [2, 3, 4]
    expected = (
        mean_weights(recent[step].items() for step in (2, 3, 4))
        if taken
        else checkpoints(work, "best")[meta["best_step"]]
    )
    assert unequal(expected, weights(work)) == []
    assert meta["averaged"]["taken"] is taken
    assert meta["averaged"]["steps"] == [2, 3, 4]
    assert any("the mean of the last 3 checkpoints (steps 2, 3, 4)" in note for note in meta["notes"])
    assert 0 < wers[0] < 9
