from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

import jiwer
import pytest
from rich.console import Console

from harness.board.leaderboard import COLUMNS, lines, publish, read_csv, render
from harness.terminal import leaderboard
from tests import boards
from tests.boards import NUM_UTTERANCES, SUITE, Finished, finished, mishear

if TYPE_CHECKING:
    from pathlib import Path

CONTRACT = {
    "rank", "row", "family", "variant", "export", "runtime", "heldout", "split_role", "wer", "wer_lo", "wer_hi", "cer",
    "num_utterances", "num_failed", "audio_s", "rtf", "latency_p50_ms", "latency_p95_ms", "peak_vram_mib",
    "peak_ram_mib", "size_mib", "tied_with_best", "device", "run_id",
}  # fmt: skip

OVER_UTTERANCES = "95 % intervals by bootstrap over utterances: fewer than 5 speakers are known."
TO_TELL_APART = (
    "To tell base_lr1e-5_ggml-f16 and base_lr3e-5_ggml-f16 apart takes about 50 utterances like these (80 % power)."
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished(tmp_path_factory.mktemp("board"))


def board(done: Finished) -> list[dict]:
    return lines(done.plan, done.store, run_ids={})


def published(done: Finished, folder: Path) -> list[dict[str, str]]:
    publish(board(done), done.plan, done.store, folder=folder)
    return list(csv.DictReader((folder / "leaderboard.csv").open(encoding="utf-8", newline="")))


def test_columns_of_the_contract() -> None:
    assert set(COLUMNS) >= CONTRACT
    assert len(set(COLUMNS)) == len(COLUMNS)


def test_best_first_test_sets_first(done: Finished) -> None:
    assert [(line["heldout"], line["rank"], line["row"]) for line in board(done)] == [
        (heldout, rank, f"base_{variant}_{export}")
        for heldout in ("test", "dev")
        # Equal results are in the order of their names.
        for rank, (variant, export) in enumerate(
            [(v, e) for v in ("lr1e-5", "lr3e-5", "zero-shot") for e in ("ggml-f16", "onnx-fp32")], start=1
        )
    ]


def test_cer_decides_between_equal_wers(tmp_path: Path) -> None:
    def heard(row: str, _heldout: str, _number: int, text: str) -> str:
        # One wrong word for everyone; of two letters, of one, or as the others.
        return text.replace("окном", {"zero-shot": "окна", "lr1e-5": "окнам", "lr3e-5": "окнах"}[row.split("_")[1]])

    ranked = [line for line in board(finished(tmp_path, heard=heard)) if line["heldout"] == "test"]
    assert len({line["wer"] for line in ranked}) == 1
    assert [line["variant"] for line in ranked] == ["lr1e-5", "lr1e-5", "lr3e-5", "lr3e-5", "zero-shot", "zero-shot"]


def test_what_can_be_chance_is_tied(done: Finished, tmp_path: Path) -> None:
    tied = {line["row"]: line["tied_with_best"] for line in board(done) if line["heldout"] == "test"}
    assert tied["base_lr1e-5_ggml-f16"] is True, "the best is tied with itself"
    assert tied["base_lr1e-5_onnx-fp32"] is True
    assert tied["base_zero-shot_onnx-fp32"] is False

    def differ_by_chance(row: str, _heldout: str, number: int, text: str) -> str:
        """As many words wrong, in other utterances."""
        wrong = number % 4 == ["zero-shot", "lr1e-5", "lr3e-5"].index(row.split("_")[1])
        return text.replace("окном", "окнам") if wrong else text

    assert all(line["tied_with_best"] for line in board(finished(tmp_path, heard=differ_by_chance)))


def test_nothing_is_tied_where_wer_is_not_asked_for(tmp_path: Path) -> None:
    done = finished(tmp_path, suite=SUITE.replace("resamples: 200", "metrics: [cer, rtf]"))
    assert {(line["wer"], line["tied_with_best"], line["size_mib"]) for line in board(done)} == {(None, None, None)}
    first = published(done, tmp_path / "out")[0]
    assert (first["wer"], first["wer_lo"], first["tied_with_best"], first["size_mib"]) == ("", "", "", "")
    assert float(first["cer"]) > 0


def test_rows_that_are_not_finished_are_not_on_the_board(tmp_path: Path) -> None:
    done = finished(tmp_path, but=lambda step: step.stage == "train" and "lr3e-5" in step.name)
    assert {line["variant"] for line in board(done)} == {"zero-shot", "lr1e-5"}
    nothing = finished(tmp_path / "nothing", but=lambda step: step.stage == "prepare")
    assert published(nothing, tmp_path / "out") == []


def test_csv(done: Finished, tmp_path: Path) -> None:
    rows = published(done, tmp_path)
    assert list(rows[0]) == list(COLUMNS)
    first = rows[0]
    assert {name: first[name] for name in ("family", "variant", "export", "runtime", "split_role")} == {
        "family": "whisper", "variant": "lr1e-5", "export": "ggml-f16", "runtime": "whispercpp", "split_role": "test",
    }  # fmt: skip
    # Not measured without a GPU, and not tracked yet: empty, not 0.
    assert (first["peak_vram_mib"], first["run_id"]) == ("", "")
    assert (first["num_failed"], first["num_utterances"], first["peak_ram_mib"]) == ("0", str(NUM_UTTERANCES), "321.5")
    assert first["device"] == "a CPU, 2 threads"
    assert 0 < float(first["wer_lo"]) + float(first["wer"]) < float(first["wer_hi"]) + float(first["wer"]) < 1
    raw = (tmp_path / "leaderboard.csv").read_bytes()
    assert raw.endswith(b"\n")
    assert b"\r" not in raw


def test_published_hypotheses_give_the_same_rates(tmp_path: Path) -> None:
    """The board can be recomputed by anybody with jiwer alone."""

    def heard(row: str, heldout: str, number: int, text: str) -> str | None:
        return None if number == 3 else mishear(row, heldout, number, text)

    rows = published(finished(tmp_path, heard=heard), tmp_path / "out")
    assert len(rows) == 12
    for row in rows:
        text = (tmp_path / "out" / "hypotheses" / f"{row['row']}__{row['heldout']}.jsonl").read_text("utf-8")
        said = [json.loads(line) for line in text.splitlines()]
        assert list(said[0]) == [
            "id", "reference", "hypothesis", "reference_norm", "hypothesis_norm", "duration_s", "wall_s", "error",
            "speaker",
        ]  # fmt: skip
        assert (said[3]["hypothesis"], said[3]["error"]) == (None, "RuntimeError: out of memory")
        references, hypotheses = ([item[name] for item in said] for name in ("reference_norm", "hypothesis_norm"))
        assert float(row["wer"]) == pytest.approx(jiwer.wer(references, hypotheses), abs=1e-12)
        assert float(row["cer"]) == pytest.approx(jiwer.cer(references, hypotheses), abs=1e-12)
        assert int(row["num_failed"]) == 1


def test_hypotheses_of_rows_that_are_gone_are_removed(done: Finished, tmp_path: Path) -> None:
    (tmp_path / "hypotheses").mkdir()
    (tmp_path / "hypotheses" / "old__test.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "hypotheses" / "notes.txt").write_text("mine", encoding="utf-8")
    published(done, tmp_path)
    names = {path.name for path in (tmp_path / "hypotheses").iterdir()}
    assert "old__test.jsonl" not in names
    assert "notes.txt" in names
    assert len(names) == 13


def test_read_back(done: Finished, tmp_path: Path) -> None:
    published(done, tmp_path)
    back = read_csv(tmp_path / "leaderboard.csv")
    expected = [{name: None if value == "" else value for name, value in line.items()} for line in board(done)]
    assert back == expected
    assert [type(back[0][name]) for name in ("rank", "row", "wer", "tied_with_best")] == [int, str, float, bool]


def test_words_that_look_like_something_else_are_read_as_words(done: Finished, tmp_path: Path) -> None:
    odd = [{**line, "variant": "NA", "row": "007", "run_id": "1e5"} for line in board(done)]
    (tmp_path / "odd.csv").write_text(render(odd, form="csv"), encoding="utf-8")
    first = read_csv(tmp_path / "odd.csv")[0]
    assert (first["variant"], first["row"], first["run_id"]) == ("NA", "007", "1e5")


def test_json_and_markdown(done: Finished) -> None:
    first = board(done)[0]
    assert json.loads(render(board(done), form="json"))[0] == first
    assert json.loads(render(board(done), form="json"))[0]["peak_vram_mib"] is None
    head, rule, *body = render(board(done), form="md").splitlines()
    assert head.startswith("| # | row | held-out | WER |")
    table = body[: body.index("")]
    assert len(table) == 12
    assert all(line.count("|") == head.count("|") == rule.count("|") for line in table)
    assert [line for line in body[12:] if line] == [
        f"{heldout}: {fact}" for heldout in ("test", "dev") for fact in (OVER_UTTERANCES, TO_TELL_APART)
    ]
    cells = dict(zip(head.split(" | "), body[0].split(" | "), strict=True))
    assert (cells["row"], cells["WER"], cells["VRAM MiB"], cells["RAM MiB"]) == (
        "base_lr1e-5_ggml-f16", f"{first['wer']:.3f}", "", "322",
    )  # fmt: skip


def test_speed_of_several_devices_is_told_apart(done: Finished) -> None:
    told = "test: Rows of different devices are not comparable in speed."
    lines = board(done)
    alone = render(lines, form="md")
    assert told not in alone
    assert "| device |" not in alone
    several = render([{**lines[0], "device": "an abacus"}, *lines[1:]], form="md")
    assert told in several
    assert "| device |" in several.splitlines()[0]
    assert "| an abacus |" in several.splitlines()[2]


def test_an_empty_board_has_its_columns() -> None:
    assert next(csv.reader(io.StringIO(render([], form="csv")))) == list(COLUMNS)
    assert json.loads(render([], form="json")) == []


REASON = "one reader only, see [the notes] | p. 7"


@pytest.fixture(scope="module")
def leaking(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    # Folded: a reason of several lines is one on the board.
    declared = f"allow_leakage:\n  reason: |\n    {REASON.replace('reader', 'reader' + chr(10) + '   ')}\n"
    return finished(tmp_path_factory.mktemp("leaking"), suite=SUITE.replace("models:", f"{declared}models:"))


def test_allowed_leakage_marks_every_row(leaking: Finished, done: Finished, tmp_path: Path) -> None:
    assert {row["leakage"] for row in published(leaking, tmp_path / "leaking")} == {REASON}
    assert {line["leakage"] for line in read_csv(tmp_path / "leaking" / "leaderboard.csv")} == {REASON}
    assert {row["leakage"] for row in published(done, tmp_path / "clean")} == {""}
    assert {line["leakage"] for line in read_csv(tmp_path / "clean" / "leaderboard.csv")} == {None}


def test_allowed_leakage_stands_under_every_table(leaking: Finished, done: Finished) -> None:
    told = f"Leakage allowed, the figures may be too good: {REASON}"
    assert render(board(leaking), form="md").endswith(f"\n\n**{told}**\n")
    assert "Leakage" not in render(board(done), form="md")
    for finished_suite, marked in ((leaking, True), (done, False)):
        for table in leaderboard(board(finished_suite), width=200):
            console = Console(file=io.StringIO(), width=200)
            console.print(table)
            assert (told in console.file.getvalue()) == marked, "as written: nothing in a reason is markup"


def test_what_a_base_model_lacks_is_told_of_its_rows(
    done: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = "nvidia/parakeet-tdt-0.6b-v2 cannot write абв"
    monkeypatch.setitem(boards.MAKE, "base", lambda _work, _step: {"notes": [note]})
    english = finished(tmp_path)
    assert {line["note"] for line in board(english)} == {note}
    assert {line["note"] for line in board(done)} == {None}
    assert render(board(english), form="md").endswith(f"\n\n**{note}**\n")
    for table in leaderboard(board(english), width=200):
        assert str(table.caption).endswith(f"\n{note}")
