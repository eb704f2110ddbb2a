from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from harness.board.comparison import COMPARED, best_on_dev, word_counts
from harness.board.leaderboard import explained, lines, render, told_beside
from harness.core.manifests import write_manifests
from harness.core.records import Utterance
from harness.errors import DataError
from harness.score.significance import Bootstrap, holm
from harness.terminal import leaderboard
from tests import boards
from tests.boards import NUM_UTTERANCES, SUITE, Finished, finished, mishear, record_anew, reference

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from harness.core.artifact import Artifact, Work

BEST = "base_lr1e-5_ggml-f16"
MIDDLE = "base_lr3e-5_ggml-f16"
UNTRAINED = "base_zero-shot_ggml-f16"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished(tmp_path_factory.mktemp("comparison"))


def on_test(done: Finished) -> dict[str, dict[str, Any]]:
    return {line["row"]: line for line in lines(done.plan, done.store, run_ids={}) if line["heldout"] == "test"}


def score_of(done: Finished, row: str) -> Artifact:
    scored = next(item.scored for item in done.plan.rows if (item.row, item.heldout) == (row, "test"))
    found = done.store.find(scored.folder, key=scored.key)
    assert found is not None
    return found


def selected(work: Work, *, speakers: int) -> dict[str, Any]:
    """The set of `boards`, read by so many."""
    items = [
        Utterance(
            id=f"u{number}", audio=f"{number}.wav", sha256=f"{number:064}", text=reference(number), duration_s=2,
            speaker=f"s{number % speakers}" if speakers else None,
        )
        for number in range(NUM_UTTERANCES)
    ]  # fmt: skip
    write_manifests(work.path, items)
    return {"num_utterances": NUM_UTTERANCES, "audio_s": 2.0 * NUM_UTTERANCES, "num_speakers": speakers}


def test_against_the_best_and_the_baseline(done: Finished) -> None:
    board = on_test(done)
    counts = {row: word_counts(score_of(done, row)) for row in board}
    drawn = Bootstrap(
        [item.errors for item in counts.values()], counts[BEST].references, seed=done.plan.suite.seed, resamples=200
    )
    rows = list(counts)
    assert rows[0] == BEST
    corrected, _ = holm([drawn.p_value(number, 0) for number in range(1, len(rows))])
    assert [board[row]["p_best"] for row in rows] == [None, *corrected]
    assert [board[row]["tied_with_best"] for row in rows] == [True, *(p >= 0.05 for p in corrected)]
    middle = board[MIDDLE]
    assert middle["delta_best"] == pytest.approx(middle["wer"] - board[BEST]["wer"])
    assert middle["delta_best_lo"] <= 0 < middle["delta_best"] < middle["delta_best_hi"]
    assert middle["num_needed"] > NUM_UTTERANCES
    # The best model's other export has no WER of its own to be told by.
    assert [row for row in rows if board[row]["num_needed"] is not None] == [MIDDLE, "base_lr3e-5_onnx-fp32"]
    # A gain is a difference below 0.
    assert board[BEST]["delta_baseline"] == pytest.approx(board[BEST]["wer"] - board[UNTRAINED]["wer"])
    assert board[BEST]["delta_baseline_hi"] < 0
    assert board[BEST]["p_baseline"] < 0.05 <= middle["p_baseline"]
    assert board[UNTRAINED]["p_baseline"] is None


def test_a_baseline_is_of_the_same_export(tmp_path: Path) -> None:
    def heard(row: str, heldout: str, number: int, text: str) -> str:
        return text.replace("за", "на") if row == "base_zero-shot_onnx-fp32" else mishear(row, heldout, number, text)

    board = on_test(finished(tmp_path, heard=heard))
    for export in ("ggml-f16", "onnx-fp32"):
        tuned, untrained = board[f"base_lr1e-5_{export}"], board[f"base_zero-shot_{export}"]
        assert tuned["delta_baseline"] == pytest.approx(tuned["wer"] - untrained["wer"])


