"""References that allow several wordings, on the board and on its page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from harness.board.leaderboard import lines
from harness.board.report import write_report
from harness.board.transcripts import read_transcripts
from harness.core.text import normalise
from tests import boards
from tests.board.test_report import Page
from tests.boards import NUM_UTTERANCES, Finished, finished
from tests.browsers import chromium, opened

if TYPE_CHECKING:
    from pathlib import Path

WRITTEN = "{за окном|за окошком} шумел {холодный|студёный} ветер номер"
FIRST = "за окном шумел холодный ветер номер"


def heard(row: str, _heldout: str, number: int, _text: str) -> str:
    """The trained models hear the second wording, the untrained one the first with a mistake."""
    other = FIRST.replace("окном", "окошком").replace("холодный", "студеный")
    return f"{FIRST.replace('ветер', 'вечер') if 'zero-shot' in row else other} {number}"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boards, "reference", lambda number: f"{WRITTEN} {number}")
        return finished(tmp_path_factory.mktemp("wordings"), heard=heard)


def test_each_row_is_scored_by_the_wording_that_it_is_nearest_to(done: Finished) -> None:
    board = lines(done.plan, done.store, run_ids={})
    assert {line["wer"] for line in board if line["variant"] != "zero-shot"} == {0.0}
    num_words = sum(len(normalise(f"{FIRST} {number}").split()) for number in range(NUM_UTTERANCES))
    assert {line["wer"] for line in board if line["variant"] == "zero-shot"} == {NUM_UTTERANCES / num_words}


def transcripts(done: Finished) -> Any:
    rows = [row for row in done.plan.rows if row.heldout == "test"]
    return read_transcripts({row.row: done.store.find(row.scored.folder, key=row.scored.key) for row in rows})


def test_errors_of_the_page_are_those_of_the_board(done: Finished) -> None:
    found = transcripts(done)
    for row in found.rows:
        assert sum(found.errors(row)) == (NUM_UTTERANCES if "zero-shot" in row else 0)
    # The first row is the untrained one: the others are compared with another wording.
    assert found.normalised[5] == "за окном шумел холодный ветер номер пять"
    assert found.columns()["wordings"][5] == {1: "за окошком шумел студеный ветер номер пять"}


def test_the_page_aligns_each_row_with_its_own_wording(done: Finished, tmp_path: Path) -> None:
    board = lines(done.plan, done.store, run_ids={})
    path = write_report(done.plan, done.store, board=board, folder=tmp_path)
    assert Page(path).unpacked("set-0")["references"][5] == f"{WRITTEN} 5"
    with chromium() as browser, opened(browser, path) as page:
        page.locator("#utterances").scroll_into_view_if_needed()
        page.wait_for_selector(".utterance[data-id=u5]")
        for name in ("base_lr1e-5_ggml-f16", "base_zero-shot_ggml-f16"):
            page.locator("#mistakes-row").select_option(name)
            mistakes = page.locator(".mistakes ol li").all_inner_texts()
            wrong = [item for item in mistakes if item != "none"]
            assert len(wrong) == ("zero-shot" in name), mistakes
        marked = page.locator(".utterance").evaluate_all(
            """all => all.map((one) => {
                const labels = [...one.querySelectorAll("[data-errors]")];
                const counted = labels.reduce((sum, label) => sum + Number(label.dataset.errors), 0);
                return [one.querySelectorAll("mark, del, ins").length, counted];
            })"""
        )
        assert marked
        assert all(shown == counted for shown, counted in marked)
