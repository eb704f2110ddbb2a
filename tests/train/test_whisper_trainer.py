"""Trainings of a tiny Whisper on real clips, on a CPU: what ends them, what they keep, and what they learn by."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from harness.core.artifact import Artifact, Work
from harness.core.manifests import read_jsonl
from harness.errors import TrainingError
from harness.train import averaging, whisper
from harness.train.augmentation import Augmentation, Codec, Gain, Noise, Speed
from harness.train.examples import IGNORED, Renderer, read_clips, training_table
from harness.train.packing import Packing
from harness.train.whisper import Training
from harness.train.whisper_trainer import token_loss
from tests.conftest import artifact
from tests.trainings import short_clips

pytestmark = pytest.mark.timeout(300)
STEPS = {"max_steps": 6, "eval_steps": 2, "batch_size": 1, "warmup_steps": 0, "precision": "fp32", "packing": None}


@pytest.fixture
def inputs(tiny_whisper: Path, tmp_path: Path) -> dict[str, list[Artifact]]:
    """The shortest real clips, as floating-point numbers, which can be infinite: four to train on, one held out.

    So short a text as the latter is given ends its generation, of noise, early.
    """
    (tmp_path / "base").mkdir()
    shutil.copytree(tiny_whisper, tmp_path / "base" / "model")
    return {
        "base": [artifact(tmp_path / "base")],
        "train": [short_clips(tmp_path / "train", num=4, skip=1, is_float=True)],
        "dev": [short_clips(tmp_path / "dev", num=1, is_float=True, text="да")],
    }


def fresh(tmp_path: Path, name: str) -> Work:
    for folder in ("out", "scratch"):
        (tmp_path / name / folder).mkdir(parents=True)
    return Work(path=tmp_path / name / "out", scratch=tmp_path / name / "scratch")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def trained_clips(inputs: Any, work: Work, *, step: int) -> list[str]:
    """Names of the recordings of a step, from 1 on, as the training without packing takes them."""
    from transformers import WhisperProcessor

    processor = WhisperProcessor.from_pretrained(inputs["base"][0].path / "model")
    clips = read_clips(
        inputs["train"][0], policy=Training().text, tokenizer=processor.tokenizer, cache=work.scratch / "look"
    )
    table = training_table(
        clips, renderer=Renderer(processor, language="ru"), packing=None, count=step, seed=Training().seed
    )
    row = table.with_format(None)[step - 1]
    return [clips.table[index]["audio"] for index in row["clips"]]


def test_a_damaged_clip_ends_the_training_and_a_mended_one_lets_it_go_on(
    inputs: dict[str, list[Artifact]], work: Work, tmp_path: Path
) -> None:
    """The unbroken training on good clips and the one that was stopped and mended end with the same weights."""
    spec = Training(**STEPS)
    (name,) = trained_clips(inputs, work, step=4)
    bad = inputs["train"][0].path / name
    assert name not in [other for step in (1, 2, 3) for other in trained_clips(inputs, work, step=step)]
    good, rate_hz = soundfile.read(bad, dtype="float32")
    soundfile.write(bad, np.full_like(good, np.inf), rate_hz, subtype="FLOAT")
    with pytest.raises(TrainingError) as caught:
        whisper.run(spec, inputs, work)
    checkpoint = work.scratch / "checkpoints" / "checkpoint-2"
    message = str(caught.value)
    assert message.startswith("step 4 of 6: the loss became nan, and the training stopped before that was saved")
    assert f"the last good checkpoint is {checkpoint}, and the next run goes on from it" in message
    assert f"The clips of the step: {name}. If" in message
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint-2"]
    assert all(tensor.isfinite().all() for tensor in weights(checkpoint).values())
    soundfile.write(bad, good, rate_hz, subtype="FLOAT")
    whisper.run(spec, inputs, work)
    unbroken = fresh(tmp_path, "unbroken")
    whisper.run(spec, inputs, unbroken)
    assert equal(weights(work.path / "model"), weights(unbroken.path / "model"))


def poison(monkeypatch: pytest.MonkeyPatch, *, step: int, what: str) -> None:
    """Spoil one number after a step: of the weights, or of the gradients before they are clipped."""
    from transformers import TrainerCallback

    class Poison(TrainerCallback):
        def on_optimizer_step(self, _args: Any, state: Any, _control: Any, model: Any, **_: Any) -> None:
            if what == "weights" and state.global_step + 1 == step:
                with torch.no_grad():
                    model.model.decoder.layers[0].fc1.bias[0] = math.inf

    plain = whisper.callbacks
    monkeypatch.setattr(whisper, "callbacks", lambda *a, **k: [*plain(*a, **k), Poison()])
    if what == "gradient":
        from transformers import Seq2SeqTrainer

        clip = Seq2SeqTrainer._clip_grad_norm

        def spoilt(self: Any, model: Any) -> Any:
            if self.state.global_step + 1 == step:
                model.model.decoder.layers[0].fc1.bias.grad[0] = math.inf
            return clip(self, model)

        monkeypatch.setattr(Seq2SeqTrainer, "_clip_grad_norm", spoilt)


@pytest.mark.parametrize(
    ("what", "step", "told"),
    [
        ("weights", 3, "step 4 of 6: the loss became nan"),
        ("weights", 4, "step 4 of 6: the weights became inf"),
        ("gradient", 4, "step 4 of 6: the gradient became inf"),
    ],
)
def test_what_is_broken_is_never_saved(
    inputs: dict[str, list[Artifact]], work: Work, monkeypatch: pytest.MonkeyPatch, what: str, step: int, told: str
) -> None:
    poison(monkeypatch, step=step, what=what)
    with pytest.raises(TrainingError, match=told) as caught:
        whisper.run(Training(**STEPS), inputs, work)
    assert f"The clips of the step: {trained_clips(inputs, work, step=4)[0]}." in str(caught.value)
    assert [path.name for path in (work.scratch / "checkpoints").iterdir()] == ["checkpoint-2"]


def test_the_clips_of_one_forward_pass_are_told(inputs: dict[str, list[Artifact]], work: Work) -> None:
    (name,) = trained_clips(inputs, work, step=4)
    path = inputs["train"][0].path / name
    samples, rate_hz = soundfile.read(path, dtype="float32")
    soundfile.write(path, np.full_like(samples, np.nan), rate_hz, subtype="FLOAT")
    spec = Training(**{**STEPS, "gradient_accumulation_steps": 2})
    with pytest.raises(TrainingError, match=rf"step 2 of 6: .* The clips of the step: {name}\. If"):
        whisper.run(spec, inputs, work)


@dataclass
class Dev:
    """A dev WER that follows a plan, evaluation by evaluation."""

    wers: list[float]
    done: int = 0

    def __call__(self, _tokenizer: Any) -> Any:
        def compute(_prediction: Any) -> dict[str, float]:
            self.done += 1
            return {"wer": self.wers[self.done - 1], "cer": 0.0}

        return compute


def evaluated(work: Work) -> list[int]:
    return [row["step"] for row in read_jsonl(work.path / "curves.jsonl") if "eval_wer" in row]


def test_training_stops_after_its_patience(
    inputs: dict[str, list[Artifact]], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whisper, "metric", Dev([0.9, 0.5, 0.6, 0.5, 0.4]))
    spec = Training(**{**STEPS, "max_steps": 9, "eval_steps": 1, "early_stopping_patience": 2})
    meta = whisper.run(spec, inputs, work)
    assert (meta["final_step"], meta["best_step"], meta["best_dev_wer"]) == (4, 2, 0.5)
    assert evaluated(work) == [1, 2, 3, 4]


class KilledError(Exception):
    pass


def killing(step: int) -> Any:
    """A `Work.progress` that does not survive a step."""

    def progress(_work: Work, done: int, _total: int, _note: str = "") -> None:
        if done == step:
            raise KilledError

    return progress


def test_a_killed_training_keeps_counting_towards_its_patience(
    inputs: dict[str, list[Artifact]], work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after one evaluation without a better WER; resumed, one more is enough."""
    spec = Training(**{**STEPS, "max_steps": 9, "eval_steps": 1, "early_stopping_patience": 2})
    monkeypatch.setattr(whisper, "metric", Dev([0.9, 0.5, 0.6]))
    with monkeypatch.context() as patch:
        patch.setattr(Work, "progress", killing(4))
        with pytest.raises(KilledError):
            whisper.run(spec, inputs, work)
    monkeypatch.setattr(whisper, "metric", Dev([0.55, 0.1]))
    meta = whisper.run(spec, inputs, work)
    assert (meta["final_step"], meta["best_step"]) == (4, 2)
    assert evaluated(work) == [1, 2, 3, 4]


