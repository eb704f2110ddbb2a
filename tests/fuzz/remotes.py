"""Objects in a bucket, as `harness run --store` fetches what other machines have sent."""

from __future__ import annotations

import hashlib
import json
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

from harness.core.manifests import UTTERANCES_FILE, write_manifests
from harness.core.records import Utterance
from harness.engine.remote import INDEX_FILE, Remote
from harness.engine.store import ARTIFACT_FILE, Store, folder_name
from tests.fuzz.corpora import put
from tests.fuzz.target import Target

KEY = "ab" * 32
FOLDER = folder_name("data", KEY)
UPLOAD = "0" * 32


@cache
def files() -> dict[str, bytes]:
    """A published set, by name."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = ("audio/0.wav", f"../{folder_name('data', 'cd' * 32)}/audio/1.wav")
        rows = [
            Utterance(id=str(n), audio=name, sha256="0" * 64, text="да", duration_s=1.0) for n, name in enumerate(names)
        ]
        write_manifests(root, rows)
        found = {item.name: item.read_bytes() for item in root.iterdir()} | {"audio/0.wav": b"RIFF"}
    return recorded(found)


def recorded(contents: dict[str, bytes]) -> dict[str, bytes]:
    record = {"schema": 1, "key": KEY, "stage": "data", "files": listed(contents), "meta": {"notes": []}, "adopted": {}}
    return {**contents, ARTIFACT_FILE: json.dumps(record).encode()}


def listed(contents: dict[str, bytes]) -> dict[str, Any]:
    return {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }


def index(contents: dict[str, bytes]) -> bytes:
    return json.dumps({"schema": 1, "upload": UPLOAD, "files": listed(contents), "folders": ["logs/empty"]}).encode()


def fetched(objects: dict[str, bytes], folder: Path) -> None:
    put(folder / "bucket" / FOLDER, objects)
    remote = Remote((folder / "bucket").as_uri())
    remote.faults(FOLDER)
    store = Store(folder / "store", remote=remote)
    store.has(FOLDER, key=KEY)
    store.find(FOLDER, key=KEY)
    store.bring(FOLDER)


def read_index(data: bytes, folder: Path) -> None:
    uploads = {f"{UPLOAD}/{name}": content for name, content in files().items()}
    fetched({**uploads, INDEX_FILE: data}, folder)


def read_object(data: bytes, folder: Path, *, name: str, is_known: bool = True) -> None:
    """is_known: index and record were written for the changed file, by whoever changed it."""
    changed = files() | {name: data}
    if is_known and name != ARTIFACT_FILE:
        changed = recorded({item: content for item, content in changed.items() if item != ARTIFACT_FILE})
    uploads = {f"{UPLOAD}/{item}": content for item, content in changed.items()}
    fetched({**uploads, INDEX_FILE: index(changed if is_known else files())}, folder)


TARGETS = (
    Target("remote-index", lambda: [index(files())], read_index, weight=1.0),
    Target("remote-record", lambda: [files()[ARTIFACT_FILE]], partial(read_object, name=ARTIFACT_FILE), weight=0.5),
    Target("remote-set", lambda: [files()[UTTERANCES_FILE]], partial(read_object, name=UTTERANCES_FILE), weight=0.5),
    Target(
        "remote-file",
        lambda: [files()["audio/0.wav"]],
        partial(read_object, name="audio/0.wav", is_known=False),
        weight=0.2,
    ),
)
