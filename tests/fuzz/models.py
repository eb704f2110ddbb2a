"""Checkpoints, exports and base weights, as `harness run`, `install` and `bench` load them."""

from __future__ import annotations

import json
import struct
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from harness.core.artifact import Work
from harness.core.nemo_file import check_config, check_nemo, restore
from harness.export import whisper_ggml
from harness.export.checkpoint import Checkpoint
from harness.promote import fitness, smoke
from harness.promote.bundle import encode_wav
from harness.promote.manifest import Manifest
from harness.train import weights
from tests.conftest import artifact
from tests.fuzz.checksums import mend_tar, mend_zip
from tests.fuzz.corpora import headers, put, tar
from tests.fuzz.target import Target
from tests.ggmls import BLANK, MELS, SERVING, TEXT_TOKENS, said, tensors, write_ggml

if TYPE_CHECKING:
    from collections.abc import Sequence

SILENCE = encode_wav(np.zeros(16_000, np.float32))
VOCABULARY = 16


def work(folder: Path) -> Work:
    found = Work(path=folder / "out", scratch=folder / "scratch")
    found.path.mkdir()
    found.scratch.mkdir()
    return found


def manifest(kind: str, **changes: Any) -> Manifest:
    listed = {name: {"sha256": "0" * 64, "size": 1} for name in ("model", "smoke.wav")}
    content = {"schema": 2, "name": "tiny", "export_kind": kind, "files": listed, "model": ["model"]}
    return Manifest.model_validate({**content, "smoke": {"audio": "smoke.wav", "text": said(1000)}, **changes})


def heard(payload: Path, folder: Path, told: Manifest) -> None:
    """The model is tried out, as before it is installed."""
    (folder / "smoke.wav").write_bytes(SILENCE)
    smoke.listen(payload, manifest=told, clip=folder / "smoke.wav")


# ggml


@cache
def ggml() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return [write_ggml(Path(folder, "tiny.bin")).read_bytes()]


def ggml_places(data: bytes) -> list[int]:
    """The header, the first and last tokens, and what stands before each tensor."""
    place = 4 + 4 * 11 + 8 + MELS * 201 * 4
    found = [*range(0, 56, 4), place]
    place += 4
    for number in range(TEXT_TOKENS):
        if number < 3 or number == BLANK:
            found += [place, place + 4]
        (length,) = struct.unpack_from("<i", data, place)
        place += 4 + length
    for name, shape, is_half in tensors(MELS):
        found += [place, place + 4, place + 8, place + 12, place + 12 + 4 * len(shape)]
        place += 12 + 4 * len(shape) + len(name) + int(np.prod(shape)) * (2 if is_half else 4)
    return [*found, len(data) - 2]


def read_ggml(data: bytes, folder: Path) -> None:
    path = folder / "ggml-model.bin"
    path.write_bytes(data)
    fitness.read_ggml_header(path, name="tiny")
    heard(path, folder, manifest("whisper_ggml", serving={**SERVING, "device": "cpu"}))


# ONNX