REGULARISED = {
    "augment": Augmentation(
        speed=Speed(p=0.5), noise=Noise(p=0.5), gain=Gain(p=0.5), codec=Codec(p=0.5, kinds=["ogg", "telephone"])
    ),
    "spec_augment": True,
    "dropout": 0.1,
    "label_smoothing": 0.1,
    "average_checkpoints": 2,
    "packing": Packing(),
}


def test_a_killed_training_with_everything_ends_as_an_unbroken_one(
    inputs: dict[str, list[Artifact]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks and dropout come from global generators, whose states a checkpoint keeps; augmentation from none."""
    spec = Training(**{**STEPS, **REGULARISED})
    works = {name: fresh(tmp_path, name) for name in ("unbroken", "killed")}
    whisper.run(spec, inputs, works["unbroken"])
    with monkeypatch.context() as patch:
        patch.setattr(Work, "progress", killing(4))
        with pytest.raises(KilledError):
            whisper.run(spec, inputs, works["killed"])
    whisper.run(spec, inputs, works["killed"])
    assert equal(*(weights(work.path / "model") for work in works.values()))
    config = json.loads((works["killed"].path / "model" / "config.json").read_text(encoding="utf-8"))
    assert (config["apply_spec_augment"], config["dropout"]) == (False, 0.0)


def test_masks_dropout_and_smoothing_change_what_is_learnt(inputs: dict[str, list[Artifact]], tmp_path: Path) -> None:
    found = {}
    for name in (None, "augment", "spec_augment", "dropout", "label_smoothing"):
        work = fresh(tmp_path, str(name))
        fields = {} if name is None else {name: REGULARISED[name]}
        whisper.run(Training(**{**STEPS, "max_steps": 1, **fields}), inputs, work)
        rows = list(read_jsonl(work.path / "curves.jsonl"))
        found[name] = (next(row["loss"] for row in rows if "loss" in row), rows)
    losses = [loss for loss, _ in found.values()]
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize(("mean_wer", "taken"), [(0.5, True), (0.51, False)])
def test_the_mean_is_taken_if_it_is_no_worse_than_the_best(
    inputs: dict[str, list[Artifact]], work: Work, monkeypatch: pytest.MonkeyPatch, mean_wer: float, taken: bool
) -> None:
    monkeypatch.setattr(whisper, "metric", Dev([0.6, 0.5, 0.7, 0.8, mean_wer]))
    spec = Training(**{**STEPS, "max_steps": 4, "eval_steps": 1, "learning_rate": 1e-3, "average_checkpoints": 2})
    meta = whisper.run(spec, inputs, work)
    checkpoints = work.scratch / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == [f"checkpoint-{step}" for step in (2, 3, 4)]
    whole = sorted(path.parent.name for path in checkpoints.glob("*/optimizer.pt"))
    assert whole == ["checkpoint-3", "checkpoint-4"]
    mean = averaging.mean_weights(weights(checkpoints / f"checkpoint-{step}").items() for step in (3, 4))
    assert meta["averaged"] == {"steps": [3, 4], "dev_wer": mean_wer, "best_dev_wer": 0.5, "taken": taken}
    assert equal(weights(work.path / "model"), mean if taken else weights(checkpoints / "checkpoint-2"))
    assert any(note.startswith("the mean of" if taken else "the best checkpoint") for note in meta["notes"])
    assert evaluated(work) == [1, 2, 3, 4]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_torch_s_over_all_tokens_of_the_step(tiny_whisper: Path, smoothing: float) -> None:
    """Two forward passes of unequal texts give the loss and the gradient of one pass over both."""
    from transformers import WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration.from_pretrained(tiny_whisper)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 80, 3000, generator=generator)
    labels = torch.randint(0, 1000, (2, 9), generator=generator)
    labels[1, 3:] = IGNORED
    tokens = torch.randint(0, 1000, (2, 9), generator=generator)
    logits = model(input_features=features, decoder_input_ids=tokens).logits
    spoken = labels != IGNORED
    expected = torch.nn.functional.cross_entropy(logits[spoken], labels[spoken], label_smoothing=smoothing)
    whole = token_loss(logits, labels, label_smoothing=smoothing, num_tokens=None)
    parts = sum(
        token_loss(
            logits[row : row + 1], labels[row : row + 1], label_smoothing=smoothing, num_tokens=int(spoken.sum())
        )
        for row in range(2)
    )
    torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(parts, expected)


def test_accumulated_steps_learn_what_one_large_batch_does(inputs: dict[str, list[Artifact]], tmp_path: Path) -> None:
    """Whisper's own loss would be twice as large in two forward passes."""
    rows = []
    for name, shape in (("large", (2, 1)), ("accumulated", (1, 2))):
        work = fresh(tmp_path, name)
        fields = dict(zip(("batch_size", "gradient_accumulation_steps"), shape, strict=True))
        whisper.run(Training(**{**STEPS, "max_steps": 1, "label_smoothing": 0.1, **fields}), inputs, work)
        rows.append(next(row for row in read_jsonl(work.path / "curves.jsonl") if "loss" in row))
    assert rows[1]["loss"] == pytest.approx(rows[0]["loss"], rel=1e-4)
    assert rows[1]["grad_norm"] == pytest.approx(rows[0]["grad_norm"], rel=1e-2)


def test_dev_loss_is_not_smoothed(inputs: dict[str, list[Artifact]], tmp_path: Path) -> None:
    losses = {}
    for smoothing in (0.0, 0.3):
        work = fresh(tmp_path, str(smoothing))
        fields = {**STEPS, "max_steps": 1, "learning_rate": 1e-12, "label_smoothing": smoothing}
        whisper.run(Training(**fields), inputs, work)
        losses[smoothing] = {
            name: value for row in read_jsonl(work.path / "curves.jsonl") for name, value in row.items()
        }
    assert losses[0.3]["eval_loss"] == pytest.approx(losses[0.0]["eval_loss"], rel=1e-6)
    assert losses[0.3]["loss"] != pytest.approx(losses[0.0]["loss"], rel=1e-6)


def test_a_training_killed_after_its_last_checkpoint_leaves_the_same_files(
    inputs: dict[str, list[Artifact]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only weights: nothing is evaluated any more, and settings that generating changes are saved, too."""
    spec = Training(**STEPS)
    works = {name: fresh(tmp_path, name) for name in ("unbroken", "killed")}
    whisper.run(spec, inputs, works["unbroken"])

    def killed(*_: Any, **__: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(whisper, "_finish", killed)
        with pytest.raises(KilledError):
            whisper.run(spec, inputs, works["killed"])
    whisper.run(spec, inputs, works["killed"])
    one, other = ({path.name: path.read_bytes() for path in (work.path / "model").iterdir()} for work in works.values())
    assert one == other
