"""Parakeet as ONNX, in the layout that onnx-asr, parakeet-rs and transcribe-rs load.

A transducer: `encoder-model.onnx` with its weights in `encoder-model.onnx.data`, and `decoder_joint-model.onnx`; with
CTC `model.onnx` and its `.data`. In int8 each is one file, `encoder-model.int8.onnx`, and no float32 lies beside it:
applications would take that. With them `vocab.txt`, `config.json`, and the preprocessor as `nemo80.onnx` or
`nemo128.onnx`.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from harness.core.artifact import Resources
from harness.core.nemo_file import quiet
from harness.errors import ExportError
from harness.export.nemo_model import MODEL_FILE, describe, load, parakeet_rs_fault
from harness.suite.spec import ExportSpec, OneOrMore

if TYPE_CHECKING:
    from pathlib import Path

    from harness.core.artifact import Inputs, Work
    from harness.export.nemo_model import Shape

VERSION = 1
RESOURCES = Resources(whole_machine=True)

OPSET = 17
"""The first with LayerNormalization, and old enough for every ONNX Runtime in use."""
MAX_EMBEDDED_BYTES = 1_900_000_000
"""Protobuf reads no message above 2 GiB."""
SMALL_BYTES = 1024
"""Tensors up to this size stay in the graph when the weights lie beside it."""
TOLERANCE = 1e-3
"""Of fp32's outputs, relative to the largest one. Rounding gives 1e-5; a wrong graph gives about 1."""
FEATURE_TOLERANCE = 1e-3
"""Of log-mel features normalised to unit variance."""
INT8_TOLERANCE = 0.5
"""Of int8's encoder: the norm of its error, relative to the norm of the outputs. Usual is 0.01 to 0.1."""


class Spec(ExportSpec):
    """ONNX in float32, or with weights in 8 bits: a quarter of the size."""

    kind: Literal["parakeet_onnx"] = "parakeet_onnx"
    accepts: ClassVar[tuple[str, ...]] = ("parakeet",)

    quantize: Annotated[Literal["fp32", "int8"], OneOrMore()] = "fp32"

    @property
    def label(self) -> str:
        return f"onnx-{self.quantize}"


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Write `inputs["model"]`'s `model/model.nemo` as ONNX, and compare it with NeMo on sounds made for it.

    meta: files, size_bytes, opset, quantize, onnx_asr (how it loads the folder), vocab_size, num_mels, max_audio_s, and
    by how much it differs from NeMo: max_feature_difference, max_output_difference, encoder_error, num_probes,
    num_same_text. parakeet_rs_fault: why Mimir could not run it, None if nothing speaks against it.
    Raises ExportError for a model that this layout cannot say, or an export that differs.
    """
    from harness.export.parakeet_parity import compare, expect

    work.progress(0, 5, "restoring the model")
    source = inputs["model"][0]
    model = load(source)
    shape = describe(model, path=source.path / "model" / MODEL_FILE)
    work.progress(1, 5, "running NeMo")
    expected = expect(model, shape)
    work.progress(2, 5, "writing the graphs")
    graphs = work.scratch / "graphs"
    _write_graphs(model, graphs)
    del model  # A large model and its export need not be in memory at once.
    work.progress(3, 5, "storing the weights")
    for path in sorted(graphs.glob("*.onnx")):
        _store(path, work.path, quantize=spec.quantize)
    shutil.rmtree(graphs)
    _write_vocabulary(shape, work.path)
    work.progress(4, 5, "running ONNX")
    with quiet():
        difference = compare(work.path, shape, expected, quantization=_quantization(spec))
    _judge(spec, difference)
    files = sorted(path.name for path in work.path.iterdir())
    fault = parakeet_rs_fault(shape)
    work.progress(5, 5, "done")
    return {
        "opset": OPSET,
        "quantize": spec.quantize,
        "size_bytes": sum((work.path / name).stat().st_size for name in files),
        "files": files,
        "onnx_asr": {"type": shape.model_type, "quantization": _quantization(spec)},
        "vocab_size": len(shape.vocabulary),
        "num_mels": shape.num_mels,
        "max_audio_s": shape.max_audio_s,
        **difference,
        "parakeet_rs_fault": fault,
        "notes": [f"{fault}: it runs in onnx-asr, but not there"] if fault else [],
    }


def _quantization(spec: Spec) -> str | None:
    """As onnx-asr calls it: what stands between a file's name and `.onnx`."""
    return None if spec.quantize == "fp32" else spec.quantize


def _write_graphs(model: Any, folder: Path) -> None:
    """NeMo's own export, into a folder of its own: over 2 GB, torch spills every tensor into a file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with quiet():
        model.export(str(folder / "model.onnx"), onnx_opset_version=OPSET)


def _store(source: Path, folder: Path, *, quantize: str) -> None:
    """One graph with its weights: fp32 beside it, int8 in it where they fit."""
    import onnx

    if quantize == "int8":
        _store_int8(source, folder / f"{source.stem}.int8.onnx")
        return
    target = folder / source.name
    # The small decoder is one file, as everybody publishes it.
    external = not source.name.startswith("decoder")
    onnx.save_model(
        onnx.load(source),
        target,
        save_as_external_data=external,
        all_tensors_to_one_file=True,
        location=f"{target.name}.data",
        size_threshold=SMALL_BYTES,
    )


def _store_int8(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    num_bytes = sum(path.stat().st_size for path in source.parent.iterdir())
    with quiet():
        quantize_dynamic(
            source,
            target,
            # Convolutions of signed weights have no kernel on the CPU.
            weight_type=QuantType.QInt8 if source.name.startswith("decoder") else QuantType.QUInt8,
            use_external_data_format=num_bytes / 4 > MAX_EMBEDDED_BYTES,
        )


def _write_vocabulary(shape: Shape, folder: Path) -> None:
    from importlib.resources import files

    config = {
        "model_type": shape.model_type,
        "features_size": shape.num_mels,
        "subsampling_factor": shape.subsampling_factor,
        **({} if shape.is_ctc else {"max_tokens_per_step": shape.max_tokens_per_step}),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8", newline="\n")
    (folder / "vocab.txt").write_text("".join(shape.lines), encoding="utf-8", newline="\n")
    name = f"nemo{shape.num_mels}.onnx"
    (folder / name).write_bytes((files("onnx_asr.preprocessors") / "data" / name).read_bytes())


def _judge(spec: Spec, difference: dict[str, Any]) -> None:
    """Raise ExportError for an export that is not the model. Written so that a NaN does not pass."""
    if not difference["max_feature_difference"] <= FEATURE_TOLERANCE:
        raise ExportError(
            f"the preprocessor's features differ from NeMo's by {difference['max_feature_difference']:.3g}, the limit "
            f"is {FEATURE_TOLERANCE}; the model's preprocessor is not Parakeet's (25 ms Hann windows, per-feature norm)"
        )
    name, limit = ("max_output_difference", TOLERANCE) if spec.quantize == "fp32" else ("encoder_error", INT8_TOLERANCE)
    if not difference[name] <= limit:
        raise ExportError(
            f"the {spec.quantize} export's outputs differ from NeMo's: {name} is {difference[name]:.3g}, the limit is "
            f"{limit}; look for NaN, infinite or very large weights in the checkpoint, and report it if there are none"
        )
    if spec.quantize == "fp32" and not difference["num_same_text"]:
        raise ExportError(
            f"the export's outputs are NeMo's, but none of its {difference['num_probes']} texts is; "
            "the vocabulary or the decoding differs: report it"
        )
