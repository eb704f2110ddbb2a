"""Exported ONNX models on ONNX Runtime, by onnx-asr, as a desktop app would run them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from harness.core.artifact import Resources
from harness.errors import ExportError, MissingError
from harness.score.chunks import WINDOW_S, split
from harness.score.memory import nvidia_devices
from harness.score.processor import describe_cpu, describe_gpu, physical_cores
from harness.score.transcribe import transcribe_set
from harness.suite.spec import RuntimeSpec

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from harness.core.artifact import Inputs, Work

VERSION = 1
RESOURCES = Resources(whole_machine=True, gpu=True)

CUDA = "CUDAExecutionProvider"
MAX_TOKENS = 448
"""onnx-asr's fixed limit, prompt included: Whisper's whole context."""


class Spec(RuntimeSpec):
    """ONNX Runtime through onnx-asr."""

    kind: Literal["onnx"] = "onnx"
    accepts: ClassVar[tuple[str, ...]] = ("whisper_onnx",)

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA where ONNX Runtime has it."""
    threads: int = Field(default=0, ge=0)
    """0 stands for all physical cores."""
    language: str = "ru"


@dataclass(frozen=True, slots=True)
class Recogniser:
    """A model that onnx-asr has loaded."""

    model: Any
    language: str

    def transcribe(self, samples: np.ndarray, /) -> str:
        texts = [self.model.recognize(piece, language=self.language).strip() for piece in split(samples)]
        return " ".join(text for text in texts if text)


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Transcribe `inputs["heldout"]` with `inputs["export"]`.

    Raises MissingError if the suite wants CUDA and ONNX Runtime has none.
    """
    import onnxruntime

    device = _device(spec)
    threads = spec.threads or physical_cores()
    return transcribe_set(
        inputs["heldout"][0],
        load=lambda: load(inputs["export"][0].path, device=device, threads=threads, language=spec.language),
        work=work,
        runtime=f"onnxruntime {onnxruntime.__version__}, onnx-asr {_version('onnx-asr')}",
        device=describe_cpu(threads) if device == "cpu" else describe_gpu(),
        decoding={
            "strategy": "greedy",
            "language": spec.language,
            "task": "transcribe",
            "timestamps": False,
            "max_tokens": MAX_TOKENS,
            "window_s": WINDOW_S,
            "threads": threads,
        },
    )


def load(folder: Path, *, device: Literal["cpu", "cuda"], threads: int, language: str) -> Recogniser:
    """Load the folder of an export.

    Raises ExportError if the model does not know the language, MissingError if CUDA is there but does not start.
    """
    import onnx_asr
    import onnxruntime

    _check_language(folder, language)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    providers = ["CPUExecutionProvider"]
    if device == "cuda":
        providers.insert(0, CUDA)
        # Finds CUDA's libraries where pip has put them.
        onnxruntime.preload_dlls()
    model = onnx_asr.load_model("whisper", folder, sess_options=options, providers=providers)
    # ONNX Runtime falls back to the CPU with no more than a warning, and the scores would name the wrong device.
    if device == "cuda" and CUDA not in model.asr._encoder.get_providers():  # noqa: SLF001 - it tells nowhere else
        raise MissingError(
            "runtime onnx: this ONNX Runtime is built for CUDA, but its libraries did not load; "
            "pip install 'onnxruntime-gpu[cuda,cudnn]', or set device to 'cpu'"
        )
    return Recogniser(model, language)


def _check_language(folder: Path, language: str) -> None:
    tokens = json.loads((folder / "added_tokens.json").read_text(encoding="utf-8"))
    if f"<|{language}|>" not in tokens:
        raise ExportError(
            f"runtime onnx: {folder.name} has no token <|{language}|> for language {language!r}; "
            "use Whisper's code of the language, such as 'ru'"
        )


def _device(spec: Spec) -> Literal["cpu", "cuda"]:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if spec.device == "cuda" and CUDA not in available:
        raise MissingError(
            f"runtime onnx: device is 'cuda', but this ONNX Runtime has only {', '.join(available)}; "
            "pip uninstall onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]', or set device to 'cpu'"
        )
    # A build for CUDA says that it has it on machines without a GPU, too.
    automatic = spec.device == "auto" and CUDA in available and bool(nvidia_devices())
    return "cuda" if spec.device == "cuda" or automatic else "cpu"


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
