"""Whisper in float16 and in 8 bits: the same graphs with smaller weights, which onnx-asr loads unmodified."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
import soundfile

from harness.core.artifact import Artifact, Work
from harness.errors import ExportError
from harness.export import onnx_graph, whisper_graph, whisper_onnx
from harness.export.onnx_graph import Precision, Weights
from harness.export.whisper_onnx import LIMITS, Spec
from harness.score import onnx as runtime
from tests.conftest import AELITA, artifact
from tests.whispers import enlivened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import onnx

GRAPHS = ("encoder_model", "decoder_model_merged")
SMALL: tuple[Precision, ...] = ("fp16", "int8")


def clip() -> np.ndarray:
    samples, _ = soundfile.read(AELITA / "clips" / "ru_0002.opus", dtype="float32")
    return samples


def export(model: Path, folder: Path, precision: Precision) -> Artifact:
    shutil.copytree(model, folder / "in" / "model", dirs_exist_ok=True)
    work = Work(path=folder / precision, scratch=folder / "scratch")
    work.path.mkdir()
    work.scratch.mkdir(exist_ok=True)
    meta = whisper_onnx.run(Spec(quantize=precision), {"model": [artifact(folder / "in")]}, work)
    assert json.loads(json.dumps(meta)) == meta
    return artifact(work.path, **meta)


@pytest.fixture(scope="module")
def lively_whisper(tiny_whisper, tmp_path_factory) -> Path:
    return enlivened(tiny_whisper, tmp_path_factory.mktemp("lively-whisper"))


@pytest.fixture(scope="module")
def exported(lively_whisper, tmp_path_factory) -> dict[Precision, Artifact]:
    folder = tmp_path_factory.mktemp("exported")
    return {precision: export(lively_whisper, folder, precision) for precision in get_args(Precision)}


def path_of(exported: Artifact, graph: str) -> Path:
    (path,) = exported.path.glob(f"{graph}*.onnx")
    return path


def initialisers(exported: Artifact, graph: str) -> dict[str, np.ndarray]:
    import onnx

    found = onnx.load(path_of(exported, graph)).graph.initializer
    return {item.name: onnx.numpy_helper.to_array(item) for item in found}


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)


@pytest.mark.parametrize("precision", SMALL)
def test_the_files_are_called_as_onnx_asr_and_transformers_js_call_them(exported, precision):
    meta = exported[precision].meta
    assert {name for name in meta["files"] if ".onnx" in name} == {f"{graph}_{precision}.onnx" for graph in GRAPHS}
    assert meta["onnx_asr"] == {"type": "whisper", "quantization": precision}
    assert (meta["quantize"], Spec(quantize=precision).label) == (precision, f"onnx-{precision}")
    assert exported["fp32"].meta["onnx_asr"] == {"type": "whisper", "quantization": None}
    assert [spec.label for spec in Spec(quantize=["fp32", *SMALL]).spread()] == ["onnx-fp32", "onnx-fp16", "onnx-int8"]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("precision", SMALL)
def test_inputs_and_outputs_are_those_of_fp32(exported, precision, graph):
    import onnxruntime

    sessions = [onnxruntime.InferenceSession(path_of(exported[name], graph)) for name in ("fp32", precision)]
    first, second = (
        [(item.name, item.type, item.shape) for item in (*session.get_inputs(), *session.get_outputs())]
        for session in sessions
    )
    assert first == second


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("precision", SMALL)
def test_the_files_are_valid_onnx(exported, precision, graph):
    import onnx

    onnx.checker.check_model(str(path_of(exported[precision], graph)), full_check=True)


def test_each_weight_is_stored_once(exported, lively_whisper):
    from safetensors.numpy import load_file

    weights = load_file(lively_whisper / "model.safetensors")
    is_matrix = {name: value.ndim == 2 and "embed_positions" not in name for name, value in weights.items()}
    num_bytes = {
        "fp32": sum(value.size * 4 for value in weights.values()),
        "fp16": sum(value.size * 2 for value in weights.values()),
        # With a scale of four bytes for each output.
        "int8": sum(
            value.size + 4 * len(value) if is_matrix[name] else value.size * 4 for name, value in weights.items()
        ),
    }
    for precision, wanted in num_bytes.items():
        found = sum(path.stat().st_size for path in exported[precision].path.glob("*.onnx"))
        # Nodes and names take a few hundred kilobytes.
        assert wanted < found < wanted + 300_000, precision


def test_all_matrices_are_bytes_in_branches_too(exported):
    import onnx

    for graph in GRAPHS:
        kept = [
            name
            for name, value in initialisers(exported["int8"], graph).items()
            if value.ndim == 2 and value.dtype != np.uint8
        ]
        assert [name.split(".")[2] for name in kept] == ["embed_positions"]
        found = list(nodes(onnx.load(path_of(exported["int8"], graph)).graph))
        # Attention's products of two activations stay as they are.
        weightless = [node for node in found if node.op_type in {"MatMul", "Gemm"}]
        assert not [name for node in weightless for name in node.input if name.startswith("model.")]
    branches = [node.attribute for node in found if node.op_type == "If"]
    counts = [
        sum(node.op_type == "MatMulInteger" for node in attribute.g.node) for pair in branches for attribute in pair
    ]
    assert sorted(counts) == [0, 0, 2, 2], "keys and values of both layers, in the first step only"


def test_bytes_are_the_weights_to_half_a_step(exported, lively_whisper):
    from safetensors.numpy import load_file

    weights = load_file(lively_whisper / "model.safetensors")
    for graph in GRAPHS:
        stored = initialisers(exported["int8"], graph)
        names = [name.removesuffix(".uint8") for name in stored if name.endswith(".uint8")]
        assert names
        for name in names:
            scale = stored[f"{name}.scale"]
            back = (stored[f"{name}.uint8"].astype(np.float32) - 128).T * scale[:, None]
            assert (np.abs(back - weights[name]) <= scale[:, None] * 0.5001).all(), name


def test_a_row_of_zeros_stays_zero():
    weights = Weights({"x": np.array([[0, 0], [1, -2]], np.float32)}, "int8")
    names = weights.take_bytes("x")
    from onnx import numpy_helper

    stored, scale = (numpy_helper.to_array(weights.protos[name]) for name in names)
    assert stored.T.tolist() == [[128, 128], [192, 1]]
    assert scale.tolist() == pytest.approx([1.0, 2 / 127])


def test_fp16_holds_the_weights_rounded(exported, lively_whisper):
    from safetensors.numpy import load_file

    weights = load_file(lively_whisper / "model.safetensors")
    for graph in GRAPHS:
        stored = {name: value for name, value in initialisers(exported["fp16"], graph).items() if value.ndim}
        floats = {name: value for name, value in stored.items() if value.dtype != np.int64}
        assert {value.dtype for value in floats.values()} == {np.dtype(np.float16)}
        for name, value in floats.items():
            plain = weights[name.removesuffix(".T")].astype(np.float16)
            assert np.array_equal(value, plain.T if name.endswith(".T") else plain), name


@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-5), ("fp16", 0.01), ("int8", 0.3)])
def test_logits_are_torchs_as_far_as_the_bits_go(exported, precision, most):
    meta = exported[precision].meta
    assert 0 < meta["logit_error"] < most
    assert meta["num_checked_steps"] == 8
    assert meta["num_same_tokens"] >= (8 if precision == "fp32" else 6)


def test_fewer_bits_err_more(exported):
    errors = [exported[precision].meta["logit_error"] for precision in ("fp32", "fp16", "int8")]
    assert errors == sorted(errors)
    assert errors[1] > 10 * errors[0]


@pytest.mark.parametrize("precision", SMALL)
def test_the_runtime_loads_the_folder_as_the_export_says(exported, precision):
    texts = [
        runtime.load(exported[name], device="cpu", threads=1, language="ru").transcribe(clip()[: 4 * 16_000])
        for name in (precision, "fp32")
    ]
    assert all(len(text) > 10 for text in texts)
    assert texts[0][:3] == texts[1][:3]


@pytest.mark.parametrize("precision", SMALL)
def test_a_token_after_the_others_is_heard_as_among_them(exported, precision):
    """Logits of five tokens at once, against four and then the fifth through the cache."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path_of(exported[precision], "decoder_model_merged"))
    random = np.random.default_rng(0)
    encoded = random.standard_normal((1, 1500, 128)).astype(np.float32)
    ids = random.integers(0, 50_257, (1, 5))
    names = [item.name for item in session.get_outputs()]
    past = {item.name: np.zeros((0, 2, 0, 64), np.float32) for item in session.get_inputs() if "past" in item.name}

    def run(tokens: np.ndarray, cache: dict[str, np.ndarray], *, cached: bool) -> dict[str, np.ndarray]:
        feed = {"encoder_hidden_states": encoded, "input_ids": tokens, "use_cache_branch": np.array([cached])}
        return dict(zip(names, session.run(names, feed | cache), strict=True))

    whole = run(ids, past, cached=False)["logits"][0, -1]
    first = run(ids[:, :4], past, cached=False)
    cache = {name: first[name.replace("past_key_values", "present")] for name in past}
    later = run(ids[:, 4:], cache, cached=True)["logits"][0, -1]
    # In 8 bits the scale of a layer's input is that of all tokens of a step together.
    most = {"fp16": 0.005, "int8": 0.3}[precision]
    assert np.linalg.norm(later - whole) < most * np.linalg.norm(whole - whole.mean())


