"""Exported and published ONNX models on ONNX Runtime, by onnx-asr, as a desktop app would run them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from harness.core.artifact import Resources
from harness.core.files import parse_json_file
from harness.core.manifests import SAMPLE_RATE_HZ
from harness.errors import ExportError, first_line
from harness.score.chunks import WINDOW_S as WHISPER_WINDOW_S
from harness.score.chunks import split
from harness.score.families import takes_language, window_s
from harness.score.processor import physical_cores
from harness.score.providers import (
    WINDOW_S,
    Device,
    Wanted,
    check_running,
    describe,
    providers,
    resolve,
)
from harness.score.transcribe import in_pieces, transcribe_set
from harness.suite.spec import RuntimeSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from harness.core.artifact import Artifact, Inputs, Work

VERSION = 1
RESOURCES = Resources(whole_machine=True, gpu=True)

MAX_TOKENS = 448
"""onnx-asr's fixed limit, prompt included: Whisper's whole context."""
LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
"""Whisper's token of a language."""


class Spec(RuntimeSpec):
    """ONNX Runtime through onnx-asr."""

    kind: Literal["onnx"] = "onnx"
    accepts: ClassVar[tuple[str, ...]] = ("whisper_onnx", "parakeet_onnx", "reference")

    device: Wanted = "auto"
    """`auto` takes CUDA where ONNX Runtime has it."""
    threads: int = Field(default=0, ge=0)
    """0 stands for all physical cores."""
    language: str = "ru"
    """For models that must be told: Whisper and Canary."""


@dataclass(frozen=True, slots=True)
class Served:
    """How onnx-asr is to read a folder; an export says it in its meta, under `onnx_asr`."""

    type: str = "whisper"
    quantization: str | None = None


@dataclass(frozen=True, slots=True)
class Recogniser:
    """A model that onnx-asr has loaded."""

    model: Any
    options: dict[str, str]
    window_s: float

    def transcribe(self, samples: np.ndarray, /) -> str:
        pieces = split(samples, max_s=self.window_s)
        texts = [self.model.recognize(piece, **self.options).strip() for piece in pieces]
        return " ".join(text for text in texts if text)

    def transcribe_batch(self, recordings: Sequence[np.ndarray], /) -> list[str]:
        return in_pieces(
            recordings,
            max_s=self.window_s,
            transcribe=lambda pieces: list(self.model.recognize(pieces, **self.options)),
        )

    def languages(self) -> set[str]:
        """The codes of the languages that a Whisper can tell apart."""
        return set(self._language_tokens().values())

    def detect_language(self, samples: np.ndarray, /) -> str:
        """The code of the most probable language of the first 30 s; of a Whisper."""
        import numpy as np

        piece = samples[: int(WHISPER_WINDOW_S * SAMPLE_RATE_HZ)]
        asr, languages = self.model.asr, self._language_tokens()
        # onnx-asr detects languages too, but tells only the text.
        encoded = asr._encode(piece[None], np.array([len(piece)]))  # noqa: SLF001
        logits, _ = asr._decode(asr._detect_lang_input, asr._create_state(), encoded)  # noqa: SLF001
        return languages[max(languages, key=lambda token: logits[0, -1, token])]

    def _language_tokens(self) -> dict[int, str]:
        tokens = self.model.asr._tokens.items()  # noqa: SLF001  # the vocabulary, which it keeps to itself
        return {number: match[1] for token, number in tokens if (match := LANGUAGE.fullmatch(token))}


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Transcribe `inputs["heldout"]` with `inputs["export"]`.

    Raises MissingError if the suite wants a provider that ONNX Runtime does not have.
    """
    import onnxruntime

    export = inputs["export"][0]
    device = resolve(spec.device)
    threads = spec.threads or physical_cores()
    return transcribe_set(
        inputs["heldout"][0],
        load=lambda: recogniser(spec, export),
        work=work,
        runtime=f"onnxruntime {onnxruntime.__version__}, onnx-asr {_version('onnx-asr')}",
        device=described(spec),
        decoding=_decoding(_served(export), device=device, language=spec.language) | {"threads": threads},
    )


def recogniser(spec: Spec, export: Artifact) -> Recogniser:
    """An export, loaded as `run` loads it. Raises ExportError and MissingError as it does."""
    threads = spec.threads or physical_cores()
    return load(export, device=resolve(spec.device), threads=threads, language=spec.language)


def described(spec: Spec) -> str:
    """Where an export runs, in words. Raises MissingError as `run` does."""
    return describe(resolve(spec.device), threads=spec.threads or physical_cores())


def load(export: Artifact, *, device: Device, threads: int, language: str) -> Recogniser:
    """Load the folder of an export.

    Raises ExportError if onnx-asr cannot, or the model does not know the language, MissingError if the provider is
    there but does not start.
    """
    import onnx_asr
    import onnxruntime
    from onnx_asr.utils import ModelLoadingError

    served = _served(export)
    if "whisper" in served.type:
        _check_language(export.path, language)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if device in {"cuda", "tensorrt"}:
        # Finds CUDA's libraries where pip has put them.
        onnxruntime.preload_dlls()
    try:
        model = onnx_asr.load_model(
            served.type,
            export.path,
            quantization=served.quantization,
            sess_options=options,
            providers=providers(device),
        )
    except ModelLoadingError as error:
        raise ExportError(
            f"runtime onnx: {export.path.name}: onnx-asr cannot load it as {served.type}: {error}"
        ) from error
    except Exception as error:
        # What a damaged graph, vocabulary or configuration makes ONNX Runtime and onnx-asr raise has no common name.
        raise ExportError(
            f"runtime onnx: {export.path}: cannot be loaded as {served.type} ({first_line(error)}); export it again"
        ) from error
    check_running(model, device)
    spoken = {"language": language} if takes_language(served.type) else {}
    return Recogniser(model, spoken, _window_s(served, device))


def _served(export: Artifact) -> Served:
    return Served(**export.meta.get("onnx_asr", {}))


def _window_s(served: Served, device: Device) -> float:
    return min(window_s(served.type), WINDOW_S.get(device, float("inf")))


def _decoding(served: Served, *, device: Device, language: str) -> dict[str, Any]:
    """Every parameter that changes the text."""
    spoken = {"language": language} if takes_language(served.type) else {}
    whisper = {"task": "transcribe", "timestamps": False, "max_tokens": MAX_TOKENS} if "whisper" in served.type else {}
    return {"strategy": "greedy", **spoken, **whisper, "window_s": _window_s(served, device)}


def _check_language(folder: Path, language: str) -> None:
    path = folder / "added_tokens.json"
    try:
        tokens = parse_json_file(path)
    except (OSError, ValueError) as error:
        raise ExportError(
            f"runtime onnx: {path}: cannot be read ({first_line(error)}); export the model again"
        ) from error
    if not isinstance(tokens, dict) or f"<|{language}|>" not in tokens:
        raise ExportError(
            f"runtime onnx: {folder.name} has no token <|{language}|> for language {language!r}; "
            "use Whisper's code of the language, such as 'ru'"
        )


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
