"""Whisper as the ggml file that whisper.cpp and whisper-rs load.

Layout (little endian): magic; 11 int32 of sizes; the mel filter bank; the vocabulary as bytes; the tensors.
Source: `whisper_model_load` in whisper.cpp, and its `models/convert-pt-to-ggml.py`, whose names OpenAI chose.
Unlike `models/convert-h5-to-ggml.py`, what is stored as float32 is not rounded to float16 on the way, and neither is
what is quantised: whisper.cpp's `quantize` starts from the float16 file. Which tensors stay as they are, is its choice.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, ClassVar, Literal

from pydantic import Field

from harness.core.ggml_file import MAGIC, most
from harness.errors import ExportError
from harness.export.checkpoint import Checkpoint, read_json
from harness.export.ggml_types import TYPES, Kind, encode
from harness.export.mel import filter_bank
from harness.suite.spec import ExportSpec, OneOrMore

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from harness.core.artifact import Inputs, Work

VERSION = 1

MODEL_FILE = "ggml-model.bin"
VOCABULARIES = {51864: 50256, 51865: 50257, 51866: 50257}
"""Tokens of the model → text tokens of the file, of OpenAI's three vocabularies: English, multilingual, large-v3.
whisper.cpp derives the number of languages and all special tokens from the first."""
ALWAYS_F32 = ("encoder.positional_embedding", "decoder.positional_embedding")
AS_COLUMN = ("encoder.conv1.bias", "encoder.conv2.bias")
"""whisper.cpp adds them to [channels, frames], so they are stored as [channels, 1]."""

# GPT-2 writes each byte of a token as one visible character: itself where it is visible, and the others, in order,
# from U+0100 on. Source: `bytes_to_unicode` of GPT-2's encoder.py, read backwards.
_VISIBLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_HIDDEN = (byte for byte in range(0x100) if byte not in _VISIBLE)
BYTE_OF = {chr(byte): byte for byte in _VISIBLE} | {chr(0x100 + n): byte for n, byte in enumerate(_HIDDEN)}


class Spec(ExportSpec):
    """One ggml file for whisper.cpp: f16 for a GPU, q8_0 (half of it) or q5_0 (a third of it) for small machines."""

    kind: Literal["whisper_ggml"] = "whisper_ggml"
    accepts: ClassVar[tuple[str, ...]] = ("whisper",)

    quantize: Annotated[Kind, OneOrMore()] = Field(
        default="f16", description="f32 runs on a GPU only: on a CPU whisper.cpp convolves in float16."
    )

    @property
    def label(self) -> str:
        return f"ggml-{self.quantize}"


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Write `inputs["model"]`, a Hugging Face folder `model/`, as `ggml-model.bin`.

    meta: files, size_bytes, quantize, num_tensors, num_parameters, num_mels, vocab_size.
    Raises ExportError for a folder that is no Whisper, or one that whisper.cpp could not load.
    """
    source = inputs["model"][0].path / "model"
    config = _config(source / "config.json")
    tokens = _tokens(source / "tokenizer.json", config=config)
    path = work.path / MODEL_FILE
    with Checkpoint(source) as checkpoint, path.open("wb") as file:
        table = list(_tensors(config))
        _check(checkpoint, config=config, known={name for name, _, _ in table})
        _write_header(file, config=config, tokens=tokens, quantize=spec.quantize)
        num_parameters = 0
        for number, (name, target, shape) in enumerate(table, start=1):
            values = _read(checkpoint, name, shape=shape)
            num_parameters += values.size
            _write_tensor(file, target, values, quantize=spec.quantize)
            work.progress(number, len(table), target)
    return {
        "files": [MODEL_FILE],
        "size_bytes": path.stat().st_size,
        "quantize": spec.quantize,
        "num_tensors": len(table),
        "num_parameters": num_parameters,
        "num_mels": config["num_mel_bins"],
        "vocab_size": config["vocab_size"],
    }


