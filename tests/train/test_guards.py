from __future__ import annotations

import math
from typing import Any

import pytest

from harness.errors import TrainingError
from harness.train.guards import Guard, parting, remedy, weights_norm

Points = list[tuple[float, float, float]]


def curves(points: Points) -> list[dict[str, Any]]:
    """points: (step, train loss logged halfway to it, dev loss)."""
    rows: list[dict[str, Any]] = []
    before = 0.0
    for step, train, dev in points:
        rows += [{"step": (before + step) / 2, "loss": train}, {"step": step, "eval_loss": dev, "eval_wer": 0.2}]
        before = step
    return [*rows, {"step": before, "train_runtime": 12.0}]


@pytest.mark.parametrize(
    ("points", "parted"),
    [
        pytest.param([], False, id="nothing measured"),
        pytest.param([(100, 2.0, 1.5), (200, 1.5, 1.2), (300, 1.2, 1.1)], False, id="both fall"),
        pytest.param([(100, 2.0, 1.2), (200, 1.5, 1.3), (300, 1.2, 1.45)], True, id="dev rises twice"),
        pytest.param([(100, 2.0, 1.5), (200, 1.5, 1.2), (300, 1.2, 1.45)], False, id="dev rises once"),
        pytest.param([(100, 2.0, 1.2), (200, 2.1, 1.3), (300, 2.2, 1.45)], False, id="both rise: it diverges"),
        pytest.param([(100, 2.0, 1.2), (200, 1.5, 1.201), (300, 1.2, 1.202)], False, id="dev stays"),
        pytest.param(
            [(100, 2.0, 1.2), (200, 1.5, 1.4), (300, 1.2, 1.3), (400, 1.0, 1.5)], True, id="dev rises up and down"
        ),
        pytest.param([(100, 2.0, 1.2), (200, 1.5, 1.5), (300, 1.2, 1.6), (400, 1.0, 1.1)], False, id="dev comes back"),
        pytest.param([(100, 2.0, 1.2), (200, 1.5, 1.3), (300, 1.2, math.nan)], False, id="no number is no evaluation"),
    ],
)
def test_curves_that_part_are_told(points: Points, parted: bool) -> None:
    assert bool(parting(curves(points))) is parted


def test_the_sentence_names_steps_and_losses() -> None:
    (note,) = parting(curves([(100, 2.0, 1.5), (200, 1.5, 1.2), (300, 1.0, 1.3), (400, 0.5, 1.45)]))
    assert note.startswith(
        "dev loss rose from 1.2 (step 200) to 1.45 (step 400) while train loss fell from 1.5 to 0.5: the model learns"
    )


def test_train_loss_is_the_mean_of_what_was_logged_since_the_evaluation_before() -> None:
    rows = [
        {"step": 50, "loss": 3.0},
        {"step": 100, "loss": 1.0},
        {"step": 100, "eval_loss": 1.0},
        {"step": 150, "loss": 1.9},
        {"step": 200, "eval_loss": 1.1},
        {"step": 300, "loss": 1.8},
        {"step": 300, "eval_loss": 1.2},
    ]
    (note,) = parting(rows)
    assert "train loss fell from 2 to 1.8" in note


def guard(last: str | None = "checkpoints/checkpoint-30") -> Guard:
    return Guard(names=lambda places: (f"{place}.wav" for place in places), last=lambda: last, num_steps=40, remedy="x")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_ends_the_training(value: float) -> None:
    with pytest.raises(TrainingError) as caught:
        guard().check(value, what="loss", step=37, places=range(3))
    assert caught.value.exit_code == 1
    assert str(caught.value) == (
        f"step 37 of 40: the loss became {value}, and the training stopped before that was saved; the last good "
        "checkpoint is checkpoints/checkpoint-30, and the next run goes on from it. The clips of the step: 0.wav, "
        "1.wav, 2.wav. If it breaks there again, listen to them and leave out what is damaged, or x"
    )


def test_without_a_checkpoint_the_next_run_begins_anew() -> None:
    with pytest.raises(TrainingError, match="there is no checkpoint before it, and the next run begins anew"):
        guard(None).check(math.nan, what="loss", step=3, places=[])


def test_many_clips_are_counted() -> None:
    with pytest.raises(TrainingError, match=r"0\.wav, .*, 29\.wav and 11 more\. If"):
        guard().check(math.nan, what="loss", step=3, places=range(41))


def test_numbers_pass() -> None:
    guard().check(0.0, what="loss", step=1, places=[])


@pytest.mark.parametrize(
    ("precision", "told"),
    [
        ("fp16", "lower learning_rate (it is 1e-05), or set precision: fp32 or bf16 (it is fp16)"),
        ("bf16", "lower learning_rate (it is 1e-05)"),
    ],
)
def test_the_remedy_fits_the_training(precision: str, told: str) -> None:
    assert remedy(learning_rate=1e-5, precision=precision, safe=("fp32", "bf16")) == told


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_one_weight_is_enough(poison: float) -> None:
    import torch

    model = torch.nn.Linear(4, 4)
    assert math.isfinite(weights_norm(model))
    with torch.no_grad():
        model.weight[2, 3] = poison
    assert not math.isfinite(weights_norm(model))
