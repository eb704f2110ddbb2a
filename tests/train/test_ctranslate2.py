"""CTranslate2 files are read, and damaged ones refused with the place of the damage."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from harness.errors import DataError
from harness.train.ctranslate2 import read_tensors, state_dict


def tensor(name: str, values: np.ndarray) -> bytes:
    """A tensor as CTranslate2 writes it."""
    raw = name.encode() + b"\0"
    code = {"float32": 0, "int8": 1, "float16": 4}[values.dtype.name]
    return (
        struct.pack(f"<H{len(raw)}sB{values.ndim}I", len(raw), raw, values.ndim, *values.shape)
        + struct.pack("<BI", code, values.nbytes)
        + values.tobytes()
    )


def ctranslate2(*tensors: bytes, version: int = 6, count: int | None = None) -> bytes:
    number = len(tensors) if count is None else count
    return struct.pack("<IH12sII", version, 12, b"WhisperSpec\0", 3, number) + b"".join(tensors) + struct.pack("<I", 0)


ONE = np.arange(6, dtype=np.float16).reshape(2, 3)


def test_a_ctranslate2_file_is_read(tmp_path):
    (tmp_path / "model.bin").write_bytes(ctranslate2(tensor("a/b", ONE), tensor("c", np.float32([1.5]))))
    found = read_tensors(tmp_path / "model.bin")
    assert list(found) == ["a/b", "c"]
    assert found["a/b"].dtype == np.float16
    assert np.array_equal(found["a/b"], ONE)
    assert found["c"].tolist() == [1.5]


LONG = struct.pack("<H2sBI", 2, b"a\0", 1, 6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "4 bytes are announced at byte 0, but the file ends at byte 0"),
        (ctranslate2(tensor("a", ONE))[:-10], "12 bytes are announced at byte 44, but the file ends at byte 50"),
        (ctranslate2(version=3), r"its version is 3, expected one of \(5, 6\)"),
        (ctranslate2(count=1 << 31), "it announces 2147483648 tensors"),
        (ctranslate2(LONG + struct.pack("<BI", 9, 12)), "'a' has the unknown data type 9"),
        (ctranslate2(LONG + struct.pack("<BI", 4, 13)), r"'a' of shape \[6\] and type float16 holds 13 bytes"),
        (ctranslate2(struct.pack("<H2sB", 2, b"a\0", 200)), "'a' has 200 dimensions"),
        (ctranslate2(struct.pack("<H2sB", 2, b"\xff\0", 1)), "a name at byte 28 is not UTF-8"),
    ],
)
def test_a_damaged_ctranslate2_file_is_refused(tmp_path, content, message):
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_tensors(tmp_path / "model.bin")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "no tensor 'encoder/layer_norm/gamma' among 0"),
        ({"encoder/layer_norm/gamma": np.int8([1])}, "is int8; only fp16 and fp32"),
    ],
)
def test_what_is_no_whisper_is_refused(tmp_path, tensors, message):
    with pytest.raises(DataError, match=message):
        state_dict(tensors, path=tmp_path)
