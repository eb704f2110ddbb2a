"""A parcel with a model, its hashes and its history: a folder, and the same as a zip. Equal input, equal bytes."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import wave
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.core.artifact import Artifact  # noqa: TC001  # a dataclass field
from harness.core.files import beside
from harness.core.manifests import SAMPLE_RATE_HZ
from harness.promote.manifest import MANIFEST_FILE, SCHEMA

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time that every zip entry carries, so that the same bundle is the same bytes on any day."""
README_FILE = "README.txt"
SMOKE_FILE = "smoke.wav"
NON_COMMERCIAL = re.compile(r"\bNC\b|non-?commercial", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Clip:
    """A held-out recording, what the exported model heard in it, and what was said."""

    wav: bytes
    text: str
    reference: str


@dataclass(frozen=True, slots=True)
class Content:
    """What goes into a bundle."""

    name: str
    export: Artifact
    export_kind: str
    lines: list[dict[str, Any]]
    """The row's lines of the board, one per held-out set."""
    suite: str
    suite_sha256: str
    base: str
    licences: dict[str, str]
    """What → its licence."""
    runtime: str
    decoding: dict[str, Any]
    serving: dict[str, Any]
    """The runtime's declaration, from which it can be run in the same way."""
    smoke: Clip
    gate: list[dict[str, Any]] = field(default_factory=list)
    """The conditions that were judged."""
    forced: str | None = None
    """Why it is promoted although the gate says no."""

    @property
    def non_commercial(self) -> list[str]:
        """What forbids commercial use."""
        return [what for what, licence in self.licences.items() if NON_COMMERCIAL.search(licence)]


def write_bundle(content: Content, *, folder: Path) -> Path:
    """Write `<name>-<short sha>/` and `<name>-<short sha>.zip` into `folder`; returns the bundle's folder."""
    written = {README_FILE: _readme(content).encode(), SMOKE_FILE: content.smoke.wav}
    text = json.dumps(_manifest(content, written), ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    final = folder / f"{content.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    if not final.is_dir():
        temporary = beside(final)
        shutil.rmtree(temporary, ignore_errors=True)
        for name in content.export.files:
            target = temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(content.export.path / name, target)
        for name, data in (*written.items(), (MANIFEST_FILE, text.encode())):
            (temporary / name).write_bytes(data)
        temporary.rename(final)
    _zip(final)
    return final


def encode_wav(samples: np.ndarray) -> bytes:
    """float32 [num_samples], 16 kHz mono in [-1, 1], as a WAV in PCM-16: the same bytes with every library."""
    import numpy as np

    pcm = np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2")
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(pcm.tobytes())
    return target.getvalue()


def _manifest(content: Content, written: dict[str, bytes]) -> dict[str, Any]:
    export = content.export
    files = {
        name: {"sha256": sha256, "size": (export.path / name).stat().st_size} for name, sha256 in export.files.items()
    }
    files |= {name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in written.items()}
    return {
        "schema": SCHEMA,
        "name": content.name,
        "export_kind": content.export_kind,
        "files": files,
        "model": sorted(export.files),
        "smoke": {"audio": SMOKE_FILE, "text": content.smoke.text, "reference": content.smoke.reference},
        # The tracking run differs each time the board is projected; the bundle must not.
        "leaderboard": [{k: v for k, v in line.items() if k != "run_id"} for line in content.lines],
        "suite": content.suite,
        "suite_sha256": content.suite_sha256,
        "base": content.base,
        "licences": content.licences,
        "non_commercial": content.non_commercial,
        "runtime": content.runtime,
        "decoding": content.decoding,
        "serving": content.serving,
        "onnx_asr": export.meta.get("onnx_asr"),
        "fault": export.meta.get("parakeet_rs_fault"),
        "gate": content.gate,
        "forced": content.forced,
    }


def _readme(content: Content) -> str:
    scores = "".join(
        f"  {line['heldout']}: WER {line['wer']:.4f} [{line['wer_lo']:.4f}, {line['wer_hi']:.4f}], "
        f"{line['num_utterances']} utterances\n"
        for line in content.lines
        if line["wer"] is not None
    )
    licences = "".join(f"  {what}: {licence}\n" for what, licence in content.licences.items())
    if content.non_commercial:
        licences += f"\nNOT FOR COMMERCIAL USE, because of: {', '.join(content.non_commercial)}\n"
    forced = f"FORCED: the gate refused this model. Reason given: {content.forced}\n\n" if content.forced else ""
    return (
        f"{content.name}\n\n{forced}Base model: {content.base}\nSuite: {content.suite}\nRuntime: {content.runtime}\n\n"
        f"Measured on the files in this folder:\n{scores}\nLicences:\n{licences}\n"
        f"{MANIFEST_FILE} lists every file with its sha256. {SMOKE_FILE} is a held-out recording; in it this model "
        f'heard:\n  "{content.smoke.text}"\n\n'
        "Install: harness install THIS_FOLDER_OR_ZIP\n"
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
                shutil.copyfileobj(source, target, 1 << 20)
    temporary.replace(final)
