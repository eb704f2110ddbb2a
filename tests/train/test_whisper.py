from __future__ import annotations

from pathlib import Path

import pytest

from harness.train import whisper
from harness.train.trainer_arguments import chosen_precision
from harness.train.whisper import Training


@pytest.mark.parametrize("wanted", ["fp32", "fp16", "bf16"])
def test_a_declared_precision_is_taken_as_it_is(wanted: str) -> None:
    assert chosen_precision(wanted) == wanted


def test_automatic_precision_on_a_cpu_asks_for_its_bf16_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for fast, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        assert chosen_precision("auto") == expected


def test_automatic_precision_on_cuda_is_bf16_where_the_card_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has, **_: has)
        assert chosen_precision("auto") == expected


def test_the_model_is_trained_for_russian_transcription_in_float32(tiny_whisper: Path) -> None:
    import torch

    model = whisper._model(tiny_whisper, Training(freeze="encoder", gradient_checkpointing=True))
    config = model.generation_config
    assert (config.language, config.task, config.return_timestamps) == ("ru", "transcribe", False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.model.encoder.parameters())
    assert all(parameter.requires_grad for parameter in model.model.decoder.parameters())
    assert model.config.use_cache is False
