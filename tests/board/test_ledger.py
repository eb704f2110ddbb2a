from __future__ import annotations

import hashlib
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from harness.board.leaderboard import explained, lines, told_beside
from harness.board.ledger import LEDGER_FILE, read, record, told_of_readings, with_readings
from harness.errors import HarnessError
from tests.boards import SUITE, Finished, finished

if TYPE_CHECKING:
    from pathlib import Path

    from harness.board.ledger import Readings

BEST = "base_lr1e-5_ggml-f16"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished(tmp_path_factory.mktemp("ledger"))


def board_of(done: Finished) -> list[dict[str, Any]]:
    return lines(done.plan, done.store, run_ids={})


def read_by(
    done: Finished, folder: Path, *, board: list[dict[str, Any]] | None = None, command: str = "run"
) -> Readings:
    board = board_of(done) if board is None else board
    return record(done.plan, board, folder=folder, command=command, suite=done.path)


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LEDGER_FILE).read_text(encoding="utf-8").splitlines()]


def test_a_reading_says_what_was_read_and_by_what(done: Finished, tmp_path: Path) -> None:
    assert read_by(done, tmp_path).counts == {"test": 1}
    (entry,) = entries(tmp_path)
    assert entry.pop("when").endswith("+00:00")
    assert [row["row"] for row in entry["rows"]] == sorted({row.row for row in done.plan.rows})
    keys = {row.row: row.scored for row in done.plan.rows if row.heldout == "test"}
    for row in entry.pop("rows"):
        scored = keys[row["row"]]
        assert row["score"] == scored.key[:16]
        assert row["transcripts"] == scored.inputs["transcripts"][0].key[:16]
    assert entry == {
        "schema": 1, "command": "run", "heldout": "test", "why": "first reading", "normalise": "ru", "selection": BEST,
        "suite_sha256": hashlib.sha256(done.path.read_bytes()).hexdigest(),
    }  # fmt: skip


def test_the_same_is_written_once(done: Finished, tmp_path: Path) -> None:
    read_by(done, tmp_path)
    before = (tmp_path / LEDGER_FILE).read_bytes()
    for command in ("board", "report", "promote", "run"):
        assert read_by(done, tmp_path, command=command).counts == {"test": 1}
    # Whoever sees one thing more has read again; back to the first is nothing new.
    one_less = [line for line in board_of(done) if line["row"] != BEST]
    assert read_by(done, tmp_path, board=one_less).counts == {"test": 2}
    assert read_by(done, tmp_path).counts == {"test": 2}
    assert (tmp_path / LEDGER_FILE).read_bytes().startswith(before), "never changed again"


def test_another_choice_on_dev_is_another_reading(done: Finished, tmp_path: Path) -> None:
    read_by(done, tmp_path)
    board = board_of(done)
    for line in board:
        if line["split_role"] == "dev" and line["variant"] == "lr3e-5":
            line["wer"] = 0.0
    assert read_by(done, tmp_path, board=board).counts == {"test": 2}
    assert [(entry["selection"], entry["why"]) for entry in entries(tmp_path)] == [
        (BEST, "first reading"),
        ("base_lr3e-5_ggml-f16", "another reading: selection changed"),
    ]


def test_trained_anew_under_the_same_name_is_another_reading(done: Finished, tmp_path: Path) -> None:
    read_by(done, tmp_path / "results")
    again = finished(tmp_path / "again", suite=SUITE.replace("max_steps: 100", "max_steps: 200"))
    assert read_by(again, tmp_path / "results").counts == {"test": 2}
    assert entries(tmp_path / "results")[1]["why"] == "another reading: rows changed"


def test_scored_anew_from_the_same_transcripts_is_the_same_reading(done: Finished, tmp_path: Path) -> None:
    read_by(done, tmp_path / "results")
    more = finished(tmp_path / "again", suite=SUITE.replace("resamples: 200", "resamples: 300"))
    assert read_by(more, tmp_path / "results").counts == {"test": 1}
    strict = finished(tmp_path / "strict", suite=SUITE.replace("resamples: 200", "normalise: ru-strict"))
    assert read_by(strict, tmp_path / "results").counts == {"test": 2}
    assert entries(tmp_path / "results")[1]["why"] == "another reading: normalise changed"


