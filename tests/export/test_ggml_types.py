"""Quantised ggml files: bit for bit what whisper.cpp's own quantiser makes, and what whisper.cpp loads."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file, save_file

from harness.core.artifact import Work
from harness.errors import ExportError, MissingError
from harness.export import whisper_ggml
from harness.export.ggml_types import BLOCK, TYPES, Kind, encode
from harness.export.whisper_ggml import Spec
from harness.score import whispercpp
from tests.conftest import AELITA, artifact
from tests.ggml_files import BLOCK_BYTES, quantised_by_ggml, read_ggml

if TYPE_CHECKING:
    from pathlib import Path

QUANTISED = [kind for kind, type_ in TYPES.items() if type_.num_scales]
FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2002, "q8_0": 2007, "q5_0": 2008, "q5_1": 2009}
"""GGML_QNT_VERSION and ggml_ftype, as `whisper-quantize` writes them."""
STEPS = {"q8_0": 127, "q5_1": 31, "q5_0": 16, "q4_0": 8}
"""Of the largest weight of a block, or with q5_1 of its range."""


def export(model: Path, folder: Path, kind: Kind) -> Path:
    (folder / "in").mkdir(parents=True, exist_ok=True)
    shutil.copytree(model, folder / "in" / "model", dirs_exist_ok=True)
    work = Work(path=folder / kind, scratch=folder / "scratch")
    work.path.mkdir()
    work.scratch.mkdir(exist_ok=True)
    meta = whisper_ggml.run(Spec(quantize=kind), {"model": [artifact(folder / "in")]}, work)
    path = work.path / "ggml-model.bin"
    assert (meta["quantize"], meta["size_bytes"]) == (kind, path.stat().st_size)
    return path


@pytest.fixture(scope="module")
def exported(tiny_whisper, tmp_path_factory) -> dict[str, Path]:
    """The tiny Whisper in every type."""
    folder = tmp_path_factory.mktemp("ggml")
    return {kind: export(tiny_whisper, folder, kind) for kind in get_args(Kind)}


def test_types_are_ggmls_numbers():
    assert tuple(TYPES) == get_args(Kind)
    assert {kind: type_.file for kind, type_ in TYPES.items()} == FILE_TYPES
    assert {TYPES[kind].tensor for kind in QUANTISED} == set(BLOCK_BYTES)
    assert [Spec(quantize=kind).label for kind in QUANTISED] == ["ggml-q8_0", "ggml-q5_1", "ggml-q5_0", "ggml-q4_0"]
    assert len(Spec(quantize=list(TYPES)).spread()) == len(TYPES)


def matrices() -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    normal = random.standard_normal((64, 256)).astype(np.float32)
    outliers = normal.copy()
    outliers[:, ::37] *= 1000
    ties = np.tile(np.array([0.5, -0.5, 0.25, -0.125], np.float32), (8, 16))
    return {
        "normal": normal,
        "small": normal * np.float32(1e-6),
        "offset": normal * np.float32(0.01) + np.float32(3),
        "outliers": outliers,
        "ties": ties,
        "zeros": np.zeros((4, 64), np.float32),
        "one of 32": np.eye(64, dtype=np.float32),
        "half": normal.astype(np.float16).astype(np.float32),
    }


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("name", list(matrices()))
def test_the_bits_are_ggmls(kind, name):
    values = matrices()[name]
    found = np.frombuffer(encode(values, kind=kind, name=name), np.uint8).reshape(len(values), -1)
    assert np.array_equal(found, quantised_by_ggml(values, TYPES[kind].tensor))


@pytest.mark.parametrize("kind", QUANTISED)
def test_the_bits_of_real_weights_are_ggmls(kind, whisper_base):
    weights = load_file(whisper_base / "model.safetensors")
    names = [name for name, value in weights.items() if value.ndim == 2 and "embed_positions" not in name]
    for name in (*names[::12], "model.decoder.embed_tokens.weight"):
        values = weights[name].astype(np.float32)
        found = np.frombuffer(encode(values, kind=kind, name=name), np.uint8).reshape(len(values), -1)
        assert np.array_equal(found, quantised_by_ggml(values, TYPES[kind].tensor)), name


# Not below 1e-30: there ggml multiplies by what may be infinite, and what that gives is the compiler's choice.
WEIGHTS = st.one_of(
    st.just(0.0), *(st.floats(*sorted((sign * 2.0**-100, sign * 60_000)), width=32) for sign in (1, -1))
)


@settings(max_examples=60, deadline=None)
@given(values=arrays(np.float32, (2, 2 * BLOCK), elements=WEIGHTS), kind=st.sampled_from(QUANTISED))
@example(values=np.full((2, 2 * BLOCK), -0.0, np.float32), kind="q5_0")
def test_the_bits_are_ggmls_whatever_the_weights(values, kind):
    found = np.frombuffer(encode(values, kind=kind, name="x"), np.uint8).reshape(2, -1)
    assert np.array_equal(found, quantised_by_ggml(values, TYPES[kind].tensor))


@pytest.mark.parametrize("kind", QUANTISED)
def test_what_is_read_back_is_within_a_step(kind):
    import gguf

    for name, values in matrices().items():
        stored = np.frombuffer(encode(values, kind=kind, name=name), np.uint8).reshape(len(values), -1)
        back = gguf.dequantize(stored, gguf.GGMLQuantizationType(TYPES[kind].tensor))
        blocks, error = values.reshape(-1, BLOCK), np.abs(back - values).reshape(-1, BLOCK)
        span = np.ptp(blocks, axis=1) if kind == "q5_1" else np.abs(blocks).max(axis=1)
        # The scale in float16 is off by one part in 2048, and very small ones by 2^-25.
        slack = np.abs(blocks).max(axis=1) / 1024 + STEPS[kind] * 2.0**-24
        assert (error.max(axis=1) <= span / STEPS[kind] + slack).all(), name


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_file_is_what_whisper_cpps_quantize_makes_of_the_f32_file(exported, kind):
    """By its rules, written out here: matrices, but for positions and the convolutions' biases."""
    found, source, half = (read_ggml(exported[name]) for name in (kind, "f32", "f16"))
    assert found.sizes == (*source.sizes[:-1], FILE_TYPES[kind])
    assert (found.tokens, list(found.tensors)) == (source.tokens, list(source.tensors))
    assert np.array_equal(found.filters, source.filters)
    num_quantised = 0
    for name, values in source.tensors.items():
        is_kept = name.endswith("positional_embedding") or (name.startswith("encoder.conv") and name.endswith("bias"))
        if values.ndim == 2 and not is_kept:
            assert np.array_equal(found.tensors[name], quantised_by_ggml(values, TYPES[kind].tensor)), name
            num_quantised += 1
        else:
            # The kept ones come from the float16 file, as there.
            assert np.array_equal(found.tensors[name], half.tensors[name]), name
    # Attention and the two linear layers of each block, cross-attention too in the decoder, and the embeddings.
    assert num_quantised == 2 * 6 + 2 * 10 + 1


