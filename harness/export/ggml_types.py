"""How ggml stores a tensor: as plain floats, or as blocks of 32 weights that share a scale.

The bits are those of ggml's own `quantize_row_*_ref`, which makes the files that whisper.cpp's authors publish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from harness.errors import ExportError, MissingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["f32", "f16", "q8_0", "q5_1", "q5_0", "q4_0"]
BLOCK = 32
"""Weights that share a scale."""
QUANTISATION_VERSION = 2
"""GGML_QNT_VERSION: stands in the header of a quantised file, as thousands."""


class Type(NamedTuple):
    """One way to store a tensor."""

    tensor: int
    """ggml_type: beside each tensor."""
    file: int
    """ggml_ftype and the version of quantisation: in the header."""
    num_scales: int = 0
    """Float16 numbers at the start of a block: the scale, and with q5_1 the smallest weight."""


TYPES: dict[Kind, Type] = {
    "f32": Type(0, 0),
    "f16": Type(1, 1),
    "q8_0": Type(8, QUANTISATION_VERSION * 1000 + 7, 1),
    "q5_1": Type(7, QUANTISATION_VERSION * 1000 + 9, 2),
    "q5_0": Type(6, QUANTISATION_VERSION * 1000 + 8, 1),
    "q4_0": Type(2, QUANTISATION_VERSION * 1000 + 2, 1),
}


def encode(values: NDArray[np.float32], *, kind: Kind, name: str) -> bytes:
    """The bytes of a tensor [..., row]; rows of quantised ones are whole blocks.

    name: of the tensor, for messages.
    Raises ExportError for weights beyond float16, or rows that are no whole blocks, MissingError without gguf.
    """
    import numpy as np

    if kind == "f32":
        return values.astype("<f4", copy=False).tobytes()
    # A block of weights near 1e-38 has no scale that can be inverted; it is stored as zeros, by ggml too.
    with np.errstate(over="ignore", invalid="ignore"):
        stored = values.astype("<f2") if kind == "f16" else _quantised(values, kind=kind, name=name)
        halves = stored if kind == "f16" else _scales(stored, values.shape[-1] // BLOCK, kind=kind)
    if not np.isfinite(halves).all():
        largest = float(np.abs(values).max())
        what = "" if kind == "f16" else f" of {kind}'s scales"
        raise ExportError(f"tensor {name!r} reaches {largest:.6g}, but float16{what} ends at 65504; export it as f32")
    return stored.tobytes()


def _quantised(values: NDArray[np.float32], *, kind: Kind, name: str) -> NDArray[np.uint8]:
    """uint8 [..., bytes of a row]."""
    import numpy as np

    try:
        from gguf import GGMLQuantizationType, quantize
    except ImportError as error:
        raise MissingError(f"writing {kind} needs gguf, which is not installed: pip install gguf") from error
    if values.shape[-1] % BLOCK:
        raise ExportError(f"tensor {name!r} has rows of {values.shape[-1]}, but {kind} takes multiples of {BLOCK}")
    # Plus zero: of a block of nothing but -0.0, gguf would give the scale another sign than ggml.
    stored: NDArray[np.uint8] = quantize(values + np.float32(0), GGMLQuantizationType(TYPES[kind].tensor))
    return stored


def _scales(stored: NDArray[np.uint8], num_blocks: int, *, kind: Kind) -> NDArray[np.float16]:
    blocks = stored.reshape(*stored.shape[:-1], num_blocks, -1)
    return blocks[..., : 2 * TYPES[kind].num_scales].copy().view("<f2")
