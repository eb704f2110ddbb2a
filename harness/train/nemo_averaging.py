"""The mean of a NeMo training's last checkpoints, if it is no worse than the best of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.train.averaging import mean_weights, told, too_few
from harness.train.nemo_ranks import hardware, together
from harness.train.nemo_trainer import RECENT, VAL_WER
from harness.train.part import CHECKPOINTS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import torch

    from harness.train.nemo_part import NemoPart


def take_mean(model: Any, *, part: NemoPart, count: int, dev: Any, precision: str, devices: int = 1) -> dict[str, Any]:
    """Give the model, which has the best checkpoint's weights, the mean of the last ones if that is no worse on dev.

    dev: a data loader. devices: that each evaluate a share. Returns meta.
    """
    reached = part.progress()
    assert reached is not None  # noqa: S101  # a training ends with a checkpoint
    folders = [folder / CHECKPOINTS / RECENT for folder in part.folders]
    found = {int(path.stem): path for folder in folders for path in folder.glob("*.ckpt") if path.stem.isdecimal()}
    steps = sorted(step for step in found if step <= reached.step)[-count:]
    if len(steps) < 2:
        return {"notes": [too_few(count, found=len(steps))]}
    best, best_wer, best_step = model.state_dict(), reached.best["eval_wer"], int(reached.best["step"])
    best = {name: tensor.detach().cpu().clone() for name, tensor in best.items()}
    model.load_state_dict(mean_weights(_weights(found[step]) for step in steps))
    wer = _dev_wer(model, dev, precision=precision, devices=devices)
    if wer > best_wer:
        model.load_state_dict(best)
    return {
        "averaged": {"steps": steps, "dev_wer": wer, "best_dev_wer": best_wer, "taken": wer <= best_wer},
        "notes": [told(steps, wer=wer, best_wer=best_wer, best_step=best_step)],
    }


def _weights(path: Path) -> Iterable[tuple[str, torch.Tensor]]:
    import torch

    state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    return state.items()


def _dev_wer(model: Any, dev: Any, *, precision: str, devices: int) -> float:
    """As the training measures it."""
    from lightning.pytorch import Trainer

    trainer = Trainer(
        **hardware(devices, precision=precision),
        callbacks=together(devices),
        logger=False,
        enable_checkpointing=False,
    )
    (measured,) = trainer.validate(model, dataloaders=dev, verbose=False)
    return float(measured[VAL_WER])
