"""Reading Whisper out of CTranslate2's model file, and writing it as a Hugging Face folder.

Layout of `model.bin` (little endian): u32 version, name, u32 revision, u32 count; then for each tensor: name,
u8 rank, u32 dims, u8 dtype, u32 bytes, data; last the aliases. A name is u16 length and that many bytes, the last
of which is NUL. Source: `python/ctranslate2/specs/model_spec.py` of OpenNMT/CTranslate2, binary version 6.
"""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING, Any

from harness.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    Tensors = dict[str, NDArray[np.generic]]
    Weights = dict[str, NDArray[np.float32]]

BINARY_VERSIONS = (5, 6)
DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
MAX_TENSORS = 1 << 16
MAX_RANK = 8
HEAD_WIDTH = 64
"""Of an attention head, in all of OpenAI's models."""


class _Reader:
    """A cursor over untrusted bytes: a length that leads out of the file is an error, not a crash."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = memoryview(path.read_bytes())
        self.offset = 0

    def take(self, size: int) -> memoryview:
        end = self.offset + size
        if end > len(self.data):
            raise DataError(
                f"{self.path}: {size} bytes are announced at byte {self.offset}, "
                f"but the file ends at byte {len(self.data)}; it is truncated or no CTranslate2 model: fetch it again"
            )
        part = self.data[self.offset : end]
        self.offset = end
        return part

    def number(self, form: str) -> int:
        (value,) = struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))
        return int(value)

    def name(self) -> str:
        raw = bytes(self.take(self.number("H")))
        try:
            return raw.rstrip(b"\0").decode()
        except UnicodeDecodeError as error:
            raise self.wrong(f"a name at byte {self.offset - len(raw)} is not UTF-8") from error

    def wrong(self, what: str) -> DataError:
        return DataError(f"{self.path}: {what}; it is damaged or no CTranslate2 model: fetch it again")


def read_tensors(path: Path) -> Tensors:
    """All tensors of a CTranslate2 `model.bin`, by their names there; read-only views of one buffer.

    Raises DataError if the file is damaged, truncated or of another version.
    """
    reader = _Reader(path)
    version = reader.number("I")
    if version not in BINARY_VERSIONS:
        raise reader.wrong(f"its version is {version}, expected one of {BINARY_VERSIONS}")
    reader.name()
    reader.number("I")
    count = reader.number("I")
    if count > MAX_TENSORS:
        raise reader.wrong(f"it announces {count} tensors, more than {MAX_TENSORS}")
    return dict(_tensor(reader) for _ in range(count))


def _tensor(reader: _Reader) -> tuple[str, NDArray[np.generic]]:
    import numpy as np

    name = reader.name()
    rank = reader.number("B")
    if rank > MAX_RANK:
        raise reader.wrong(f"tensor {name!r} has {rank} dimensions, more than {MAX_RANK}")
    shape = [reader.number("I") for _ in range(rank)]
    code = reader.number("B")
    if code not in DTYPES:
        raise reader.wrong(f"tensor {name!r} has the unknown data type {code}, known are {sorted(DTYPES)}")
    dtype = np.dtype(DTYPES[code])
    size = reader.number("I")
    if size != math.prod(shape) * dtype.itemsize:
        raise reader.wrong(f"tensor {name!r} of shape {shape} and type {dtype} holds {size} bytes")
    return name, np.frombuffer(reader.take(size), dtype=dtype).reshape(shape)


class _Names:
    """Moves tensors from CTranslate2's names to Hugging Face's; queries, keys and values are fused there."""

    def __init__(self, tensors: Tensors, path: Path) -> None:
        self.tensors = tensors
        self.path = path
        self.out: Weights = {}

    def get(self, name: str) -> NDArray[np.float32]:
        import numpy as np

        tensor = self.tensors.get(name)
        if tensor is None:
            raise DataError(f"{self.path}: no tensor {name!r} among {len(self.tensors)}; this is no Whisper model")
        if tensor.dtype.kind != "f":
            raise DataError(f"{self.path}: tensor {name!r} is {tensor.dtype}; only fp16 and fp32 can be turned back")
        return tensor.astype(np.float32)

    def linear(self, target: str, source: str) -> None:
        self.out[f"{target}.weight"] = self.get(f"{source}/weight")
        if f"{source}/bias" in self.tensors:
            self.out[f"{target}.bias"] = self.get(f"{source}/bias")

    def norm(self, target: str, source: str) -> None:
        self.out[f"{target}.weight"] = self.get(f"{source}/gamma")
        self.out[f"{target}.bias"] = self.get(f"{source}/beta")

    def fused(self, target: str, source: str, parts: str) -> None:
        weight, bias = self.get(f"{source}/weight"), self.get(f"{source}/bias")
        if len(weight) != len(bias) or len(weight) % len(parts):
            raise DataError(f"{self.path}: {source!r} has {len(weight)} rows and {len(bias)} biases for {parts!r}")
        width = len(weight) // len(parts)
        for index, part in enumerate(parts):
            rows = slice(index * width, (index + 1) * width)
            self.out[f"{target}.{part}_proj.weight"] = weight[rows].copy()
            # Whisper's key projection has no bias; the fused one holds zeros in its place.
            if part != "k":
                self.out[f"{target}.{part}_proj.bias"] = bias[rows].copy()


def state_dict(tensors: Tensors, *, path: Path) -> Weights:
    """The weights of `WhisperForConditionalGeneration`, float32, without `proj_out`, which is tied.

    path: the file that they come from, for error messages.
    """
    names = _Names(tensors, path)
    for side in ("encoder", "decoder"):
        names.norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        names.out[f"model.{side}.embed_positions.weight"] = names.get(f"{side}/position_encodings/encodings")
        for index in range(num_layers(tensors, side=side)):
            _layer(names, f"model.{side}.layers.{index}", f"{side}/layer_{index}", decoder=side == "decoder")
    for conv in ("conv1", "conv2"):
        names.linear(f"model.encoder.{conv}", f"encoder/{conv}")
    names.out["model.decoder.embed_tokens.weight"] = names.get("decoder/embeddings/weight")
    return names.out


def _layer(names: _Names, target: str, source: str, *, decoder: bool) -> None:
    names.norm(f"{target}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
    names.fused(f"{target}.self_attn", f"{source}/self_attention/linear_0", "qkv")
    names.linear(f"{target}.self_attn.out_proj", f"{source}/self_attention/linear_1")
    if decoder:
        names.norm(f"{target}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
        names.linear(f"{target}.encoder_attn.q_proj", f"{source}/attention/linear_0")
        names.fused(f"{target}.encoder_attn", f"{source}/attention/linear_1", "kv")
        names.linear(f"{target}.encoder_attn.out_proj", f"{source}/attention/linear_2")
    names.norm(f"{target}.final_layer_norm", f"{source}/ffn/layer_norm")
    names.linear(f"{target}.fc1", f"{source}/ffn/linear_0")
    names.linear(f"{target}.fc2", f"{source}/ffn/linear_1")


def num_layers(tensors: Tensors, *, side: str) -> int:
    count = 0
    while f"{side}/layer_{count}/ffn/linear_0/weight" in tensors:
        count += 1
    return count


def to_hugging_face(folder: Path, *, target: Path) -> None:
    """Write the Whisper of a CTranslate2 folder as a Hugging Face folder that transformers loads.

    folder: holds `model.bin`, `config.json` and `tokenizer.json`.
    target: an existing folder, which receives config, generation config, weights, tokenizer and processor.
    Raises DataError if a file is damaged.
    """
    from safetensors.numpy import save_file

    path = folder / "model.bin"
    tensors = read_tensors(path)
    weights = state_dict(tensors, path=path)
    notes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    _save_settings(tensors, weights, notes=notes, tokenizer_file=folder / "tokenizer.json", target=target)
    # transformers refuses a file that does not say who wrote its layout.
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def _save_settings(
    tensors: Tensors, weights: Weights, *, notes: dict[str, Any], tokenizer_file: Path, target: Path
) -> None:
    from transformers import WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizerFast

    end = "<|endoftext|>"
    tokenizer = WhisperTokenizerFast(
        tokenizer_file=str(tokenizer_file), bos_token=end, eos_token=end, unk_token=end, pad_token=end
    )
    shared = {
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id),
        "decoder_start_token_id": tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
        "suppress_tokens": notes["suppress_ids"],
        "begin_suppress_tokens": notes["suppress_ids_begin"],
    }
    _save_config(tensors, weights, shared=shared, target=target)
    max_length = len(weights["model.decoder.embed_positions.weight"])
    _save_generation_config(
        tokenizer, shared={**shared, "alignment_heads": notes["alignment_heads"]}, max_length=max_length, target=target
    )
    num_mels = weights["model.encoder.conv1.weight"].shape[1]
    WhisperProcessor(WhisperFeatureExtractor(feature_size=num_mels), tokenizer).save_pretrained(target)


def _save_config(tensors: Tensors, weights: Weights, *, shared: dict[str, Any], target: Path) -> None:
    from transformers import WhisperConfig

    vocab_size, width = weights["model.decoder.embed_tokens.weight"].shape
    WhisperConfig(
        architectures=["WhisperForConditionalGeneration"],
        dtype="float32",
        vocab_size=vocab_size,
        num_mel_bins=weights["model.encoder.conv1.weight"].shape[1],
        d_model=width,
        encoder_layers=num_layers(tensors, side="encoder"),
        decoder_layers=num_layers(tensors, side="decoder"),
        encoder_attention_heads=width // HEAD_WIDTH,
        decoder_attention_heads=width // HEAD_WIDTH,
        encoder_ffn_dim=len(weights["model.encoder.layers.0.fc1.weight"]),
        decoder_ffn_dim=len(weights["model.decoder.layers.0.fc1.weight"]),
        max_source_positions=len(weights["model.encoder.embed_positions.weight"]),
        max_target_positions=len(weights["model.decoder.embed_positions.weight"]),
        **shared,
    ).save_pretrained(target)


def _save_generation_config(tokenizer: Any, *, shared: dict[str, Any], max_length: int, target: Path) -> None:
    from transformers import GenerationConfig
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    token = tokenizer.convert_tokens_to_ids
    languages = {f"<|{code}|>": token(f"<|{code}|>") for code in LANGUAGES}
    GenerationConfig(
        max_length=max_length,
        is_multilingual=True,
        no_timestamps_token_id=token("<|notimestamps|>"),
        max_initial_timestamp_index=50,
        prev_sot_token_id=token("<|startofprev|>"),
        # Cantonese came with large-v3; older vocabularies give the unknown token for it.
        lang_to_id={text: index for text, index in languages.items() if index != tokenizer.unk_token_id},
        task_to_id={"transcribe": token("<|transcribe|>"), "translate": token("<|translate|>")},
        **shared,
    ).save_pretrained(target)
