from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.errors import HarnessError, SuiteError
from harness.promote import mimir

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "whisper-russian-ggml.bin"


def bundle(folder: Path, model: bytes) -> Path:
    """A bundle as `write_bundle` writes it, in what matters here."""
    folder.mkdir(parents=True)
    (folder / "ggml-model.bin").write_bytes(model)
    files = {"ggml-model.bin": {"sha256": hashlib.sha256(model).hexdigest(), "size": len(model)}}
    (folder / "manifest.json").write_text(json.dumps({"schema": 1, "name": "a row", "files": files}), encoding="utf-8")
    return folder


def install(source: Path, folder: Path) -> mimir.Installed:
    return mimir.install(source, export_kind="whisper_ggml", folder=folder)


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_first_installation(tmp_path: Path) -> None:
    installed = install(bundle(tmp_path / "one", b"one"), tmp_path / "deep" / "models")
    assert installed == mimir.Installed(tmp_path / "deep" / "models" / NAME, None)
    assert installed.path.read_bytes() == b"one"
    record = json.loads((tmp_path / "deep" / "models" / f"{NAME}.json").read_text(encoding="utf-8"))
    assert record == {"bundle": "one", "sha256": hashlib.sha256(b"one").hexdigest(), "row": "a row"}
    assert names(tmp_path / "deep" / "models") == [NAME, f"{NAME}.json"]


def test_the_previous_one_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    for number in range(1, 4):
        installed = install(bundle(tmp_path / str(number), b"%d" % number), folder)
    assert installed.previous == folder / f"{NAME}.previous"
    assert (folder / NAME).read_bytes() == b"3"
    assert installed.previous.read_bytes() == b"2"
    assert names(folder) == [NAME, f"{NAME}.json", f"{NAME}.previous"]


def test_the_same_again_changes_nothing(tmp_path: Path) -> None:
    folder, first, second = tmp_path / "models", bundle(tmp_path / "1", b"1"), bundle(tmp_path / "2", b"2")
    install(first, folder)
    install(second, folder)
    assert install(second, folder).previous == folder / f"{NAME}.previous"
    assert (folder / f"{NAME}.previous").read_bytes() == b"1", "still the one to go back to"


def test_a_foreign_model_is_kept_too(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / NAME).write_bytes(b"from elsewhere")
    install(bundle(tmp_path / "1", b"1"), tmp_path / "models")
    assert (tmp_path / "models" / f"{NAME}.previous").read_bytes() == b"from elsewhere"


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", refuse)
    for number in range(1, 3):
        install(bundle(tmp_path / str(number), b"%d" % number), tmp_path / "models")
    assert (tmp_path / "models" / f"{NAME}.previous").read_bytes() == b"1"
    assert (tmp_path / "models" / NAME).read_bytes() == b"2"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows refuses to replace an open file")
def test_an_app_that_reads_the_old_model_goes_on_reading_it(tmp_path: Path) -> None:
    old, new = b"old" * 100_000, b"new" * 100_000
    path = install(bundle(tmp_path / "1", old), tmp_path / "models").path
    with path.open("rb") as reader:
        begun = reader.read(1000)
        install(bundle(tmp_path / "2", new), tmp_path / "models")
        assert begun + reader.read() == old
    assert path.read_bytes() == new


def damaged(folder: Path) -> None:
    (folder / "ggml-model.bin").write_bytes(b"onf")


def cut(folder: Path) -> None:
    (folder / "ggml-model.bin").write_bytes(b"on")


def gone(folder: Path) -> None:
    (folder / "ggml-model.bin").unlink()


def unlisted(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"name": "x", "files": {}}', encoding="utf-8")


def no_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("{", encoding="utf-8")


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damaged, "ggml-model.bin: sha256 is e4dc360.*, its manifest says 7692c3ad.*; remove .* and promote again"),
        (cut, "ggml-model.bin: sha256 is .*, its manifest says 7692c3ad.*; remove .* and promote again"),
        (gone, "ggml-model.bin: is not there; remove .* and promote again"),
        (unlisted, "manifest.json: lists no ggml-model.bin .*; remove .* and promote again"),
        (no_json, "manifest.json: lists no ggml-model.bin .*Expecting property name.*; remove .* and promote again"),
        (no_manifest, "manifest.json: lists no ggml-model.bin .*No such file.*; remove .* and promote again"),
    ],
)
def test_a_damaged_bundle_is_refused(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    folder = tmp_path / "models"
    install(bundle(tmp_path / "good", b"good"), folder)
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    source = bundle(tmp_path / "bad", b"one")
    spoil(source)
    with pytest.raises(HarnessError, match=message):
        install(source, folder)
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before, "nothing changed, nothing is left"


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mimir.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2})())
    with pytest.raises(HarnessError, match=r"models: 0 MiB free, 0 MiB needed; make room and try again"):
        install(bundle(tmp_path / "1", b"one"), tmp_path / "models")


def test_the_target_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("", encoding="utf-8")
    with pytest.raises(SuiteError, match="models: is a file; give a folder: --to DIR"):
        install(bundle(tmp_path / "1", b"one"), tmp_path / "models")


def test_where_mimir_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert mimir.default_folder() == Path.home() / "Library" / "Application Support" / "mimir" / "models"
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(
        SuiteError, match="Mimir's folder is known on a Mac only; give the folder to install into: --to DIR"
    ):
        mimir.default_folder()
