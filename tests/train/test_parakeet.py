"""Trainings of tiny Parakeets on real clips, on a CPU: what they leave, and that nothing of them is lost or random."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.core.artifact import Artifact, Work
from harness.core.manifests import read_jsonl, read_manifest
from harness.core.nemo_file import quiet, restore, transcribe
from harness.core.recordings import read_samples
from harness.core.text import normalise
from harness.core.wer import count_errors, pool
from harness.errors import DataError
from harness.train import nemo_config, nemo_weights, parakeet
from harness.train.nemo_trainer import last_checkpoint
from harness.train.parakeet import Training
from tests.conftest import artifact
from tests.parakeets import DURATIONS, build_parakeet
from tests.trainings import short_clips

if TYPE_CHECKING:
    import torch

KINDS = ("tdt", "rnnt", "ctc", "hybrid")
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Artifact]]:
    """The shortest real clips: ten to train on, three held out."""
    root = tmp_path_factory.mktemp("sets")
    return {
        "train": [short_clips(root / "train", num=10, skip=3)],
        "dev": [short_clips(root / "dev", num=3)],
    }


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Base weights of each kind."""
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        with quiet():
            build_parakeet(folder, kind=kind)
        (folder / "model").mkdir()
        next(folder.glob("*.nemo")).rename(folder / "model" / "model.nemo")
        found[kind] = artifact(folder)
    return found


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The shipped architecture of a million weights."""
    work = Work(path=tmp_path_factory.mktemp("nano"), scratch=tmp_path_factory.mktemp("scratch"))
    with quiet():
        nemo_weights.run(nemo_weights.Spec(config="parakeet-nano"), {}, work)
    return artifact(work.path)


def spec(**fields: Any) -> Training:
    small = {"max_steps": 2, "eval_steps": 2, "batch_duration_s": 20.0, "max_clip_s": 20.0, "warmup_steps": 1}
    return Training.model_validate({**small, "learning_rate": 1e-3, **fields})


@dataclass
class Trained:
    """What a training left."""

    work: Work
    meta: dict[str, Any]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return model_of(self.work.path).state_dict()

    @property
    def rows(self) -> list[dict[str, float]]:
        return list(read_jsonl(self.work.path / "curves.jsonl"))


def model_of(folder: Path) -> Any:
    with quiet():
        return restore(folder / "model" / "model.nemo")


def train(base: Artifact, sets: dict[str, list[Artifact]], folder: Path, training: Training) -> Trained:
    work = Work(path=folder / "out", scratch=folder / "scratch")
    for path in (work.path, work.scratch):
        path.mkdir(parents=True, exist_ok=True)
    return Trained(work, parakeet.run(training, {"base": [base], **sets}, work))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_on_a_cpu(kind: str, bases: dict[str, Artifact], sets: Any, tmp_path: Path) -> None:
    import torch

    trained = train(bases[kind], sets, tmp_path, spec())
    before, after = model_of(bases[kind].path).state_dict(), trained.weights
    assert before.keys() == after.keys()
    for part in ("encoder.", "joint." if kind in {"tdt", "rnnt"} else "decoder."):
        names = [name for name in before if name.startswith(part) and before[name].is_floating_point()]
        assert any(not torch.equal(before[name], after[name]) for name in names), part
    assert all(torch.isfinite(value).all() for value in after.values())
    steps = [row for row in trained.rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["grad_norm"] > 0 for row in steps)
    (evaluation,) = [row for row in trained.rows if "eval_wer" in row]
    assert {"step", "epoch", "eval_loss", "eval_wer", "eval_cer"} == set(evaluation)
    assert trained.meta["best_step"] == trained.meta["final_step"] == 2
    assert trained.meta["precision"] == "fp32"
    assert any((trained.work.path / "tensorboard").glob("events.*"))


def test_the_dev_wer_is_the_project_s_of_what_the_model_says(bases: Any, sets: Any, tmp_path: Path) -> None:
    trained = train(bases["tdt"], sets, tmp_path, spec(max_steps=1))
    model = model_of(trained.work.path)
    (dev,) = sets["dev"]
    utterances = read_manifest(dev.path)
    heard = [normalise(transcribe(model, read_samples(dev.path / item.audio))) for item in utterances]
    said = [normalise(item.text) for item in utterances]
    (row,) = [row for row in trained.rows if "eval_wer" in row]
    assert any(heard)
    assert row["eval_wer"] == pytest.approx(pool(count_errors(said, heard)).rate)
    assert row["eval_cer"] == pytest.approx(pool(count_errors(said, heard, unit="char")).rate)
    assert trained.meta["best_dev_wer"] == pytest.approx(row["eval_wer"])


def test_a_joint_that_works_by_parts_gives_the_same_loss_and_wer(sets: Any, tmp_path: Path) -> None:
    """`fuse_loss_wer`, as NVIDIA's large models have it: joint, loss and WER of a few clips at a time."""
    text = (nemo_config.SHIPPED / "parakeet-nano.yaml").read_text(encoding="utf-8")
    fused = text.replace("fuse_loss_wer: false", "fuse_loss_wer: true\n  fused_batch_size: 2")
    (tmp_path / "fused.yaml").write_text(fused.replace("dropout: 0.1", "dropout: 0.0"), encoding="utf-8")
    (tmp_path / "whole.yaml").write_text(text.replace("dropout: 0.1", "dropout: 0.0"), encoding="utf-8")
    rows = []
    for name in ("fused", "whole"):
        work = Work(path=tmp_path / name, scratch=tmp_path / name / "scratch")
        work.scratch.mkdir(parents=True)
        with quiet():
            nemo_weights.run(nemo_weights.Spec(config=str(tmp_path / f"{name}.yaml")), {}, work)
        training = spec(max_steps=2, eval_steps=1, tokenizer={"train": "bpe", "vocab_size": 64})
        rows.append(train(artifact(work.path), sets, tmp_path / name / "trained", training).rows)
    assert fused != text
    for by_parts, whole in zip(*rows, strict=True):
        assert by_parts == pytest.approx(whole, rel=1e-3)


