"""Loading a bundle's model in the runtime that applications use, with the parameters that it was scored with."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from harness.core.artifact import Artifact
from harness.errors import HarnessError, MissingError

if TYPE_CHECKING:
    from pathlib import Path

    from harness.promote.manifest import Manifest
    from harness.score.transcribe import Recogniser

Device = Literal["auto", "cpu", "metal", "coreml", "cuda"]
"""auto: as the application does it, which is the GPU for whisper.cpp where it has one, and the CPU for ONNX Runtime."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that can be asked."""

    recogniser: Recogniser
    runtime: str
    device: str


def load(payload: Path, *, manifest: Manifest, device: Device = "auto") -> Loaded:
    """Load a model as an application would.

    payload: the ggml file, or the folder of the ONNX files.
    Raises HarnessError if the runtime cannot, MissingError for a device that is not there.
    """
    if manifest.export_kind == "whisper_ggml":
        return _load_ggml(payload, manifest=manifest, device=device)
    if manifest.export_kind in {"whisper_onnx", "parakeet_onnx"}:
        return _load_onnx(payload, manifest=manifest, device=device)
    raise MissingError(
        f"{manifest.name}: {manifest.export_kind} is run by NeMo, which `install` and `bench` do without; "
        "score it with a suite: runtimes: [nemo]"
    )


def can_load(manifest: Manifest) -> bool:
    """Whether the light core has a runtime for it."""
    return manifest.export_kind != "parakeet_nemo"


def _load_ggml(payload: Path, *, manifest: Manifest, device: Device) -> Loaded:
    from harness.score import whispercpp
    from harness.score.processor import describe_cpu, physical_cores

    gpu = None if device == "cpu" else whispercpp.gpu_backend()
    wanted = {"metal": "Metal", "cuda": "CUDA"}.get(device)
    if device == "coreml" or (wanted and gpu != wanted):
        raise MissingError(
            f"this whisper.cpp runs on {gpu or 'the CPU'} only, not on {device}; use --device cpu, or build "
            "pywhispercpp for it"
        )
    threads = physical_cores()
    declared = _declared(manifest, whispercpp.Spec, {"device": "cpu" if device == "cpu" else "auto"})
    return Loaded(
        whispercpp.load(payload, spec=declared, threads=threads),
        runtime=f"whisper.cpp of pywhispercpp {version('pywhispercpp')}",
        device=f"{gpu} GPU" if gpu else describe_cpu(threads),
    )


def _load_onnx(payload: Path, *, manifest: Manifest, device: Device) -> Loaded:
    from harness.score import onnx
    from harness.score.processor import physical_cores
    from harness.score.providers import describe, resolve

    if device == "metal":
        raise MissingError("ONNX Runtime has no Metal of its own; use --device coreml or cpu")
    threads = physical_cores()
    declared = _declared(manifest, onnx.Spec, {"device": "cpu" if device == "auto" else device})
    on = resolve(declared.device)
    served = manifest.onnx_asr.model_dump() if manifest.onnx_asr else {}
    export = Artifact("", "export", payload, {}, {"onnx_asr": served} if served else {})
    return Loaded(
        onnx.load(export, device=on, threads=threads, language=declared.language),
        runtime=f"onnxruntime {version('onnxruntime')}, onnx-asr {version('onnx-asr')}",
        device=describe(on, threads=threads),
    )


def _declared(manifest: Manifest, spec: Any, changes: dict[str, Any]) -> Any:
    """What the suite declared of the runtime, but for the device, which is this machine's business."""
    declared = {name: value for name, value in manifest.serving.items() if name in spec.model_fields}
    try:
        return spec.model_validate({**declared, **changes, "threads": 0})
    except ValidationError as error:
        raise HarnessError(
            f"{manifest.name}: its manifest's `serving` is not sound: {error.errors()[0]['msg']}; promote it again"
        ) from error
