"""What transformers' Trainer is told of a training."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from harness.train.part import CHECKPOINTS, TENSORBOARD

if TYPE_CHECKING:
    from harness.core.artifact import Work
    from harness.train.whisper import Training

OPTIMIZERS = {"adamw": "adamw_torch_fused", "adamw_8bit": "adamw_bnb_8bit"}
"""By transformers' names."""


def trainer_arguments(spec: Training, work: Work, *, max_steps: int, longest: int) -> Any:
    """Seq2SeqTrainingArguments. longest: tokens of the longest text that is evaluated."""
    import torch
    from transformers import Seq2SeqTrainingArguments

    os.environ["TENSORBOARD_LOGGING_DIR"] = str(work.scratch / TENSORBOARD)
    precision = chosen_precision(spec.precision)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(work.scratch / CHECKPOINTS),
        max_steps=max_steps,
        per_device_train_batch_size=spec.batch_size,
        per_device_eval_batch_size=spec.eval_batch_size,
        gradient_accumulation_steps=spec.gradient_accumulation_steps,
        optim=OPTIMIZERS[spec.optimizer],
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
        eval_steps=min(spec.eval_steps, max_steps),
        save_strategy="steps",
        save_steps=min(spec.eval_steps, max_steps),
        save_total_limit=spec.average_checkpoints + 1,  # and the best
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
        **_loading(spec),
        label_names=["labels"],
        ddp_find_unused_parameters=False,
        seed=spec.seed,
    )
    return _on_one_device(arguments)


def _loading(spec: Training) -> dict[str, Any]:
    import torch

    return {
        # The table already is in its shuffled order, epoch after epoch.
        "train_sampling_strategy": "sequential",
        "dataloader_num_workers": spec.num_workers,
        # Forked processes would share the locks of torch's threads.
        "dataloader_multiprocessing_context": "spawn" if spec.num_workers else None,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def _on_one_device(arguments: Any) -> Any:
    """Of several GPUs that a process sees, torch's DataParallel would take all."""
    arguments._n_gpu = min(arguments.n_gpu, 1)  # noqa: SLF001  # without a public name
    return arguments


def chosen_precision(wanted: str) -> str:
    """What `auto` is on this machine: fp32, fp16 or bf16."""
    import torch

    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Without these instructions bf16 is emulated and slower than fp32.
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001  # no public name
    return "bf16" if fast else "fp32"
