"""Whisper as ONNX with a key-value cache, in the layout that onnx-asr and transformers.js load.

A folder with `encoder_model.onnx`, `decoder_model_merged.onnx` (each with a `.onnx_data` beside it where weights
pass protobuf's 2 GB), the model's `config.json`, and the vocabulary as `vocab.json` and `added_tokens.json`. In fp16
and int8 the graphs are called `encoder_model_fp16.onnx`, `encoder_model_int8.onnx` and so on.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from harness.core.artifact import Resources
from harness.core.whisper_folder import read_model
from harness.errors import ExportError
from harness.export.checkpoint import read_json
from harness.export.onnx_graph import OPSET, Precision
from harness.suite.spec import ExportSpec, OneOrMore

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    from harness.core.artifact import Inputs, Work
    from harness.export.whisper_graph import Shape

VERSION = 1
RESOURCES = Resources(whole_machine=True)

ENCODER, DECODER = "encoder_model", "decoder_model_merged"
REQUIRED = ("config.json", "tokenizer.json", "generation_config.json")
COPIED = (
    *REQUIRED,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json",
)

LIMITS: dict[Precision, tuple[str, float]] = {
    "fp32": ("max_logit_difference", 0.01),
    "fp16": ("logit_error", 0.05),
    "int8": ("logit_error", 0.5),
}
"""What may differ from torch, and by how much. Logits span about ±30: float32 rounds them by 1e-4 on base, a wrong
graph by more than 1. The relative error is 0.0008 in fp16 and 0.13 in int8 on base, and above 1 for a wrong graph."""
NUM_CHECKED_STEPS = 8
SEED = 17


class Spec(ExportSpec):
    """ONNX in float32, in float16, or with weights in 8 bits: a half or a quarter of the size."""

    kind: Literal["whisper_onnx"] = "whisper_onnx"
    accepts: ClassVar[tuple[str, ...]] = ("whisper",)

    quantize: Annotated[Precision, OneOrMore()] = Field(
        default="fp32",
        description="fp16 is for GPUs: CPUs compute it in float32, and slower. int8 is for CPUs.",
    )

    @property
    def label(self) -> str:
        return f"onnx-{self.quantize}"


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Write `inputs["model"]`, a Hugging Face folder `model/`, as ONNX, and compare it with torch.

    meta: opset, quantize, size_bytes, files, onnx_asr (how it loads the folder), and by how much the logits of
    `num_checked_steps` steps differ from torch's: max_logit_difference, logit_error (relative), num_same_tokens.
    Raises ExportError for a folder that is no Whisper, or an export whose logits differ from torch's.
    """
    source = inputs["model"][0].path / "model"
    work.progress(0, 4, "loading the checkpoint")
    model = _load(source)
    work.progress(1, 4, "writing the graphs")
    _write_graphs(model, work.path, precision=spec.quantize)
    _write_vocabulary(source, work.path)
    work.progress(2, 4, "running torch")
    prompt, features = [_start(model.config)], _sample(model.config)
    tokens, expected = _torch_logits(model, features, prompt)
    del model  # A large model and its export need not be in memory at once.
    work.progress(3, 4, "running ONNX")
    found = _onnx_logits(work.path, features, tokens, len(prompt), precision=spec.quantize)
    difference = _difference(found, expected)
    _judge(difference, precision=spec.quantize, source=source)
    files = sorted(path.name for path in work.path.iterdir())
    work.progress(4, 4, "done")
    return {
        "opset": OPSET,
        "quantize": spec.quantize,
        "size_bytes": sum((work.path / name).stat().st_size for name in files),
        "files": files,
        "onnx_asr": {"type": "whisper", "quantization": None if spec.quantize == "fp32" else spec.quantize},
        **difference,
        "num_checked_steps": NUM_CHECKED_STEPS,
    }


