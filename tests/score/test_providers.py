"""Where ONNX Runtime runs a model: what the suite asks for, what the machine has, what really runs."""

from __future__ import annotations

from types import SimpleNamespace

import onnxruntime
import pytest

from harness.errors import MissingError
from harness.score import providers
from harness.score.providers import CPU, CUDA, check_running, describe, resolve

COREML, TENSORRT = "CoreMLExecutionProvider", "TensorrtExecutionProvider"


@pytest.mark.parametrize(
    ("wanted", "available", "gpus", "expected"),
    [
        ("auto", [CPU], ["gpu"], "cpu"),
        ("auto", [CUDA, CPU], ["gpu"], "cuda"),
        ("auto", [CUDA, CPU], [], "cpu"),
        ("auto", [COREML, CPU], [], "cpu"),
        ("cuda", [CUDA, CPU], [], "cuda"),
        ("cpu", [CUDA, CPU], ["gpu"], "cpu"),
        ("coreml", [COREML, CPU], [], "coreml"),
        ("tensorrt", [TENSORRT, CUDA, CPU], ["gpu"], "tensorrt"),
    ],
)
def test_the_device(wanted, available, gpus, expected, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(providers, "nvidia_devices", lambda: gpus)
    assert resolve(wanted) == expected


@pytest.mark.parametrize(
    ("wanted", "available", "message"),
    [
        (
            "cuda",
            [CPU],
            r"device is 'cuda', but this ONNX Runtime has only CPUExecutionProvider; .*onnxruntime-gpu\[cuda",
        ),
        ("coreml", [CPU], r"device is 'coreml', .*; it comes with onnxruntime on a Mac, or set device to 'cpu'"),
        ("tensorrt", [CUDA, CPU], r"device is 'tensorrt', .* only CUDAExecutionProvider, CPU.*; .* tensorrt, or set"),
    ],
)
def test_what_is_not_there_is_named_with_its_remedy(wanted, available, message, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    with pytest.raises(MissingError, match=message):
        resolve(wanted)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", [CPU]),
        ("cuda", [CUDA, CPU]),
        ("coreml", [COREML, CPU]),
        ("tensorrt", [TENSORRT, CUDA, CPU]),
    ],
)
def test_the_cpu_takes_what_others_leave(device, expected):
    assert providers.providers(device) == expected


@pytest.mark.parametrize(
    ("device", "running", "runs"),
    [
        ("cpu", [[CPU]], True),
        ("coreml", [[COREML, CPU], [CPU]], True),
        ("coreml", [[CPU], [CPU]], False),
        ("tensorrt", [[CUDA, CPU]], False),
        ("cuda", [], False),
    ],
)
def test_a_model_that_fell_back_to_the_cpu_is_found_out(device, running, runs, monkeypatch):
    class Session:
        def __init__(self, names: list[str]) -> None:
            self.names = names

        def get_providers(self) -> list[str]:
            return self.names

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    sessions = {f"_{number}": Session(names) for number, names in enumerate(running)}
    model = SimpleNamespace(asr=SimpleNamespace(config={}, **sessions))
    if runs:
        check_running(model, device)
    else:
        with pytest.raises(MissingError, match=rf"device is '{device}', but SimpleNamespace runs on the CPU: either"):
            check_running(model, device)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", "M2, 8 threads"),
        ("coreml", "M2, 8 threads, CoreML"),
        ("cuda", "RTX"),
        ("tensorrt", "RTX, TensorRT"),
    ],
)
def test_the_row_says_what_ran_it(device, expected, monkeypatch):
    monkeypatch.setattr(providers, "describe_cpu", lambda threads: f"M2, {threads} threads")
    monkeypatch.setattr(providers, "describe_gpu", lambda: "RTX")
    assert describe(device, threads=8) == expected
