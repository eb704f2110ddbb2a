"""The mean of a training's last checkpoints: often a better model than any one of them, and hardly ever a worse one.

Source: Izmailov et al. 2018, Averaging Weights Leads to Wider Optima and Better Generalization.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

from harness.train.ranks import from_first
from harness.train.trainer_part import checkpoints, leave_weights, load_weights, step_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import torch

    Tensors = Iterable[tuple[str, "torch.Tensor"]]

WEIGHTS = "model.safetensors"
"""What transformers calls them."""


def mean_weights(checkpoints: Iterable[Tensors]) -> dict[str, torch.Tensor]:
    """The mean of each tensor, summed up in float32 one checkpoint after the other; what counts steps is the last's."""
    means: dict[str, torch.Tensor] = {}
    dtypes = {}
    for number, tensors in enumerate(checkpoints, start=1):
        for name, tensor in tensors:
            dtypes[name] = tensor.dtype
            if not tensor.is_floating_point():
                means[name] = tensor.clone()
            elif name in means:
                means[name] += (tensor.float() - means[name]) / number
            else:
                means[name] = tensor.float().clone()
    return {name: mean.to(dtypes[name]) for name, mean in means.items()}


def average_folders(folders: Sequence[Path], *, target: Path) -> None:
    """Write the mean of the safetensors in `folders`, and what else a model's folder has, into `target`."""
    from safetensors.torch import save_file

    target.mkdir(parents=True, exist_ok=True)
    for path in folders[-1].glob("*.json"):
        shutil.copyfile(path, target / path.name)
    mean = mean_weights(_tensors(folder / WEIGHTS) for folder in folders)
    save_file(mean, target / WEIGHTS, metadata={"format": "pt"})


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        yield from ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118  # not a mapping


def last_folders(folders: Iterable[Path], *, count: int, until: int) -> list[Path]:
    """The last checkpoints up to a step, the oldest first, out of folders of `checkpoint-STEP`."""
    found = {step: path for folder in folders for step, path in checkpoints(folder).items()}
    whole = [path for step, path in sorted(found.items()) if step <= until and (path / WEIGHTS).is_file()]
    return whole[-count:]


def lighten(folder: Path) -> None:
    """Leave of all checkpoints but the newest two the weights."""
    for checkpoint in list(checkpoints(folder).values())[:-2]:
        modified_ns = checkpoint.stat().st_mtime_ns
        leave_weights(checkpoint)
        # By it the trainer tells which checkpoints are the oldest, and deletes those.
        os.utime(checkpoint, ns=(modified_ns, modified_ns))


def take_mean(trainer: Any, *, count: int, folders: Iterable[Path], target: Path) -> dict[str, Any]:
    """Give the trainer's model the mean of its last checkpoints, if that is no worse on dev than the best of them.

    folders: of checkpoints. target: where the mean is written. Returns meta.
    """
    state = trainer.state
    chosen = last_folders(folders, count=count, until=state.global_step)
    steps = [step_of(path) for path in chosen]
    if len(chosen) < 2:
        return {"notes": [too_few(count, found=len(chosen))]}
    from_first(lambda: average_folders(chosen, target=target))
    best = state.best_model_checkpoint
    load_weights(trainer, target)
    wer = float(trainer.predict(trainer.eval_dataset, metric_key_prefix="mean").metrics["mean_wer"])
    taken = wer <= state.best_metric
    if not taken:
        load_weights(trainer, best)
    state.best_model_checkpoint = best
    return {
        "averaged": {"steps": steps, "dev_wer": wer, "best_dev_wer": state.best_metric, "taken": taken},
        "notes": [told(steps, wer=wer, best_wer=state.best_metric, best_step=state.best_global_step)],
    }


def too_few(count: int, *, found: int) -> str:
    """That there is no mean."""
    return f"average_checkpoints is {count}, but there are {found} checkpoints to take a mean of; lower eval_steps"


def told(steps: Sequence[int], *, wer: float, best_wer: float, best_step: int) -> str:
    """What was taken, and why."""
    mean = f"the mean of the last {len(steps)} checkpoints (steps {', '.join(map(str, steps))})"
    if wer <= best_wer:
        return f"{mean} was taken: dev WER {wer:.4f}, the best single one {best_wer:.4f} (step {best_step})"
    return f"the best checkpoint (step {best_step}, dev WER {best_wer:.4f}) was taken: {mean} has {wer:.4f}"
