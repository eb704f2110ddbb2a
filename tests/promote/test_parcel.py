"""Bundles that are damaged, or made to do harm."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError
from harness.promote.manifest import MAX_FILES, fault_of_name, parse
from harness.promote.parcel import opened
from tests.ggmls import bundle

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.promote.parcel import Parcel

MODEL = b"a model" * 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return bundle(tmp_path / "made", MODEL)


def zipped(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.zip")


def look(path: Path) -> Parcel:
    with opened(path) as parcel:
        return parcel


def rewritten(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_folder_and_zip_are_the_same(folder: Path) -> None:
    one, other = look(folder), look(zipped(folder))
    assert (one.name, one.manifest, one.manifest_sha256) == (other.name, other.manifest, other.manifest_sha256)
    assert one.name == folder.name
    assert one.read("README.txt") == (folder / "README.txt").read_bytes()
    with opened(zipped(folder)) as parcel, parcel.files.open("ggml-model.bin") as file:
        assert file.read() == MODEL


def test_a_zip_made_by_hand_is_read_too(folder: Path, tmp_path: Path) -> None:
    """Compressed, and without the folder around."""
    by_hand = tmp_path / "by hand.zip"
    with zipfile.ZipFile(by_hand, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    assert look(by_hand).manifest == look(folder).manifest


def extra(folder: Path) -> None:
    (folder / "run.sh").write_text("echo", encoding="utf-8")


def missing(folder: Path) -> None:
    (folder / "README.txt").unlink()


def longer(folder: Path) -> None:
    with (folder / "ggml-model.bin").open("ab") as file:
        file.write(b"x")


def link(folder: Path) -> None:
    (folder / "README.txt").unlink()
    (folder / "README.txt").symlink_to(folder / "manifest.json")


def folder_link(folder: Path) -> None:
    (folder / "more").symlink_to(folder.parent)


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def no_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("{", encoding="utf-8")


def deep_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 100_000, encoding="utf-8")


def huge_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text(" " * (5 * 2**20), encoding="utf-8")


def newer(folder: Path) -> None:
    rewritten(folder, schema=3)


def older(folder: Path) -> None:
    rewritten(folder, schema=1)


def escaping(folder: Path) -> None:
    rewritten(folder, files={"../model.bin": {"sha256": "0" * 64, "size": 1}})


def absolute(folder: Path) -> None:
    rewritten(folder, files={"/etc/passwd": {"sha256": "0" * 64, "size": 1}})


def twice(folder: Path) -> None:
    listed = json.loads((folder / "manifest.json").read_text("utf-8"))["files"]
    rewritten(folder, files=listed | {"Readme.txt": listed["README.txt"]})


def no_hash(folder: Path) -> None:
    rewritten(folder, files={"ggml-model.bin": {"sha256": "abc", "size": 1}})


def claims(folder: Path) -> None:
    rewritten(folder, model=["other.bin"])


def bad_name(folder: Path) -> None:
    rewritten(folder, name="../../evil")


def too_many(folder: Path) -> None:
    for number in range(MAX_FILES + 1):
        (folder / f"f{number}").touch()


POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs a privilege or is unknown there")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (extra, "run.sh is there but not listed in its manifest; copy it again from where it was made"),
        (missing, "README.txt is listed but not there; copy it again"),
        (longer, "ggml-model.bin: 7001 bytes, its manifest says 7000; copy it again"),
        pytest.param(link, "README.txt is a link, which no bundle has", marks=POSIX),
        pytest.param(folder_link, "more is a link, which no bundle has", marks=POSIX),
        pytest.param(pipe, "pipe is neither file nor folder", marks=POSIX),
        (no_manifest, "holds no manifest.json, so it is no bundle; copy it again"),
        (no_json, "manifest.json: is no manifest of a bundle"),
        (deep_json, "manifest.json: is no manifest of a bundle"),
        (huge_manifest, "manifest.json has 5,242,880 bytes, at most 4,194,304 are read"),
        (newer, "schema 3 is newer than 2, which this harness reads; update it"),
        (older, "schema 1 is older than 2; promote the model again"),
        (escaping, r"file '../model.bin': a path that leaves the bundle"),
        (absolute, "file '/etc/passwd': a path that leaves the bundle"),
        (twice, "two files whose names differ by case only"),
        (no_hash, "files.ggml-model.bin.sha256: String should match"),
        (claims, "'other.bin' is used but not among its files"),
        (bad_name, "name: String should match pattern"),
        (too_many, "more than 1000 files; it is no bundle"),
    ],
)
def test_a_bad_folder_is_refused(folder: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(folder)
    with pytest.raises(HarnessError, match=message):
        look(folder)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HarnessError, match=r"there is no such bundle; give a folder or a \.zip that `harness promote`"):
        look(tmp_path / "none")


def rezip(folder: Path, change: Callable[[zipfile.ZipFile], None]) -> Path:
    """A zip of the bundle with something more in it."""
    path = folder.with_name("bad.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for item in folder.iterdir():
            archive.write(item, f"{folder.name}/{item.name}")
        change(archive)
    return path


def entry(name: str, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.create_system = 3
    return info


def lzma(archive: zipfile.ZipFile) -> None:
    archive.writestr("b/extra.txt", b"x", zipfile.ZIP_LZMA)


def bomb(archive: zipfile.ZipFile) -> None:
    archive.writestr("b/zeros.bin", bytes(50 * 2**20), zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda archive: archive.writestr("../evil.txt", "x"), "'../evil.txt': a path that leaves the bundle"),
        (lambda archive: archive.writestr("/evil.txt", "x"), "'/evil.txt': a path that leaves the bundle"),
        (lambda archive: archive.writestr("b/../../evil.txt", "x"), "a path that leaves the bundle"),
        (lambda archive: archive.writestr("../manifest.json", "x"), "a path that leaves the bundle"),
        (lambda archive: archive.writestr("b/c:evil.txt", "x"), "a path that leaves the bundle, or with characters"),
        (lambda archive: archive.writestr("b/aux.txt", "x"), "a name that Windows takes for a device"),
        (lambda archive: archive.writestr(entry("b/link", stat.S_IFLNK | 0o777), "/etc"), "'b/link': a link or a devi"),
        (lzma, "compressed in a way that bundles are not"),
        (bomb, "bytes that unpack to .*: a zip bomb; it is not opened"),
        (lambda archive: archive.writestr("other/x.txt", "x"), "holds no manifest.json"),
    ],
)
def test_a_bad_zip_is_refused(folder: Path, change: Callable[[zipfile.ZipFile], None], message: str) -> None:
    with pytest.raises(HarnessError, match=message):
        look(rezip(folder, change))


def test_a_file_twice_in_a_zip(folder: Path) -> None:
    def again(archive: zipfile.ZipFile) -> None:
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(f"{folder.name}/README.txt", "x")

    with pytest.raises(HarnessError, match="holds a file twice"):
        look(rezip(folder, again))


def test_an_encrypted_zip(folder: Path) -> None:
    path = zipped(folder)
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        place = content.index(mark) + offset
        content[place : place + 2] = struct.pack("<H", 1)
    path.write_bytes(content)
    with pytest.raises(HarnessError, match="encrypted; it is not opened"):
        look(path)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_zip_that_was_cut_off(folder: Path, keep: float) -> None:
    path = zipped(folder)
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(HarnessError, match="is no zip, or a damaged one"):
        look(path)


@given(st.text(max_size=30))
def test_no_name_leaves_its_folder(name: str) -> None:
    if fault_of_name(name) is None:
        place = Path("root").joinpath(name)
        assert ".." not in place.parts
        assert place.parts[0] == "root"
        assert name.isascii()


@given(st.binary(max_size=200))
def test_any_bytes_for_a_manifest_are_one_message(content: bytes) -> None:
    with pytest.raises(HarnessError):
        parse(content, where="here")


def test_a_bundle_whose_folder_was_renamed(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder, tmp_path / "with spaces ё")
    assert look(tmp_path / "with spaces ё").name == folder.name
