"""Real clips, real base weights, and a tiny random Whisper for what must be fast."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.core.artifact import Artifact, Work

AELITA = Path(__file__).parent.parent / "suites" / "data" / "aelita"


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """A fresh folder for one step to fill."""
    (tmp_path / "out").mkdir()
    (tmp_path / "scratch").mkdir()
    return Work(path=tmp_path / "out", scratch=tmp_path / "scratch")


def artifact(path: Path, stage: str = "test", **meta: object) -> Artifact:
    """A folder dressed as a finished artifact."""
    return Artifact(key="0" * 64, stage=stage, path=path, files={}, meta=meta)


@pytest.fixture(scope="session")
def whisper_base() -> Path:
    """Real Whisper base weights as a Hugging Face folder, cached between runs."""
    from harness.train.weights import resolve

    return resolve("openai/whisper-base")


@pytest.fixture(scope="session")
def tiny_whisper(whisper_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Whisper, shaped as OpenAI shapes them, with the real tokenizer."""
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

    torch.manual_seed(0)
    config = WhisperConfig.from_pretrained(whisper_base)
    config.d_model = 128
    config.encoder_layers = config.decoder_layers = 2
    config.encoder_attention_heads = config.decoder_attention_heads = 2
    config.encoder_ffn_dim = config.decoder_ffn_dim = 512
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig.from_pretrained(whisper_base)
    folder = tmp_path_factory.mktemp("tiny-whisper")
    model.save_pretrained(folder)
    WhisperProcessor.from_pretrained(whisper_base).save_pretrained(folder)
    return folder
