from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from harness.engine.digests import MISSING, Digests

if TYPE_CHECKING:
    from pathlib import Path


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def forget_time(path: Path, text: str) -> None:
    """Change a file's content behind its size and time."""
    status = path.stat()
    path.write_text(text, encoding="utf-8")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_files_folders_and_what_is_missing(tmp_path: Path) -> None:
    digests = Digests(tmp_path / "cache.json")
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_text("one", encoding="utf-8")
    (tmp_path / "in" / "b" / "c.txt").write_text("two", encoding="utf-8")
    assert digests(tmp_path / "in" / "a.txt") == sha256("one")
    assert digests(tmp_path / "in") == sha256(f"a.txt={sha256('one')}\nb/c.txt={sha256('two')}")
    assert digests(tmp_path / "none") == MISSING


def test_a_folder_counts_by_names_and_content_not_by_place(tmp_path: Path) -> None:
    digests = Digests(tmp_path / "cache.json")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("x", encoding="utf-8")
    before = digests(tmp_path / "one")
    assert digests(tmp_path / "two") == before
    (tmp_path / "two" / "a.txt").rename(tmp_path / "two" / "b.txt")
    assert digests(tmp_path / "two") != before
    (tmp_path / "one" / "a.txt").write_text("xy", encoding="utf-8")
    assert digests(tmp_path / "one") != before


def test_nothing_is_read_twice(tmp_path: Path) -> None:
    cache, path = tmp_path / "deep" / "cache.json", tmp_path / "a.txt"
    path.write_text("one", encoding="utf-8")
    first = Digests(cache)
    assert first(path) == sha256("one")
    first.save()
    forget_time(path, "two")
    # Whoever went by content would see "two": the cache answered.
    assert Digests(cache)(path) == sha256("one")


@pytest.mark.parametrize("text", ["longer", "two"])
def test_another_size_or_time_is_read_again(tmp_path: Path, text: str) -> None:
    digests, path = Digests(tmp_path / "cache.json"), tmp_path / "a.txt"
    path.write_text("one", encoding="utf-8")
    digests(path)
    path.write_text(text, encoding="utf-8")
    os.utime(path, ns=(0, 1 if text == "two" else path.stat().st_mtime_ns))
    assert digests(path) == sha256(text)


@pytest.mark.parametrize("text", ["", "{", "[]", "[1]", '{"a": 1}', '{"a": [1]}', '{"a": [1, "x", "y"]}', "\udcff"])
def test_a_damaged_cache_costs_only_time(tmp_path: Path, text: str) -> None:
    cache, path = tmp_path / "cache.json", tmp_path / "a.txt"
    cache.write_bytes(text.encode(errors="surrogateescape").replace(b"a", str(path).encode()))
    path.write_text("one", encoding="utf-8")
    digests = Digests(cache)
    assert digests(path) == sha256("one")
    digests.save()
    assert str(path) in cache.read_text(encoding="utf-8")


def test_saved_only_when_something_is_new(tmp_path: Path) -> None:
    digests = Digests(tmp_path / "cache.json")
    digests(tmp_path / "none")
    digests.save()
    assert not (tmp_path / "cache.json").exists()
