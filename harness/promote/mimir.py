"""Mimir, the dictation app: where it looks for models, and how one is put there while the app may be running."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.core.files import beside, replace_copy, replace_text
from harness.errors import HarnessError, SuiteError

EXPORTS = {"whisper_ggml": ("ggml-model.bin", "whisper-russian-ggml.bin")}
"""Kind of export that Mimir runs → the bundle's file, and the name that Mimir looks for."""
FOLDER = Path("~/Library/Application Support/mimir/models")


@dataclass(frozen=True, slots=True)
class Installed:
    """What an installation changed."""

    path: Path
    previous: Path | None


def default_folder() -> Path:
    """Mimir's folder on a Mac. Raises SuiteError elsewhere: Mimir is a Mac app."""
    if sys.platform != "darwin":
        raise SuiteError("Mimir's folder is known on a Mac only; give the folder to install into: --to DIR")
    return FOLDER.expanduser()


def install(bundle: Path, *, export_kind: str, folder: Path) -> Installed:
    """Put a bundle's model where Mimir finds it; the previous one stays as `<name>.previous`.

    Written beside, verified, then renamed: a running app sees the old file or the new one, never a part.
    """
    source_name, name = EXPORTS[export_kind]
    row, expected = _read_manifest(bundle, source_name)
    final = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise SuiteError(f"{folder}: is a file; give a folder: --to DIR") from error
    if final.is_file() and _sha256(final) == expected:
        # Again the same: the one before it is still the previous one.
        return Installed(final, _existing(_previous(final)))
    temporary = beside(final)
    try:
        _copy(bundle / source_name, temporary, expected=expected)
        previous = _keep_previous(final) if final.is_file() else None
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)
    record = {"bundle": bundle.name, "sha256": expected, "row": row}
    replace_text(folder / f"{name}.json", json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    return Installed(final, previous)


def _read_manifest(bundle: Path, source_name: str) -> tuple[str, str]:
    """The bundle's row, and the sha256 that its file must have."""
    path = bundle / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        row, expected = manifest["name"], manifest["files"][source_name]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HarnessError(f"{path}: lists no {source_name} ({error!r}); {_again(bundle)}") from error
    if not (bundle / source_name).is_file():
        raise HarnessError(f"{bundle / source_name}: is not there; {_again(bundle)}")
    return row, expected


def _again(bundle: Path) -> str:
    return f"remove {bundle} and promote again"


def _copy(source: Path, target: Path, *, expected: str) -> None:
    free = shutil.disk_usage(target.parent).free
    size = source.stat().st_size
    if free < size:
        raise HarnessError(f"{target.parent}: {free >> 20} MiB free, {size >> 20} MiB needed; make room and try again")
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())
    found = _sha256(target)
    if found != expected:
        raise HarnessError(f"{source}: sha256 is {found}, its manifest says {expected}; {_again(source.parent)}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _previous(final: Path) -> Path:
    return final.with_name(f"{final.name}.previous")


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _keep_previous(final: Path) -> Path:
    previous = _previous(final)
    temporary = beside(previous)
    try:
        os.link(final, temporary)  # no second copy of a gigabyte where the file system can do without
        temporary.replace(previous)
    except OSError:
        replace_copy(final, previous)
    return previous