SIZES = (
    "vocab_size",
    "max_source_positions",
    "d_model",
    "encoder_attention_heads",
    "encoder_layers",
    "max_target_positions",
    "d_model",
    "decoder_attention_heads",
    "decoder_layers",
    "num_mel_bins",
)
"""The header's int32, in order, before the type: whisper.cpp's n_vocab, n_audio_ctx … n_mels."""


def _config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if config.get("model_type") != "whisper":
        raise ExportError(f"{path}: model_type is {config.get('model_type')!r}; whisper_ggml writes only 'whisper'")
    for name in (*SIZES, "encoder_ffn_dim", "decoder_ffn_dim"):
        if not isinstance(config.get(name), int) or not 0 < config[name] <= most(name):
            raise ExportError(f"{path}: {name} is {config.get(name)!r}, expected a whole number from 1 to {most(name)}")
    width = config["d_model"]
    expected = {
        "activation_function": "gelu",
        "scale_embedding": False,
        "encoder_ffn_dim": 4 * width,
        "decoder_ffn_dim": 4 * width,
    }
    wrong = [
        f"{name} is {config[name]!r}, not {value!r}"
        for name, value in expected.items()
        if config.get(name, value) != value
    ]
    if wrong:
        raise ExportError(f"{path}: whisper.cpp computes Whisper as OpenAI built it, but {'; '.join(wrong)}")
    if config["vocab_size"] not in VOCABULARIES:
        raise ExportError(
            f"{path}: vocab_size is {config['vocab_size']}, whisper.cpp knows only {sorted(VOCABULARIES)}: from it "
            "come languages and special tokens; train with the base model's own vocabulary"
        )
    return config


def _tokens(path: Path, *, config: Mapping[str, Any]) -> list[bytes]:
    """Read the text tokens in order of their ids, as bytes; whisper.cpp makes up the special ones itself."""
    tokenizer = read_json(path)
    try:
        special = {token["content"] for token in tokenizer.get("added_tokens", [])}
        ids = {text: number for text, number in tokenizer["model"]["vocab"].items() if text not in special}
        numbers = sorted(ids.values())
    except (KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path}: is no tokenizer ({error!r}); take the base model's") from error
    expected = VOCABULARIES[config["vocab_size"]]
    if numbers != list(range(expected)):
        raise ExportError(
            f"{path}: {len(ids)} text tokens, but a model of {config['vocab_size']} tokens has the ids 0 to "
            f"{expected - 1}; take the base model's tokenizer"
        )
    try:
        return [bytes(BYTE_OF[character] for character in text) for text in sorted(ids, key=ids.__getitem__)]
    except KeyError as error:
        raise ExportError(f"{path}: {error} stands for no byte; this is no byte-level BPE of GPT-2's kind") from error


def _tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield each tensor's name here, its name in ggml, and its shape."""
    width, mels = config["d_model"], config["num_mel_bins"]
    for side, blocks, positions in (
        ("encoder", config["encoder_layers"], config["max_source_positions"]),
        ("decoder", config["decoder_layers"], config["max_target_positions"]),
    ):
        yield f"model.{side}.embed_positions.weight", f"{side}.positional_embedding", (positions, width)
        if side == "encoder":
            for conv, channels in (("conv1", mels), ("conv2", width)):
                yield f"model.encoder.{conv}.weight", f"encoder.{conv}.weight", (width, channels, 3)
                yield f"model.encoder.{conv}.bias", f"encoder.{conv}.bias", (width,)
        else:
            yield "model.decoder.embed_tokens.weight", "decoder.token_embedding.weight", (config["vocab_size"], width)
        for number in range(blocks):
            for name, target, shape in _block(width, decoder=side == "decoder"):
                yield f"model.{side}.layers.{number}.{name}", f"{side}.blocks.{number}.{target}", shape
        norm = "ln_post" if side == "encoder" else "ln"
        for part in ("weight", "bias"):
            yield f"model.{side}.layer_norm.{part}", f"{side}.{norm}.{part}", (width,)


