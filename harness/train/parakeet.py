"""Fine-tunes Parakeet and its kin with NeMo and Lightning; a killed training goes on at its last checkpoint."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from harness.core.artifact import Resources
from harness.core.manifests import iterate_utterances, write_jsonl
from harness.core.nemo_file import quiet, restore
from harness.core.targets import target_text
from harness.errors import DataError, MissingError
from harness.suite.model import ModelSpec, TrainingSpec
from harness.train import nemo_weights, ranks
from harness.train.augmentation import Augmentation, augmenter
from harness.train.guards import parting
from harness.train.joint_memory import check_joint, free_memory_bytes, memory  # noqa: F401  # the plan asks for it
from harness.train.nemo_averaging import take_mean
from harness.train.nemo_guard import guard_callback
from harness.train.nemo_part import NemoPart
from harness.train.nemo_trainer import Schedule, build_trainer, set_optimizer, use_russian_wer
from harness.train.part import TENSORBOARD
from harness.train.speech_batches import (
    Batches,
    Clips,
    Vocabulary,
    epoch_batches,
    evaluation_batches,
    loader,
    read_clips,
)
from harness.train.tdt_loss import make_portable
from harness.train.tokenizer import (
    FEW_LETTERS,
    NewTokenizer,
    change_tokenizer,
    missing_letters,
    model_vocabulary,
    train_tokenizer,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.core.artifact import Artifact, Inputs, Work

VERSION = 1
RESOURCES = Resources(whole_machine=True, gpu=True)
CONFIG = "config:"
"""Before the file or name of a configuration, where base weights are named by a text."""
CONFIG_SCHEMA = {
    "type": "object",
    "properties": {"config": {"type": "string"}},
    "required": ["config"],
    "additionalProperties": False,
}
TOKENIZED = ("EncDecRNNTBPEModel", "EncDecCTCModelBPE", "EncDecHybridRNNTCTCBPEModel")
"""NeMo's transducers (RNN-T and TDT), CTC models and hybrids of both, with a SentencePiece tokenizer."""
ENGLISH = frozenset(
    f"nvidia/parakeet-{name}"
    for name in (
        *("tdt-0.6b-v2", "tdt-1.1b", "rnnt-0.6b", "rnnt-1.1b", "ctc-0.6b", "ctc-1.1b", "tdt_ctc-1.1b", "tdt_ctc-110m"),
    )
)
"""Known not to write Cyrillic before they are fetched; of others the base weights' step finds out."""


