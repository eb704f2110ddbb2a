"""whisper.cpp's model files: looked through before whisper.cpp, which trusts every size in them, gets to see them.

Source: `whisper_model_load` of whisper.cpp.
"""

from __future__ import annotations

import math
import struct
from typing import IO, TYPE_CHECKING

from harness.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Shape = tuple[int, ...]

MAGIC = 0x67676D6C
HEADER = struct.Struct("<I11i2i")
"""Magic; 11 sizes; rows and columns of the mel filters."""
SIZES = (
    *("n_vocab", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"),
    *("n_text_ctx", "n_text_state", "n_text_head", "n_text_layer", "n_mels", "ftype"),
)
"""whisper.cpp's names."""
MAX_LAYERS = 128
"""And heads."""
MAX_WIDTH = 1 << 16
MAX_TOKEN_BYTES = 1024
MAX_NAME_BYTES = 256
QUANTISED = 1000
"""`ftype` counts the versions of quantisation in these."""
FILE_TYPES = frozenset({0, 1, 2, 3, 7, 8, 9, 10, 11, 12, 13, 14})
"""ggml_ftype of f32, f16, q4_0, q4_1, q8_0, q5_0, q5_1, q2_k … q6_k: for others whisper.cpp ends the process."""
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
}  # fmt: skip
"""ggml_type → weights of a block, and its bytes."""
SPACE = b" "
"""A token that whisper.cpp looks up, and ends the process without."""


def check_ggml(path: Path) -> dict[str, int]:
    """Refuse a file whose tokens or tensors are not those that its own header says. Reads no weights.

    Returns the sizes of the header. Raises ExportError that names what is wrong.
    """
    with path.open("rb") as file:
        try:
            sizes = _check(file, size=path.stat().st_size)
        except (ValueError, struct.error) as error:
            what = "it ends too early" if isinstance(error, struct.error) else error
            raise ExportError(
                f"{path}: whisper.cpp cannot load it: {what}; fetch it again, or export the model again"
            ) from error
    return sizes


def most(name: str) -> int:
    """The largest number that is taken for a size, by whisper.cpp's or transformers' name."""
    return MAX_LAYERS if name.rstrip("s").endswith(("_layer", "_head")) else MAX_WIDTH


def _check(file: IO[bytes], *, size: int) -> dict[str, int]:
    magic, *numbers, rows, columns = HEADER.unpack(file.read(HEADER.size))
    sizes = dict(zip(SIZES, numbers, strict=True))
    if magic != MAGIC:
        raise ValueError(f"it begins with {magic:#x}, not with ggml's {MAGIC:#x}")
    for name, value in sizes.items():
        if not (0 if name == "ftype" else 1) <= value <= most(name):
            raise ValueError(f"its header says {name} {value}")
    if sizes["ftype"] % QUANTISED not in FILE_TYPES:
        raise ValueError(f"its header says ftype {sizes['ftype']}, which is no way to store weights")
    for side in ("audio", "text"):
        width, heads = sizes[f"n_{side}_state"], sizes[f"n_{side}_head"]
        if width % heads:
            raise ValueError(f"its header says n_{side}_state {width}, which {heads} heads do not divide")
    if not 0 < rows <= MAX_WIDTH or not 0 < columns <= MAX_WIDTH or rows != sizes["n_mels"]:
        raise ValueError(f"it has filters of {rows} x {columns} for {sizes['n_mels']} mel bands")
    _skip(file, 4 * rows * columns, size=size)
    _check_tokens(file, limit=sizes["n_vocab"])
    _check_tensors(file, wanted=dict(shapes(sizes)), size=size)
    return sizes


def _check_tokens(file: IO[bytes], *, limit: int) -> None:
    (count,) = struct.unpack("<i", file.read(4))
    if not 0 < count <= limit:
        raise ValueError(f"it has {count} tokens, its header says n_vocab {limit}")
    tokens = set()
    for number in range(count):
        (length,) = struct.unpack("<i", file.read(4))
        if not 0 <= length <= MAX_TOKEN_BYTES:
            raise ValueError(f"token {number} has {length} bytes")
        tokens.add(file.read(length))
    if SPACE not in tokens:
        raise ValueError("it has no token for the space")


def _check_tensors(file: IO[bytes], *, wanted: dict[str, Shape], size: int) -> None:
    while len(head := file.read(12)) == 12:  # whisper.cpp, too, passes over a rest
        rank, length, kind = struct.unpack("<iii", head)
        if not 0 < rank <= 3 or not 0 < length <= MAX_NAME_BYTES or kind not in BLOCKS:
            raise ValueError(f"a tensor has {rank} dimensions, a name of {length} bytes, and type {kind}")
        shape = struct.unpack(f"<{rank}i", file.read(4 * rank))[::-1]
        name = file.read(length).decode(errors="replace")
        expected = wanted.pop(name, None)
        if expected is None:
            raise ValueError(f"the tensor {name!r} is in it twice, or is none of a Whisper of these sizes")
        if shape != expected:
            raise ValueError(f"the tensor {name!r} is {shape}, by its header {expected}")
        block, num_bytes = BLOCKS[kind]
        if shape[-1] % block:
            raise ValueError(f"the tensor {name!r} has rows of {shape[-1]}, which are no whole blocks of {block}")
        _skip(file, math.prod(shape) // block * num_bytes, size=size)
    if wanted:
        raise ValueError(f"{len(wanted)} tensors are missing, such as {next(iter(wanted))!r}")


def _skip(file: IO[bytes], count: int, *, size: int) -> None:
    if file.tell() + count > size:
        raise ValueError(f"it ends at byte {size}, in the middle of its weights")
    file.seek(count, 1)


def shapes(sizes: dict[str, int]) -> Iterator[tuple[str, Shape]]:
    """The tensors of a Whisper of these sizes, by name."""
    width = sizes["n_audio_state"]
    yield "encoder.positional_embedding", (sizes["n_audio_ctx"], width)
    for conv, channels in (("conv1", sizes["n_mels"]), ("conv2", width)):
        yield f"encoder.{conv}.weight", (width, channels, 3)
        yield f"encoder.{conv}.bias", (width, 1)
    for number in range(sizes["n_audio_layer"]):
        yield from _block(f"encoder.blocks.{number}", width, attentions=("attn",))
    yield from _norm("encoder.ln_post", width)
    width = sizes["n_text_state"]
    yield "decoder.positional_embedding", (sizes["n_text_ctx"], width)
    yield "decoder.token_embedding.weight", (sizes["n_vocab"], width)
    for number in range(sizes["n_text_layer"]):
        yield from _block(f"decoder.blocks.{number}", width, attentions=("attn", "cross_attn"))
    yield from _norm("decoder.ln", width)


def _block(name: str, width: int, *, attentions: tuple[str, ...]) -> Iterator[tuple[str, Shape]]:
    for attention in attentions:
        for part in ("query", "key", "value", "out"):
            yield f"{name}.{attention}.{part}.weight", (width, width)
            if part != "key":
                yield f"{name}.{attention}.{part}.bias", (width,)
        yield from _norm(f"{name}.{attention}_ln", width)
    for layer, rows, columns in (("mlp.0", 4 * width, width), ("mlp.2", width, 4 * width)):
        yield f"{name}.{layer}.weight", (rows, columns)
        yield f"{name}.{layer}.bias", (rows,)
    yield from _norm(f"{name}.mlp_ln", width)


def _norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    for part in ("weight", "bias"):
        yield f"{name}.{part}", (width,)
