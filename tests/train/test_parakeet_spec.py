"""What a suite may say about a Parakeet, before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from harness.train import parakeet
from harness.train.parakeet import Spec, Training


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_duration_s": 30.0}, "batch_duration_s 30 does not hold one clip of max_clip_s 40; raise the one"),
        ({"learning_rate": 1e-7}, "min_lr 1e-06 is over learning_rate 1e-07; lower it"),
    ],
)
def test_fields_that_do_not_fit_together_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Training.model_validate(fields)


def model_spec(**fields: Any) -> Spec:
    return Spec.model_validate({"export": ["parakeet_nemo"], **fields})


def test_a_base_from_a_configuration_is_told_apart_from_a_file() -> None:
    default, scratch = model_spec(), model_spec(base={"config": "parakeet-nano"})
    assert default.base == "nvidia/parakeet-tdt-0.6b-v3"
    assert (default.base_step().base, default.base_step().config) == (default.base, "")
    assert scratch.base == "config:parakeet-nano"
    assert (scratch.base_step().base, scratch.base_step().config) == ("", "parakeet-nano")
    assert [default.base_step().vocabulary, model_spec(train=tokenizer()).base_step().vocabulary] == [
        "kept",
        "replaced",
    ]


def tokenizer() -> dict[str, Any]:
    return {"tokenizer": {"train": "bpe", "vocab_size": 256}}


def test_an_english_base_is_refused_by_the_suite_unless_it_learns_new_tokens() -> None:
    with pytest.raises(
        ValidationError, match=r"parakeet-tdt-0\.6b-v2 is English: its tokens have none of the letters абв"
    ):
        model_spec(base="nvidia/parakeet-tdt-0.6b-v2")
    assert model_spec(base="nvidia/parakeet-tdt-0.6b-v2", train=tokenizer()).base_step().vocabulary == "replaced"


@pytest.mark.parametrize(
    ("cuda", "bf16", "expected"), [(False, True, "fp32"), (True, True, "bf16-mixed"), (True, False, "16-mixed")]
)
def test_automatic_precision_is_what_the_device_is_good_at(
    cuda: bool, bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    assert parakeet._precision("auto") == expected
    assert parakeet._precision("fp32") == "fp32"