@pytest.mark.parametrize("precision", SMALL)
def test_the_same_checkpoint_gives_the_same_bytes(exported, lively_whisper, tmp_path, precision):
    again = export(lively_whisper, tmp_path, precision)
    for path in exported[precision].path.iterdir():
        assert path.read_bytes() == (again.path / path.name).read_bytes(), path.name


@pytest.mark.parametrize("precision", SMALL)
def test_large_weights_lie_beside_the_graph(exported, lively_whisper, tmp_path, monkeypatch, precision):
    monkeypatch.setattr(whisper_graph, "MAX_EMBEDDED_BYTES", 5_000_000)
    spilled = export(lively_whisper, tmp_path, precision)
    assert [name for name in spilled.meta["files"] if name.endswith("_data")] == [
        f"decoder_model_merged_{precision}.onnx_data"
    ]
    assert path_of(spilled, "decoder_model_merged").stat().st_size < 300_000
    assert spilled.meta["logit_error"] == exported[precision].meta["logit_error"]


def test_weights_beyond_float16_are_refused():
    weights = Weights({"x": np.array([1e5], np.float32)}, "fp16")
    with pytest.raises(ExportError, match="tensor 'x' reaches 100000, but float16 ends at 65504; export it as fp32"):
        weights.take("x")
    assert Weights({"x": np.array([1e5], np.float32)}).take("x") == "x"


