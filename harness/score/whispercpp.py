"""Exported ggml models on whisper.cpp, the engine that Mimir runs (there through whisper-rs)."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from harness.core.artifact import Resources
from harness.core.ggml_file import check_ggml
from harness.core.manifests import SAMPLE_RATE_HZ
from harness.errors import DataError, ExportError
from harness.score.chunks import WINDOW_S, split
from harness.score.processor import describe_cpu, physical_cores
from harness.score.transcribe import transcribe_set
from harness.suite.spec import RuntimeSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np

    from harness.core.artifact import Artifact, Inputs, Work

VERSION = 1
RESOURCES = Resources(whole_machine=True, gpu=True)

GPU_BACKENDS = {"MTL": "Metal", "Metal": "Metal", "CUDA": "CUDA", "ROCm": "ROCm", "Vulkan": "Vulkan"}
"""As whisper.cpp's system info names them, and as people do."""
MODEL_FILE = "ggml-model.bin"
TYPE_OFFSET = 44
"""Of the number that says how the weights are stored, after magic and sizes; 0 is float32."""
MIN_S = 1.0
"""Shorter recordings get silence at their end: whisper.cpp returns nothing for less than 0.1 s, and before
version 1.8 for less than 1 s."""
LOG_ERROR = 4
"""ggml's number for it."""
EMPTY = "no tensors loaded"
"""What whisper.cpp only warns of, when a file ends before its tensors."""
FALLBACKS = re.compile(r"fallbacks = +(\d+) p / +(\d+) h")
"""Of its timings: decodings that it gave up, for a low probability and for a loop."""
PINNED = {
    "translate": False,
    "detect_language": False,
    "no_context": True,  # an utterance says nothing about the next one
    "single_segment": False,
    "suppress_blank": True,
    "suppress_nst": False,
    "temperature": 0.0,
    "entropy_thold": 2.4,
    "logprob_thold": -1.0,
    "no_speech_thold": 0.6,
    "max_initial_ts": 1.0,
    "length_penalty": -1.0,
    "max_tokens": 0,
    "audio_ctx": 0,
    "greedy": {"best_of": 1},
}
"""whisper.cpp's own defaults, but for `best_of`, written down: they differ between its API and its command line."""
QUIET: dict[str, Any] = {
    "print_progress": False,
    "print_realtime": False,
    "print_special": False,
    "print_timestamps": False,
}


class Spec(RuntimeSpec):
    """whisper.cpp through pywhispercpp."""

    kind: Literal["whispercpp"] = "whispercpp"
    accepts: ClassVar[tuple[str, ...]] = ("whisper_ggml",)

    device: Literal["auto", "cpu"] = "auto"
    """`auto` takes the GPU if whisper.cpp is built for one, as on a Mac."""
    threads: int = Field(default=0, ge=0)
    """0 stands for all physical cores."""
    language: str = "ru"
    beam_size: int = Field(default=1, ge=1, le=8)
    """1 is greedy. 8 is whisper.cpp's limit."""
    temperature_inc: float = Field(default=0.0, ge=0.0, le=1.0)
    """How much hotter a window is decoded again that looks like a loop or has a low probability; 0 never does.
    Above 0 a text depends on the utterances before it: whisper.cpp carries its random numbers on."""
    timestamps: bool = False
    """Decode timestamps. Then recordings over 30 s are cut by whisper.cpp, at the last timestamp of each window;
    otherwise they are cut in a pause, which works for models that have forgotten timestamps, too."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What whisper.cpp heard between two timestamps."""

    start_s: float
    end_s: float
    text: str
    start_is_written: bool
    """The model itself wrote when it begins. Only the first segment can say so: whisper.cpp takes the end of the one
    before for the beginning of all others."""
    end_is_written: bool


