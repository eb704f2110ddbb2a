"""Fine-tunes Whisper with transformers' Seq2SeqTrainer; a killed training goes on at its last checkpoint."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from harness.core.artifact import Resources
from harness.core.manifests import write_jsonl
from harness.suite.model import ModelSpec, TrainingSpec
from harness.train import weights
from harness.train.packing import Packing

if TYPE_CHECKING:
    from harness.core.artifact import Inputs, Work

VERSION = 2
RESOURCES = Resources(whole_machine=True, gpu=True)
LANGUAGE = "ru"
METRIC = Path(__file__).parent.parent / "core" / "russian_wer"


class Training(TrainingSpec):
    """Training of one variant."""

    learning_rate: float = Field(default=1e-5, gt=0)
    warmup_steps: int = Field(default=500, ge=0)
    epochs: int = Field(default=3, ge=1, description="Passes over the training set, unless max_steps says otherwise.")
    max_steps: int | None = Field(default=None, ge=1, description="Optimizer steps; takes the place of epochs.")
    batch_size: int = Field(default=16, ge=1, description="30-second windows in one forward pass.")
    gradient_accumulation_steps: int = Field(default=1, ge=1, description="Forward passes in one optimizer step.")
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Literal["auto", "fp32", "fp16", "bf16"] = Field(
        default="auto", description="auto: bf16 where the device is fast at it, else fp16 on CUDA, else fp32."
    )
    gradient_checkpointing: bool = Field(default=False, description="A third slower, a fraction of the memory.")
    freeze: Literal["none", "encoder"] = Field(
        default="none", description="encoder: only the decoder learns; several times faster."
    )
    packing: Packing | None = Field(default=Packing(), description="null: one clip a window, as most guides do.")
    eval_steps: int = Field(default=500, ge=1, description="Dev loss and WER, and a checkpoint, each so many steps.")
    eval_batch_size: int = Field(default=8, ge=1)
    early_stopping_patience: int | None = Field(
        default=None, ge=1, description="Stop after so many evaluations without a better dev WER."
    )
    num_workers: int = Field(default=0, ge=0, description="Processes that prepare batches ahead.")

    not_identity = {"num_workers": "the same batches, only sooner"}  # noqa: RUF012  # a ClassVar of Spec


class Spec(ModelSpec):
    """Whisper of any size: tiny to large-v3 and turbo."""

    kind: Literal["whisper"] = "whisper"
    train: Training = Training()

    def base_step(self) -> weights.Spec:
        return weights.Spec(base=self.base, revision=self.revision)


def run(spec: Training, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Train one variant.

    inputs: `base` with a Hugging Face folder in `model/`, `train` and `dev` with manifests.
    Leaves `model/` (the best checkpoint by dev WER), `curves.jsonl` and TensorBoard files.
    """
    import torch
    import transformers
    from transformers import WhisperProcessor

    from harness.train.examples import Renderer, evaluation_table, read_clips, training_table, windows_per_epoch

    transformers.set_seed(spec.seed)
    if not torch.cuda.is_available():
        # A CPU adds the gradients of one position from several threads in any order: no two runs would end alike.
        torch.use_deterministic_algorithms(mode=True, warn_only=True)
    base = inputs["base"][0].path / "model"
    processor = WhisperProcessor.from_pretrained(base)
    renderer = Renderer(processor, language=LANGUAGE)
    reading = {"policy": spec.text, "tokenizer": processor.tokenizer, "cache": work.scratch / "cache"}
    train_clips, dev_clips = (read_clips(inputs[role][0], **reading) for role in ("train", "dev"))
    per_step = spec.batch_size * spec.gradient_accumulation_steps
    per_epoch = windows_per_epoch(train_clips, packing=spec.packing)
    max_steps = spec.max_steps or math.ceil(spec.epochs * per_epoch / per_step)
    model = _model(base, spec)
    trainer = _trainer_class()(
        model=model,
        args=_arguments(spec, work, max_steps=max_steps, longest=max(map(len, dev_clips.table["tokens"]))),
        train_dataset=training_table(
            train_clips, renderer=renderer, packing=spec.packing, count=max_steps * per_step, seed=spec.seed
        ),
        eval_dataset=evaluation_table(dev_clips, renderer=renderer),
        data_collator=renderer.collate,
        compute_metrics=_metric(processor.tokenizer),
        processing_class=processor,
        callbacks=_callbacks(spec, work, max_steps=max_steps),
    )
    trainer.train(resume_from_checkpoint=_last_checkpoint(work.scratch / "checkpoints"))
    return _finish(trainer, processor, work) | {
        "num_steps": max_steps,
        "num_windows_per_epoch": per_epoch,
        "num_train_clips": len(train_clips.table),
        "notes": train_clips.notes(of="train", policy=spec.text) + dev_clips.notes(of="dev", policy=spec.text),
        "num_trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "precision": _precision(spec.precision),
    }


