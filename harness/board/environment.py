"""What a run ran with: versions and devices, as text beside its figures."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from harness import __version__
from harness.core.packages import installed

if TYPE_CHECKING:
    from collections.abc import Iterable

ENVIRONMENT_FILE = "environment.txt"
PACKAGES = (
    *("torch", "transformers", "nemo_toolkit", "datasets", "onnxruntime", "onnx-asr", "pywhispercpp"),
    *("jiwer", "numpy", "mlflow"),
)


def environment(devices: Iterable[str]) -> str:
    """A line each; a package that is not installed is said to be so. devices: on which rows were measured."""
    versions = {
        "harness": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: installed(name) or "not installed" for name in PACKAGES},
    }
    lines = [f"{name} {found}" for name, found in versions.items()]
    lines += [f"device {device}" for device in dict.fromkeys(devices)]
    return "\n".join(lines) + "\n"
