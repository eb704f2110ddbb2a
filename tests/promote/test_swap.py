"""Kills at every moment of an installation and a rollback: afterwards the old or the new model is there, whole."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import HarnessError
from harness.promote import install as installing
from harness.promote import payload, swap
from harness.promote.install import install, rollback, status
from harness.promote.parcel import opened
from harness.promote.runtime import load
from harness.promote.swap import Place, exchange, read_state, recover
from harness.promote.targets import target
from tests.ggmls import bundle, parakeet, said, write_ggml

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.promote.manifest import Manifest

ROOT = Path(__file__).parent.parent.parent
MIMIR = target("mimir")
GGML, ONNX = "whisper-russian-ggml.bin", "parakeet-russian-onnx"
STEPS = (
    (os, "replace"),
    (os, "rename"),
    (os, "link"),
    (os, "unlink"),
    (os, "fsync"),
    (os, "mkdir"),
    (shutil, "rmtree"),
    (shutil, "copyfile"),
    (swap, "exchange"),
)
"""What changes something on the disk."""
KILLS = int(os.environ.get("HARNESS_KILLS", "6"))
"""Real ones; `HARNESS_KILLS=200` takes minutes."""


class Killed(BaseException):
    """As SIGKILL, nothing in the program handles it."""


def trust(_payload: Path, /, *, manifest: Manifest, clip: Path) -> str | None:
    return manifest.smoke.text


def put(path: Path, folder: Path) -> None:
    with opened(path) as parcel:
        install(parcel, target=MIMIR, folder=folder, listen=trust)


def versions(tmp_path: Path, kind: str) -> tuple[Path, Path]:
    if kind == GGML:
        model = write_ggml(tmp_path / "model.bin").read_bytes()[:300_000]
        return tuple(bundle(tmp_path / name, model + name.encode(), name=name) for name in ("one", "two"))  # type: ignore[return-value]
    return tuple(parakeet(tmp_path / name, name=name) for name in ("one", "two"))  # type: ignore[return-value]


def hashes(path: Path) -> dict[str, str]:
    return dict(payload.Hashes.of(path))


class KillAt:
    """Counts steps on the disk, and kills before or after the one that is wanted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, wanted: int, after: bool) -> None:
        self.count, self.wanted, self.after = 0, wanted, after
        for module, name in STEPS:
            monkeypatch.setattr(module, name, self.wrapped(getattr(module, name)))

    def wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            mine, self.count = self.count, self.count + 1
            if mine == self.wanted and not self.after:
                raise Killed
            result = real(*arguments, **named)
            if mine == self.wanted:
                raise Killed
            if mine > self.wanted >= 0:
                raise Killed  # the dead do nothing
            return result

        return step


