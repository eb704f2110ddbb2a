"""The dataset cards of a suite, put where people look for results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.core.files import replace_copy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.engine.plan import Plan
    from harness.engine.store import Store

CARD_FILE = "card.html"
PLACES = {"prepare": "", "select": "sets/"}
"""Stage → where its cards lie; a dataset may be called `train`."""


def publish_cards(plan: Plan, store: Store, *, folder: Path) -> list[Path]:
    """Copy the cards that are there into `folder/cards`, and remove those of datasets that the suite no longer has."""
    cards = dict(_cards(plan, store))
    for name, path in cards.items():
        replace_copy(path, folder / "cards" / name)
    for path in (folder / "cards").rglob("*.html"):
        if path.relative_to(folder / "cards").as_posix() not in cards:
            path.unlink()
    return [folder / "cards" / name for name in cards]


def _cards(plan: Plan, store: Store) -> Iterator[tuple[str, Path]]:
    for step in plan.steps:
        artifact = store.find(step.folder, key=step.key) if step.stage in PLACES else None
        if artifact and CARD_FILE in artifact.files:
            yield f"{PLACES[step.stage]}{step.name.removeprefix(f'{step.stage} ')}.html", artifact.path / CARD_FILE
