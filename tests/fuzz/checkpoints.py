"""Hugging Face folders of Whisper, as they are trained from, transcribed with and exported."""

from __future__ import annotations

import json
import struct
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import ExportError
from harness.export import whisper_onnx
from harness.score import transformers
from harness.score.transcribe import clocked
from harness.train import examples, weights, whisper
from tests.conftest import artifact
from tests.fuzz.corpora import put
from tests.fuzz.models import WHISPER, work
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

SPECIAL = (
    *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|ru|>", "<|translate|>", "<|transcribe|>"),
    *("<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
)
TEXT_TOKENS = 256
IDS = {name: TEXT_TOKENS + number for number, name in enumerate(SPECIAL)}
END = IDS["<|endoftext|>"]
GENERATION: dict[str, Any] = {
    "bos_token_id": END, "eos_token_id": END, "pad_token_id": END, "is_multilingual": True, "max_length": 448,
    "decoder_start_token_id": IDS["<|startoftranscript|>"], "no_timestamps_token_id": IDS["<|notimestamps|>"],
    "prev_sot_token_id": IDS["<|startofprev|>"], "lang_to_id": {"<|en|>": IDS["<|en|>"], "<|ru|>": IDS["<|ru|>"]},
    "task_to_id": {"transcribe": IDS["<|transcribe|>"], "translate": IDS["<|translate|>"]},
    "suppress_tokens": [1, 2], "begin_suppress_tokens": [220, END], "alignment_heads": [[0, 1]],
}  # fmt: skip
CODE = b"open('../outside/new', 'w').close()\n"
"""Lies in each folder as a module, which none may run."""
DIVERTING: tuple[dict[str, Any], ...] = (
    {"auto_map": {"AutoConfig": "code.Config", "AutoTokenizer": ["code.Tokenizer", None]}},
    {"attn_implementation": "somebody/kernels"},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    {"transformers_weights": "../../../outside/model.safetensors"},
)


@cache
def whole() -> dict[str, bytes]:
    """A folder that says nothing but the end of the text."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    tokenizer = Tokenizer(models.BPE({c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    torch.manual_seed(0)
    config = WhisperConfig(
        **{**WHISPER, **{name: GENERATION[name] for name in GENERATION if name.endswith("_token_id")}}
    )
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        embeddings = model.model.decoder.embed_tokens.weight.zero_()
        embeddings[END, 0] = model.model.decoder.layer_norm.bias[0] = 1
    model.generation_config = GenerationConfig(**GENERATION)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        WhisperProcessor(WhisperFeatureExtractor(), WhisperTokenizer(tokenizer_object=tokenizer)).save_pretrained(
            folder
        )
        found = {item.name: item.read_bytes() for item in Path(folder).iterdir()}
    return found | {"code.py": CODE, "pytorch_model.bin": b"\x80\x04cos\nsystem\n.", "adapter_config.json": b"{}"}


def configs() -> list[bytes]:
    config = json.loads(whole()["config.json"])
    return [whole()["config.json"], *(json.dumps({**config, **more}).encode() for more in DIVERTING)]


def generations() -> list[bytes]:
    more = {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 9, "custom_generate": "somebody/code"}
    return [whole()["generation_config.json"], json.dumps({**GENERATION, **more}).encode()]


def tokenizer_configs() -> list[bytes]:
    settings = json.loads(whole()["tokenizer_config.json"])
    return [json.dumps(settings).encode(), json.dumps({**settings, **DIVERTING[0]}).encode()]


def processors() -> list[bytes]:
    return [
        whole()["processor_config.json"],
        json.dumps({"feature_size": 80, "n_fft": 400, "chunk_length": 30}).encode(),
    ]


def safetensors_header(data: bytes) -> Sequence[int]:
    """Its length, and each name and number."""
    (length,) = struct.unpack_from("<Q", data)
    return range(min(len(data), 8 + length))


def shards() -> list[bytes]:
    names = (name for name in json.loads(whole()[weights.WEIGHTS_FILE][8:].split(b"}}", 1)[0] + b"}}"))
    return [
        json.dumps(
            {"metadata": {}, "weight_map": dict.fromkeys((n for n in names if n[0] != "_"), "w.safetensors")}
        ).encode()
    ]


def loaded(data: bytes, folder: Path, *, name: str) -> Path:
    """The step of the base weights; its folder."""
    files = whole() | {name: data}
    if name == weights.INDEX_FILE:
        files["w.safetensors"] = files.pop(weights.WEIGHTS_FILE)
    put(folder / "base", files)
    step = work(folder)
    json.dumps(weights.run(weights.Spec(base=str(folder / "base")), {}, step))
    return step.path / "model"


def read_trained(data: bytes, folder: Path, *, name: str) -> None:
    """What a training loads, and hears between its steps."""
    import torch

    base = loaded(data, folder, name=name)
    training = whisper.Training()
    examples.text_context(base)
    processor = whisper.read_processor(base)
    examples.Renderer(processor, language=whisper.LANGUAGE)
    processor.tokenizer(["привет, мир"], add_special_tokens=False)
    model = whisper._model(base, training).train()
    labels = torch.tensor([[*IDS.values()]])
    model(input_features=torch.zeros(1, 80, 3000), labels=labels).loss.backward()
    recogniser = transformers.load(base, device="cpu", threads=1, language="ru")
    heard = clocked(recogniser, np.zeros(16_000, np.float32), name="a")
    if heard.error:
        raise ExportError(heard.error)


def read_exported(data: bytes, folder: Path, *, name: str) -> None:
    base = loaded(data, folder, name=name)
    (folder / "export").mkdir()
    whisper_onnx.run(whisper_onnx.Spec(), {"model": [artifact(base.parent)]}, work(folder / "export"))


NAMES = {
    "config": ("config.json", configs, 0.5),
    "generation": ("generation_config.json", generations, 0.5),
    "tokenizer": ("tokenizer.json", lambda: [whole()["tokenizer.json"]], 0.5),
    "tokenizer-config": ("tokenizer_config.json", tokenizer_configs, 0.5),
    "processor": ("processor_config.json", processors, 0.3),
    "index": (weights.INDEX_FILE, shards, 0.3),
}
TARGETS = (
    *(
        Target(f"checkpoint-{kind}", seeds, partial(read_trained, name=name), weight=weight, is_quick=False)
        for kind, (name, seeds, weight) in NAMES.items()
    ),
    Target(
        "checkpoint-weights",
        lambda: [whole()[weights.WEIGHTS_FILE]],
        partial(read_trained, name=weights.WEIGHTS_FILE),
        weight=0.5,
        places=safetensors_header,
        is_quick=False,
    ),
    Target("checkpoint-export", configs, partial(read_exported, name="config.json"), weight=0.2, is_quick=False),
    Target(
        "checkpoint-export-tokenizer",
        NAMES["tokenizer"][1],
        partial(read_exported, name="tokenizer.json"),
        weight=0.2,
        is_quick=False,
    ),
)
