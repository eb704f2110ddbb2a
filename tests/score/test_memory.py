"""Peak memory is this process's own, and VRAM is None where there is none."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from harness.score import memory
from harness.score.memory import MIB, VramMeter, nvidia_devices


def test_peak_ram_stays_after_the_memory_is_free():
    code = """
from harness.score.memory import peak_ram_mib
before = peak_ram_mib()
block = bytearray(b"x" * 200 * 2**20)
del block
print(peak_ram_mib() - before)
"""
    assert 190 < float(output_of(code)) < 450  # `b"x" * n` and its copy


def test_peak_ram_is_not_the_parents():
    ballast = bytearray(b"x") * (300 * MIB)
    assert 1 < float(output_of("from harness.score.memory import peak_ram_mib; print(peak_ram_mib())")) < 200
    del ballast


def output_of(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(bool(nvidia_devices()), reason="this machine has an NVIDIA GPU")
def test_no_gpu_is_none():
    with VramMeter() as meter:
        pass
    assert (meter.peak_mib, meter.idle_mib) == (None, None)


@pytest.fixture
def gpu(monkeypatch):
    """A pretended GPU: `own` MiB of this process (None: the driver does not say), `used` of all, `torch` of torch."""
    state = SimpleNamespace(own=None, used=500, torch=0)

    def processes(device):
        other = SimpleNamespace(pid=-1, usedGpuMemory=77 * MIB)
        mine = SimpleNamespace(pid=memory.os.getpid(), usedGpuMemory=state.own and state.own * MIB)
        return [other, mine]

    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlDeviceGetComputeRunningProcesses=processes,
        nvmlDeviceGetMemoryInfo=lambda device: SimpleNamespace(used=state.used * MIB),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(memory, "nvidia_devices", lambda: ["gpu"])
    monkeypatch.setattr(memory, "_torch_peak_bytes", lambda: state.torch * MIB)
    return state


@pytest.mark.parametrize(
    ("own", "used", "torch", "expected"),
    [
        (300, 900, 0, 300),  # the driver's figure for this process
        (None, 900, 0, 400),  # else the device's, over its idle level of 500
        (300, 900, 350, 350),  # torch saw a peak between two samples
        (None, 500, 0, None),  # a process that used no VRAM
        (None, 400, 0, None),  # somebody else's memory was freed
    ],
)
def test_peak_vram(gpu, own, used, torch, expected):
    with VramMeter() as meter:
        gpu.own, gpu.used, gpu.torch = own, used, torch
    assert meter.peak_mib == expected
    assert meter.idle_mib == 500
