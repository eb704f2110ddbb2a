"""ONNX Runtime's execution providers: which this machine has, which a model really runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from harness.errors import MissingError
from harness.score.memory import nvidia_devices
from harness.score.processor import describe_cpu, describe_gpu

if TYPE_CHECKING:
    from collections.abc import Sequence

Wanted = Literal["auto", "cpu", "cuda", "coreml", "tensorrt"]
Device = Literal["cpu", "cuda", "coreml", "tensorrt"]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PROVIDERS: dict[Device, tuple[str, ...]] = {
    "cpu": (),
    "cuda": (CUDA,),
    "coreml": ("CoreMLExecutionProvider",),
    # What TensorRT cannot build runs on CUDA.
    "tensorrt": ("TensorrtExecutionProvider", CUDA),
}
"""Beside the CPU, which takes what the others leave."""
REMEDIES: dict[Device, str] = {
    "cuda": "pip uninstall onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'",
    "coreml": "it comes with onnxruntime on a Mac",
    "tensorrt": "pip uninstall onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]' tensorrt",
}
WINDOW_S: dict[Device, float] = {"tensorrt": 30.0}
"""onnx-asr has TensorRT build engines for at most so much."""


def resolve(wanted: Wanted) -> Device:
    """Where to run: `auto` takes CUDA where there is an NVIDIA GPU and ONNX Runtime is built for it, else the CPU.

    Raises MissingError, with its remedy, for a provider that ONNX Runtime does not have.
    """
    import onnxruntime

    available: Sequence[str] = onnxruntime.get_available_providers()
    if wanted == "auto":
        # A build for CUDA says that it has it on machines without a GPU, too.
        return "cuda" if CUDA in available and nvidia_devices() else "cpu"
    if not set(PROVIDERS[wanted]) <= set(available):
        raise MissingError(
            f"runtime onnx: device is '{wanted}', but this ONNX Runtime has only {', '.join(available)}; "
            f"{REMEDIES[wanted]}, or set device to 'cpu'"
        )
    return wanted


def providers(device: Device) -> list[str]:
    """For ONNX Runtime, in order of preference."""
    return [*PROVIDERS[device], CPU]


def check_running(model: Any, device: Device) -> None:
    """Raise MissingError if `model`, onnx-asr's, runs on the CPU although it was to run on `device`.

    ONNX Runtime falls back with no more than a warning, and the scores would name the wrong device.
    """
    import onnxruntime

    if device == "cpu":
        return
    # It tells nowhere else.
    sessions = [item for item in vars(model.asr).values() if isinstance(item, onnxruntime.InferenceSession)]
    if any(PROVIDERS[device][0] in session.get_providers() for session in sessions):
        return
    raise MissingError(
        f"runtime onnx: device is '{device}', but {type(model.asr).__name__} runs on the CPU: either {device}'s "
        f"libraries did not load ({REMEDIES[device]}), or onnx-asr does not run this kind of model there; "
        "set device to 'cpu'"
    )


def describe(device: Device, *, threads: int) -> str:
    """For people: "AMD EPYC 7763, 8 threads", "NVIDIA GeForce RTX 4090, TensorRT", "Apple M2, 8 threads, CoreML"."""
    if device == "cpu":
        return describe_cpu(threads)
    if device == "coreml":
        return f"{describe_cpu(threads)}, CoreML"
    return describe_gpu() if device == "cuda" else f"{describe_gpu()}, TensorRT"