class Training(TrainingSpec):
    """Training of one variant."""

    learning_rate: float = Field(default=1e-4, gt=0)
    warmup_steps: int = Field(default=500, ge=0)
    min_lr: float = Field(default=1e-6, ge=0, description="Where the schedule ends.")
    epochs: int = Field(default=50, ge=1, description="Passes over the training set, unless max_steps says otherwise.")
    max_steps: int | None = Field(default=None, ge=1, description="Optimizer steps; takes the place of epochs.")
    batch_duration_s: float = Field(
        default=120.0,
        gt=0,
        description="Seconds of speech, with padding, in one forward pass: clips of like length, where one of t s "
        "counts as t + t²/20, for the memory that it takes.",
    )
    gradient_accumulation_steps: int = Field(default=1, ge=1, description="Forward passes in one optimizer step.")
    devices: int = Field(
        default=1,
        ge=1,
        description="GPUs of one machine, or processes of a CPU, that share a step: each takes batch_duration_s.",
    )
    max_clip_s: float = Field(default=40.0, gt=0, description="Longer clips are left out.")
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Literal["auto", "fp32", "16-mixed", "bf16-mixed"] = Field(
        default="auto", description="auto: bf16-mixed on CUDA that has it, else 16-mixed; fp32 on a CPU."
    )
    freeze: Literal["none", "encoder"] = Field(default="none", description="encoder: only the decoder learns.")
    spec_augment: bool = Field(default=True, description="Masks in time and frequency, as the model's config has them.")
    augment: Augmentation | None = Field(default=None, description="What happens to training recordings on the fly.")
    average_checkpoints: int = Field(
        default=1,
        ge=1,
        description="Take the mean of so many last checkpoints, if it is no worse on dev than the best.",
    )
    tokenizer: NewTokenizer | None = Field(default=None, description="null: the model's own is kept.")
    eval_steps: int = Field(default=500, ge=1, description="Dev loss and WER, and a checkpoint, each so many steps.")
    early_stopping_patience: int | None = Field(
        default=None, ge=1, description="Stop after so many evaluations without a better dev WER."
    )
    num_workers: int = Field(default=0, ge=0, description="Processes that read recordings ahead.")

    not_identity = {"num_workers": "the same batches, only sooner"}  # noqa: RUF012  # a ClassVar of Spec

    def outside(self) -> list[Path]:
        return self.augment.outside() if self.augment else []

    def identity(self) -> dict[str, Any]:
        """Without the one device that every training had before there was a choice: their keys stay."""
        return {name: value for name, value in super().identity().items() if (name, value) != ("devices", 1)}

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.batch_duration_s < self.max_clip_s:
            raise ValueError(
                f"batch_duration_s {self.batch_duration_s:g} does not hold one clip of max_clip_s {self.max_clip_s:g}; "
                "raise the one or lower the other"
            )
        if self.min_lr > self.learning_rate:
            raise ValueError(f"min_lr {self.min_lr:g} is over learning_rate {self.learning_rate:g}; lower it")
        return self


class Segment(Training):
    """Training of one variant up to a rung of a search."""

    until: int = Field(ge=1, description="Optimizer step.")


def _named(value: Any) -> Any:
    """`{config: FILE}` as a text."""
    alone = isinstance(value, dict) and set(value) == {"config"} and isinstance(value["config"], str)
    return f"{CONFIG}{value['config']}" if alone else value


class Spec(ModelSpec):
    """NeMo's FastConformers: Parakeet TDT, RNNT, CTC and hybrids."""

    kind: Literal["parakeet"] = "parakeet"
    base: Annotated[
        str,
        BeforeValidator(_named),
        WithJsonSchema({"anyOf": [{"type": "string"}, CONFIG_SCHEMA]}),
    ] = Field(
        default="nvidia/parakeet-tdt-0.6b-v3",
        description="A .nemo file, a folder with one, a hub id; or {config: FILE.yaml or a name} for random weights.",
    )
    train: Training = Training()

    def base_step(self) -> nemo_weights.Spec:
        """What places the base weights."""
        replaced = self.train.tokenizer is not None
        return nemo_weights.Spec(
            base="" if self.base.startswith(CONFIG) else self.base,
            config=self.base.removeprefix(CONFIG) if self.base.startswith(CONFIG) else "",
            revision=self.revision,
            vocabulary="replaced" if replaced else "kept",
        )

    @model_validator(mode="after")
    def _know_russian(self) -> Self:
        if self.base in ENGLISH and self.train.tokenizer is None:
            raise ValueError(
                f"{self.base} is English: its tokens have none of the letters {missing_letters([])}; take "
                "nvidia/parakeet-tdt-0.6b-v3, or train a tokenizer: train: {tokenizer: {train: bpe, vocab_size: 1024}}"
            )
        return self


