"""A parcel with a model, its hashes and its history: a folder, and the same as a zip. Equal input, equal bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.artifact import Artifact  # noqa: TC001  # a dataclass field
from harness.core.files import beside

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = 1
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time that every zip entry carries, so that the same bundle is the same bytes on any day."""


@dataclass(frozen=True, slots=True)
class Content:
    """What goes into a bundle."""

    name: str
    export: Artifact
    lines: list[dict[str, Any]]
    """The row's lines of the board, one per held-out set."""
    suite: str
    suite_sha256: str
    base: str
    licences: dict[str, str]
    """What → its licence."""
    runtime: str
    decoding: dict[str, Any]


def write_bundle(content: Content, *, folder: Path) -> Path:
    """Write `<name>-<short sha>/` and `<name>-<short sha>.zip` into `folder`; returns the bundle's folder."""
    files = {
        name: {"sha256": sha256, "size": (content.export.path / name).stat().st_size}
        for name, sha256 in sorted(content.export.files.items())
    }
    manifest = {
        "schema": SCHEMA,
        "name": content.name,
        "files": files,
        # The tracking run differs each time the board is projected; the bundle must not.
        "leaderboard": [{k: v for k, v in line.items() if k != "run_id"} for line in content.lines],
        "suite": content.suite,
        "suite_sha256": content.suite_sha256,
        "base": content.base,
        "licences": content.licences,
        "runtime": content.runtime,
        "decoding": content.decoding,
    }
    text = json.dumps(manifest, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    final = folder / f"{content.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    if not final.is_dir():
        temporary = beside(final)
        shutil.rmtree(temporary, ignore_errors=True)
        for name in files:
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(content.export.path / name, target)
        (temporary / "manifest.json").write_text(text, encoding="utf-8", newline="\n")
        (temporary / "README.txt").write_text(_readme(content), encoding="utf-8", newline="\n")
        temporary.rename(final)
    _zip(final)
    return final


def _readme(content: Content) -> str:
    scores = "".join(
        f"  {line['heldout']}: WER {line['wer']:.4f} [{line['wer_lo']:.4f}, {line['wer_hi']:.4f}], "
        f"{line['num_utterances']} utterances\n"
        for line in content.lines
        if line["wer"] is not None
    )
    licences = "".join(f"  {what}: {licence}\n" for what, licence in content.licences.items())
    return (
        f"{content.name}\n\nBase model: {content.base}\nSuite: {content.suite}\nRuntime: {content.runtime}\n\n"
        f"Measured on the files in this folder:\n{scores}\nLicences:\n{licences}\n"
        "manifest.json lists every file with its sha256.\n"
    )


def _zip(folder: Path) -> None:
    final = folder.with_name(f"{folder.name}.zip")
    if final.is_file():
        return
    temporary = beside(final)
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(item for item in folder.rglob("*") if item.is_file()):
            info = zipfile.ZipInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}", EPOCH)
            info.external_attr = 0o644 << 16
            info.create_system = 3  # Unix, on every system: the same bytes
            with path.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target)
    temporary.replace(final)
