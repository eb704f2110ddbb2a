from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from harness.data.exclusions import read_exclusions
from harness.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


def excluded(folder: Path, lines: str, ids: list[str]) -> tuple[list[str], list[str]]:
    """Which clips of `golos` are listed, and the notes afterwards."""
    (folder / "bad.jsonl").write_text(lines, encoding="utf-8")
    found = read_exclusions(folder / "bad.jsonl")
    mask = found.mask(pa.array(ids), dataset="golos")
    return [name for name, listed in zip(ids, mask, strict=True) if listed], found.notes


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"id": "a"}', ["a"]),
        ('{"id": "golos/a", "shares": "audio"}', ["a"]),
        ('{"id": "voice/a"}', []),
        ('{"id": "a#2"}', ["a"]),
        ('{"id": "golos/b#12"}', ["b"]),
        ('{"id": "take#1"}', ["take#1"]),
        ('{"id": "a", "source": "golos"}', ["a"]),
        ('{"id": "golos/a", "source": "golos"}', ["a"]),
        ('{"id": "a", "source": "voice"}', []),
        ('{"id": "ё"}\n\n{"id": "b"}', ["b", "ё"]),
    ],
)
def test_names_of_clips(tmp_path: Path, line: str, expected: list[str]) -> None:
    assert excluded(tmp_path, line, ["a", "b", "take#1", "ё"])[0] == expected


def test_lines_that_name_nothing_are_told(tmp_path: Path) -> None:
    assert excluded(tmp_path, '{"id": "a"}\n{"id": "x"}\n{"id": "y#2"}\n', ["a", "b"])[1] == [
        "bad.jsonl: 2 of 3 lines name no clip of this set"
    ]
    assert excluded(tmp_path, '{"id": "a#2"}\n{"id": "b"}\n', ["a", "b"])[1] == []
    assert excluded(tmp_path, "", ["a"]) == ([], [])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"id": "a"}\n{"id"\n', r"bad\.jsonl:2: is no JSON \(.*\); write lines such as \{\"id\": \"clip-17\"\}"),
        ('\n{"name": "a"}\n', r"bad\.jsonl:2: has no `id`; write lines such as"),
        ('{"id": 7}\n', r"bad\.jsonl:1: has no `id`"),
        ("[1]\n", r"bad\.jsonl:1: has no `id`"),
    ],
)
def test_bad_lines(tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        excluded(tmp_path, lines, ["a"])


def test_a_missing_list(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: there is no such file; `exclude` names JSON lines with an `id`"):
        read_exclusions(tmp_path / "none.jsonl")
