from __future__ import annotations

from typing import TYPE_CHECKING

from harness.board.cards import publish_cards
from harness.data.card import CARD_FILE
from tests.boards import Finished, finished

if TYPE_CHECKING:
    from pathlib import Path

    from harness.engine.plan import Step


def prepared(folder: Path, *, without: str) -> Finished:
    """A suite of which only datasets and sets are there, all but one with a card that says whose it is."""
    done = finished(folder, but=lambda _step: True)
    for step in done.plan.steps:
        if step.stage in {"prepare", "select"}:
            publish(done, step, card=step.name != without)
    return done


def publish(done: Finished, step: Step, *, card: bool) -> None:
    work = done.store.open(step.folder)
    if card:
        (work.path / CARD_FILE).write_text(f"<title>{step.name}</title>", encoding="utf-8")
    done.store.publish(step.folder, key=step.key, stage=step.stage, meta={}, about={})


def test_cards_of_datasets_and_of_sets_made_of_them(tmp_path: Path) -> None:
    done = prepared(tmp_path, without="select dev")
    folder = tmp_path / "results" / "small"
    expected = {"aelita.html": "prepare aelita", "sets/train.html": "select train", "sets/test.html": "select test"}
    assert set(publish_cards(done.plan, done.store, folder=folder)) == {folder / "cards" / name for name in expected}
    for name, said in expected.items():
        assert (folder / "cards" / name).read_text(encoding="utf-8") == f"<title>{said}</title>"


def test_cards_of_what_the_suite_no_longer_has_go(tmp_path: Path) -> None:
    done = prepared(tmp_path, without="")
    old = tmp_path / "results" / "small" / "cards" / "sets" / "old.html"
    old.parent.mkdir(parents=True)
    old.touch()
    assert len(publish_cards(done.plan, done.store, folder=old.parents[2])) == 4
    assert not old.exists()


def test_no_cards_no_folder(tmp_path: Path) -> None:
    done = finished(tmp_path, but=lambda _step: True)
    assert publish_cards(done.plan, done.store, folder=tmp_path / "small") == []
    assert not (tmp_path / "small").exists()
