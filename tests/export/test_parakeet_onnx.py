"""Parakeet's ONNX export against NeMo itself, on tiny random models and real clips."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_asr
import onnxruntime
import pytest
import soundfile
from onnx_asr.preprocessors.numpy_preprocessor import NemoPreprocessorNumpy
from pydantic import ValidationError

from harness.core.artifact import Artifact, Work
from harness.core.nemo_file import transcribe
from harness.errors import ExportError
from harness.export import parakeet_onnx
from harness.export.nemo_model import load
from harness.export.parakeet_onnx import Spec
from harness.export.parakeet_parity import same_text, sounds
from tests.conftest import AELITA, artifact
from tests.parakeets import build_parakeet

NUM_CLIPS = 50
TYPES = {
    "tdt": "nemo-conformer-tdt",
    "rnnt": "nemo-conformer-rnnt",
    "ctc": "nemo-conformer-ctc",
    "hybrid": "nemo-conformer-tdt",
}
CPU = ["CPUExecutionProvider"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """What is this small is slower on several."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def serve(exported: Artifact):
    """As an application loads it: by the type's public name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    config = json.loads((exported.path / "config.json").read_text(encoding="utf-8"))
    return onnx_asr.load_model(config["model_type"], exported.path, sess_options=options, providers=CPU)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Artifact]:
    """Kind → an artifact as training leaves it. TDT has 128 mel bins, like v3, the others 80."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for kind in TYPES:
        path = build_parakeet(folder / "made", kind=kind, num_mels=128 if kind == "tdt" else 80)
        (folder / kind / "model").mkdir(parents=True)
        shutil.move(path, folder / kind / "model" / "model.nemo")
        found[kind] = artifact(folder / kind)
    return found


def export(model: Artifact, folder: Path, *, quantize: str = "fp32") -> Artifact:
    work = Work(path=folder / "out", scratch=folder / "scratch")
    work.path.mkdir(parents=True)
    work.scratch.mkdir()
    meta = parakeet_onnx.run(Spec(quantize=quantize), {"model": [model]}, work)
    assert json.loads(json.dumps(meta)) == meta
    assert not any(work.scratch.glob("*.onnx*"))
    return artifact(work.path, **meta)


@pytest.fixture(scope="module")
def exports(models, tmp_path_factory) -> dict[tuple[str, str], Artifact]:
    folder = tmp_path_factory.mktemp("exports")
    wanted = [*((kind, "fp32") for kind in TYPES), ("tdt", "int8"), ("ctc", "int8")]
    return {
        (kind, quantize): export(models[kind], folder / kind / quantize, quantize=quantize) for kind, quantize in wanted
    }


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    """The shortest ones."""
    paths = sorted((AELITA / "clips").iterdir(), key=lambda path: (path.stat().st_size, path.name))[:NUM_CLIPS]
    return [soundfile.read(path, dtype="float32")[0] for path in paths]