def _block(width: int, *, decoder: bool) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    attentions = {"self_attn": "attn", "encoder_attn": "cross_attn"} if decoder else {"self_attn": "attn"}
    for name, target in attentions.items():
        for ours, theirs in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "out")):
            yield f"{name}.{ours}.weight", f"{target}.{theirs}.weight", (width, width)
            if ours != "k_proj":  # Whisper's keys have no bias
                yield f"{name}.{ours}.bias", f"{target}.{theirs}.bias", (width,)
        for part in ("weight", "bias"):
            yield f"{name}_layer_norm.{part}", f"{target}_ln.{part}", (width,)
    for name, target, rows, columns in (("fc1", "mlp.0", 4 * width, width), ("fc2", "mlp.2", width, 4 * width)):
        yield f"{name}.weight", f"{target}.weight", (rows, columns)
        yield f"{name}.bias", f"{target}.bias", (rows,)
    for part in ("weight", "bias"):
        yield f"final_layer_norm.{part}", f"mlp_ln.{part}", (width,)


def _check(checkpoint: Checkpoint, *, config: Mapping[str, Any], known: set[str]) -> None:
    """Refuse a checkpoint with weights that the file has no place for."""
    import numpy as np

    unknown = sorted(checkpoint.names() - known - {"proj_out.weight"})
    if unknown:
        raise ExportError(
            f"{checkpoint.folder}: {len(unknown)} tensors that Whisper does not have, such as {unknown[0]!r}; "
            "merge adapters into the model before exporting it"
        )
    # whisper.cpp uses the token embedding on both ends; a checkpoint may store the same tensor twice.
    if "proj_out.weight" in checkpoint.names() and not config.get("tie_word_embeddings", True):
        embedding = checkpoint.read("model.decoder.embed_tokens.weight")
        if not np.array_equal(checkpoint.read("proj_out.weight"), embedding):
            raise ExportError(
                f"{checkpoint.folder}: proj_out differs from the token embedding, but ggml has one place for both; "
                "train with tie_word_embeddings"
            )


def _read(checkpoint: Checkpoint, name: str, *, shape: tuple[int, ...]) -> NDArray[np.float32]:
    values = checkpoint.read(name)
    if values.shape != shape:
        raise ExportError(f"{checkpoint.folder}: tensor {name!r} is {values.shape}, its config.json says {shape}")
    return values


def _write_header(file: BinaryIO, *, config: Mapping[str, Any], tokens: list[bytes], quantize: Kind) -> None:
    filters = filter_bank(config["num_mel_bins"])
    file.write(struct.pack("<I10ii", MAGIC, *(config[name] for name in SIZES), TYPES[quantize].file))
    file.write(struct.pack("<ii", *filters.shape))
    file.write(filters.astype("<f4").tobytes())
    file.write(struct.pack("<i", len(tokens)))
    file.writelines(struct.pack("<i", len(token)) + token for token in tokens)


def _write_tensor(file: BinaryIO, name: str, values: NDArray[np.float32], *, quantize: Kind) -> None:
    kind = _kind(name, values.ndim, quantize=quantize)
    if name in AS_COLUMN:
        values = values[:, None]
    encoded = name.encode()
    file.write(struct.pack("<iii", values.ndim, len(encoded), TYPES[kind].tensor))
    # ggml counts dimensions from the innermost.
    file.write(struct.pack(f"<{values.ndim}i", *reversed(values.shape)))
    file.write(encoded)
    file.write(encode(values, kind=kind, name=name))


def _kind(name: str, num_dimensions: int, *, quantize: Kind) -> Kind:
    """How a tensor is stored in a file that is to be `quantize`."""
    if num_dimensions < 2 or name in ALWAYS_F32:
        return "f32"
    # whisper.cpp has kernels for float convolutions only.
    return "f16" if num_dimensions > 2 and quantize != "f32" else quantize