def test_without_an_untrained_row_nothing_stands_for_the_baseline(tmp_path: Path) -> None:
    suite = SUITE.replace("    train:", "    zero_shot: false\n    train:").replace("than: zero-shot", "than: lr3e-5")
    board = on_test(finished(tmp_path, suite=suite))
    assert {line["delta_baseline"] for line in board.values()} == {None}
    assert board[MIDDLE]["p_best"] is not None


@pytest.mark.parametrize(
    ("speakers", "over", "told"),
    [
        (0, "utterances", "95 % intervals by bootstrap over utterances: fewer than 5 speakers are known."),
        (4, "utterances", "95 % intervals by bootstrap over utterances: fewer than 5 speakers are known."),
        (6, "speakers", "95 % intervals by bootstrap over speakers."),
    ],
)
def test_what_intervals_are_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speakers: int, over: str, told: str
) -> None:
    monkeypatch.setitem(boards.MAKE, "select", lambda work, _step: selected(work, speakers=speakers))
    done = finished(tmp_path)
    board = on_test(done)
    assert {line["interval_over"] for line in board.values()} == {over}
    score = score_of(done, MIDDLE)
    counts, first = word_counts(score), word_counts(score_of(done, BEST))
    assert counts.speakers == [f"s{number % speakers}" if speakers else None for number in range(NUM_UTTERANCES)]
    drawn = Bootstrap([counts.errors, first.errors], counts.references, speakers=counts.speakers, seed=5, resamples=200)
    assert (board[MIDDLE]["wer_lo"], board[MIDDLE]["wer_hi"]) == drawn.interval(0), "as in score.json"
    assert json.loads((score.path / "score.json").read_text("utf-8"))["interval_over"] == over
    group = list(board.values())
    assert explained(group)[0] == told
    assert f"\ntest: {told}\n" in render(group, form="md")
    assert told in str(leaderboard(group, width=160)[0].caption)


def test_one_utterance_has_no_interval_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "NUM_UTTERANCES", 1)
    group = list(on_test(finished(tmp_path)).values())
    names = (*COMPARED, "wer_lo", "wer_hi", "cer_lo", "cer_hi", "interval_over")
    assert {line[name] for line in group for name in names} == {None}
    assert explained(group) == ["One utterance has no interval."]


def test_what_is_no_number_is_told(done: Finished) -> None:
    board = list(on_test(done).values())
    assert told_beside(board) == []
    board[0] = {**board[0], "latency_p95_ms": float("nan")}
    assert told_beside(board) == [f"{BEST} on test: latency_p95_ms is nan; measure it again"]


@pytest.mark.parametrize("change", ["missing", "other"])
def test_other_utterances_are_never_compared(tmp_path: Path, change: str) -> None:
    done = finished(tmp_path)
    path = score_of(done, MIDDLE).path / "hypotheses.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    rows = rows[:-3] if change == "missing" else [{**rows[0], "id": "someone-else"}, *rows[1:]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    record_anew(path.parent)
    num, apart = (21, 3) if change == "missing" else (24, 1)
    message = (
        rf"{MIDDLE} lists {num} utterances of a held-out set and {BEST} 24, {apart} of them others: they cannot be "
        "compared; remove the score"
    )
    with pytest.raises(DataError, match=message):
        on_test(done)


def dev(row: str, wer: float | None, cer: float = 0.1, heldout: str = "dev") -> dict[str, Any]:
    return {"row": row, "heldout": heldout, "split_role": "dev", "wer": wer, "cer": cer}


@pytest.mark.parametrize(
    ("board", "among", "expected"),
    [
        ([], None, None),
        ([dev(BEST, None)], None, None),
        ([dev(UNTRAINED, 0.1)], None, None),
        ([dev(UNTRAINED, 0.1)], {UNTRAINED}, UNTRAINED),
        ([dev(BEST, 0.2), dev(MIDDLE, 0.1)], None, MIDDLE),
        ([dev(BEST, 0.2), dev(MIDDLE, 0.2, cer=0.2)], None, BEST),
        ([dev(BEST, 0.2), {**dev(MIDDLE, 0.1), "split_role": "test"}], None, BEST),
    ],
)
def test_dev_chooses(done: Finished, board: list[dict], among: set[str] | None, expected: str | None) -> None:
    assert best_on_dev(done.plan, board, among=among) == expected