@pytest.mark.parametrize(
    ("kind", "quantize", "files"),
    [
        (
            "tdt",
            "fp32",
            {
                "encoder-model.onnx",
                "encoder-model.onnx.data",
                "decoder_joint-model.onnx",
                "vocab.txt",
                "config.json",
                "nemo128.onnx",
            },
        ),
        (
            "tdt",
            "int8",
            {
                "encoder-model.int8.onnx",
                "decoder_joint-model.int8.onnx",
                "vocab.txt",
                "config.json",
                "nemo128.onnx",
            },
        ),
        ("ctc", "fp32", {"model.onnx", "model.onnx.data", "vocab.txt", "config.json", "nemo80.onnx"}),
        ("ctc", "int8", {"model.int8.onnx", "vocab.txt", "config.json", "nemo80.onnx"}),
    ],
)
def test_the_layout(exports, kind, quantize, files):
    exported = exports[kind, quantize]
    assert {path.name for path in exported.path.iterdir()} == files
    assert set(exported.meta["files"]) == files
    assert exported.meta["size_bytes"] == sum(path.stat().st_size for path in exported.path.iterdir())
    lines = (exported.path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ")[1] for line in lines] == [str(number) for number in range(len(lines))]
    assert lines[-1] == f"<blk> {exported.meta['vocab_size']}"
    config = json.loads((exported.path / "config.json").read_text(encoding="utf-8"))
    expected = {
        "model_type": TYPES[kind],
        "features_size": 128 if kind == "tdt" else 80,
        "subsampling_factor": 8,
        **({"max_tokens_per_step": 10} if kind == "tdt" else {}),
    }
    assert config == expected
    assert exported.meta["max_audio_s"] == 400.0
    assert exported.meta["onnx_asr"] == {"type": TYPES[kind], "quantization": "int8" if quantize == "int8" else None}


def test_the_inputs_are_those_that_parakeet_rs_feeds(exports):
    """Names and types in its `model_tdt.rs`: 32-bit targets and lengths, 64-bit length of the features."""

    def inputs(name: str) -> dict[str, str]:
        session = onnxruntime.InferenceSession(exports["tdt", "fp32"].path / name, providers=CPU)
        return {item.name: item.type for item in session.get_inputs()}

    assert inputs("encoder-model.onnx") == {"audio_signal": "tensor(float)", "length": "tensor(int64)"}
    assert inputs("decoder_joint-model.onnx") == {
        "encoder_outputs": "tensor(float)",
        "targets": "tensor(int32)",
        "target_length": "tensor(int32)",
        "input_states_1": "tensor(float)",
        "input_states_2": "tensor(float)",
    }


@pytest.mark.parametrize("kind", TYPES)
def test_texts_are_nemos(models, exports, clips, kind):
    """In onnx-asr, unmodified. Random weights: the texts are noise, but each clip's own."""
    if kind == "hybrid":
        clips = clips[:5]  # the same graphs as TDT's; only whether its transducer was exported is in question
    model = load(models[kind])
    served = serve(exports[kind, "fp32"])
    expected = [transcribe(model, clip) for clip in clips]
    assert len(set(expected)) > 0.9 * len(clips)
    found = [served.recognize(clip) for clip in clips]
    same = sum(map(same_text, found, expected)) / len(clips)
    assert same >= 0.98
    assert exports[kind, "fp32"].meta["num_same_text"] >= 1


@pytest.mark.parametrize("kind", ["tdt", "ctc"])
def test_int8_is_smaller_and_close(exports, kind):
    fp32, int8 = exports[kind, "fp32"], exports[kind, "int8"]
    assert fp32.meta["encoder_error"] < 1e-4
    assert 1e-4 < int8.meta["encoder_error"] < 0.2
    name = "model" if kind == "ctc" else "encoder-model"
    operations = {node.op_type for node in onnx.load(int8.path / f"{name}.int8.onnx").graph.node}
    assert {"MatMulInteger", "ConvInteger"} <= operations
    weights = onnx.load(fp32.path / f"{name}.onnx").graph.initializer
    quantized = onnx.load(int8.path / f"{name}.int8.onnx").graph.initializer
    assert num_bytes(quantized) < 0.4 * num_bytes(weights)


def num_bytes(tensors) -> int:
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in tensors)


@pytest.mark.parametrize("kind", ["tdt", "ctc"])
def test_features_are_nemos_within_a_thousandth(models, exports, clips, kind):
    """Of the preprocessor in the folder, and of onnx-asr's own in numpy; dither is off outside training."""
    import torch

    model = load(models[kind])
    num_mels = model.cfg.preprocessor.features
    graph = onnxruntime.InferenceSession(exports[kind, "fp32"].path / f"nemo{num_mels}.onnx", providers=CPU)
    plain = NemoPreprocessorNumpy(f"nemo{num_mels}")
    for samples in [*clips[:10], *sounds()]:
        with torch.inference_mode():
            expected, length = model.preprocessor(
                input_signal=torch.from_numpy(samples)[None], length=torch.tensor([len(samples)])
            )
        waveforms, lengths = samples[None], np.array([len(samples)])
        for features, frames in (
            graph.run(None, {"waveforms": waveforms, "waveforms_lens": lengths}),
            plain(waveforms, lengths),
        ):
            assert frames[0] == length[0]
            difference = features[..., : frames[0]] - expected.numpy()[..., : frames[0]]
            assert np.abs(difference).max() < 1e-3


