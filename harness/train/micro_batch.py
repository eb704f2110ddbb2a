"""The largest micro-batch that a device holds, found by trying; the windows of an optimizer step stay the same."""

from __future__ import annotations

import json
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from harness.core.files import replace_text
from harness.errors import MissingError
from harness.suite.wording import found as shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FILE = "micro_batch.json"
"""In the scratch folder: what was found, so that a resumed training splits its steps as it began."""
HEADROOM = 0.95
"""Of a GPU's memory that a trial may take: hours of training leave it in more pieces than two steps do."""
NUM_STEPS = 2
"""In the second one the optimizer's state is there as well."""


def _whole_or_auto(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise ValueError(f"expected a whole number of at least 1, or auto, found {shown(value)}")


BatchSize = Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], BeforeValidator(_whole_or_auto)]


def notes(asked: int | Literal["auto"], found: int | Literal["auto"], *, of: int) -> list[str]:
    """What `auto` became, for the user. of: windows in a step."""
    return (
        [f"batch_size: auto: {found} windows fit at once; a step of {of} takes them in turn"] if asked != found else []
    )


def candidates(effective: int) -> list[int]:
    """Micro-batches that divide a step into equal parts, each at most half of the one before: 16, 8, 4, 2, 1."""
    found = [effective]
    while found[-1] > 1:
        found.append(next(size for size in range(found[-1] // 2, 0, -1) if effective % size == 0))
    return found


def find(effective: int, *, scratch: Path, trial: Callable[[int], None]) -> int:
    """The first of the candidates whose trial does not run out of memory; known at once if it was found before.

    trial: trains a little with so many windows at once; raises what the device raises when its memory is full.
    Random generators are left as they were.
    Raises MissingError if not even one window fits.
    """
    from accelerate.utils.memory import clear_device_cache, find_executable_batch_size

    file = scratch / FILE
    if file.is_file():
        return int(json.loads(file.read_text(encoding="utf-8"))["micro_batch"])
    sizes = candidates(effective)

    def smaller() -> int:
        sizes.pop(0)
        if not sizes:
            raise MissingError(
                "batch_size: auto: not even one 30-second window fits into the memory of this device; set "
                "gradient_checkpointing: true, optimizer: adamw_8bit, lora or freeze: encoder, or take a smaller model"
            )
        return sizes[0]

    def attempt(batch_size: int) -> int:
        # What the last attempt left is garbage only now: its exception held it until here.
        clear_device_cache(garbage_collection=True)
        trial(batch_size)
        return batch_size

    with untouched_random_state(), _less_memory():
        found: int = find_executable_batch_size(attempt, starting_batch_size=effective, reduce_batch_size_fn=smaller)()
    clear_device_cache(garbage_collection=True)
    replace_text(file, json.dumps({"micro_batch": found}))
    return found


def train_a_little(model: Any, arguments: Any, *, trainer_class: Any, devices: int = 1) -> None:
    """Forward, backward and optimizer steps on windows with as many labels as the model can write.

    model: a transformers Whisper that nobody needs afterwards.
    arguments: the Seq2SeqTrainingArguments of the training that is planned; they are changed.
    devices: of that training. Here one tries alone, with the room that several take to exchange their gradients.
    """
    import torch
    from transformers import default_data_collator

    config = model.config
    window = {
        "input_features": torch.zeros(config.num_mel_bins, 2 * config.max_source_positions),
        "labels": torch.full((config.max_target_positions,), config.decoder_start_token_id),
    }
    # Two parts of a step show what a dozen take: gradients are there while the next part goes forward.
    arguments.gradient_accumulation_steps = min(NUM_STEPS, arguments.gradient_accumulation_steps)
    count = NUM_STEPS * arguments.gradient_accumulation_steps * arguments.per_device_train_batch_size
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        setattr(arguments, name, "no")
    arguments.load_best_model_at_end = False
    arguments.logging_first_step = False
    arguments.report_to = []
    arguments.max_steps = NUM_STEPS
    arguments.dataloader_num_workers = 0
    arguments.dataloader_multiprocessing_context = None
    trainer = trainer_class(
        model=model, args=arguments, train_dataset=[window] * count, data_collator=default_data_collator
    )
    learnt = [item for item in model.parameters() if item.requires_grad and devices > 1]
    exchanged = [torch.empty_like(item, device=arguments.device) for item in learnt]
    try:
        trainer.train()
    finally:
        del exchanged
        _forget_embeddings(arguments)


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """Whatever is drawn inside, the generators of Python, NumPy and PyTorch go on as if nothing had been."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # the one that transformers seeds
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def _less_memory() -> Iterator[None]:
    import torch

    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.set_per_process_memory_fraction(HEADROOM)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _forget_embeddings(arguments: Any) -> None:
    """Let go of the embeddings that bitsandbytes was told to leave in 32 bits: it would keep them for ever."""
    if arguments.optim == "adamw_8bit":
        from bitsandbytes.optim import GlobalOptimManager

        GlobalOptimManager.get_instance().initialize()
