"""ggml files from strangers: whatever whisper.cpp would stumble over is named before it does."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from harness.core.ggml_file import HEADER, SIZES, check_ggml
from harness.errors import ExportError
from tests.ggmls import MELS, VOCABULARY, WIDTH, tensors, write_ggml

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TOKENS = HEADER.size + 4 * MELS * 201
"""Where the number of tokens stands."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    return write_ggml(tmp_path_factory.mktemp("ggml") / "tiny.bin").read_bytes()


def first_tensor(data: bytes) -> int:
    name, shape, _ = next(tensors(MELS))
    head = struct.pack("<iii", len(shape), len(name), 0)
    return data.index(head + struct.pack("<ii", *reversed(shape)) + name.encode())


def put(data: bytes, place: int, *numbers: int) -> bytes:
    content = struct.pack(f"<{len(numbers)}i", *numbers)
    return data[:place] + content + data[place + len(content) :]


def size(name: str, value: int) -> Callable[[bytes], bytes]:
    return lambda data: put(data, 4 + 4 * SIZES.index(name), value)


def test_a_sound_file_gives_its_sizes(sound, tmp_path):
    (tmp_path / "m.bin").write_bytes(sound)
    sizes = check_ggml(tmp_path / "m.bin")
    assert (sizes["n_vocab"], sizes["n_audio_state"], sizes["n_mels"]) == (VOCABULARY, WIDTH, MELS)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:20], "it ends too early"),
        (lambda data: b"GGUF" + data[4:], "begins with 0x46554747, not with ggml's"),
        (size("n_text_layer", 129), "n_text_layer 129"),
        (size("n_audio_state", -1), "n_audio_state -1"),
        (size("ftype", 4), "ftype 4, which is no way to store weights"),
        (size("n_text_head", 3), "n_text_state 64, which 3 heads do not divide"),
        (size("n_mels", 128), "filters of 80 x 201 for 128 mel bands"),
        (size("n_text_layer", 2), r"24 tensors are missing, such as 'decoder\.blocks\.1\.attn\.query\.weight'"),
        (size("n_audio_ctx", 3000), r"'encoder\.positional_embedding' is \(1500, 64\), by its header \(3000, 64\)"),
        (lambda data: put(data, TOKENS, -1), "it has -1 tokens, its header says n_vocab 51865"),
        (lambda data: put(data, TOKENS, VOCABULARY + 1), "it has 51866 tokens"),
        (lambda data: put(data, TOKENS + 4, 1 << 30), "token 0 has 1073741824 bytes"),
        (lambda data: data.replace(b"\1\0\0\0 ", b"\1\0\0\0_", 1), "no token for the space"),
        (lambda data: put(data, first_tensor(data), 7), "a tensor has 7 dimensions, a name of 28 bytes, and type 0"),
        (lambda data: put(data, first_tensor(data) + 4, -5), "a name of -5 bytes"),
        (lambda data: put(data, first_tensor(data) + 8, 4), "and type 4"),
        (lambda data: put(data, first_tensor(data) + 8, 14), "rows of 64, which are no whole blocks of 256"),
        (lambda data: data.replace(b"decoder.ln.bias", b"decoder.ln.bios"), "'decoder.ln.bios' is in it twice, or is"),
        (lambda data: data.replace(b"mlp.2.bias", b"attn_ln.bias"[:10]), "is in it twice, or is none of a Whisper"),
        (lambda data: data[:-1], r"it ends at byte \d+, in the middle of its weights"),
        (lambda data: data + bytes(20), "a tensor has 0 dimensions"),
    ],
)
def test_what_whisper_cpp_would_stumble_over_is_named(sound, tmp_path, damage, message):
    path: Path = tmp_path / "m.bin"
    path.write_bytes(damage(sound))
    with pytest.raises(ExportError, match=message) as refused:
        check_ggml(path)
    assert "fetch it again, or export the model again" in str(refused.value)