@pytest.mark.parametrize(
    ("kind", "can_exchange"),
    [(GGML, True), (ONNX, True), (ONNX, False)],
    ids=["file", "folder", "folder in two renames"],
)
@pytest.mark.parametrize("action", ["install", "rollback"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_at_every_step(tmp_path: Path, kind: str, action: str, *, can_exchange: bool, after: bool) -> None:
    one, two = versions(tmp_path, kind)
    start = tmp_path / "start"
    put(one, start)
    old = hashes(start / kind)
    if action == "rollback":
        put(two, start)
        old, new = hashes(start / kind), old
    else:
        other = tmp_path / "other"
        put(two, other)
        new = hashes(other / kind)

    def act(folder: Path) -> None:
        if action == "install":
            put(two, folder)
        else:
            rollback(Place(folder, kind), target=MIMIR, listen=trust)

    outcomes = set()
    for wanted in range(500):
        folder = tmp_path / f"m{wanted}"
        shutil.copytree(start, folder)
        with pytest.MonkeyPatch.context() as patched:
            if not can_exchange:
                patched.setattr(swap, "exchange", lambda _one, _other: False)
            killer = KillAt(patched, wanted=wanted, after=after)
            with suppress(Killed):
                act(folder)
                assert killer.count <= wanted, "nothing swallows a kill"
        live = folder / kind
        if can_exchange:
            assert hashes(live) in (old, new), f"step {wanted}: a running application sees it at once"
        found = status(MIMIR, folder=folder)
        assert [item.faults for item in found] == [[]], f"step {wanted}: whole, and the records know which it is"
        outcomes.add("new" if hashes(live) == new else "old")
        assert hashes(live) in (old, new)
        if found[0].previous is not None:
            assert found[0].previous_faults == []
        if killer.count <= wanted:
            break
        act_again_if_needed(folder, kind, act, new)
        shutil.rmtree(folder)
    assert wanted > 8
    assert outcomes == {"old", "new"}


def act_again_if_needed(folder: Path, kind: str, act: Callable[[Path], None], new: dict[str, str]) -> None:
    """The same command again ends with the new one, and the way back is open."""
    if hashes(folder / kind) != new:
        act(folder)
    assert hashes(folder / kind) == new
    (found,) = status(MIMIR, folder=folder)
    assert found.faults == found.previous_faults == []
    assert found.previous is not None
    assert not [
        path.name
        for path in Place(folder, kind).home.iterdir()
        if path.name in {"incoming", "outgoing", "journal.json"}
    ]


@pytest.mark.skipif(sys.platform not in {"linux", "darwin"}, reason="other systems cannot exchange folders")
def test_exchange_changes_names(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name, encoding="utf-8")
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange folders")
    assert (tmp_path / "a" / "file").read_text("utf-8") == "b"
    assert (tmp_path / "b" / "file").read_text("utf-8") == "a"
    assert not exchange(tmp_path / "a", tmp_path / "none")


def test_a_journal_that_cannot_be_read(tmp_path: Path) -> None:
    place = Place(tmp_path, GGML)
    place.home.mkdir(parents=True)
    place.journal.write_text('{"staged": "incoming"}', encoding="utf-8")
    with pytest.raises(HarnessError, match=r"journal.json: cannot be read \(KeyError: 'inode'\); the model itself may"):
        recover(place)


def test_what_fails_after_the_moment_of_change_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = versions(tmp_path, GGML)
    put(one, tmp_path / "m")
    real, calls = swap.write_json, []

    def once(path: Path, content: dict[str, Any]) -> None:
        calls.append(path.name)
        if calls == ["journal.json", "state.json"]:
            raise OSError("a hiccup")
        real(path, content)

    monkeypatch.setattr(swap, "write_json", once)
    put(two, tmp_path / "m")
    assert calls == ["journal.json", "state.json", "state.json"]
    assert read_state(Place(tmp_path / "m", GGML))["current"]["manifest"]["name"] == "two"


CHILD = """
import sys
from pathlib import Path
from harness.promote.install import install, rollback
from harness.promote.parcel import opened
from harness.promote.swap import Place
from harness.promote.targets import target
folder, *bundles = map(Path, sys.argv[1:])
mimir = target("mimir")
trust = lambda payload, *, manifest, clip: manifest.smoke.text
print("ready", flush=True)
while True:
    for bundle in bundles:
        with opened(bundle) as parcel:
            done = install(parcel, target=mimir, folder=folder, listen=trust)
    rollback(Place(folder, done.path.name), target=mimir, listen=trust)
"""


@pytest.mark.parametrize("kind", [GGML, ONNX], ids=["file", "folder"])
@pytest.mark.timeout(1800)
def test_real_kills(tmp_path: Path, kind: str) -> None:
    """SIGKILL at random moments; what is live before anything mends it, and after."""
    folder = tmp_path / "Application Support" / "models"
    if kind == GGML:
        models = {first: write_ggml(tmp_path / f"{first}.bin", first=first).read_bytes() for first in (1000, 2000)}
        bundles = [bundle(tmp_path / f"b{first}", model, name=f"row{first}") for first, model in models.items()]
    else:
        bundles = list(versions(tmp_path, kind))
    put(bundles[0], folder)
    manifests = {}
    for path in bundles:
        with opened(path) as parcel:
            manifests[parcel.manifest.name] = parcel.manifest
    whole = [
        {"" if kind == GGML else name: manifest.files[name].sha256 for name in manifest.model}
        for manifest in manifests.values()
    ]
    chance = random.Random(0)
    can_exchange = kind == GGML or sys.platform in {"linux", "darwin"}
    for number in range(KILLS):
        # A file's installation takes long enough for a child to be killed several times over; its start is what costs.
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder), *map(str, bundles)],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0, 0.25))
        child.kill()
        child.communicate()
        live = folder / kind
        if can_exchange:
            assert hashes(live) in whole, f"kill {number}: seen by an application at once"
        (found,) = status(MIMIR, folder=folder)
        assert (found.faults, found.previous_faults) == ([], []), f"kill {number}"
        assert hashes(live) in whole
        assert found.record is not None
        if kind == GGML:
            manifest = manifests[found.record["manifest"]["name"]]
            first = int(manifest.name.removeprefix("row"))
            recogniser = load(live, manifest=manifest).recogniser
            assert recogniser.transcribe(clip()) == said(first), f"kill {number}: it loads and speaks"
    assert installing.HISTORY_FILE in {path.name for path in (folder / ".harness").iterdir()}


def clip() -> Any:
    import numpy as np

    return np.zeros(16_000, np.float32)