class KilledError(BaseException):
    """Nobody catches it, as nobody catches a kill."""


def check_same(resumed: Trained, unbroken: Trained) -> None:
    """To the last bit."""
    import torch

    assert resumed.rows == unbroken.rows
    assert resumed.meta == unbroken.meta
    expected, found = unbroken.weights, resumed.weights
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


@pytest.mark.parametrize(
    ("killed_at", "fields"),
    [
        (1, {}),
        (3, {}),
        (4, {}),
        (5, {"gradient_accumulation_steps": 2, "early_stopping_patience": 3}),
    ],
)
def test_a_killed_training_ends_as_an_unbroken_one(
    killed_at: int, fields: dict[str, Any], nano: Artifact, sets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, dither and masks, all of which are drawn."""
    training = spec(max_steps=5, eval_steps=2, **fields)
    unbroken = train(nano, sets, tmp_path / "unbroken", training)
    progress = Work.progress

    def killing(work: Work, done: int, total: int, note: str = "") -> None:
        if done >= killed_at:
            raise KilledError
        progress(work, done, total, note)

    with monkeypatch.context() as patched:
        patched.setattr(Work, "progress", killing)
        with pytest.raises(KilledError):
            train(nano, sets, tmp_path / "killed", training)
    resumed = train(nano, sets, tmp_path / "killed", training)
    check_same(resumed, unbroken)


def test_what_a_checkpoint_takes_to_another_machine_is_enough_to_go_on(
    nano: Artifact, sets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the mean of the last checkpoints, which are more than the newest one."""
    training = spec(max_steps=6, eval_steps=2, average_checkpoints=2)
    unbroken = train(nano, sets, tmp_path / "unbroken", training)
    work = Work(tmp_path / "one" / "out", tmp_path / "one" / "scratch", tmp_path / "outbox")
    for path in (work.path, work.scratch, tmp_path / "outbox"):
        path.mkdir(parents=True)
    checkpointed = Work.checkpointed

    def killing(work: Work, step: int, names: Any) -> None:
        checkpointed(work, step, names)
        if step == 4:
            raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(Work, "checkpointed", killing)
        with pytest.raises(KilledError):
            parakeet.run(training, {"base": [nano], **sets}, work)
    (tmp_path / "two").mkdir()
    shutil.move(tmp_path / "outbox" / "4", tmp_path / "two" / "scratch")
    shutil.rmtree(tmp_path / "one")
    resumed = train(nano, sets, tmp_path / "two", training)
    check_same(resumed, unbroken)


def test_a_training_that_is_asked_again_after_its_end_only_publishes(
    bases: Any, sets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(bases["tdt"], sets, tmp_path, spec())
    rows = first.rows
    steps: list[int] = []
    monkeypatch.setattr(Work, "progress", lambda _work, done, *_: steps.append(done))
    again = train(bases["tdt"], sets, tmp_path, spec())
    assert (again.rows, again.meta, steps) == (rows, first.meta, [])


def test_a_checkpoint_torn_by_a_kill_is_passed_over_and_removed(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "last"
    folder.mkdir(parents=True)
    assert last_checkpoint(tmp_path) is None
    for name in ("9.ckpt", "10.ckpt", ".11.ckpt.123.tmp"):
        (folder / name).touch()
    assert last_checkpoint(tmp_path) == (str(folder / "10.ckpt"), 10)
    assert {path.name for path in folder.iterdir()} == {"9.ckpt", "10.ckpt"}


def test_mixed_precision_trains_on_a_cpu_too(bases: Any, sets: Any, tmp_path: Path) -> None:
    trained = train(bases["tdt"], sets, tmp_path, spec(precision="bf16-mixed", max_steps=1))
    assert trained.meta["precision"] == "bf16-mixed"
    assert trained.rows[0]["loss"] == pytest.approx(train_loss(bases, sets, tmp_path / "fp32"), rel=0.1)


def train_loss(bases: Any, sets: Any, folder: Path) -> float:
    """Of the first step in float32."""
    return train(bases["tdt"], sets, folder, spec(max_steps=1)).rows[0]["loss"]


def test_the_last_steps_are_evaluated_too(bases: Any, sets: Any, tmp_path: Path) -> None:
    trained = train(bases["ctc"], sets, tmp_path, spec(max_steps=5, eval_steps=2))
    assert [row["step"] for row in trained.rows if "eval_wer" in row] == [2, 4, 5]


def test_training_stops_where_nothing_improves(bases: Any, sets: Any, tmp_path: Path) -> None:
    """So small a learning rate leaves every evaluation as good as the first."""
    flat = {"learning_rate": 1e-12, "min_lr": 0.0, "early_stopping_patience": 2}
    trained = train(bases["ctc"], sets, tmp_path, spec(max_steps=30, eval_steps=1, **flat))
    assert [row["step"] for row in trained.rows if "eval_wer" in row] == [1, 2, 3]
    assert (trained.meta["best_step"], trained.meta["final_step"]) == (1, 3)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant_with_warmup"])
def test_the_learning_rate_warms_up_and_then_follows_its_schedule(
    schedule: str, bases: Any, sets: Any, tmp_path: Path
) -> None:
    training = spec(max_steps=6, eval_steps=6, warmup_steps=2, min_lr=1e-5, schedule=schedule)
    rates = [row["learning_rate"] for row in train(bases["ctc"], sets, tmp_path, training).rows if "loss" in row]
    assert 0 < rates[0] < rates[1] < 1e-3
    if schedule == "constant_with_warmup":
        assert rates[2:] == pytest.approx([1e-3] * 4)
    else:
        assert rates[2:] == sorted(rates[2:], reverse=True)
        assert 1e-5 <= rates[-1] < rates[3] <= 1e-3


def test_the_best_three_checkpoints_are_kept_and_the_best_is_left(bases: Any, sets: Any, tmp_path: Path) -> None:
    import torch

    trained = train(bases["tdt"], sets, tmp_path, spec(max_steps=5, eval_steps=1, learning_rate=3e-3))
    wers = {int(row["step"]): row["eval_wer"] for row in trained.rows if "eval_wer" in row}
    best = min(wers, key=lambda step: (wers[step], step))
    folder = trained.work.scratch / "checkpoints"
    kept = {int(path.stem) for path in (folder / "best").iterdir()}
    assert len(kept) == 3
    assert trained.meta["best_step"] == best in kept
    assert max(wers[step] for step in kept) <= min(wers[step] for step in wers.keys() - kept)
    assert [path.name for path in (folder / "last").iterdir()] == ["5.ckpt"]
    state, weights = torch.load(folder / "best" / f"{best}.ckpt", weights_only=True)["state_dict"], trained.weights
    assert all(torch.equal(value, weights[name]) for name, value in state.items())


def test_a_frozen_encoder_learns_nothing(bases: Any, sets: Any, tmp_path: Path) -> None:
    import torch

    trained = train(bases["tdt"], sets, tmp_path, spec(freeze="encoder"))
    before, after = model_of(bases["tdt"].path).state_dict(), trained.weights
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "joint"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_tokenizer_keeps_the_loss_of_its_kind(
    kind: str, bases: dict[str, Artifact], sets: Any, tmp_path: Path
) -> None:
    """NeMo's own change of vocabulary leaves a TDT model with the loss of a plain transducer."""
    from nemo.collections.asr.losses.ctc import CTCLoss
    from nemo.collections.asr.parts.numba.rnnt_loss import RNNTLossNumba, TDTLossNumba

    before = model_of(bases[kind].path)
    trained = train(bases[kind], sets, tmp_path, spec(max_steps=1, tokenizer={"train": "bpe", "vocab_size": 64}))
    after = model_of(trained.work.path)
    assert (before.tokenizer.vocab_size, after.tokenizer.vocab_size) == (96, 64)
    assert type(after.loss) is type(before.loss)
    assert trained.rows[0]["loss"] > 0
    if kind == "ctc":
        assert isinstance(after.loss, CTCLoss)
        assert (before.loss._blank, after.loss._blank) == (96, 64)
        return
    inside = [model.loss._loss for model in (before, after)]
    assert {type(loss) for loss in inside} == {RNNTLossNumba if kind == "rnnt" else TDTLossNumba}
    assert [loss.blank for loss in inside] == [96, 64]
    assert before.loss.reduction == after.loss.reduction
    if kind != "rnnt":
        assert [loss.durations for loss in inside] == [DURATIONS, DURATIONS]
        assert [loss.sigma for loss in inside] == [0.02, 0.02]
        assert after.joint.num_classes_with_blank == 64 + 1 + len(DURATIONS)
        assert list(after.cfg.decoding.durations) == DURATIONS


def test_a_base_that_cannot_write_russian_is_refused_with_the_letters(
    sets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bases: Any
) -> None:
    monkeypatch.setattr("harness.train.parakeet.missing_letters", lambda _tokens: "абвгд")
    with pytest.raises(
        DataError, match=r"none of the base model's tokens writes абвгд; take a base that knows Russian"
    ):
        train(bases["ctc"], sets, tmp_path, spec())


def test_a_clip_too_large_for_memory_is_refused_before_training(
    bases: Any, sets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.train.parakeet.free_memory_bytes", lambda: 2**20)
    with pytest.raises(
        DataError, match=r"clips of .* s make a joint of .* = 0\.0 GiB; .* than the 0\.0 GiB that are free"
    ):
        train(bases["tdt"], sets, tmp_path, spec())


def test_curves_are_sent_to_the_run_in_the_environment(
    bases: Any, sets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}"
    client = MlflowClient(tracking_uri=uri)
    run_id = client.create_run(client.create_experiment("curves")).info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    trained = train(bases["ctc"], sets, tmp_path / "work", spec())
    sent = {point.step: point.value for point in client.get_metric_history(run_id, "loss")}
    assert sent == {row["step"]: row["loss"] for row in trained.rows if "loss" in row}
    assert len(client.get_metric_history(run_id, "dev_wer")) == 1


def test_a_checkpoint_of_a_kill_holds_tensors_and_plain_values(bases: Any, sets: Any, tmp_path: Path) -> None:
    import torch

    trained = train(bases["tdt"], sets, tmp_path, spec())
    path = trained.work.scratch / "checkpoints" / "last" / "2.ckpt"
    state = torch.load(path, weights_only=True)
    assert state["global_step"] == 2
    assert {"optimizer_states", "lr_schedulers", "callbacks", "state_dict"} <= state.keys()
    assert "hyper_parameters" not in state
    assert json.dumps(state["callbacks"]["curves"]["rows"])
