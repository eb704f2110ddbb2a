"""What is told of a device, with pretended GPUs and without any."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from harness.score import device
from harness.score.device import device_details, energy_j
from harness.score.memory import MIB, nvidia_devices

if TYPE_CHECKING:
    from pathlib import Path


class Unsupported(Exception):  # noqa: N818  # as NVML's own, it stands for many
    """What NVML raises for a question that a card does not answer."""


def pretend(monkeypatch: pytest.MonkeyPatch, *counters_mj: int | None) -> None:
    """GPUs with these energy counters; None: the card has none."""

    def unsupported(*_: Any) -> Any:
        raise Unsupported

    nvml = SimpleNamespace(
        NVMLError=Unsupported,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        nvmlDeviceGetTotalEnergyConsumption=lambda gpu: unsupported() if gpu is None else gpu,
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(total=24 * 1024 * MIB),
        nvmlDeviceGetPowerManagementLimit=lambda _: 450_000,
        nvmlDeviceGetName=lambda _: "NVIDIA Abacus",
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetClockInfo=lambda _, which: {1: 2520, 2: 10_501}[which],
        nvmlDeviceGetMaxClockInfo=unsupported,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(device, "nvidia_devices", lambda: list(counters_mj))


@pytest.mark.parametrize(
    ("counters_mj", "expected"),
    [((1500,), 1.5), ((1500, 500), 2.0), ((0,), 0.0), ((), None), ((None,), None), ((1500, None), None)],
)
def test_energy(monkeypatch: pytest.MonkeyPatch, counters_mj: tuple[int | None, ...], expected: float | None) -> None:
    pretend(monkeypatch, *counters_mj)
    assert energy_j() == expected


def test_a_gpu_in_detail(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 1)
    assert device_details()["gpus"] == [
        {
            "name": "NVIDIA Abacus",
            "driver": "580.1",
            "vram_mib": 24 * 1024,
            "sm_clock_mhz": 2520,
            "max_sm_clock_mhz": None,
            "memory_clock_mhz": 10_501,
            "power_limit_w": 450,
        }
    ]


@pytest.mark.skipif(bool(nvidia_devices()), reason="this machine has an NVIDIA GPU")
def test_this_machine() -> None:
    import onnxruntime

    found = device_details()
    assert json.loads(json.dumps(found)) == found
    assert found["gpus"] == []
    assert found["packages"]["onnxruntime"] == onnxruntime.__version__
    assert found["cpu"]["model"]
    assert 1 <= found["cpu"]["usable_cores"] <= found["cpu"]["logical_cores"]
    assert found["cpu"]["ram_mib"] > 256
    assert energy_j() is None


def test_only_what_is_in_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in device.PACKAGES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert device_details()["packages"] == {}
    monkeypatch.setitem(sys.modules, "onnx_asr", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "nemo", SimpleNamespace())
    monkeypatch.setattr(device, "DISTRIBUTIONS", {"nemo": ("not-installed",)})
    found = device_details()["packages"]
    assert found["onnx_asr"][0].isdigit()
    assert found["nemo"] is None


@pytest.mark.parametrize(("content", "expected"), [("performance\n", "performance"), (None, None)])
def test_the_governor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None, expected: str | None
) -> None:
    monkeypatch.setattr(device, "GOVERNOR", tmp_path / "governor")
    if content is not None:
        (tmp_path / "governor").write_text(content, encoding="utf-8")
    assert device_details()["cpu"]["governor"] == expected


def test_a_cpu_that_hides_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden() -> Any:
        raise FileNotFoundError

    for answer in (hidden, lambda: None):
        monkeypatch.setattr("psutil.cpu_freq", answer)
        cpu = device_details()["cpu"]
        assert (cpu["clock_mhz"], cpu["max_clock_mhz"]) == (None, None)