@dataclass(frozen=True, slots=True)
class Recogniser:
    """A model that whisper.cpp has loaded."""

    model: Any
    timestamps: bool

    def transcribe(self, samples: np.ndarray, /) -> str:
        import numpy as np

        if not np.isfinite(samples).all():
            raise DataError("the samples hold NaN or infinity, which whisper.cpp turns into exclamation marks")
        pieces = [samples] if self.timestamps else split(samples)
        texts = [text for piece in pieces for segment in self._decode(piece) if (text := segment.text.strip())]
        return " ".join(texts)

    def segments(self, samples: np.ndarray, /) -> list[Segment]:
        """What is heard, with its times; of a model that was loaded with `timestamps`."""
        import _pywhispercpp as cpp

        context = self.model._ctx  # noqa: SLF001  # pywhispercpp passes no tokens on
        first_time = cpp.whisper_token_beg(context)
        found = []
        for number, heard in enumerate(self._decode(samples)):
            num_tokens = cpp.whisper_full_n_tokens(context, number)
            ids = [cpp.whisper_full_get_token_id(context, number, place) for place in range(num_tokens)]
            starts, ends = ids[:1] >= [first_time], ids[-1:] >= [first_time]
            found.append(Segment(heard.t0 / 100, heard.t1 / 100, heard.text.strip(), starts, ends))
        return found

    def num_fallbacks(self) -> int:
        """How many decodings whisper.cpp has given up since the model was loaded."""
        with _messages(lambda _level, message: "fallbacks" in message) as found:
            self.model.print_timings()
        counts = FALLBACKS.search(" ".join(found))
        if counts is None:
            raise DataError(f"whisper.cpp tells no fallbacks in its timings, but {found}; use pywhispercpp 1.5")
        return int(counts[1]) + int(counts[2])

    def languages(self) -> set[str]:
        """The codes of the languages that can be told apart."""
        return set(self.model.available_languages())

    def detect_language(self, samples: np.ndarray, /) -> str:
        """The code of the most probable language of the first 30 s."""
        with _messages() as errors:
            (language, _), _ = self.model.auto_detect_language(_padded(samples))
        if errors:
            raise DataError(f"whisper.cpp: {'; '.join(errors)}")
        return str(language)

    def _decode(self, samples: np.ndarray) -> list[Any]:
        """What pywhispercpp calls segments: `t0` and `t1` in hundredths of a second, and `text`."""
        with _messages() as errors:
            segments: list[Any] = self.model.transcribe(_padded(samples))
        # pywhispercpp drops whisper.cpp's return code, and an error would read as silence.
        if errors:
            raise DataError(f"whisper.cpp: {'; '.join(errors)}")
        return segments


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Transcribe `inputs["heldout"]` with `inputs["export"]`.

    Raises ExportError for a file that whisper.cpp cannot load, or a language that it does not know.
    """
    export = inputs["export"][0]
    path = export.path / MODEL_FILE
    _check_size(path, expected=export.meta.get("size_bytes"))
    threads = spec.threads or physical_cores()
    parameters = decoding(spec)
    return transcribe_set(
        inputs["heldout"][0],
        load=lambda: load(path, spec=spec, threads=threads),
        work=work,
        runtime=f"whisper.cpp of pywhispercpp {version('pywhispercpp')}",
        device=described(spec),
        decoding={
            "strategy": "greedy" if spec.beam_size == 1 else "beam_search",
            **parameters,
            "flash_attn": True,
            "window_s": WINDOW_S,
            "windows": "whisper.cpp" if spec.timestamps else "pauses",
            "min_s": MIN_S,
            "threads": threads,
        },
    )


def decoding(spec: Spec) -> dict[str, Any]:
    """Name every parameter of whisper.cpp that changes the text, none left to its defaults."""
    parameters = {
        **PINNED,
        "language": spec.language,
        "no_timestamps": not spec.timestamps,
        "temperature_inc": spec.temperature_inc,
    }
    if spec.beam_size > 1:
        parameters["beam_search"] = {"beam_size": spec.beam_size, "patience": -1.0}
    return parameters


def recogniser(spec: Spec, export: Artifact) -> Recogniser:
    """An export, loaded as `run` loads it. Raises ExportError as it does."""
    path = export.path / MODEL_FILE
    _check_size(path, expected=export.meta.get("size_bytes"))
    return load(path, spec=spec, threads=spec.threads or physical_cores())


def described(spec: Spec) -> str:
    """Where an export runs, in words."""
    gpu = gpu_backend() if spec.device == "auto" else None
    return f"{gpu} GPU" if gpu else describe_cpu(spec.threads or physical_cores())


def load(path: Path, *, spec: Spec, threads: int) -> Recogniser:
    """Load a ggml file.

    Raises ExportError if whisper.cpp cannot, or does not know the language.
    """
    import _pywhispercpp
    from pywhispercpp.model import Model

    if not path.is_file():
        raise ExportError(f"{path} does not exist; export the model again")
    check_ggml(path)
    _check_type(path, spec=spec)
    with _messages():
        language = _pywhispercpp.whisper_lang_id(spec.language)
    # Unknown languages would be taken for "detect it", without a word.
    if language < 0:
        raise ExportError(
            f"runtime whispercpp: whisper.cpp does not know the language {spec.language!r}; "
            "use Whisper's code of the language, such as 'ru'"
        )
    with _messages() as errors:
        model: Any = Model(
            str(path),
            params_sampling_strategy=0 if spec.beam_size == 1 else 1,
            context_params={"use_gpu": spec.device == "auto", "flash_attn": True},
            n_threads=threads,
            **decoding(spec),
            **QUIET,
        )
    # pywhispercpp returns a model all the same, and its first use would crash the process.
    if errors:
        # It is empty inside, so there is nothing to free, and freeing it is not safe.
        model._ctx = None  # noqa: SLF001
        raise ExportError(f"{path}: whisper.cpp cannot load it: {'; '.join(errors)}; export the model again")
    return Recogniser(model, spec.timestamps)


def gpu_backend() -> str | None:
    """Name the kind of GPU that whisper.cpp is built for, None for a build for the CPU alone."""
    import _pywhispercpp

    info = _pywhispercpp.whisper_print_system_info()
    return next((name for mark, name in GPU_BACKENDS.items() if f"{mark} :" in info), None)


def _check_size(path: Path, *, expected: int | None) -> None:
    """Refuse a file that was cut off: whisper.cpp loads it, and leaves the end of the last tensor as it was."""
    size = path.stat().st_size if path.is_file() else 0
    if expected is not None and size != expected:
        raise ExportError(f"{path}: {size} bytes, but the export wrote {expected}; export the model again")


def _check_type(path: Path, *, spec: Spec) -> None:
    """Refuse what ends the process: ggml's convolution on a CPU asserts that its weights are float16."""
    with path.open("rb") as file:
        file.seek(TYPE_OFFSET)
        if file.read(4) == bytes(4) and (spec.device == "cpu" or gpu_backend() is None):
            raise ExportError(
                f"{path}: holds float32 convolutions, which whisper.cpp runs on a GPU only; export it as f16"
            )


def _is_error(level: int, message: str) -> bool:
    return level == LOG_ERROR or EMPTY in message


@contextmanager
def _messages(wanted: Callable[[int, str], bool] = _is_error) -> Iterator[list[str]]:
    """Collect what whisper.cpp and ggml log and is wanted, errors by default; keep the rest off standard error.

    Only for as long as needed: a Python function that is still installed when the interpreter ends crashes it.
    """
    import _pywhispercpp

    found: list[str] = []

    def log(level: int, message: str) -> None:
        if wanted(level, message):
            found.append(message.strip())

    _pywhispercpp.whisper_log_set(log)
    try:
        yield found
    finally:
        _pywhispercpp.whisper_log_set(None)


def _padded(samples: np.ndarray) -> np.ndarray:
    import numpy as np

    missing = int(MIN_S * SAMPLE_RATE_HZ) - len(samples)
    samples = np.pad(samples, (0, missing)) if missing > 0 else samples
    return np.ascontiguousarray(samples, dtype=np.float32)
