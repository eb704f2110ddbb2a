from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from harness.core.artifact import Artifact, Work
from harness.core.manifests import write_manifests
from harness.core.records import Utterance
from harness.data import leakage
from harness.errors import LeakageError

if TYPE_CHECKING:
    from pathlib import Path

Rows = list[tuple[str, str, str]]
"""id, sha256, text."""


def selected(folder: Path, rows: Rows) -> Artifact:
    folder.mkdir()
    items = [Utterance(id=name, audio="a.wav", sha256=sha, text=text, duration_s=1.0) for name, sha, text in rows]
    write_manifests(folder, items)
    parts = {f"d/{folder.name}": len(rows)}
    return Artifact(key="0" * 64, stage="select", path=folder, files={}, meta={"parts": parts})


def check(work: Work, train: Rows, *heldout: Rows) -> dict:
    folder = work.path.parent
    sets = [selected(folder / f"heldout{number}", rows) for number, rows in enumerate(heldout)]
    return leakage.run(leakage.Spec(), {"train": [selected(folder / "train", train)], "heldout": sets}, work)


def test_sets_apart_pass(work: Work) -> None:
    train = [("1", "x", "мой дом"), ("2", "y", "...")]
    meta = check(work, train, [("3", "z", "мои дома"), ("4", "w", "!")], [("5", "v", "ещё")])
    expected = {"train": {"d/train": 2}, "heldout": {"d/heldout0": 2, "d/heldout1": 1}, "num_leaks": 0}
    assert meta == expected
    assert json.loads((work.path / "leakage.json").read_text("utf-8")) == {**expected, "leaks": []}


@pytest.mark.parametrize(
    ("sets", "shares", "names", "ids"),
    [
        (([("1", "x", "да")], [("2", "x", "нет")]), "recording", ["d/train", "d/heldout0"], ["1", "2"]),
        (([("1", "x", "Ёлка!")], [("2", "y", "елка")]), "transcript", ["d/train", "d/heldout0"], ["1", "2"]),
        (
            ([("1", "x", "да")], [("2", "y", "нет")], [("3", "y", "иное")]),
            "recording",
            ["d/heldout0", "d/heldout1"],
            ["2", "3"],
        ),
    ],
)
def test_leaks_stop_the_run(work: Work, sets: tuple, shares: str, names: list[str], ids: list[str]) -> None:
    with pytest.raises(LeakageError) as caught:
        check(work, *sets)
    kept = work.scratch / "leakage.json"
    message = str(caught.value)
    assert message.startswith(
        "1 utterances of held-out sets share a recording or a transcript with another set; let one"
    )
    assert f"  {names[0]}: {ids[0]} and {names[1]}: {ids[1]} share a {shares}: " in message
    assert message.endswith(f"All of them: {kept}")
    (leak,) = json.loads(kept.read_text("utf-8"))["leaks"]
    assert (leak["shares"], leak["sets"], leak["ids"]) == (shares, names, ids)
    assert kept.read_bytes() == (work.path / "leakage.json").read_bytes()


def test_the_message_is_short_and_the_file_is_whole(work: Work) -> None:
    rows = [(str(number), str(number), f"слово {number}") for number in range(500)]
    with pytest.raises(LeakageError) as caught:
        check(work, rows, rows)
    assert "… and 490 more" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 13
    assert len(json.loads((work.scratch / "leakage.json").read_text("utf-8"))["leaks"]) == 500


def test_a_set_that_is_named_twice_is_one_set(work: Work) -> None:
    train = selected(work.path.parent / "train", [("1", "x", "да")])
    heldout = selected(work.path.parent / "dev", [("2", "y", "нет")])
    assert leakage.run(leakage.Spec(), {"train": [train], "heldout": [heldout] * 2}, work)["num_leaks"] == 0
