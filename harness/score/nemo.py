"""`.nemo` files on NeMo itself, as a Python server runs them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from harness.core.artifact import Resources
from harness.core.nemo_file import decode_greedily, restore, transcribe, transcribe_batch
from harness.score.chunks import split
from harness.score.processor import describe_cpu, describe_gpu, physical_cores, torch_device
from harness.score.transcribe import in_pieces, transcribe_set
from harness.suite.spec import RuntimeSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from harness.core.artifact import Artifact, Inputs, Work

VERSION = 1
RESOURCES = Resources(whole_machine=True, gpu=True)

MODEL_FILE = "model.nemo"
WINDOW_S = 300.0
"""Longer recordings are cut in a pause, as the ONNX runtime cuts them: full attention takes memory with the square of
the length."""


class Spec(RuntimeSpec):
    """NeMo on torch."""

    kind: Literal["nemo"] = "nemo"
    accepts: ClassVar[tuple[str, ...]] = ("parakeet_nemo",)

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA where torch has it."""
    threads: int = Field(default=0, ge=0)
    """Of the CPU; 0 stands for all physical cores."""
    strategy: Literal["greedy", "greedy_batch"] = "greedy"
    """NeMo's plain loop, or its loop over batches, which on CUDA is one recorded graph; the text is the same."""


@dataclass(frozen=True, slots=True)
class Recogniser:
    """A model that NeMo has restored."""

    model: Any

    def transcribe(self, samples: np.ndarray, /) -> str:
        texts = [transcribe(self.model, piece).strip() for piece in split(samples, max_s=WINDOW_S)]
        return " ".join(text for text in texts if text)

    def transcribe_batch(self, recordings: Sequence[np.ndarray], /) -> list[str]:
        return in_pieces(recordings, max_s=WINDOW_S, transcribe=lambda pieces: transcribe_batch(self.model, pieces))


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Transcribe `inputs["heldout"]` with `inputs["export"]`'s `model.nemo`.

    Raises DataError for a file that is damaged or brings code, MissingError without NeMo or the CUDA asked for.
    """
    threads = spec.threads or physical_cores()
    return transcribe_set(
        inputs["heldout"][0],
        load=lambda: recogniser(spec, inputs["export"][0]),
        work=work,
        runtime=f"NeMo {version('nemo_toolkit')}, torch {version('torch')}",
        device=described(spec),
        decoding={"strategy": spec.strategy, "dither": 0.0, "window_s": WINDOW_S, "threads": threads},
    )


def recogniser(spec: Spec, export: Artifact) -> Recogniser:
    """An export, loaded as `run` loads it. Raises DataError and MissingError as it does."""
    threads = spec.threads or physical_cores()
    return load(export.path / MODEL_FILE, device=_device(spec), threads=threads, strategy=spec.strategy)


def described(spec: Spec) -> str:
    """Where an export runs, in words. Raises MissingError as `run` does."""
    return describe_cpu(spec.threads or physical_cores()) if _device(spec) == "cpu" else describe_gpu()


def load(path: Path, *, device: Literal["cpu", "cuda"], threads: int, strategy: str) -> Recogniser:
    """Restore the file of an export, in float32.

    Raises DataError for a file that is damaged or brings code, MissingError without NeMo.
    """
    import torch

    torch.set_num_threads(threads)
    model = restore(path, device=device)
    decode_greedily(model, strategy=strategy)
    return Recogniser(model)


def _device(spec: Spec) -> Literal["cpu", "cuda"]:
    return torch_device(spec.device, runtime="nemo", install="pip install 'nemo_toolkit[asr]'")
