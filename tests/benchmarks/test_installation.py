"""Installing a large bundle costs little more than copying it and hashing it once. Ratios within one process."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

from harness.promote.install import install
from harness.promote.parcel import opened
from harness.promote.swap import sync
from harness.promote.targets import target
from tests.ggmls import bundle, write_ggml

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.promote.manifest import Manifest

SIZE_BYTES = int(os.environ.get("HARNESS_BUNDLE_MIB", "1500")) * 2**20
MAX_RATIO = 1.3
MAX_READS = 2
ROUNDS = 3


def trust(_payload: Path, /, *, manifest: Manifest, clip: Path) -> str | None:
    """Loading and hearing depends on the model, not on the bundle."""
    return manifest.smoke.text


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def plainly(source: Path, copy: Path) -> None:
    """What anybody would have to do: copy, onto the disk, and hash once."""
    shutil.copyfile(source, copy)
    with copy.open("r+b") as file:
        sync(file.fileno())
    with source.open("rb") as file:
        hashlib.file_digest(file, "sha256")


def test_installation_costs_a_copy_and_a_hash(benchmark: Any, tmp_path: Path, monkeypatch: Any) -> None:
    weights = write_ggml(tmp_path / "small.bin").read_bytes()
    model = weights + os.urandom(2**20) * ((SIZE_BYTES - len(weights)) // 2**20)
    folder = bundle(tmp_path / "b", model)
    folder.with_name(f"{folder.name}.zip").unlink()
    del model
    reads = {"bytes": 0}
    with opened(folder) as parcel:
        real = type(parcel.files).open

        def counted(files: Any, name: str) -> Any:
            reads["bytes"] += parcel.manifest.files[name].size if name in parcel.manifest.files else 0
            return real(files, name)

        monkeypatch.setattr(type(parcel.files), "open", counted)

        def both() -> tuple[float, float]:
            """In turns, each onto a disk that has nothing else to do."""
            os.sync()
            plain_s = seconds(lambda: plainly(folder / "ggml-model.bin", tmp_path / "copy"))
            (tmp_path / "copy").unlink()
            os.sync()
            at = tmp_path / "models"
            installed_s = seconds(lambda: install(parcel, target=target("mimir"), folder=at, listen=trust))
            shutil.rmtree(at)
            return plain_s, installed_s

        times = benchmark.pedantic(lambda: [both() for _ in range(ROUNDS)], rounds=1, iterations=1)
        plain_s, installed_s = map(min, zip(*times, strict=True))
    benchmark.extra_info.update(plain_s=plain_s, installed_s=installed_s, ratio=installed_s / plain_s, **reads)
    assert reads["bytes"] <= MAX_READS * SIZE_BYTES * ROUNDS
    assert installed_s <= MAX_RATIO * plain_s, (installed_s, plain_s)