@pytest.mark.parametrize("value", [0.6, float("nan")])
def test_an_export_that_is_not_the_model_is_refused(value, tmp_path):
    difference = {"max_logit_difference": 0.0, "logit_error": value}
    with pytest.raises(ExportError, match=r"the int8 export's logits differ .*: logit_error is (0.6|nan), the limit"):
        whisper_onnx._judge(difference, precision="int8", source=tmp_path)
    whisper_onnx._judge(difference, precision="fp32", source=tmp_path)
    assert set(LIMITS) == set(get_args(Precision)) == set(onnx_graph.BYTES)


def test_a_graph_of_another_model_is_far_beyond_every_limit():
    random = np.random.default_rng(0)
    some, other = random.normal(3, 5, (8, 1000)), random.normal(3, 5, (8, 1000))
    assert whisper_onnx._difference(some, other)["logit_error"] > 1
    shifted = whisper_onnx._difference(some + 1, some)
    assert (shifted["logit_error"], shifted["num_same_tokens"]) == (pytest.approx(0, abs=1e-12), 8)
    assert shifted["max_logit_difference"] == pytest.approx(1)


def test_real_weights_in_8_bits_transcribe_a_real_clip(whisper_base, tmp_path):
    import jiwer

    from harness.core.text import normalise

    int8 = export(whisper_base, tmp_path, "int8")
    assert int8.meta["logit_error"] < LIMITS["int8"][1] / 2
    rows = [json.loads(line) for line in (AELITA / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    samples, _ = soundfile.read(AELITA / rows[1]["audio_filepath"], dtype="float32")
    text = runtime.load(int8, device="cpu", threads=2, language="ru").transcribe(samples)
    assert jiwer.cer(normalise(rows[1]["text"]), normalise(text)) < 0.1