def _difference(found: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    """Of logits [steps, vocab_size]. What is added to all logits of a step changes nothing, and does not count."""
    import numpy as np

    centred = expected - expected.mean(axis=1, keepdims=True)
    error = found - found.mean(axis=1, keepdims=True) - centred
    return {
        "max_logit_difference": float(np.abs(found - expected).max()),
        "logit_error": float(np.linalg.norm(error) / np.linalg.norm(centred)),
        "num_same_tokens": int((found.argmax(axis=1) == expected.argmax(axis=1)).sum()),
    }


def _judge(difference: dict[str, Any], *, precision: Precision, source: Path) -> None:
    """Raise ExportError for an export that is not the model. Written so that a NaN does not pass."""
    name, limit = LIMITS[precision]
    if not difference[name] <= limit:
        raise ExportError(
            f"{source}: the {precision} export's logits differ from torch's: {name} is {difference[name]:.3g}, the "
            f"limit is {limit}; look for NaN, infinite or very large weights in the checkpoint, and report it if there "
            "are none"
        )


def _name(graph: str, precision: Precision) -> str:
    """The file of a graph, as onnx-asr and transformers.js look for it."""
    return f"{graph}.onnx" if precision == "fp32" else f"{graph}_{precision}.onnx"


def _load(source: Path) -> WhisperForConditionalGeneration:
    """The checkpoint in float32, whatever it was saved in."""
    missing = [name for name in REQUIRED if not (source / name).is_file()]
    if missing:
        raise ExportError(f"{source}: no {', '.join(missing)}; a Hugging Face folder of a Whisper model has them")
    config = read_json(source / "config.json")
    for name, wanted in (("model_type", "whisper"), ("activation_function", "gelu")):
        if config.get(name) != wanted:
            raise ExportError(f"{source / 'config.json'}: {name} is {config.get(name)!r}, only {wanted!r} is exported")
    return read_model(source).eval()


def _write_graphs(model: WhisperForConditionalGeneration, folder: Path, *, precision: Precision) -> None:
    from harness.export.whisper_graph import PROJECTION, write_decoder, write_encoder

    parameters = model.state_dict()
    if model.config.tie_word_embeddings:
        parameters.pop(PROJECTION, None)  # The same tensor as the embeddings.
    tensors = {name: tensor.numpy() for name, tensor in parameters.items()}
    shape = _shape(model.config)
    write_encoder(folder / _name(ENCODER, precision), tensors=tensors, shape=shape, precision=precision)
    write_decoder(folder / _name(DECODER, precision), tensors=tensors, shape=shape, precision=precision)


def _shape(config: WhisperConfig) -> Shape:
    from dataclasses import fields

    from harness.export.whisper_graph import Shape

    return Shape(**{field.name: getattr(config, field.name) for field in fields(Shape)})


def _write_vocabulary(source: Path, folder: Path) -> None:
    """The files beside the graphs; `vocab.json` and `added_tokens.json` come out of `tokenizer.json`."""
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    path = source / "tokenizer.json"
    tokenizer = read_json(path)
    try:
        vocabulary = tokenizer["model"]["vocab"]
        tokens = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
        added = {text: number for text, number in tokens.items() if text not in vocabulary}
    except (KeyError, TypeError) as error:
        raise ExportError(f"{path}: is no tokenizer ({error!r}); take the base model's") from error
    for name, tokens in (("vocab.json", vocabulary), ("added_tokens.json", added)):
        (folder / name).write_text(json.dumps(tokens, ensure_ascii=False), encoding="utf-8")


def _start(config: WhisperConfig) -> int:
    return int(config.decoder_start_token_id)


def _sample(config: WhisperConfig) -> np.ndarray:
    """Noise in the range of log-mel features, float32 [1, num_mel_bins, frames]."""
    import numpy as np

    shape = (1, config.num_mel_bins, 2 * config.max_source_positions)
    return np.random.default_rng(SEED).uniform(-1, 1, shape).astype(np.float32)


def _torch_logits(
    model: WhisperForConditionalGeneration, features: np.ndarray, prompt: list[int]
) -> tuple[list[int], np.ndarray]:
    """Torch's greedy tokens after `prompt`, and the logits that led to each: float32 [steps, vocab_size]."""
    import torch

    tokens, rows, past, encoded = list(prompt), [], None, None
    with torch.inference_mode():
        encoded = model.model.encoder(torch.from_numpy(features))
        for _ in range(NUM_CHECKED_STEPS):
            new = tokens if past is None else tokens[-1:]
            output = model(
                decoder_input_ids=torch.tensor([new]), encoder_outputs=encoded, past_key_values=past, use_cache=True
            )
            past = output.past_key_values
            rows.append(output.logits[0, -1])
            tokens.append(int(rows[-1].argmax()))
    return tokens, torch.stack(rows).numpy()


def _onnx_logits(
    folder: Path, features: np.ndarray, tokens: list[int], num_prompt: int, *, precision: Precision
) -> np.ndarray:
    """The export's logits for torch's tokens, step by step through its cache: float32 [steps, vocab_size]."""
    import numpy as np
    import onnxruntime

    def session(graph: str) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(folder / _name(graph, precision), providers=["CPUExecutionProvider"])

    (encoded,) = session(ENCODER).run(["last_hidden_state"], {"input_features": features})
    decoder = session(DECODER)
    names = [item.name for item in decoder.get_outputs()]
    past = {
        item.name: np.zeros((0, item.shape[1], 0, item.shape[3]), np.float32)
        for item in decoder.get_inputs()
        if item.name.startswith("past_key_values.")
    }
    rows = []
    for end in range(num_prompt, num_prompt + NUM_CHECKED_STEPS):
        cached = end > num_prompt
        ids = np.array([tokens[end - 1 : end] if cached else tokens[:end]], np.int64)
        feed = {"input_ids": ids, "encoder_hidden_states": encoded, "use_cache_branch": np.array([cached]), **past}
        outputs = dict(zip(names, decoder.run(names, feed), strict=True))
        rows.append(outputs["logits"][0, -1])
        fresh = {name: outputs[name.replace("past_key_values", "present")] for name in past}
        past |= {name: present for name, present in fresh.items() if len(present)}
    return np.stack(rows)
