"""Fine-tunes Whisper with transformers' Seq2SeqTrainer; a killed training goes on at its last checkpoint."""

from __future__ import annotations

import math
import shutil
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from harness.core.artifact import Resources
from harness.core.manifests import write_jsonl
from harness.core.whisper_folder import read_model, read_processor
from harness.suite.model import ModelSpec, TrainingSpec
from harness.train import lora, micro_batch, ranks, vram, weights
from harness.train.augmentation import Augmentation, augmenter
from harness.train.averaging import take_mean
from harness.train.guards import Guard, parting, remedy
from harness.train.lora import Lora
from harness.train.packing import Packing
from harness.train.part import CHECKPOINTS, TENSORBOARD
from harness.train.trainer_arguments import chosen_precision, trainer_arguments
from harness.train.trainer_part import TrainerPart
from harness.train.whisper_trainer import callbacks, clip_names, metric, trainer_class

if TYPE_CHECKING:
    from pathlib import Path

    from harness.core.artifact import Inputs, Work
    from harness.train.examples import Clips

VERSION = 4
"""3: a step of several forward passes has the gradient of their mean; it was as many times too large."""
RESOURCES = Resources(whole_machine=True, gpu=True)
LANGUAGE = "ru"
SPEC_AUGMENT = {
    "apply_spec_augment": True,
    "mask_time_prob": 0.05,
    "mask_time_length": 10,
    "mask_feature_prob": 0.05,
    "mask_feature_length": 10,
}
"""Of Whisper's config. Masks of 100 ms over at most a twentieth of a window, and of ten mel bins now and then."""
PER_STEP = 16
"""Windows in one optimizer step, where a suite does not say."""


class Training(TrainingSpec):
    """Training of one variant."""

    learning_rate: float = Field(default=1e-5, gt=0)
    warmup_steps: int = Field(default=500, ge=0)
    epochs: int = Field(default=3, ge=1, description="Passes over the training set, unless max_steps says otherwise.")
    max_steps: int | None = Field(default=None, ge=1, description="Optimizer steps; takes the place of epochs.")
    batch_size: micro_batch.BatchSize = Field(
        default=16,
        description="30-second windows in one forward pass; auto: as many as fit the device, by trying.",
    )
    gradient_accumulation_steps: int = Field(default=1, ge=1, description="Forward passes in one optimizer step.")
    devices: int = Field(
        default=1,
        ge=1,
        description="GPUs of one machine, or processes of a CPU, that share a step: each takes batch_size windows.",
    )
    effective_batch_size: int | None = Field(
        default=None,
        ge=1,
        description=f"Windows in one optimizer step, with `batch_size: auto`: {PER_STEP} unless given.",
    )
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        default="adamw", description="adamw_8bit: a quarter of its memory, by bitsandbytes."
    )
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        default="auto", description="auto: bf16 where the device is fast at it, else fp16 on CUDA, else fp32."
    )
    gradient_checkpointing: bool = Field(default=False, description="A third slower, a fraction of the memory.")
    freeze: Literal["none", "encoder"] = Field(
        default="none", description="encoder: only the decoder learns; several times faster."
    )
    lora: Lora | None = Field(default=None, description="Adapters learn in place of the weights, and become them.")
    packing: Packing | None = Field(default=Packing(), description="null: one clip a window, as most guides do.")
    eval_steps: int = Field(default=500, ge=1, description="Dev loss and WER, and a checkpoint, each so many steps.")
    eval_batch_size: int = Field(default=8, ge=1)
    early_stopping_patience: int | None = Field(
        default=None, ge=1, description="Stop after so many evaluations without a better dev WER."
    )
    augment: Augmentation | None = Field(default=None, description="What happens to training recordings on the fly.")
    spec_augment: bool = Field(default=False, description="The model's own masks in time and frequency, in training.")
    label_smoothing: float = Field(default=0.0, ge=0, le=0.3, description="Share of a token spread over all others.")
    dropout: float = Field(default=0.0, ge=0, le=0.5)
    average_checkpoints: int = Field(
        default=1,
        ge=1,
        description="Take the mean of so many last checkpoints, if it is no worse on dev than the best.",
    )
    num_workers: int = Field(default=0, ge=0, description="Processes that prepare batches ahead.")

    not_identity = {"num_workers": "the same batches, only sooner"}  # noqa: RUF012  # a ClassVar of Spec

    def outside(self) -> list[Path]:
        return self.augment.outside() if self.augment else []

    @property
    def per_step(self) -> int:
        """Windows in one optimizer step."""
        if self.batch_size == "auto":
            return self.effective_batch_size or PER_STEP
        return self.batch_size * self.gradient_accumulation_steps * self.devices

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        unsaid = (
            isinstance(data, dict) and data.get("batch_size") == "auto" and data.get("effective_batch_size") is None
        )
        return {**data, "effective_batch_size": PER_STEP} if unsaid else data

    @model_validator(mode="after")
    def _make_one_batch(self) -> Self:
        accumulated = self.gradient_accumulation_steps
        if self.batch_size == "auto" and accumulated > 1:
            raise ValueError(
                f"batch_size: auto chooses gradient_accumulation_steps, which is {accumulated}; remove it, and say how "
                f"many windows a step has: effective_batch_size, now {self.per_step}"
            )
        if self.effective_batch_size not in {None, self.per_step}:
            shared = f" × devices {self.devices}" if self.devices > 1 else ""
            raise ValueError(
                f"effective_batch_size is {self.effective_batch_size}, but batch_size {self.batch_size} × "
                f"gradient_accumulation_steps {accumulated}{shared} is {self.per_step}; remove it, or set batch_size: "
                "auto"
            )
        if self.per_step % self.devices:
            raise ValueError(
                f"effective_batch_size is {self.per_step}, which {self.devices} devices cannot share evenly; make it a "
                f"multiple of {self.devices}"
            )
        return self


