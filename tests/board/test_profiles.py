"""Several normalisers on one board."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from harness.board.leaderboard import COLUMNS, lines, publish, read_csv, render
from harness.board.profiles import flips
from harness.board.report import write_report
from harness.core.alternatives import normalised_pair
from harness.core.manifests import read_jsonl
from harness.core.wer import count_errors, pool
from harness.suite.load import load
from harness.terminal import leaderboard
from tests.boards import SUITE, Finished, finished, mishear

if TYPE_CHECKING:
    from pathlib import Path

BESIDE = [f"{name}@ru-strict" for name in ("wer", "wer_lo", "wer_hi", "cer", "num_utterances")]


def capitalise(row: str, heldout: str, number: int, text: str) -> str:
    """The best model writes capitals, which references here do not have."""
    heard = mishear(row, heldout, number, text)
    return heard.capitalize() if "lr1e-5" in row else heard


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    suite = SUITE.replace("resamples: 200", "resamples: 200, also: [ru-strict]")
    return finished(tmp_path_factory.mktemp("profiles"), suite=suite, heard=capitalise)


def board(done: Finished) -> list[dict[str, Any]]:
    return lines(done.plan, done.store, run_ids={})


def test_columns_stand_after_the_others(done: Finished, tmp_path: Path) -> None:
    publish(board(done), done.plan, done.store, folder=tmp_path)
    head = next(csv.reader((tmp_path / "leaderboard.csv").open(encoding="utf-8", newline="")))
    assert head == [*COLUMNS, *BESIDE]
    for line in read_csv(tmp_path / "leaderboard.csv"):
        rows = list(read_jsonl(tmp_path / "hypotheses" / f"{line['row']}__{line['heldout']}.jsonl"))
        pairs = [normalised_pair(row["reference"], row["hypothesis"], profile="ru-strict", name="") for row in rows]
        assert line["wer@ru-strict"] == pool(count_errors(*zip(*pairs, strict=True))).rate
        assert line["num_utterances@ru-strict"] == len(rows)


def test_without_other_profiles_the_columns_are_as_ever(tmp_path: Path) -> None:
    known = board(finished(tmp_path))
    assert list(known[0]) == list(COLUMNS)
    assert flips(known) == []


def test_flips_are_told_everywhere(done: Finished, tmp_path: Path) -> None:
    known = board(done)
    assert known[0]["variant"] == "lr1e-5"
    told = flips(known)
    assert [text.partition(":")[0] for text in told] == [
        f"The order on {heldout} depends on the normaliser" for heldout in ("test", "dev")
    ]
    strict = {line["row"]: line["wer@ru-strict"] for line in known if line["heldout"] == "test"}
    best, first = "base_lr3e-5_ggml-f16", "base_lr1e-5_ggml-f16"
    said = f"under ru-strict, {best} comes before {first} ({strict[best]:.3f} against {strict[first]:.3f})"
    assert said in told[0]
    assert said in render(known, form="md")
    assert "| WER@ru-strict | CER@ru-strict |" in render(known, form="md").splitlines()[0]
    console = Console(file=io.StringIO(), width=400)
    for table in leaderboard(known, width=400):
        console.print(table)
    assert said in console.file.getvalue()
    assert "wer@ru-strict" in console.file.getvalue()
    page = write_report(done.plan, done.store, board=known, folder=tmp_path).read_text(encoding="utf-8")
    assert said in page
    assert "WER % ru-strict" in page
    assert "wer lo@" not in page


def line(row: str, wer: float | None, other: float | None, *, heldout: str = "test") -> dict[str, Any]:
    return {"row": row, "heldout": heldout, "wer": wer, "wer@p": other}


FLIPS = [
    ([line("a", 0.1, 0.1), line("b", 0.2, 0.2)], None),
    # Equal in either is no flip.
    ([line("a", 0.1, 0.2), line("b", 0.2, 0.2)], None),
    ([line("a", 0.1, 0.3), line("b", 0.1, 0.2)], None),
    ([line("a", 0.1, 0.3), line("b", 0.2, 0.2)], "b comes before a (0.200 against 0.300)"),
    (
        [line("a", 0.1, 0.35), line("b", 0.2, 0.3), line("c", 0.3, 0.1)],
        # The new best against the old one first.
        (
            "c comes before a (0.100 against 0.350); c comes before b (0.100 against 0.300); "
            "b comes before a (0.300 against 0.350)"
        ),
    ),
    ([line("a", 0.1, 0.3), line("b", None, 0.1), line("c", 0.2, None)], None),
    ([], None),
]


@pytest.mark.parametrize(("known", "expected"), FLIPS)
def test_flips(known: list[dict[str, Any]], expected: str | None) -> None:
    told = flips(known)
    assert told == ([f"The order on test depends on the normaliser: under p, {expected}"] if expected else [])


def test_many_flips_are_counted() -> None:
    known = [line(f"r{number}", number, -number) for number in range(8)]
    (told,) = flips(known)
    assert told.count("comes before") == 3
    assert told.endswith(", and 5 more pairs")


def test_profiles_of_a_suite(tmp_path: Path) -> None:
    for wrong, message in (
        ("also: [ru]", "normaliser 'ru' is in score.normalise and score.also twice; name it once"),
        ("also: [ru-strict, ru-strict]", "normaliser 'ru-strict' is in score.normalise and score.also twice"),
        ("normalise: ru-no-digits", "'ru-no-digits'"),
    ):
        path = tmp_path / "small.yaml"
        path.write_text(SUITE.replace("resamples: 200", wrong), encoding="utf-8")
        with pytest.raises(Exception, match="ru") as caught:
            load(path)
        assert message in str(caught.value)