def _trainer_class() -> Any:
    from transformers import Seq2SeqTrainer

    class Trainer(Seq2SeqTrainer):  # type: ignore[misc]  # untyped
        """Evaluates on a CPU in float32, as the exported files will run.

        Under autocast every generated token casts all weights anew: slower, and with other words here and there.
        """

        def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
            model = self.model
            # accelerate wraps `forward` in autocast and keeps the plain one here.
            plain = getattr(model, "_original_forward", None)
            if plain is None or model.device.type != "cpu":
                return super().evaluation_loop(*arguments, **options)
            autocast, model.forward = model.forward, plain
            try:
                return super().evaluation_loop(*arguments, **options)
            finally:
                model.forward = autocast

    return Trainer


def _model(base: Path, spec: Training) -> Any:
    import torch
    from transformers import WhisperForConditionalGeneration

    # float32 said explicitly: fp16 checkpoints would load as fp16, and mixed precision cannot unscale fp16 gradients.
    model = WhisperForConditionalGeneration.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
    model.generation_config.language = LANGUAGE
    model.generation_config.task = "transcribe"
    model.generation_config.forced_decoder_ids = None
    model.generation_config.return_timestamps = False
    if spec.freeze == "encoder":
        model.model.encoder.requires_grad_(requires_grad=False)
    if spec.gradient_checkpointing:
        model.config.use_cache = False
    return model


def _arguments(spec: Training, work: Work, *, max_steps: int, longest: int) -> Any:
    import torch
    from transformers import Seq2SeqTrainingArguments

    os.environ["TENSORBOARD_LOGGING_DIR"] = str(work.scratch / "tensorboard")
    precision = _precision(spec.precision)
    eval_steps = min(spec.eval_steps, max_steps)
    return Seq2SeqTrainingArguments(
        output_dir=str(work.scratch / "checkpoints"),
        max_steps=max_steps,
        per_device_train_batch_size=spec.batch_size,
        per_device_eval_batch_size=spec.eval_batch_size,
        gradient_accumulation_steps=spec.gradient_accumulation_steps,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.schedule,
        warmup_steps=spec.warmup_steps,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        activation_checkpointing=spec.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="steps",
        eval_steps=eval_steps,
        save_strategy="steps",
        save_steps=eval_steps,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="wer",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        predict_with_generate=True,
        # A model that has learned to babble would fill the whole text context on every clip of every evaluation.
        generation_max_length=min(448, 2 * longest + 16),
        logging_steps=max(1, min(25, max_steps // 20)),
        logging_first_step=True,
        report_to=["tensorboard"],
        disable_tqdm=True,
        remove_unused_columns=False,
        # The table already is in its shuffled order, epoch after epoch.
        train_sampling_strategy="sequential",
        dataloader_num_workers=spec.num_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels"],
        seed=spec.seed,
    )


def _precision(wanted: str) -> str:
    import torch

    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Without these instructions bf16 is emulated and slower than fp32.
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001  # no public name
    return "bf16" if fast else "fp32"


def _metric(tokenizer: Any) -> Any:
    import evaluate
    import numpy as np

    metric = evaluate.load(str(METRIC))

    def compute(prediction: Any) -> dict[str, float]:
        def texts(ids: Any) -> list[str]:
            clean = np.where(ids < 0, tokenizer.pad_token_id, ids)
            return list(tokenizer.batch_decode(clean, skip_special_tokens=True))

        hypotheses, references = texts(prediction.predictions), texts(prediction.label_ids)
        scores: dict[str, float] = metric.compute(predictions=hypotheses, references=references)
        return scores

    return compute


def _callbacks(spec: Training, work: Work, *, max_steps: int) -> list[Any]:
    from transformers import EarlyStoppingCallback, TrainerCallback

    from harness.train.curves import curve_logger

    class Progress(TrainerCallback):  # type: ignore[misc]  # untyped
        note = ""

        def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            work.progress(state.global_step, max_steps, self.note)

        def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:
                self.note = f"loss {logs['loss']:.3f}"
            if "eval_wer" in logs:
                self.note = f"dev WER {logs['eval_wer']:.3f}"

    callbacks: list[Any] = [Progress(), curve_logger()]
    if spec.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=spec.early_stopping_patience))
    return callbacks


def _last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint. A kill while one is written leaves it without its state, which comes last."""
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        try:
            step = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
        except (OSError, ValueError, KeyError):
            shutil.rmtree(path)
        else:
            whole[step] = path
    return str(whole[max(whole)]) if whole else None


def _finish(trainer: Any, processor: Any, work: Work) -> dict[str, Any]:
    model = trainer.model
    model.config.use_cache = True
    model.save_pretrained(work.path / "model")
    processor.save_pretrained(work.path / "model")
    write_jsonl(work.path / "curves.jsonl", trainer.state.log_history)
    shutil.copytree(work.scratch / "tensorboard", work.path / "tensorboard")
    return {
        "best_dev_wer": trainer.state.best_metric,
        "best_step": trainer.state.best_global_step,
        "final_step": trainer.state.global_step,
    }
