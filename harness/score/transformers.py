"""Checkpoints on torch through transformers: what a model hears before it is exported."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from harness.core.artifact import Resources
from harness.core.manifests import SAMPLE_RATE_HZ
from harness.core.whisper_folder import read_model, read_processor
from harness.errors import ExportError
from harness.score.chunks import WINDOW_S, split
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

MODEL_FOLDER = "model"
MAX_TOKENS = 448
"""The prompt's among them: Whisper's whole context, and where the ONNX runtime stops."""


class Spec(RuntimeSpec):
    """Transformers on torch, in float32."""

    kind: Literal["transformers"] = "transformers"
    accepts: ClassVar[tuple[str, ...]] = ("whisper_checkpoint",)

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA where torch has it."""
    threads: int = Field(default=0, ge=0)
    """Of the CPU; 0 stands for all physical cores."""
    language: str = "ru"


@dataclass(frozen=True, slots=True)
class Recogniser:
    """A Whisper that transformers has loaded."""

    model: Any
    processor: Any
    language: str

    def transcribe(self, samples: np.ndarray, /) -> str:
        texts = [self._transcribe(piece) for piece in split(samples)]
        return " ".join(text for text in texts if text)

    def transcribe_batch(self, recordings: Sequence[np.ndarray], /) -> list[str]:
        return in_pieces(recordings, max_s=WINDOW_S, transcribe=self._transcribe_all)

    def _transcribe(self, samples: np.ndarray) -> str:
        return self._transcribe_all([samples])[0]

    def _transcribe_all(self, pieces: list[np.ndarray]) -> list[str]:
        import torch

        features = self.processor(pieces, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features
        with torch.inference_mode():
            tokens = self.model.generate(
                features.to(self.model.device),
                language=self.language,
                task="transcribe",
                return_timestamps=False,
                num_beams=1,
                do_sample=False,
            )
        return [text.strip() for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Transcribe `inputs["heldout"]` with `inputs["export"]`'s `model/`.

    Raises ExportError for a model that does not know the language, MissingError without torch or the CUDA asked for.
    """
    threads = spec.threads or physical_cores()
    return transcribe_set(
        inputs["heldout"][0],
        load=lambda: recogniser(spec, inputs["export"][0]),
        work=work,
        runtime=f"transformers {version('transformers')}, torch {version('torch')}",
        device=described(spec),
        decoding={
            "strategy": "greedy",
            "language": spec.language,
            "task": "transcribe",
            "timestamps": False,
            "suppress_tokens": None,
            "max_tokens": MAX_TOKENS,
            "window_s": WINDOW_S,
            "threads": threads,
        },
    )


def recogniser(spec: Spec, export: Artifact) -> Recogniser:
    """An export, loaded as `run` loads it. Raises ExportError and MissingError as it does."""
    threads = spec.threads or physical_cores()
    return load(export.path / MODEL_FOLDER, device=_device(spec), threads=threads, language=spec.language)


def described(spec: Spec) -> str:
    """Where an export runs, in words. Raises MissingError as `run` does."""
    return describe_cpu(spec.threads or physical_cores()) if _device(spec) == "cpu" else describe_gpu()


def load(folder: Path, *, device: Literal["cpu", "cuda"], threads: int, language: str) -> Recogniser:
    """Load a Hugging Face folder in float32.

    Raises ExportError for a model that does not know the language.
    """
    import torch

    torch.set_num_threads(threads)
    processor, model = read_processor(folder), read_model(folder)
    settings = model.generation_config
    if f"<|{language}|>" not in getattr(settings, "lang_to_id", {}):
        raise ExportError(
            f"runtime transformers: {folder.parent.name} has no token <|{language}|> for language {language!r}; "
            "use Whisper's code of the language, such as 'ru'"
        )
    # As the exports' runtimes decode: else the difference to them would be the decoding's, not the export's.
    settings.suppress_tokens = settings.begin_suppress_tokens = None
    settings.max_length = MAX_TOKENS
    return Recogniser(model.eval().to(device), processor, language)


def _device(spec: Spec) -> Literal["cpu", "cuda"]:
    return torch_device(spec.device, runtime="transformers", install="pip install '.[train]'")
