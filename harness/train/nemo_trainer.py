"""Lightning's trainer for NeMo models: curves, checkpoints that a killed training goes on from, the project's WER."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harness.core.files import beside
from harness.core.text import normalise
from harness.core.wer import ErrorCounts, count_errors, pool
from harness.train.nemo_curves import curves_callback
from harness.train.nemo_ranks import hardware, together
from harness.train.part import CHECKPOINTS, TENSORBOARD

if TYPE_CHECKING:
    import torch

    from harness.core.artifact import Work
    from harness.train.parakeet import Training

BEST, RECENT, LAST = "best", "recent", "last"
"""Folders of checkpoints: the best by val_wer and the newest ones, weights alone; the newest, with all that a resumed
training needs."""
SAVE_TOP_K = 3
VAL_WER = "val_wer"
SCHEDULERS = {"cosine": "CosineAnnealing", "linear": "WarmupAnnealing", "constant_with_warmup": "WarmupPolicy"}
"""NeMo's names."""
HPARAMS = ("hyper_parameters", "hparams_name", "hparams_type")


@dataclass(frozen=True, slots=True)
class Schedule:
    """When what happens, in optimizer steps."""

    max_steps: int
    accumulation: int
    """Batches of each device in one optimizer step."""
    eval_steps: int
    batches_per_epoch: int
    patience: int | None
    """Evaluations without a better WER after which training stops."""
    until: int | None = None
    """Step at which a part of the training stops; its schedule stays that of the whole."""
    devices: int = 1

    @classmethod
    def of(cls, spec: Training, *, batches_per_epoch: int) -> Self:
        """That of a training, or of a segment of one."""
        per_step = spec.gradient_accumulation_steps * spec.devices
        max_steps = spec.max_steps or math.ceil(spec.epochs * batches_per_epoch / per_step)
        return cls(
            max_steps=max_steps,
            accumulation=spec.gradient_accumulation_steps,
            eval_steps=min(spec.eval_steps, max_steps),
            batches_per_epoch=batches_per_epoch,
            patience=spec.early_stopping_patience,
            until=getattr(spec, "until", None),
            devices=spec.devices,
        )

    @property
    def batches_per_step(self) -> int:
        """Of all devices."""
        return self.accumulation * self.devices

    @property
    def log_steps(self) -> int:
        return max(1, min(25, self.max_steps // 20))


def use_russian_wer(model: Any) -> None:
    """Let a NeMo model measure its validation by the project's normaliser and counts."""
    model.wer = russian_wer(model.wer.decoding)
    if hasattr(model, "ctc_wer"):
        model.ctc_wer = russian_wer(model.ctc_wer.decoding)
    if hasattr(model, "joint") and model.joint.fuse_loss_wer:
        model.joint.set_wer(model.wer)


def russian_wer(decoding: Any) -> Any:
    """A NeMo WER metric that counts as the board does."""
    import torch
    from nemo.collections.asr.metrics.wer import WER

    class RussianWer(WER):  # type: ignore[misc]  # untyped
        def __init__(self) -> None:
            # Several ranks have each their own batches; they put together what they have heard at the end.
            super().__init__(decoding=decoding, log_prediction=False, sync_on_compute=False)
            self.characters = ErrorCounts()
            """Summed up until somebody begins anew."""

        def update(
            self,
            predictions: torch.Tensor,
            predictions_lengths: torch.Tensor,
            targets: torch.Tensor,
            targets_lengths: torch.Tensor,
            **_: Any,
        ) -> None:
            with torch.no_grad():
                heard = self.decode(predictions, predictions_lengths, None, None)
            rows = zip(targets.tolist(), targets_lengths.tolist(), strict=True)
            references = [normalise(self.decoding.decode_ids_to_str(row[:length])) for row, length in rows]
            hypotheses = [normalise(item.text) for item in heard]
            words = pool(count_errors(references, hypotheses))
            self.characters += pool(count_errors(references, hypotheses, unit="char"))
            self.scores = torch.tensor(words.errors, device=predictions.device)
            self.words = torch.tensor(words.num_reference, device=predictions.device)

    return RussianWer()


def build_trainer(
    work: Work, *, schedule: Schedule, precision: str, max_grad_norm: float, seed: int, num_recent: int = 1
) -> Any:
    """A Lightning trainer whose checkpoints and curves lie in the step's scratch folder.

    num_recent: of how many last evaluations weights are kept, beside those of the best.
    """
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import TensorBoardLogger

    return Trainer(
        **hardware(schedule.devices, precision=precision),
        max_steps=schedule.max_steps,
        accumulate_grad_batches=schedule.accumulation,
        gradient_clip_val=max_grad_norm,
        # In batches, through all epochs: they are one list.
        val_check_interval=schedule.eval_steps * schedule.accumulation,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=schedule.log_steps,
        logger=TensorBoardLogger(save_dir=work.scratch, name=TENSORBOARD, version=""),
        callbacks=[
            *together(schedule.devices),
            curves_callback(work, schedule=schedule, seed=seed),
            *_checkpoints(work.scratch / CHECKPOINTS, num_recent=num_recent),
        ],
        plugins=[_checkpoint_files(work)],
    )


def set_optimizer(model: Any, spec: Training, *, max_steps: int) -> None:
    """NeMo builds optimizer and schedule from the model's configuration when training begins."""
    from omegaconf import OmegaConf, open_dict

    settings = {
        "name": "adamw",
        "lr": spec.learning_rate,
        "betas": [0.9, 0.98],
        "weight_decay": spec.weight_decay,
        "sched": {
            "name": SCHEDULERS[spec.schedule],
            "warmup_steps": spec.warmup_steps,
            "min_lr": spec.min_lr,
            "max_steps": max_steps,
        },
    }
    with open_dict(model.cfg):
        model.cfg.optim = OmegaConf.create(settings)
    # The whole configuration, with every token of the vocabulary, is no hyper-parameter to log.
    model._log_hyperparams = False  # noqa: SLF001  # Lightning's, without a public name


def last_checkpoint(scratch: Path) -> tuple[str, int] | None:
    """The newest checkpoint to go on from, and its optimizer step. Files torn by a kill are removed."""
    folder = scratch / CHECKPOINTS
    for torn in folder.glob("*/.*.tmp"):
        torn.unlink()
    found = {int(path.stem): path for path in (folder / LAST).glob("*.ckpt") if path.stem.isdecimal()}
    return (str(found[max(found)]), max(found)) if found else None


def _checkpoints(folder: Path, *, num_recent: int) -> list[Any]:
    from lightning.pytorch.callbacks import ModelCheckpoint

    common = {"save_on_train_epoch_end": False, "auto_insert_metric_name": False, "enable_version_counter": False}
    best = ModelCheckpoint(
        dirpath=folder / BEST,
        filename="{step}",
        monitor=VAL_WER,
        mode="min",
        save_top_k=SAVE_TOP_K,
        save_weights_only=True,
        **common,
    )
    recent = ModelCheckpoint(
        dirpath=folder / RECENT,
        filename="{step}",
        monitor="step",
        mode="max",
        save_top_k=num_recent,
        save_weights_only=True,
        **common,
    )
    # After the others, whose state is part of it.
    last = ModelCheckpoint(dirpath=folder / LAST, filename="{step}", save_top_k=1, **common)
    return [best, *([recent] if num_recent > 1 else []), last]


def _checkpoint_files(work: Work) -> Any:
    import torch
    from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

    class CheckpointFiles(TorchCheckpointIO):  # type: ignore[misc]  # untyped
        """Whole files of tensors and plain values, and nothing else."""

        def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
            path = Path(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            # NeMo's is the model's configuration as OmegaConf's objects, which the base weights hold anyway.
            torch.save({name: value for name, value in checkpoint.items() if name not in HPARAMS}, beside(path))
            beside(path).replace(path)
            if path.parent.name == LAST:  # after the others
                own = path.relative_to(work.scratch).as_posix()
                best, recent = (f"{CHECKPOINTS}/{name}" for name in (BEST, RECENT))
                work.checkpointed(int(path.stem), (best, recent, own, TENSORBOARD))

        def load_checkpoint(self, path: Any, map_location: Any = None) -> dict[str, Any]:  # noqa: ARG002
            loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return loaded

    return CheckpointFiles()