@pytest.mark.parametrize("quantize", ["fp32", "int8"])
def test_the_same_model_gives_the_same_bytes(models, exports, tmp_path, quantize):
    again = export(models["tdt"], tmp_path, quantize=quantize)
    for path in exports["tdt", quantize].path.iterdir():
        assert path.read_bytes() == (again.path / path.name).read_bytes(), path.name


def test_a_preprocessor_of_another_kind_is_refused(models, work, monkeypatch):
    model = load(models["ctc"])
    model.preprocessor.featurizer.normalize = "all_features"
    monkeypatch.setattr(parakeet_onnx, "load", lambda source: model)
    with pytest.raises(
        ExportError, match=r"the preprocessor's features differ from NeMo's by [\d.]+, the limit is 0\.001"
    ):
        parakeet_onnx.run(Spec(), {"model": [models["ctc"]]}, work)


def test_weights_that_are_no_numbers_are_refused(models, work, monkeypatch):
    import torch

    model = load(models["ctc"])
    with torch.no_grad():
        next(model.encoder.layers.parameters()).fill_(float("nan"))
    monkeypatch.setattr(parakeet_onnx, "load", lambda source: model)
    with pytest.raises(ExportError, match=r"fp32 export's outputs differ from NeMo's: max_output_difference is nan"):
        parakeet_onnx.run(Spec(), {"model": [models["ctc"]]}, work)


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"max_output_difference": 0.01}, "max_output_difference is 0.01, the limit is 0.001"),
        ({"num_same_text": 0}, "none of its 3 texts is"),
    ],
)
def test_an_export_that_differs_is_refused(difference, message):
    same = {"max_feature_difference": 0.0, "max_output_difference": 0.0, "encoder_error": 0.9, "num_probes": 3}
    parakeet_onnx._judge(Spec(), {**same, "num_same_text": 1})
    with pytest.raises(ExportError, match=message):
        parakeet_onnx._judge(Spec(), {**same, "num_same_text": 1, **difference})
    with pytest.raises(
        ExportError, match=r"the int8 export's outputs differ.* encoder_error is 0\.9, the limit is 0\.5"
    ):
        parakeet_onnx._judge(Spec(quantize="int8"), same)


def test_a_model_without_a_file_is_named(tmp_path, work):
    with pytest.raises(ExportError, match=r"model\.nemo: there is no such file; a Parakeet's training"):
        parakeet_onnx.run(Spec(), {"model": [artifact(tmp_path)]}, work)


def test_the_note_says_what_mimir_cannot_run(exports):
    (note,) = exports["tdt", "fp32"].meta["notes"]
    assert note.startswith(exports["tdt", "fp32"].meta["parakeet_rs_fault"])
    assert note.startswith("its prediction is (2, 24), and Mimir (parakeet-rs) takes (2, 640) for granted: it runs in")


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("да, нет", "да , нет", True),
        ("да нет", "да  нет", True),
        ("да<unk>нет", "да ⁇ нет", True),
        ("да", "нет", False),
        ("", "да", False),
    ],
)
def test_the_same_text(found, expected, same):
    assert same_text(found, expected) is same


def test_the_sounds_are_the_same_on_every_machine_and_differ_among_themselves():
    first, again = list(sounds()), list(sounds())
    assert all((one == two).all() for one, two in zip(first, again, strict=True))
    assert len({item.tobytes() for item in first}) == len(first)
    assert all(item.dtype == np.float32 and 0.29 < np.abs(item).max() <= 0.3 for item in first)


def test_the_spec():
    assert [Spec(quantize=name).label for name in ("fp32", "int8")] == ["onnx-fp32", "onnx-int8"]
    assert Spec(quantize=["fp32", "int8"]).spread() == [Spec(), Spec(quantize="int8")]
    assert Spec().identity() != Spec(quantize="int8").identity()
    with pytest.raises(ValidationError):
        Spec(quantize="int4")


def test_the_kinds_load_nothing_heavy():
    code = "import sys, harness.export.parakeet_onnx, harness.export.parakeet_nemo; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "torch", "nemo", "onnx", "onnxruntime", "onnx_asr"} & {*loaded}