class Segment(Training):
    """Training of one variant up to a rung of a search."""

    until: int = Field(ge=1, description="Optimizer step.")


memory, lighter = vram.memory, vram.lighter
"""What a training takes of a GPU, and what would take less: `harness plan` asks a kind's module."""


class Spec(ModelSpec):
    """Whisper of any size: tiny to large-v3 and turbo."""

    kind: Literal["whisper"] = "whisper"
    train: Training = Training()

    def base_step(self) -> weights.Spec:
        return weights.Spec(base=self.base, revision=self.revision)

    @model_validator(mode="after")
    def _know_russian(self) -> Self:
        if weights.is_english(self.base):
            raise ValueError(
                f"{self.base} is English: it has no token for Russian; take {self.base.removesuffix(weights.ENGLISH)}"
            )
        return self


def run(spec: Training, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Train one variant.

    inputs: `base` with a Hugging Face folder in `model/`, `train` and `dev` with manifests.
    inputs, where a search has cut the training: `resume`, its segments before this one, the newest first.
    Leaves `model/` (the best checkpoint by dev WER), or of a segment what continues it, `curves.jsonl` and TensorBoard
    files.
    """
    if spec.devices == 1:
        return _train(spec, inputs, work)
    ranks.check(spec.devices)
    if spec.batch_size == "auto":
        # In a process of its own, whose memory is free again when the ranks begin: they find what it wrote.
        ranks.run_ranks(_sized, spec, inputs, work, count=1)
    return ranks.run_ranks(_train, spec, inputs, work, count=spec.devices)


def _train(spec: Training, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Train, as the only process or as one rank; the first rank alone writes, and returns the meta."""
    import torch
    import transformers

    from harness.train import examples

    transformers.set_seed(spec.seed)
    if not torch.cuda.is_available():
        # A CPU adds the gradients of one position from several threads in any order: no two runs would end alike.
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
    base = inputs["base"][0].path / "model"
    processor = read_processor(base)
    reading = {"policy": spec.text, "tokenizer": processor.tokenizer, "cache": work.scratch / "cache"}
    reading["max_tokens"] = examples.text_context(base)
    train_clips, dev_clips = (
        ranks.from_first(partial(examples.read_clips, inputs[role][0], **reading)) for role in ("train", "dev")
    )
    asked, spec = spec, _sized(spec, inputs, work)
    per_epoch = examples.windows_per_epoch(train_clips, packing=spec.packing)
    max_steps = spec.max_steps or math.ceil(spec.epochs * per_epoch / spec.per_step)
    model = _model(base, spec)
    generation = deepcopy(model.generation_config)
    num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    part = ranks.from_first(lambda: TrainerPart.of(spec, inputs, work))
    trainer = _trainer(
        model, spec, work, processor=processor, train=train_clips, dev=dev_clips, part=part, max_steps=max_steps
    )
    if spec.devices > 1:
        # Each rank drops and masks by itself.
        transformers.set_seed(spec.seed + trainer.args.process_index)
    part.train(trainer)
    if part.until is None:
        finished = _finish(trainer, processor, work, spec, part, generation=generation)
    else:
        finished = part.finish(work) if ranks.is_first() else {}
    return finished | {
        "num_steps": max_steps,
        "num_windows_per_epoch": per_epoch,
        "num_train_clips": len(train_clips.table),
        "notes": [
            *train_clips.notes(of="train", policy=spec.text),
            *dev_clips.notes(of="dev", policy=spec.text),
            *micro_batch.notes(asked.batch_size, spec.batch_size, of=spec.per_step),
            *finished.get("notes", []),
        ],
        "num_trainable": num_trainable,
        "micro_batch": spec.batch_size,
        "precision": chosen_precision(spec.precision),
    }


def _sized(spec: Training, inputs: Inputs, work: Work) -> Training:
    """The training with a batch size in numbers; the parts of one training share it."""
    each = spec.per_step // spec.devices

    def split(size: int) -> Training:
        steps = each // size
        return spec.model_copy(update={"batch_size": size, "gradient_accumulation_steps": steps})

    def trial(size: int) -> None:
        work.progress(0, 1, f"trying {size} windows at once")
        arguments = trainer_arguments(split(size), work, max_steps=1, longest=1)
        model = _model(inputs["base"][0].path / "model", spec)
        micro_batch.train_a_little(model, arguments, trainer_class=trainer_class(), devices=spec.devices)

    if spec.batch_size != "auto":
        return spec
    earlier = [artifact.meta["micro_batch"] for artifact in inputs.get("resume", ())]
    if earlier:
        return split(earlier[0])
    return split(micro_batch.find(each, scratch=work.scratch, trial=trial))


def _trainer(
    model: Any,
    spec: Training,
    work: Work,
    *,
    processor: Any,
    train: Clips,
    dev: Clips,
    part: TrainerPart,
    max_steps: int,
) -> Any:
    from harness.train import examples

    renderer = examples.Renderer(processor, language=LANGUAGE)
    trainer = trainer_class()(
        model=model,
        args=trainer_arguments(spec, work, max_steps=max_steps, longest=max(dev.sizes()[1])),
        train_dataset=ranks.from_first(
            lambda: examples.training_table(
                train,
                renderer=renderer,
                packing=spec.packing,
                count=max_steps * spec.per_step,
                seed=spec.seed,
                augmenter=augmenter(spec.augment, seed=spec.seed),
            )
        ),
        eval_dataset=ranks.from_first(lambda: examples.evaluation_table(dev, renderer=renderer)),
        data_collator=renderer.collate,
        compute_metrics=metric(processor.tokenizer),
        processing_class=processor,
        callbacks=[*callbacks(work, max_steps=max_steps, patience=spec.early_stopping_patience), part.callback()],
    )
    trainer.label_smoothing = spec.label_smoothing
    trainer.guard = Guard(
        names=clip_names(train, trainer.train_dataset),
        last=part.checkpoint,
        num_steps=max_steps,
        remedy=remedy(
            learning_rate=spec.learning_rate, precision=chosen_precision(spec.precision), safe=("fp32", "bf16")
        ),
    )
    return trainer


def _model(base: Path, spec: Training) -> Any:
    changes = {**({"dropout": spec.dropout} if spec.dropout else {}), **(SPEC_AUGMENT if spec.spec_augment else {})}
    model = read_model(base, **changes)
    model.generation_config.language = LANGUAGE
    model.generation_config.task = "transcribe"
    model.generation_config.forced_decoder_ids = None
    model.generation_config.return_timestamps = False
    if spec.freeze == "encoder":
        model.model.encoder.requires_grad_(requires_grad=False)
    if spec.gradient_checkpointing:
        model.config.use_cache = False
    if spec.lora:
        lora.attach(model, spec.lora, decoder_only=spec.freeze == "encoder")
    return model


def _finish(
    trainer: Any, processor: Any, work: Work, spec: Training, part: TrainerPart, *, generation: Any
) -> dict[str, Any]:
    state = trainer.state
    meta = {"best_dev_wer": state.best_metric, "best_step": state.best_global_step, "final_step": state.global_step}
    notes = parting(state.log_history)
    if spec.average_checkpoints > 1:
        mean = take_mean(
            trainer,
            count=spec.average_checkpoints,
            folders=[folder / CHECKPOINTS for folder in part.folders],
            target=work.scratch / "mean",
        )
        notes += mean.pop("notes")
        meta |= mean
    if not ranks.is_first():
        return meta
    model = lora.merge(trainer.model)
    # To generate leaves its defaults in the configuration: a training resumed after its last evaluation does not.
    model.generation_config = generation
    model.config.use_cache = True
    if spec.spec_augment:
        # Whoever trains this model further says so again.
        model.config.apply_spec_augment = False
    if spec.dropout:
        model.config.dropout = 0.0
    model.save_pretrained(work.path / "model")
    processor.save_pretrained(work.path / "model")
    write_jsonl(work.path / "curves.jsonl", state.log_history)
    shutil.copytree(work.scratch / TENSORBOARD, work.path / TENSORBOARD)
    return meta | {"notes": notes}
