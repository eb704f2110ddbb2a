"""The Mac's side in an environment of its own: its size, its start, and a bundle's whole way in and back.

It needs the package index, and a few minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.core.files import file_sha256
from tests.conftest import ROOT
from tests.ggmls import bundle, write_ggml

MAX_MB = 250
MAX_START_S = 0.5
HEAVY = ("torch", "transformers", "nemo", "mlflow", "pandas", "pyarrow", "scipy", "datasets")
MODELS = "~/Library/Application Support/mimir/models"
NAME = "whisper-russian-ggml.bin"
HEAR = """\
import sys
from pathlib import Path
from harness.core.recordings import read_samples
from harness.score import whispercpp
model, clip = map(Path, sys.argv[1:])
print(whispercpp.load(model, spec=whispercpp.Spec(device="cpu"), threads=2).transcribe(read_samples(clip)))
"""
"""What whisper.cpp hears, with the model where Mimir has it."""


class Core(NamedTuple):
    """An environment with nothing but the light core."""

    programs: Path
    home: Path
    size_mb: float
    """Of what was installed into it."""

    @property
    def models(self) -> Path:
        return self.home / MODELS.removeprefix("~/")

    def harness(self, *arguments: str) -> str:
        return self._run("harness", *arguments)

    def python(self, *arguments: str) -> str:
        return self._run("python", "-c", *arguments)

    def _run(self, program: str, *arguments: str) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {"HOME": str(self.home), "USERPROFILE": str(self.home), "PYTHONUTF8": "1"}
        command = [str(self.programs / program), *arguments]
        ended = subprocess.run(
            command, cwd=self.home, env=environment, capture_output=True, encoding="utf-8", check=False
        )
        assert ended.returncode == 0, (command, ended.stdout, ended.stderr)
        return ended.stdout


def size_mb(folder: Path) -> float:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Core:
    folder = tmp_path_factory.mktemp("light core")
    # A copy, because setuptools builds inside the folder.
    (folder / "source").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    shutil.copytree(ROOT / "harness", folder / "source" / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    venv.create(folder / "venv", with_pip=True)
    empty_mb = size_mb(folder / "venv")
    programs = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    install = ["-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([programs / "python", *install, str(folder / "source")], check=True)
    (folder / "home" / "Library" / "Application Support" / "mimir").mkdir(parents=True)
    return Core(programs, folder / "home", size_mb(folder / "venv") - empty_mb)


@pytest.mark.timeout(1800)
def test_it_is_small_and_starts_fast(benchmark: Any, core: Core) -> None:
    benchmark.pedantic(core.harness, args=["status", "--to", MODELS], rounds=5, warmup_rounds=1)
    benchmark.extra_info["size_mb"] = core.size_mb
    assert core.size_mb < MAX_MB
    assert benchmark.stats.stats.median < MAX_START_S
    looked = f"from importlib.util import find_spec; print([name for name in {HEAVY!r} if find_spec(name)])"
    assert core.python(looked) == "[]\n"


def bundles(folder: Path) -> list[Path]:
    """Two zips: the quickstart's, if it has been promoted here, and another model."""
    models = [write_ggml(folder / "model.bin").read_bytes() + bytes(number) for number in range(2)]
    made = [bundle(folder / str(number), model, name=f"row{number}") for number, model in enumerate(models)]
    demo = sorted((ROOT / "results" / "quickstart" / "bundles").glob("*ggml*.zip"))
    return [*demo, *(path.with_name(f"{path.name}.zip") for path in made)][:2]


@pytest.mark.timeout(1800)
def test_a_bundle_goes_in_runs_there_and_comes_back(benchmark: Any, core: Core, tmp_path: Path) -> None:
    one, two = bundles(tmp_path)
    live = core.models / NAME

    def is_live(made: Path) -> None:
        """Its bytes are where Mimir looks, and whisper.cpp hears in its clip what it heard when it was scored."""
        shutil.unpack_archive(made, tmp_path / made.stem)
        (folder,) = (tmp_path / made.stem).iterdir()
        manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        assert file_sha256(live) == manifest["files"]["ggml-model.bin"]["sha256"]
        assert core.python(HEAR, str(live), str(folder / "smoke.wav")).strip() == manifest["smoke"]["text"].strip()
        told = core.harness("status", "--to", MODELS)
        assert f"{live}\n  {made.stem}\n" in told
        assert "its files are as they were installed" in told

    def whole_way() -> None:
        assert f"installed: {live}: {one.stem}" in core.harness("install", str(one), "--to", MODELS)
        is_live(one)
        assert f"previous:  {one.stem}" in core.harness("install", str(two), "--to", MODELS)
        is_live(two)
        assert f"installed: {live}: {one.stem}" in core.harness("rollback", "--to", MODELS, "--reason", "it swears")
        is_live(one)
        core.harness("bench", str(one), "--host", "here")

    benchmark.pedantic(whole_way, rounds=1)
    (measured,) = json.loads((core.home / "bench-here.json").read_text("utf-8"))["measurements"]
    assert (measured["bundle"], measured["num_failed"]) == (one.stem, 0)
