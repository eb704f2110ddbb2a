"""What the work runs on, in words: the CPU and its cores, the GPU."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Literal

from harness.errors import MissingError
from harness.score.memory import nvidia_devices


def physical_cores() -> int:
    """Cores without hyper-threading, at most those that this process may use."""
    import psutil

    allowed = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else 0
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    return min(cores, allowed or cores)


def describe_cpu(threads: int) -> str:
    """The CPU's model and the threads in use: "Apple M2 Pro, 8 threads"."""
    return f"{cpu_model()}, {threads} thread{'s' if threads != 1 else ''}"


def describe_gpu() -> str:
    """The first NVIDIA GPU's model: "NVIDIA GeForce RTX 4090"."""
    devices = nvidia_devices()
    if not devices:
        return "NVIDIA GPU"
    import pynvml

    return str(pynvml.nvmlDeviceGetName(devices[0]))


def torch_device(wanted: Literal["auto", "cpu", "cuda"], *, runtime: str, install: str) -> Literal["cpu", "cuda"]:
    """Where torch runs: `auto` takes CUDA where torch has it.

    Raises MissingError without torch, which `install` installs, and for CUDA that is wanted but not there.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingError(f"runtime {runtime} needs torch: {install}") from error
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise MissingError(
            f"runtime {runtime}: device is 'cuda', but torch {torch.__version__} finds none; install the driver and a "
            "build of torch for CUDA from pytorch.org, or set device to 'cpu'"
        )
    return "cuda" if available and wanted != "cpu" else "cpu"


def cpu_model() -> str:
    """Its brand: "Apple M2 Pro"; what kind of machine it is, where the system does not tell."""
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "Mac"
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
