"""What is kept of a benchmark: figures and versions, nothing of the person or the machine's name."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

PACKAGES = ("numpy", "torch", "onnxruntime", "scipy", "pyarrow")
MACHINE = ("machine", "system", "python_implementation", "python_version", "cpu")
"""Of what pytest-benchmark knows of a machine; its `node` is the host's name."""
CPU = ("brand_raw", "count", "arch", "hz_advertised_friendly")


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Called by pytest-benchmark before it writes."""
    for name in machine_info.keys() - set(MACHINE):
        del machine_info[name]
    cpu = machine_info.get("cpu") or {}
    machine_info["cpu"] = {name: cpu[name] for name in CPU if name in cpu}
    machine_info["packages"] = {name: version(name) for name in PACKAGES}


def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    """The commit says which code was measured; its author and branch do not."""
    for name in commit_info.keys() - {"id", "time", "dirty"}:
        del commit_info[name]


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Every single time of every round is more than anybody compares."""
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
        benchmark.pop("options", None)
