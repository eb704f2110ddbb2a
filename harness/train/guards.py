"""What watches a training: a loss that breaks ends it before anything of it is saved; curves that part are told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

from harness.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

NUM_LISTED = 30
NOISE = 0.02
"""Share by which a dev loss moves up and down without a reason."""
MIN_RISING = 2
"""Evaluations after the best one, from which on a rising dev loss is no chance."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Ends a training whose numbers are no numbers any more."""

    names: Callable[[Iterable[int]], Iterable[str]]
    """Recordings in the windows or batches with these places in the training."""
    last: Callable[[], str | None]
    """The newest whole checkpoint."""
    num_steps: int
    remedy: str
    """What to change if it happens again."""

    def check(self, value: float, *, what: str, step: int, places: Sequence[int]) -> None:
        """Raises TrainingError if `value` is not finite.

        what: that it is of: loss, gradient, weights. step: that is under way, from 1 on. places: windows or batches.
        """
        if math.isfinite(value):
            return
        saved = self.last()
        kept = (
            f"the last good checkpoint is {saved}, and the next run goes on from it"
            if saved
            else "there is no checkpoint before it, and the next run begins anew"
        )
        clips = _listed(list(self.names(places)))
        raise TrainingError(
            f"step {step} of {self.num_steps}: the {what} became {value}, and the training stopped before that was "
            f"saved; {kept}. The clips of the step: {clips}. If it breaks there again, listen to them and leave out "
            f"what is damaged, or {self.remedy}"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NUM_LISTED} more" if len(names) > NUM_LISTED else ""
    return ", ".join(islice(names, NUM_LISTED)) + more


def weights_norm(model: Any) -> float:
    """The norm of what a model learns; not finite as soon as one weight is not."""
    import torch

    trained = [item.detach() for item in model.parameters() if item.requires_grad]
    return float(torch.nn.utils.get_total_norm(trained))


def remedy(*, learning_rate: float, precision: str, safe: Sequence[str]) -> str:
    """What to change in a training that breaks. safe: the precisions that do not overflow where fp16 does."""
    other = "" if precision in safe else f", or set precision: {' or '.join(safe)} (it is {precision})"
    return f"lower learning_rate (it is {learning_rate:g}){other}"


def parting(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence if, at the end, dev loss has risen since its lowest while train loss fell: the model learns by heart.

    rows: points of the curves, with `step` and one of `loss` (train), `eval_loss` (dev), in the order of steps.
    """
    rows = list(rows)
    dev = [(row["step"], row["eval_loss"]) for row in rows if math.isfinite(row.get("eval_loss", math.nan))]
    if not dev:
        return []
    lowest = min(range(len(dev)), key=lambda place: dev[place][1])
    (from_step, from_dev), (to_step, to_dev) = dev[lowest], dev[-1]
    if len(dev) - 1 - lowest < MIN_RISING or to_dev <= from_dev * (1 + NOISE):
        return []
    train = _between(rows, [0, *(step for step, _ in dev)])
    from_train, to_train = train.get(from_step), train.get(to_step)
    if from_train is None or to_train is None or to_train >= from_train:
        return []
    sentence = (
        f"dev loss rose from {from_dev:.3g} (step {from_step}) to {to_dev:.3g} (step {to_step}) while train loss fell "
        f"from {from_train:.3g} to {to_train:.3g}: the model learns its clips by heart; more or more varied clips, "
        "augment, or fewer steps would help (early_stopping_patience ends a training there)"
    )
    return [sentence]


def _between(rows: Sequence[Mapping[str, Any]], steps: Sequence[int]) -> dict[int, float]:
    """Evaluation step → mean of the train losses logged since the evaluation before it."""
    means = {}
    for begin, end in pairwise(steps):
        losses = [
            row["loss"] for row in rows if begin < row["step"] <= end and math.isfinite(row.get("loss", math.nan))
        ]
        if losses:
            means[end] = sum(losses) / len(losses)
    return means
