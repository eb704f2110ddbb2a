"""Rows of a board on parts of their sets: files, tables, the section of the report, the command."""

from __future__ import annotations

import csv
import io
import json
import wave
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from harness.board.leaderboard import lines
from harness.board.report import write_report
from harness.board.slices import Sliced, cells, class_cells, publish_slices, render_slices, sliced, worst_gap
from harness.cli import app
from harness.core.manifests import write_manifests
from harness.core.records import Utterance
from harness.score.error_classes import CLASSES
from harness.slice_tables import slice_tables
from tests import boards
from tests.boards import NUM_UTTERANCES, SUITE, Finished, finished, reference

if TYPE_CHECKING:
    from pathlib import Path

    from harness.core.artifact import Work
    from harness.engine.plan import Step

EVIL = "</td><script>alert(1)</script>|[red]"
NUM_EVIL = 21


def select(work: Work, _step: Step) -> dict[str, Any]:
    """As tests/boards.py has it, with a tag."""
    rows = []
    for number in range(NUM_UTTERANCES):
        with wave.open(str(work.path / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(bytes(2 * 16_000))
        tags = {"room": EVIL if number < NUM_EVIL else "quiet"}
        name, text = f"u{number}", reference(number)
        rows.append(
            Utterance(id=name, audio=f"{number}.wav", sha256=f"{number:064}", text=text, duration_s=1, tags=tags)
        )
    write_manifests(work.path, rows)
    return {"num_utterances": NUM_UTTERANCES, "audio_s": float(NUM_UTTERANCES), "num_speakers": 0}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(boards.MAKE, "select", select)
        return finished(tmp_path_factory.mktemp("slices"))


@pytest.fixture(scope="module")
def found(done: Finished) -> list[Sliced]:
    return sliced(lines(done.plan, done.store, run_ids={}), done.plan, done.store)


def printed(tables: list[Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    for table in tables:
        console.print(table)
    return console.file.getvalue()


def test_every_row_in_the_order_of_the_board(done: Finished, found: list[Sliced]) -> None:
    board = lines(done.plan, done.store, run_ids={})
    assert [(item.row, item.heldout, item.wer) for item in found] == [
        (line["row"], line["heldout"], line["wer"]) for line in board
    ]
    slices = found[0].slices
    assert {(own["by"], own["value"], own["num_utterances"], own["is_small"]) for own in slices} == {
        ("duration", "under 2 s", 24, False), ("room", EVIL, 21, False), ("room", "quiet", 3, True),
    }  # fmt: skip
    assert slices[0]["wer"] > slices[1]["wer"]
    assert slices[2]["value"] == "quiet"


def test_files(done: Finished, found: list[Sliced], tmp_path: Path) -> None:
    publish_slices(found, folder=tmp_path)
    rows = list(csv.DictReader((tmp_path / "slices.csv").open(encoding="utf-8", newline="")))
    assert list(rows[0]) == [
        "row", "heldout", "by", "value", "wer", "wer_lo", "wer_hi", "num_utterances", "num_words", "is_small",
    ]  # fmt: skip
    assert len(rows) == 12 * 3
    assert {row["value"] for row in rows} == {"under 2 s", EVIL, "quiet"}
    assert [float(row["wer"]) for row in rows] == [own["wer"] for item in found for own in item.slices]
    classes = list(csv.DictReader((tmp_path / "error_classes.csv").open(encoding="utf-8", newline="")))
    assert list(classes[0]) == ["row", "heldout", "num_words", *CLASSES]
    assert len(classes) == 12


def test_for_people(found: list[Sliced]) -> None:
    text = printed(slice_tables(found))
    assert f"test: slices of {found[0].row}, the worst first" in text
    assert f"room: {EVIL}" in text, "nothing in a value is markup"
    assert "test: errors by cause, per 100 words" in text
    assert all(item.row in text for item in found)
    (small,) = [own for own in found[0].slices if own["is_small"]]
    assert cells(small)[""] == "few"


def test_markdown_and_json(found: list[Sliced]) -> None:
    text = render_slices(found, form="md")
    assert f"**{found[0].row} on test, worst first**" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables} == {7}
    assert "<script" not in text
    assert [line["wer"] for line in json.loads(render_slices(found, form="json"))][:1] == [found[0].slices[0]["wer"]]


def test_classes_are_per_100_words() -> None:
    counts = {"num_words": 400, **dict.fromkeys(CLASSES, 0), "yo": 3, "silence": 2}
    shown = class_cells(Sliced("a", "test", 0.1, (), counts))
    assert (shown["yo"], shown["latin"], shown["silence"]) == ("0.75", "0.00", "2")
    assert class_cells(Sliced("a", "test", 0.1, (), {**counts, "num_words": 0}))["yo"] == ""


def test_the_report_has_a_section(done: Finished, tmp_path: Path) -> None:
    board = lines(done.plan, done.store, run_ids={})
    page = write_report(done.plan, done.store, board=board, folder=tmp_path).read_text(encoding="utf-8")
    assert '<h2 id="slices">' in page
    assert "room: &lt;/td&gt;&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page


def test_no_section_without_slices(tmp_path: Path) -> None:
    done = finished(tmp_path, suite=SUITE.replace("resamples: 200", "metrics: [cer]"))
    board = lines(done.plan, done.store, run_ids={})
    page = write_report(done.plan, done.store, board=board, folder=tmp_path).read_text(encoding="utf-8")
    assert 'id="slices"' not in page


def test_the_command(done: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done.path.parent)
    answer = CliRunner().invoke(app, ["board", "small.yaml", "--slices", "--format", "csv"])
    assert answer.exit_code == 0
    assert answer.stdout.splitlines()[0].startswith("row,heldout,by,value,wer")
    answer = CliRunner().invoke(app, ["board", "--slices"])
    assert "--merge and --slices need the suite" in str(answer.exception)


def own(value: str, wer: float | None, *, small: bool = False) -> dict[str, Any]:
    return {"by": "room", "value": value, "wer": wer, "is_small": small}


GAPS = [
    ([own("a", 0.2), own("b", 0.3)], [own("a", 0.1), own("b", 0.3)], ("a", 0.1)),
    ([own("a", 0.2), own("b", 0.1)], [own("a", 0.3), own("b", 0.15)], ("b", -0.05)),
    # Too few utterances say nothing, of either.
    ([own("a", 0.9, small=True), own("b", 0.1)], [own("a", 0.1, small=True), own("b", 0.1)], ("b", 0.0)),
    ([own("a", 0.9, small=True)], [own("a", 0.1, small=True)], None),
    ([own("a", 0.9)], [own("b", 0.1)], None),
    ([], [own("b", 0.1)], None),
]


@pytest.mark.parametrize(("chosen", "baseline", "expected"), GAPS)
def test_the_worst_gap(chosen: list, baseline: list, expected: tuple[str, float] | None) -> None:
    found = worst_gap(chosen, baseline)
    assert (None if found is None else (found[1]["value"], pytest.approx(found[0]))) == expected
