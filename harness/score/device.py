"""The device that figures of speed were measured on, in detail: processors, clocks, driver, versions of libraries."""

from __future__ import annotations

import math
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.packages import installed
from harness.score.memory import MIB, nvidia_devices
from harness.score.processor import cpu_model, physical_cores

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGES = ("onnxruntime", "onnx_asr", "torch", "transformers", "nemo", "pywhispercpp")
DISTRIBUTIONS = {"nemo": ("nemo_toolkit",), "onnxruntime": ("onnxruntime-gpu", "onnxruntime")}
"""Package → what its distribution is called, where that is not the same; the first that is installed counts."""
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def device_details() -> dict[str, Any]:
    """What speed depends on beside the model; None for what the system does not tell.

    After the measuring: then the libraries in use are known, and clocks are those under load.
    """
    return {
        "os": platform.platform(),
        "python": platform.python_version(),
        "cpu": _cpu(),
        "gpus": [_gpu(device) for device in nvidia_devices()],
        "packages": {name: _version(name) for name in PACKAGES if name in sys.modules},
    }


def energy_j() -> float | None:
    """What all NVIDIA GPUs have taken since their driver was loaded, in joules; None if one does not count it."""
    devices = nvidia_devices()
    if not devices:
        return None
    import pynvml

    counters = [_asked(pynvml.nvmlDeviceGetTotalEnergyConsumption, device) for device in devices]
    return None if None in counters else math.fsum(counters) / 1000


def _cpu() -> dict[str, Any]:
    import psutil

    try:
        clock = psutil.cpu_freq()
    except (OSError, NotImplementedError, RuntimeError, AttributeError):
        clock = None  # hidden in virtual machines, and on some Macs
    return {
        "model": cpu_model(),
        "usable_cores": physical_cores(),
        "logical_cores": psutil.cpu_count(),
        "clock_mhz": clock.current if clock else None,
        "max_clock_mhz": (clock.max or None) if clock else None,
        "governor": _governor(),
        "ram_mib": psutil.virtual_memory().total / MIB,
    }


def _governor() -> str | None:
    try:
        return GOVERNOR.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _gpu(device: Any) -> dict[str, Any]:
    import pynvml

    memory = _asked(pynvml.nvmlDeviceGetMemoryInfo, device)
    power_mw = _asked(pynvml.nvmlDeviceGetPowerManagementLimit, device)
    return {
        "name": _asked(pynvml.nvmlDeviceGetName, device),
        "driver": _asked(pynvml.nvmlSystemGetDriverVersion),
        "vram_mib": memory.total / MIB if memory else None,
        "sm_clock_mhz": _asked(pynvml.nvmlDeviceGetClockInfo, device, pynvml.NVML_CLOCK_SM),
        "max_sm_clock_mhz": _asked(pynvml.nvmlDeviceGetMaxClockInfo, device, pynvml.NVML_CLOCK_SM),
        "memory_clock_mhz": _asked(pynvml.nvmlDeviceGetClockInfo, device, pynvml.NVML_CLOCK_MEM),
        "power_limit_w": power_mw / 1000 if power_mw else None,
    }


def _asked(question: Callable[..., Any], *arguments: Any) -> Any:
    """NVML's answer; None where this driver or card has none."""
    import pynvml

    try:
        return question(*arguments)
    except pynvml.NVMLError:
        return None


def _version(package: str) -> str | None:
    return next(filter(None, map(installed, DISTRIBUTIONS.get(package, (package,)))), None)
