"""What differs between the families of models that onnx-asr runs."""

from __future__ import annotations

from harness.score.chunks import WINDOW_S

WINDOWS_S = {
    "whisper": WINDOW_S,
    "gigaam": 25.0,  # its own `transcribe` takes no more
    "canary": 40.0,  # what it was trained on
    "aed": 40.0,
    # Parakeet and FastConformer: their table of positions ends at 400 s, and full attention takes memory with the
    # square of the length, for so much over 1 GB.
    "nemo": 300.0,
    "t-one": 300.0,  # streams: it takes any length
}
"""Part of the name → the longest recording that is not cut; the first that fits counts."""


def window_s(model_type: str) -> float:
    """The longest recording that a model hears in one piece; 30 s where nothing better is known."""
    return next((seconds for part, seconds in WINDOWS_S.items() if part in model_type.lower()), WINDOW_S)


def takes_language(model_type: str) -> bool:
    """Whether the model must be told what language it hears."""
    return any(part in model_type.lower() for part in ("whisper", "canary", "aed"))
