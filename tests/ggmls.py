"""Whispers that say five words whatever they hear, as ggml files that whisper.cpp runs; and bundles around them.

They are made without torch in a moment: a decoder whose layers are zero turns each position into the word that its
positional embedding points to.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from harness.board.devices import model_digest
from harness.core.artifact import Artifact
from harness.core.files import file_sha256 as sha256
from harness.export.mel import filter_bank
from harness.promote.bundle import Clip, Content, encode_wav, write_bundle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WIDTH, VOCABULARY, TEXT_TOKENS, MELS = 64, 51865, 50257, 80
NUM_WORDS, PROMPT, END = 5, 3, 50257
"""The first word is the answer to the prompt's last token; after the last one comes the end of the text."""
BLANK = 220
"""GPT-2's number of the space alone, which whisper.cpp looks up by its text."""
SERVING = {"kind": "whispercpp", "device": "auto", "threads": 0, "language": "ru", "beam_size": 1}


def said(first: int) -> str:
    """What `write_ggml(…, first=…)` says."""
    return " ".join(f"w{number}" for number in range(first, first + NUM_WORDS))


def write_ggml(path: Path, *, first: int = 1000, num_mels: int = MELS) -> Path:
    """One layer on each side, 64 wide. first: the number of its first word."""
    given = pointing(first)
    header = (VOCABULARY, 1500, WIDTH, 1, 1, 448, WIDTH, 1, 1, num_mels, 1)
    filters = filter_bank(num_mels)
    with path.open("wb") as file:
        file.write(struct.pack("<I11i2i", 0x67676D6C, *header, *filters.shape))
        file.write(filters.astype("<f4").tobytes())
        file.write(struct.pack("<i", TEXT_TOKENS))
        for number in range(TEXT_TOKENS):
            token = b" w%d" % number if number != BLANK else b" "
            file.write(struct.pack("<i", len(token)) + token)
        for name, shape, is_half in tensors(num_mels):
            values = given.get(name, np.zeros(shape)).astype("<f2" if is_half else "<f4")
            encoded = name.encode()
            file.write(struct.pack("<iii", len(shape), len(encoded), int(is_half)))
            file.write(struct.pack(f"<{len(shape)}i", *reversed(shape)) + encoded + values.tobytes())
    return path


def pointing(first: int) -> dict[str, np.ndarray]:
    """The tensors that are not zero: each position to its word, what follows to the end of the text."""
    positions, embedding = np.zeros((448, WIDTH)), np.zeros((VOCABULARY, WIDTH))
    positions[:, -1] = 100
    embedding[END, -1] = 10
    for number in range(NUM_WORDS):
        positions[PROMPT + number] = np.eye(WIDTH)[number] * 100
        embedding[first + number, number] = 10
    return {
        "decoder.positional_embedding": positions,
        "decoder.token_embedding.weight": embedding,
        "decoder.ln.weight": np.ones(WIDTH),
    }


def tensors(num_mels: int) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Name, shape, and whether it is float16."""
    for side in ("encoder", "decoder"):
        yield f"{side}.positional_embedding", (1500 if side == "encoder" else 448, WIDTH), False
        if side == "encoder":
            for conv, channels in (("conv1", num_mels), ("conv2", WIDTH)):
                yield f"encoder.{conv}.weight", (WIDTH, channels, 3), True
                yield f"encoder.{conv}.bias", (WIDTH, 1), False
        else:
            yield "decoder.token_embedding.weight", (VOCABULARY, WIDTH), True
        for attention in ("attn",) if side == "encoder" else ("attn", "cross_attn"):
            for part in ("query", "key", "value", "out"):
                yield f"{side}.blocks.0.{attention}.{part}.weight", (WIDTH, WIDTH), True
                if part != "key":
                    yield f"{side}.blocks.0.{attention}.{part}.bias", (WIDTH,), False
            yield from norm(f"{side}.blocks.0.{attention}_ln")
        for layer, rows, columns in (("mlp.0", 4 * WIDTH, WIDTH), ("mlp.2", WIDTH, 4 * WIDTH)):
            yield f"{side}.blocks.0.{layer}.weight", (rows, columns), True
            yield f"{side}.blocks.0.{layer}.bias", (rows,), False
        yield from norm(f"{side}.blocks.0.mlp_ln")
        yield from norm(f"{side}.ln_post" if side == "encoder" else f"{side}.ln")


def norm(name: str) -> Iterator[tuple[str, tuple[int, ...], bool]]:
    for part in ("weight", "bias"):
        yield f"{name}.{part}", (WIDTH,), False


def content(folder: Path, files: dict[str, bytes], *, kind: str = "whisper_ggml", **changes: object) -> Content:
    """What a bundle of these files says; the model claims to have heard `said(1000)`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    hashes = {name: sha256(folder / name) for name in files}
    meta = changes.pop("meta", {})
    given = {
        "name": "tiny_tuned_ggml-f16",
        "export": Artifact("0" * 64, "export", folder, hashes, meta),
        "export_kind": kind,
        "lines": [],
        "suite": "tiny",
        "suite_sha256": model_digest(hashes),
        "base": "openai/whisper-base",
        "licences": {"base model openai/whisper-base": "mit"},
        "runtime": "whisper.cpp",
        "decoding": {"language": "ru"},
        "serving": SERVING,
        "smoke": Clip(encode_wav(np.zeros(16_000, np.float32)), said(1000), said(1000)),
    }
    return Content(**{**given, **changes})


def bundle(folder: Path, model: bytes, **changes: object) -> Path:
    """The folder of a bundle in `folder` whose model is one file."""
    return write_bundle(content(folder / "export", {"ggml-model.bin": model}, **changes), folder=folder)


def parakeet(folder: Path, *, mels: int = 128, **changes: object) -> Path:
    """The folder of a bundle with the files that parakeet-rs looks for."""
    files = {
        "encoder-model.onnx": b"encoder" + str(folder).encode(),
        "encoder-model.onnx.data": b"weights",
        "decoder_joint-model.onnx": b"decoder",
        "vocab.txt": b"<blk> 0\n",
        "config.json": b'{"model_type": "nemo-conformer-tdt", "features_size": %d}' % mels,
    }
    served = {"onnx_asr": {"type": "nemo-conformer-tdt", "quantization": None}}
    made = content(folder / "export", files, kind="parakeet_onnx", serving={"kind": "onnx"}, meta=served, **changes)
    return write_bundle(made, folder=folder)
