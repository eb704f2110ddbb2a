"""Exported ggml models on whisper.cpp, the engine that Mimir runs (there through whisper-rs)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from harness.core.artifact import Resources
from harness.core.manifests import SAMPLE_RATE_HZ
from harness.errors import ExportError
from harness.score.processor import describe_cpu, physical_cores
from harness.score.transcribe import transcribe_set
from harness.suite.spec import RuntimeSpec

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from harness.core.artifact import Inputs, Work

VERSION = 1
RESOURCES = Resources(whole_machine=True)

MODEL_FILE = "ggml-model.bin"
MIN_S = 1.0
"""Shorter recordings get silence at their end: whisper.cpp gives nothing for less than 0.1 s, older ones for 1 s."""
