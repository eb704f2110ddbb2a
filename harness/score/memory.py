"""Peak memory of this process: RAM from the operating system, VRAM from the driver and from torch."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

MIB = 2**20
SAMPLE_INTERVAL_S = 0.05


def peak_ram_mib() -> float:
    """The most RAM that this process has had resident, in MiB."""
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset / MIB)
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
    # Not ru_maxrss, which a process takes over from the one that started it, even across an exec.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


class VramMeter:
    """Watches this process's VRAM while it is open.

    NVML is sampled, which sees every library's memory but may miss a short peak; torch counts exactly, but only its
    own. The higher one counts. Where the driver tells no figures per process (containers, Windows), it is what the
    whole device has over its level at the start.
    """

    def __init__(self) -> None:
        self._devices: list[Any] = []
        self._idle_bytes = 0
        self._peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="vram-meter")

    def __enter__(self) -> Self:
        self._devices = nvidia_devices()
        if self._devices:
            self._idle_bytes = self._used_bytes()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._devices:
            self._stop.set()
            self._thread.join()
            self._sample()

    @property
    def peak_mib(self) -> float | None:
        """The peak so far in MiB; None without an NVIDIA GPU, and for a process that used none of its memory."""
        peak_bytes = max(self._peak_bytes, _torch_peak_bytes())
        return peak_bytes / MIB if peak_bytes else None

    @property
    def idle_mib(self) -> float | None:
        """What all GPUs had in use when it was opened: of other processes; None without an NVIDIA GPU."""
        return self._idle_bytes / MIB if self._devices else None

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_INTERVAL_S):
            self._sample()

    def _sample(self) -> None:
        own = sum(_own_bytes(device) for device in self._devices)
        self._peak_bytes = max(self._peak_bytes, own or self._used_bytes() - self._idle_bytes)

    def _used_bytes(self) -> int:
        import pynvml

        return sum(int(pynvml.nvmlDeviceGetMemoryInfo(device).used) for device in self._devices)


def nvidia_devices() -> list[Any]:
    """NVML's handles of all GPUs; none without the package, the driver or a card."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except (ImportError, OSError, RuntimeError):
        return []
    except Exception as error:
        # NVMLError derives from Exception itself, and its module may not be there to be named.
        if type(error).__module__ != "pynvml":
            raise
        return []


def _own_bytes(device: Any) -> int:
    """What NVML gives for this process; 0 where it does not say."""
    import pynvml

    try:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(device)
    except pynvml.NVMLError:
        return 0
    return sum(int(process.usedGpuMemory or 0) for process in processes if process.pid == os.getpid())


def _torch_peak_bytes() -> int:
    """What torch has reserved at most, if it is in use at all."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0
    return sum(int(torch.cuda.max_memory_reserved(index)) for index in range(torch.cuda.device_count()))
