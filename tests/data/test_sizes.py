from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from harness.core.estimates import Size
from harness.data import manifest, sizes
from harness.data.sizes import manifest_size
from tests.conftest import AELITA

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, rows: list[object]) -> Path:
    path = folder / "manifest.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_the_shipped_manifest() -> None:
    rows = [json.loads(line) for line in (AELITA / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    size = manifest.size(manifest.Spec(path=str(AELITA / "manifest.jsonl")))
    assert size is not None
    assert (size.num_clips, size.audio_s) == (190, pytest.approx(sum(row["duration"] for row in rows)))
    assert set(size.splits) == {""}


def test_splits(tmp_path: Path) -> None:
    rows = [{"duration": 2.0, "split": "train"}, {"duration": 3, "split": "test"}, {"duration": 4.0, "split": "train"}]
    size = manifest_size(write(tmp_path, rows))
    assert size == Size(3, 9.0)
    assert size.splits == {"train": Size(2, 6.0), "test": Size(1, 3.0)}


def test_lines_without_a_duration_are_as_long_as_the_others(tmp_path: Path) -> None:
    bad = ["not JSON", [], {"duration": "long"}, {"duration": -1}, '{"duration": NaN}', {"text": "да"}]
    rows = [{"duration": 2.0}, {"duration": 4.0}] * 3
    assert manifest_size(write(tmp_path, rows + bad)) == Size(12, 36.0)
    assert manifest_size(write(tmp_path, rows[:5] + bad)) is None, "most lines say nothing"


def test_a_long_manifest_is_judged_by_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "MAX_LINES", 10)
    size = manifest_size(write(tmp_path, [{"duration": 2.0}] * 1000))
    assert size == Size(1000, 2000.0)


@pytest.mark.parametrize("rows", [[], ["", ""], [{"text": "да"}]])
def test_nothing_is_known(tmp_path: Path, rows: list[object]) -> None:
    assert manifest_size(write(tmp_path, rows)) is None
    assert manifest_size(tmp_path / "missing.jsonl") is None
