"""Whisper as training leaves it: nothing is written, the checkpoint itself is scored, to hold exports against."""

from __future__ import annotations

from typing import ClassVar, Literal

from harness.suite.spec import ExportSpec


class Spec(ExportSpec):
    """The Hugging Face folder of the base or trained model."""

    kind: Literal["whisper_checkpoint"] = "whisper_checkpoint"
    accepts: ClassVar[tuple[str, ...]] = ("whisper",)
    in_place: ClassVar[bool] = True
    is_checkpoint: ClassVar[bool] = True

    @property
    def label(self) -> str:
        return "torch-fp32"
