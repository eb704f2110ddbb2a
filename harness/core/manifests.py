"""The two manifest formats of the field, as JSON lines: NeMo's and Hugging Face's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from harness.core.records import Utterance

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

SAMPLE_RATE_HZ = 16_000
NEMO_FILE = "manifest.jsonl"
HUGGING_FACE_FILE = "manifest.hf.jsonl"
EXTRA = ("id", "sha256", "speaker", "split", "source", "tags")
"""Fields beside NeMo's three; NeMo's and Hugging Face's loaders pass over what they do not know."""


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One compact JSON object a line, UTF-8, Unix line ends on every system."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def write_manifests(folder: Path, utterances: Iterable[Utterance]) -> None:
    """Write `manifest.jsonl` (NeMo) and `manifest.hf.jsonl` (Hugging Face) into `folder`."""
    nemo, hugging_face = [], []
    for item in utterances:
        extra = {name: getattr(item, name) for name in EXTRA}
        nemo.append({"audio_filepath": item.audio, "text": item.text, "duration": item.duration_s, **extra})
        audio = {"path": item.audio, "sampling_rate": SAMPLE_RATE_HZ}
        hugging_face.append({"audio": audio, "sentence": item.text, "duration": item.duration_s, **extra})
    write_jsonl(folder / NEMO_FILE, nemo)
    write_jsonl(folder / HUGGING_FACE_FILE, hugging_face)


def read_manifest(folder: Path) -> list[Utterance]:
    """The utterances of a folder that `write_manifests` wrote."""
    return [
        Utterance(
            audio=row["audio_filepath"],
            text=row["text"],
            duration_s=row["duration"],
            **{name: row[name] for name in EXTRA},
        )
        for row in read_jsonl(folder / NEMO_FILE)
    ]