def run(spec: Training, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Train one variant.

    inputs: `base` with `model/model.nemo`, `train` and `dev` with manifests.
    inputs, where a search has cut the training: `resume`, its segments before this one, the newest first.
    Leaves `model/model.nemo` (the best checkpoint by dev WER), or of a segment what continues it, `curves.jsonl` and
    TensorBoard files.
    """
    if spec.devices == 1:
        return _train(spec, inputs, work)
    ranks.check(spec.devices)
    return ranks.run_ranks(_train, spec, inputs, work, count=spec.devices)


def _train(spec: Training, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Train, as the only process or as one rank; the first rank alone writes, and returns the meta."""
    import torch

    if not torch.cuda.is_available():
        # A CPU adds the gradients of one position from several threads in any order: no two runs would end alike.
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
    torch.manual_seed(spec.seed)
    with quiet():
        model = _model(inputs, spec, scratch=work.scratch)
    train, dev = _sets(inputs, spec, model, work)
    per_epoch = sum(1 for _ in epoch_batches(train, seconds=spec.batch_duration_s, seed=spec.seed, epoch=0))
    schedule = Schedule.of(spec, batches_per_epoch=per_epoch)
    set_optimizer(model, spec, max_steps=schedule.max_steps)
    precision = _precision(spec.precision)
    trainer = build_trainer(
        work,
        schedule=schedule,
        precision=precision,
        max_grad_norm=spec.max_grad_norm,
        seed=spec.seed,
        num_recent=spec.average_checkpoints,
    )
    part = ranks.from_first(lambda: NemoPart.of(spec, inputs, work))
    if not ranks.from_first(part.has_ended):
        with part.diverging():
            _fit(trainer, model, spec, train=train, dev=dev, schedule=schedule, part=part)
    notes = [
        note
        for role, clips in (("train", train), ("dev", dev))
        for note in clips.notes(of=role, policy=spec.text, max_clip_s=spec.max_clip_s)
    ]
    if part.until is None:
        finished = _finish(part, model, work, spec, dev=dev)
    else:
        finished = part.finish(work) if ranks.is_first() else {}
    return finished | {
        "num_steps": schedule.max_steps,
        "num_batches_per_epoch": per_epoch,
        "num_train_clips": len(train.rows),
        "num_trainable": sum(item.numel() for item in model.parameters() if item.requires_grad),
        "precision": precision,
        "notes": [*notes, *finished.get("notes", [])],
    }


def _fit(
    trainer: Any,
    model: Any,
    spec: Training,
    *,
    train: Clips,
    dev: Clips,
    schedule: Schedule,
    part: NemoPart,
) -> None:
    import torch

    resumed = ranks.from_first(part.checkpoint)
    batches = Batches(
        train,
        seconds=spec.batch_duration_s,
        seed=spec.seed,
        num_batches=schedule.max_steps * schedule.batches_per_step,
        start=resumed[1] * schedule.batches_per_step if resumed else 0,
    )
    rate, precision = spec.learning_rate, _precision(spec.precision)
    guard = guard_callback(batches, part=part, schedule=schedule, learning_rate=rate, precision=precision)
    trainer.callbacks.insert(0, guard)
    dev_batches = evaluation_batches(dev, seconds=spec.batch_duration_s)
    try:
        with warnings.catch_warnings():
            # Lightning does not know that the batches begin where the checkpoint ended, in folders that are ours.
            known = "dataloader is not resumable|exists and is not empty|dirpath has changed"
            warnings.filterwarnings("ignore", message=f".*({known})")
            trainer.fit(
                model,
                train_dataloaders=loader(
                    train, batches, num_workers=spec.num_workers, augmenter=augmenter(spec.augment, seed=spec.seed)
                ),
                val_dataloaders=loader(dev, dev_batches, num_workers=0),
                ckpt_path=resumed[0] if resumed else None,
            )
    except torch.OutOfMemoryError as error:
        raise MissingError(
            f"the GPU's memory does not hold {spec.batch_duration_s:g} s of speech; halve batch_duration_s and double "
            f"gradient_accumulation_steps ({spec.gradient_accumulation_steps}): {error}"
        ) from error


def _model(inputs: Inputs, spec: Training, *, scratch: Path) -> Any:
    """The base model with its tokenizer and its loss as they shall be."""
    path = inputs["base"][0].path / "model" / nemo_weights.MODEL_FILE
    model = restore(path)
    if type(model).__name__ not in TOKENIZED:
        raise DataError(f"base: a {type(model).__name__} cannot be fine-tuned here; use one of {', '.join(TOKENIZED)}")
    if spec.tokenizer is not None:
        texts = _texts(inputs["train"][0], spec)
        train = partial(train_tokenizer, vocab_size=spec.tokenizer.vocab_size, folder=scratch / "tokenizer")
        change_tokenizer(model, folder=ranks.from_first(lambda: train(texts)))
    missing = missing_letters(list((model.joint if hasattr(model, "joint") else model.decoder).vocabulary))
    if len(missing) > FEW_LETTERS and spec.tokenizer is None:
        raise DataError(
            f"none of the base model's tokens writes {missing}; take a base that knows Russian, such as "
            "nvidia/parakeet-tdt-0.6b-v3, or train a tokenizer: tokenizer: {train: bpe, vocab_size: 1024}"
        )
    if hasattr(model, "joint"):
        make_portable(model.loss)
    use_russian_wer(model)
    if not spec.spec_augment:
        model.spec_augmentation = None
    model.train()
    if spec.freeze == "encoder":
        # Frozen, it also stays in evaluation mode: its batch norms learn nothing either.
        model.encoder.freeze()
    return model


def _texts(artifact: Artifact, spec: Training) -> Iterator[str]:
    for batch in iterate_utterances(artifact.path, columns=["text"]):
        texts = (target_text(text, spec.text) for text in batch.column("text").to_pylist())
        yield from (text for text in texts if text)


def _sets(inputs: Inputs, spec: Training, model: Any, work: Work) -> tuple[Clips, Clips]:
    """The clips to train on and those to evaluate on. Raises an error if the model cannot take them."""
    train, dev = (_clips(inputs[role][0], spec, model_vocabulary(model), work, role) for role in ("train", "dev"))
    if spec.augment:
        # Batches have room for every clip at its slowest.
        train = replace(train, durations_s=train.durations_s * spec.augment.longest)
    for clips in (train, dev):
        check_joint(model, clips, seconds=spec.batch_duration_s, free_bytes=free_memory_bytes())
    return train, dev


def _clips(artifact: Artifact, spec: Training, vocabulary: Vocabulary, work: Work, role: str) -> Clips:
    reading = partial(
        read_clips,
        artifact,
        policy=spec.text,
        vocabulary=vocabulary,
        max_clip_s=spec.max_clip_s,
        cache=work.scratch / "clips",
        role=role,
    )
    return ranks.from_first(reading)


def _precision(wanted: str) -> str:
    import torch

    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "fp32"


def _finish(part: NemoPart, model: Any, work: Work, spec: Training, *, dev: Clips) -> dict[str, Any]:
    import torch

    reached = part.progress()
    assert reached is not None  # noqa: S101  # a training ends with a checkpoint
    best_step = int(reached.best["step"])
    state = torch.load(part.weights(best_step), map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict(state)
    meta: dict[str, Any] = {"notes": parting(reached.rows)}
    if spec.average_checkpoints > 1:
        batches = loader(dev, evaluation_batches(dev, seconds=spec.batch_duration_s), num_workers=0)
        mean = take_mean(
            model,
            part=part,
            count=spec.average_checkpoints,
            dev=batches,
            precision=_precision(spec.precision),
            devices=spec.devices,
        )
        meta = {**mean, "notes": meta["notes"] + mean["notes"]}
    if not ranks.is_first():
        return meta
    # Saved as it would be without a portable loss and a metric of our own: neither has weights or a configuration.
    model.cpu().eval().save_to(str(work.path / "model" / nemo_weights.MODEL_FILE))
    write_jsonl(work.path / "curves.jsonl", reached.rows)
    shutil.copytree(work.scratch / TENSORBOARD, work.path / TENSORBOARD, dirs_exist_ok=True)
    return meta | {
        "best_dev_wer": reached.best["eval_wer"],
        "best_step": best_step,
        "final_step": reached.step,
    }
