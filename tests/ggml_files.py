"""An independent reader of ggml files, and the quantiser inside whisper.cpp's own library."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

DTYPES = {0: "<f4", 1: "<f2"}
BLOCK_BYTES = {8: 34, 7: 24, 6: 22, 2: 18}
"""ggml_type of q8_0, q5_1, q5_0, q4_0 → bytes of 32 weights. Source: `block_q8_0` and its like in ggml-common.h."""


@dataclass
class Ggml:
    """What an independent reader of the format finds."""

    sizes: tuple[int, ...]
    filters: np.ndarray
    tokens: list[bytes]
    tensors: dict[str, np.ndarray]
    """Quantised ones as the bytes of each row."""
    types: dict[str, int]


def read_ggml(path: Path) -> Ggml:
    with path.open("rb") as file:

        def ints(count: int) -> tuple[int, ...]:
            return struct.unpack(f"<{count}i", file.read(4 * count))

        assert file.read(4) == b"lmgg"
        sizes = ints(11)
        rows, columns = ints(2)
        filters = np.frombuffer(file.read(4 * rows * columns), "<f4").reshape(rows, columns)
        tokens = [file.read(ints(1)[0]) for _ in range(ints(1)[0])]
        tensors, types = {}, {}
        while head := file.read(12):
            rank, length, kind = struct.unpack("<iii", head)
            shape = ints(rank)[::-1]
            name = file.read(length).decode()
            dtype = np.dtype(DTYPES.get(kind, "u1"))
            if kind in BLOCK_BYTES:
                shape = (*shape[:-1], shape[-1] // 32 * BLOCK_BYTES[kind])
            size = int(np.prod(shape)) * dtype.itemsize
            tensors[name] = np.frombuffer(file.read(size), dtype).reshape(shape)
            types[name] = kind
            assert tensors[name].nbytes == size
    return Ggml(sizes, filters, tokens, tensors, types)


@cache
def _library() -> ctypes.CDLL | None:
    """ggml, as pywhispercpp's wheel brings it."""
    package = Path(find_spec("pywhispercpp").origin).parent
    folders = (package.parent / "pywhispercpp.libs", package / ".dylibs", package, package.parent)
    found = [path for folder in folders for path in sorted(folder.glob("*ggml-base*"))]
    for path in found:
        try:
            library = ctypes.CDLL(str(path))
            library.ggml_quantize_chunk.restype = ctypes.c_size_t
        except (OSError, AttributeError):
            continue
        return library
    return None


def quantised_by_ggml(values: np.ndarray, kind: int) -> np.ndarray:
    """Rows of float32 as bytes, by `ggml_quantize_chunk`, which whisper.cpp's `quantize` calls; kind: a ggml_type."""
    library = _library()
    if library is None:
        pytest.skip("this build of pywhispercpp does not show ggml_quantize_chunk")
    values = np.ascontiguousarray(values, np.float32)
    rows, width = values.shape
    out = np.empty((rows, width // 32 * BLOCK_BYTES[kind]), np.uint8)
    pointers = ctypes.c_void_p(values.ctypes.data), ctypes.c_void_p(out.ctypes.data)
    numbers = ctypes.c_int64(0), ctypes.c_int64(rows), ctypes.c_int64(width)
    written = library.ggml_quantize_chunk(ctypes.c_int(kind), *pointers, *numbers, None)
    assert written == out.nbytes
    return out
