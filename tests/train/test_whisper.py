from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.train import whisper
from harness.train.whisper import Training


def checkpoint(folder: Path, step: int, state: str | None) -> None:
    (folder / f"checkpoint-{step}").mkdir(parents=True)
    if state is not None:
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(state, encoding="utf-8")


@pytest.mark.parametrize("torn", [None, '{"global_step": 30', "{}"])
def test_a_checkpoint_torn_by_a_kill_is_passed_over_and_removed(tmp_path: Path, torn: str | None) -> None:
    checkpoint(tmp_path, 10, json.dumps({"global_step": 10}))
    checkpoint(tmp_path, 20, json.dumps({"global_step": 20}))
    checkpoint(tmp_path, 30, torn)
    assert whisper._last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-20")
    assert not (tmp_path / "checkpoint-30").exists()


def test_no_checkpoint_means_a_start_from_the_beginning(tmp_path: Path) -> None:
    assert whisper._last_checkpoint(tmp_path / "checkpoints") is None


@pytest.mark.parametrize("wanted", ["fp32", "fp16", "bf16"])
def test_a_declared_precision_is_taken_as_it_is(wanted: str) -> None:
    assert whisper._precision(wanted) == wanted


def test_automatic_precision_on_a_cpu_asks_for_its_bf16_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for fast, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        assert whisper._precision("auto") == expected


def test_automatic_precision_on_cuda_is_bf16_where_the_card_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has, **_: has)
        assert whisper._precision("auto") == expected


def test_the_model_is_trained_for_russian_transcription_in_float32(tiny_whisper: Path) -> None:
    import torch

    model = whisper._model(tiny_whisper, Training(freeze="encoder", gradient_checkpointing=True))
    config = model.generation_config
    assert (config.language, config.task, config.return_timestamps) == ("ru", "transcribe", False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in model.model.encoder.parameters())
    assert all(parameter.requires_grad for parameter in model.model.decoder.parameters())
    assert model.config.use_cache is False
