"""transformers' Seq2SeqTrainer as Whisper needs it: its loss, its evaluation, and a guard over both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.train import micro_batch
from harness.train.averaging import lighten
from harness.train.examples import IGNORED
from harness.train.guards import weights_norm
from harness.train.part import CHECKPOINTS, TENSORBOARD
from harness.train.ranks import is_first, wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch
    from transformers import Seq2SeqTrainer as Base

    from harness.core.artifact import Work
    from harness.train.examples import Clips
    from harness.train.guards import Guard
else:
    Base = object

METRIC = Path(__file__).parent.parent / "core" / "russian_wer"


def trainer_class() -> Any:
    """`WhisperTraining` as a Seq2SeqTrainer, whose import takes seconds."""
    from transformers import Seq2SeqTrainer

    class Trainer(WhisperTraining, Seq2SeqTrainer):  # type: ignore[misc]  # untyped
        pass

    return Trainer


class WhisperTraining(Base):  # type: ignore[misc]  # untyped
    """What of the trainer is not transformers'."""

    guard: Guard | None = None
    """None: a trial, of which nothing is kept."""
    label_smoothing = 0.0
    forwards = 0
    """Forward passes of the step under way."""

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,  # noqa: FBT001, FBT002  # transformers' signature
        num_items_in_batch: Any = None,
    ) -> Any:
        """Cross-entropy over the tokens of the whole step; smoothed in training alone.

        Whisper is given their number and passes over it: without this, a step of several forward passes would add up
        their means, and its gradients would be so many times too large. Of several devices, whose gradients become
        their mean, each has its share as many times.
        """
        num_devices = self.args.world_size
        num_passes = self.args.gradient_accumulation_steps * num_devices
        if not model.training or not (self.label_smoothing or num_passes > 1):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        known = {name: value for name, value in inputs.items() if name != "labels" or "decoder_input_ids" not in inputs}
        outputs = model(**known)
        loss = token_loss(
            outputs.logits, inputs["labels"], label_smoothing=self.label_smoothing, num_tokens=num_items_in_batch
        )
        # Not in place, and not by one: a single device's loss stays as it is, to the last bit.
        loss = loss * num_devices if num_devices > 1 else loss
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        loss = super().training_step(model, inputs, num_items_in_batch)
        size, num_devices = self.args.train_batch_size, self.args.world_size
        # The table is taken row by row: these windows, one device after the other.
        first = self._windows(self.state.global_step).start + self.forwards * size * num_devices
        self.forwards = (self.forwards + 1) % self.args.gradient_accumulation_steps
        for rank, value in enumerate(self.accelerator.gather(loss).reshape(-1).tolist()):
            places = range(first + rank * size, first + (rank + 1) * size)
            self._check(value, what="loss", step=self.state.global_step + 1, places=places)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        # fp16's scaler passes over steps with such gradients by itself, and scales down.
        if self.accelerator.scaler is None:
            step = self.state.global_step
            self._check(norm, what="gradient", step=step + 1, places=self._windows(step))
        return norm

    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        if self.control.should_evaluate or self.control.should_save:
            step = self.state.global_step
            self._check(weights_norm(self.model), what="weights", step=step, places=self._windows(step - 1))
        super()._maybe_log_save_evaluate(*arguments, **options)

    def _check(self, value: Any, *, what: str, step: int, places: range) -> None:
        if self.guard is not None:
            self.guard.check(float(value), what=what, step=step, places=places)

    def _windows(self, step: int) -> range:
        """Places in the training of a step's windows; step: from 0 on."""
        per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return range(step * per_step, (step + 1) * per_step)

    def _save_rng_state(self, output_dir: str) -> None:
        """Of every rank, before the first writes the trainer's state: with that a checkpoint counts as whole."""
        super()._save_rng_state(output_dir)
        wait()

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """On a CPU in float32, as the exported files will run.

        Under autocast every generated token casts all weights anew: slower, and with other words here and there.
        """
        # Seq2SeqTrainer would also count what fills up the last batches, so that every rank has one.
        self.gather_function = self.accelerator.gather_for_metrics
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


def callbacks(work: Work, *, max_steps: int, patience: int | None) -> list[Any]:
    """What tells how far a training is and sends its curves, of one rank alone, and ends it where nothing improves."""
    from transformers import EarlyStoppingCallback, TrainerCallback

    from harness.train.curves import curve_logger

    class Progress(TrainerCallback):  # type: ignore[misc]  # untyped
        note = ""

        def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            work.progress(state.global_step, max_steps, self.note)

        def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
            lighten(Path(args.output_dir))
            work.checkpointed(state.global_step, (CHECKPOINTS, TENSORBOARD, micro_batch.FILE))

        def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:
                self.note = f"loss {logs['loss']:.3f}"
            if "eval_wer" in logs:
                self.note = f"dev WER {logs['eval_wer']:.3f}"

    stopping = [EarlyStoppingCallback(early_stopping_patience=patience)] if patience else []
    telling = [Progress(), curve_logger()] if is_first() else []
    return [*telling, *stopping]


def metric(tokenizer: Any) -> Any:
    """Dev WER and CER of what was generated."""
    import evaluate
    import numpy as np

    wer = evaluate.load(str(METRIC))

    def compute(prediction: Any) -> dict[str, float]:
        def texts(ids: Any) -> list[str]:
            clean = np.where(ids < 0, tokenizer.pad_token_id, ids)
            return list(tokenizer.batch_decode(clean, skip_special_tokens=True))

        hypotheses, references = texts(prediction.predictions), texts(prediction.label_ids)
        scores: dict[str, float] = wer.compute(predictions=hypotheses, references=references)
        return scores

    return compute


def clip_names(clips: Clips, table: Any) -> Callable[[Iterable[int]], Iterator[str]]:
    """What tells the recordings in some windows of a training table."""
    plain = table.with_format(None)
    return lambda places: (clips.table[index]["audio"] for place in places for index in plain[place]["clips"])


def token_loss(
    logits: torch.Tensor, labels: torch.Tensor, *, label_smoothing: float, num_tokens: torch.Tensor | int | None
) -> torch.Tensor:
    """Cross-entropy of all tokens over their number in the step, `num_tokens`; if None, in this batch.

    logits: [batch, length, vocabulary]. labels: int64 [batch, length], IGNORED where there is nothing to say.
    """
    import torch

    total = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(),
        labels.flatten(),
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return total / (labels.ne(IGNORED).sum() if num_tokens is None else num_tokens)