@pytest.mark.parametrize("kind", ["f16", *QUANTISED])
def test_whisper_cpp_runs_every_type(exported, kind):
    clip, _ = soundfile.read(AELITA / "clips" / "ru_0001.opus", dtype="float32")
    recogniser = whispercpp.load(exported[kind], spec=whispercpp.Spec(device="cpu"), threads=1)
    assert isinstance(recogniser.transcribe(clip[: 2 * 16_000]), str)


def test_f32_is_refused_on_a_cpu_where_whisper_cpp_would_end_the_process(exported):
    message = r"holds float32 convolutions, which whisper.cpp runs on a GPU only; export it as f16"
    with pytest.raises(ExportError, match=message):
        whispercpp.load(exported["f32"], spec=whispercpp.Spec(device="cpu"), threads=1)


def test_fewer_bits_are_fewer_bytes(exported):
    sizes = [exported[kind].stat().st_size for kind in get_args(Kind)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_real_weights_in_five_bits_transcribe_a_real_clip(whisper_base, tmp_path):
    import jiwer

    from harness.core.text import normalise

    path = export(whisper_base, tmp_path, "q5_0")
    # As whisper.cpp's authors publish ggml-base-q5_1.bin, of 59,707,625 bytes, but for the blocks: 22 bytes, not 24.
    num_weights = sum(
        value.size
        for name, value in load_file(whisper_base / "model.safetensors").items()
        if value.ndim == 2 and "embed_positions" not in name and name != "proj_out.weight"
    )
    assert path.stat().st_size == 59_707_625 - num_weights // BLOCK * 2
    rows = [json.loads(line) for line in (AELITA / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    samples, _ = soundfile.read(AELITA / rows[1]["audio_filepath"], dtype="float32")
    text = whispercpp.load(path, spec=whispercpp.Spec(), threads=2).transcribe(samples)
    assert jiwer.cer(normalise(rows[1]["text"]), normalise(text)) < 0.1


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("f16", 70_000, "tensor 'x' reaches 70000, but float16 ends at 65504; export it as f32"),
        ("q8_0", 9e6, "tensor 'x' reaches 9e[+]06, but float16 of q8_0's scales ends at 65504; export it as f32"),
        ("q5_1", 70_000, "tensor 'x' reaches 70000, but float16 of q5_1's scales ends at 65504; export it as f32"),
    ],
)
def test_weights_beyond_float16_are_refused(kind, value, message):
    with pytest.raises(ExportError, match=message):
        encode(np.full((1, 64), value, np.float32), kind=kind, name="x")


def test_weights_that_only_the_scales_must_hold_are_taken():
    assert len(encode(np.full((1, 64), 70_000, np.float32), kind="q8_0", name="x")) == 68


def test_rows_that_are_no_whole_blocks_are_refused():
    with pytest.raises(ExportError, match="tensor 'x' has rows of 48, but q4_0 takes multiples of 32"):
        encode(np.zeros((2, 48), np.float32), kind="q4_0", name="x")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingError, match="writing q8_0 needs gguf, which is not installed: pip install gguf"):
        encode(np.zeros((2, 64), np.float32), kind="q8_0", name="x")
    assert len(encode(np.zeros((2, 64), np.float32), kind="f16", name="x")) == 256


def test_a_large_weight_stops_the_export_and_names_its_tensor(tiny_whisper, tmp_path):
    shutil.copytree(tiny_whisper, tmp_path / "broken")
    path = tmp_path / "broken" / "model.safetensors"
    weights = load_file(path)
    weights["model.decoder.layers.0.fc1.weight"][0, 0] = 1e7
    save_file(weights, path)
    with pytest.raises(ExportError, match=r"'decoder.blocks.0.mlp.0.weight' reaches 1e\+07"):
        export(tmp_path / "broken", tmp_path, "q8_0")
