"""A small random Whisper that has something to say."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_tiny(folder: Path, *, like: Path) -> Path:
    """Random, with the tokenizer of another. like: that one's folder."""
    import torch
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

    torch.manual_seed(0)
    config = WhisperConfig.from_pretrained(like)
    config.d_model = 128
    config.encoder_layers = config.decoder_layers = 2
    config.encoder_attention_heads = config.decoder_attention_heads = 2
    config.encoder_ffn_dim = config.decoder_ffn_dim = 512
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig.from_pretrained(like)
    model.save_pretrained(folder)
    WhisperProcessor.from_pretrained(like).save_pretrained(folder)
    return folder


def enlivened(tiny_whisper: Path, folder: Path) -> Path:
    """The tiny Whisper with larger weights, biases and positions: a fresh one says one token for ever."""
    import torch
    from transformers import WhisperForConditionalGeneration

    shutil.copytree(tiny_whisper, folder, dirs_exist_ok=True)
    model = WhisperForConditionalGeneration.from_pretrained(tiny_whisper, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = {"model.decoder.embed_positions.weight": 2.0, "model.encoder.embed_positions.weight": 0.0}
            parameter.add_(torch.randn_like(parameter) * scale.get(name, 0.2))
    model.save_pretrained(folder)
    return folder