@cache
def onnx_graphs() -> list[bytes]:
    """A CTC model of one matrix, as onnx-asr loads those of NeMo; the second wants its weights from another file."""
    from onnx import TensorProto, external_data_helper, helper, numpy_helper

    rng = np.random.default_rng(0)
    matrix = numpy_helper.from_array(rng.normal(size=(80, VOCABULARY)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Transpose", ["audio_signal"], ["frames"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["frames", "w"], ["scores"]),
        helper.make_node("LogSoftmax", ["scores"], ["logprobs"], axis=-1),
    ]
    inputs = [
        helper.make_tensor_value_info("audio_signal", TensorProto.FLOAT, ["b", 80, "t"]),
        helper.make_tensor_value_info("length", TensorProto.INT64, ["b"]),
    ]
    outputs = [helper.make_tensor_value_info("logprobs", TensorProto.FLOAT, ["b", "t", VOCABULARY])]
    graph = helper.make_graph(nodes, "ctc", inputs, outputs, [matrix])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    inside = model.SerializeToString()
    external_data_helper.set_external_data(model.graph.initializer[0], "model.onnx.data", 0, 80 * VOCABULARY * 4)
    model.graph.initializer[0].ClearField("raw_data")
    return [inside, model.SerializeToString()]


def vocabularies() -> list[bytes]:
    return ["".join(f"{piece} {n}\n" for n, piece in enumerate([*"▁абвгдежзиклмно", "<blk>"])).encode()]


def onnx_configs() -> list[bytes]:
    return [json.dumps({"model_type": "nemo-conformer-ctc", "features_size": 80, "subsampling_factor": 8}).encode()]


def read_onnx(data: bytes, folder: Path, *, name: str) -> None:
    files = {"model.onnx": onnx_graphs()[0], "model.onnx.data": bytes(80 * VOCABULARY * 4)}
    files |= {"vocab.txt": vocabularies()[0], "config.json": onnx_configs()[0], name: data}
    put(folder / "model", files)
    heard(
        folder / "model",
        folder,
        manifest("parakeet_onnx", onnx_asr={"type": "nemo-conformer-ctc"}, serving={"kind": "onnx"}),
    )


def added_tokens() -> list[bytes]:
    return [json.dumps({"<|ru|>": 50263, "<|en|>": 50259, "<|startoftranscript|>": 50258}).encode()]


def read_added_tokens(data: bytes, folder: Path) -> None:
    """Of a Whisper whose graphs are missing: the tokens are read first."""
    put(folder / "model", {"added_tokens.json": data})
    heard(folder / "model", folder, manifest("whisper_onnx", serving={"kind": "onnx"}))


# NeMo


WEIGHTS = b"PK\x03\x04 and so on"
CONFIG: dict[str, Any] = {
    "target": "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel",
    "tokenizer": {"type": "bpe", "dir": "/home/a/tok", "model_path": "nemo:1_t.model", "vocab_path": "nemo:1_v.txt"},
    "preprocessor": {"_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor", "features": 128},
    "rate": "${preprocessor.features}",
    "optim": {"name": "adamw", "betas": [0.9, 0.98]},
}


def nemo_files() -> list[bytes]:
    config = yaml.safe_dump(CONFIG).encode()
    files = {"./model_config.yaml": config, "./model_weights.ckpt": WEIGHTS, "./1_t.model": b"t", "./1_v.txt": b"v"}
    return [tar(files), tar({name.removeprefix("./"): content for name, content in files.items()})]


def read_nemo(data: bytes, folder: Path) -> None:
    (folder / "m.nemo").write_bytes(data)
    check_nemo(folder / "m.nemo")


def nemo_configs() -> list[bytes]:
    return [yaml.safe_dump({**CONFIG, "tokenizer": None, "labels": ["а"]}).encode(), yaml.safe_dump(CONFIG).encode()]


def read_nemo_config(data: bytes, folder: Path) -> None:
    (folder / "m.yaml").write_bytes(data)
    read_nemo(tar({"model_config.yaml": data, "model_weights.ckpt": WEIGHTS, "1_t.model": b"", "1_v.txt": b""}), folder)
    check_config(folder / "m.yaml")


@cache
def parakeets() -> list[bytes]:
    from tests.parakeets import build_parakeet

    with tempfile.TemporaryDirectory() as folder:
        return [build_parakeet(Path(folder), layers=1).read_bytes()]


def mend_nemo(data: bytes) -> bytes:
    return mend_tar(mend_zip(data))


def read_parakeet(data: bytes, folder: Path) -> None:
    (folder / "m.nemo").write_bytes(data)
    restore(folder / "m.nemo")


# Base weights

WHISPER = {
    "model_type": "whisper", "vocab_size": 51_865, "num_mel_bins": 80, "d_model": 8, "encoder_layers": 1,
    "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "max_source_positions": 1500, "max_target_positions": 448, "activation_function": "gelu",
}  # fmt: skip


def base_configs() -> list[bytes]:
    return [json.dumps(WHISPER, indent=1).encode()]


@cache
def base_weights() -> list[bytes]:
    from safetensors.numpy import save

    return [
        save({"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float16)}, {"format": "pt"}),
        save({"model.encoder.conv1.weight": np.ones((1, 2, 3), np.float32), "empty": np.zeros((0, 4), np.float32)}),
    ]


def base_indices() -> list[bytes]:
    names = {"a": "model-00001-of-00002.safetensors", "model.encoder.conv1.weight": "model-00002-of-00002.safetensors"}
    return [json.dumps({"metadata": {"total_size": 60}, "weight_map": names}).encode()]


def read_base(data: bytes, folder: Path, *, name: str) -> None:
    # Without sizes, any weights go with it.
    files = {"config.json": b'{"model_type": "whisper"}', "tokenizer.json": b"{}"}
    if name == "config.json":
        files |= whisper()
    elif name == weights.INDEX_FILE:
        files |= {f"model-0000{n}-of-00002.safetensors": content for n, content in enumerate(base_weights(), start=1)}
    else:
        files[weights.WEIGHTS_FILE] = base_weights()[0]
    put(folder / "base", {**files, name: data})
    found = work(folder)
    meta = weights.run(weights.Spec(base=str(folder / "base")), {}, found)
    json.dumps(meta)
    with Checkpoint(found.path / "model") as checkpoint:
        for tensor in sorted(checkpoint.names()):
            checkpoint.read(tensor)


@cache
def whisper() -> dict[str, bytes]:
    """A folder that `whisper_ggml` takes, without its tokenizer."""
    from safetensors.numpy import save

    shapes = {name: shape for name, _, shape in whisper_ggml._tensors(WHISPER)}
    arrays = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    return {"config.json": base_configs()[0], weights.WEIGHTS_FILE: save(arrays)}


@cache
def tokenizers() -> list[bytes]:
    characters = sorted(whisper_ggml.BYTE_OF)
    names = [*characters, *(one + two for one in characters for two in characters)][:TEXT_TOKENS]
    added = [{"id": TEXT_TOKENS, "content": "<|endoftext|>"}]
    model = {"type": "BPE", "vocab": {name: number for number, name in enumerate(names)}}
    return [json.dumps({"added_tokens": added, "model": model}).encode()]


def read_whisper(data: bytes, folder: Path, *, name: str) -> None:
    """What was trained is exported."""
    put(folder / "in" / "model", {**whisper(), "tokenizer.json": tokenizers()[0], name: data})
    whisper_ggml.run(whisper_ggml.Spec(), {"model": [artifact(folder / "in")]}, work(folder))


def start(data: bytes) -> Sequence[int]:
    return range(min(len(data), 400))


TARGETS = (
    Target("ggml", ggml, read_ggml, weight=0.8, places=ggml_places),
    Target("onnx-graph", onnx_graphs, partial(read_onnx, name="model.onnx"), weight=1.5),
    Target("onnx-vocabulary", vocabularies, partial(read_onnx, name="vocab.txt"), weight=0.4),
    Target("onnx-config", onnx_configs, partial(read_onnx, name="config.json"), weight=0.4),
    Target("onnx-tokens", added_tokens, read_added_tokens, weight=0.3, refuses_seeds=True),
    Target("nemo", nemo_files, read_nemo, weight=1.5, mend=mend_tar, places=headers),
    Target("nemo-config", nemo_configs, read_nemo_config, weight=1.5),
    Target("nemo-weights", parakeets, read_parakeet, weight=0.15, mend=mend_nemo, is_quick=False),
    Target("base-config", base_configs, partial(read_base, name="config.json"), weight=0.7),
    Target("base-weights", base_weights, partial(read_base, name=weights.WEIGHTS_FILE), weight=1.0, places=start),
    Target("base-index", base_indices, partial(read_base, name=weights.INDEX_FILE), weight=0.7),
    Target("whisper-config", base_configs, partial(read_whisper, name="config.json"), weight=0.3),
    Target("whisper-tokenizer", tokenizers, partial(read_whisper, name="tokenizer.json"), weight=0.3),
)