def test_every_sealed_set_is_counted_and_no_other(tmp_path: Path) -> None:
    two = SUITE.replace("  test: {", "  far: {from: aelita/test, role: test}\n  test: {")
    far = finished(tmp_path / "far", suite=two)
    readings = read_by(far, tmp_path)
    assert readings.counts == {"far": 1, "test": 1}
    board = with_readings(board_of(far), readings)
    assert {(line["heldout"], line["sealed_readings"]) for line in board} == {("far", 1), ("test", 1), ("dev", None)}


def test_what_shows_no_test_set_is_no_reading(done: Finished, tmp_path: Path) -> None:
    on_dev = [line for line in board_of(done) if line["split_role"] == "dev"]
    for board in ([], on_dev):
        assert read_by(done, tmp_path / "results", board=board).counts == {}
        assert not (tmp_path / "results").exists()


def test_readings_stand_beside_the_figures(done: Finished, tmp_path: Path) -> None:
    once = with_readings(board_of(done), read_by(done, tmp_path))
    assert told_beside(once) == []
    assert told_of_readings(once) == ["test is sealed and was read once"]
    fewer = [line for line in board_of(done) if line["row"] != BEST]
    twice = with_readings(fewer, read_by(done, tmp_path, board=fewer))
    told = (
        "test is sealed, but was read 2 times with changing rows or selections: whoever chooses by it gets figures "
        "that are too good"
    )
    assert told_beside(twice) == told_of_readings(twice) == [told]
    assert told not in explained(twice)


@pytest.mark.parametrize(
    "damaged",
    [
        '{"schema": 1, "heldout": "te',
        "[]",
        '"a word"',
        "{}",
        '{"schema": "one", "heldout": "test", "normalise": "ru", "selection": null, "rows": []}',
        '{"schema": 1, "heldout": "test", "normalise": "ru", "selection": null, "rows": [1]}',
        "\ufffd\0",
    ],
)
def test_a_damaged_line_is_passed_over_and_told(done: Finished, tmp_path: Path, damaged: str) -> None:
    read_by(done, tmp_path)
    path = tmp_path / LEDGER_FILE
    whole = path.read_text(encoding="utf-8")
    path.write_text(f"{whole}{damaged}", encoding="utf-8", newline="\n")
    fewer = [line for line in board_of(done) if line["row"] != BEST]
    readings = read_by(done, tmp_path, board=fewer)
    assert (readings.counts, readings.num_damaged) == ({"test": 2}, 1)
    found, num_damaged = read(path)
    assert (len(found), num_damaged) == (2, 1), "the line after half a line is a line of its own"


def test_a_newer_ledger_is_refused(done: Finished, tmp_path: Path) -> None:
    read_by(done, tmp_path)
    path = tmp_path / LEDGER_FILE
    path.write_text(path.read_text("utf-8").replace('"schema": 1', '"schema": 2'), encoding="utf-8")
    with pytest.raises(HarnessError, match=r"ledger\.jsonl: schema 2 is newer than 1; update harness"):
        read_by(done, tmp_path)


def test_what_cannot_be_recorded_is_not_shown(done: Finished, tmp_path: Path) -> None:
    (tmp_path / LEDGER_FILE).mkdir()
    with pytest.raises(HarnessError, match=r"this reading of sealed sets cannot be recorded .* so it is not shown"):
        read_by(done, tmp_path)


def test_readers_side_by_side_lose_nothing(done: Finished, tmp_path: Path) -> None:
    whole = board_of(done)
    rows = sorted({line["row"] for line in whole})
    # Each pair of threads reads the same: five different readings.
    boards = [[line for line in whole if line["row"] != row] for row in rows[:5] for _ in range(2)]
    threads = [threading.Thread(target=read_by, args=(done, tmp_path), kwargs={"board": board}) for board in boards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found, num_damaged = read(tmp_path / LEDGER_FILE)
    assert (len(found), num_damaged) == (5, 0)


def test_failed_rows_that_come_later_are_another_reading(tmp_path: Path) -> None:
    part = finished(tmp_path / "part", but=lambda step: step.stage == "train" and "lr3e-5" in step.name)
    assert read_by(part, tmp_path).counts == {"test": 1}
    assert read_by(finished(tmp_path / "whole"), tmp_path).counts == {"test": 2}
    assert entries(tmp_path)[1]["why"] == "another reading: rows changed"
