from __future__ import annotations

from typing import TYPE_CHECKING

from harness.board.leaderboard import lines
from harness.core.text import normalise
from harness.promote.outlook import outlook
from harness.score.significance import paired_difference
from tests.boards import NUM_UTTERANCES, NUM_WRONG, SUITE, Finished, finished, reference

if TYPE_CHECKING:
    from pathlib import Path

    from harness.engine.plan import Step


def told(done: Finished) -> object:
    board = lines(done.plan, done.store, run_ids={})
    return outlook(done.plan, board, done.store, folder=done.path.parent / "results" / "small")


CHOSEN = "base_lr1e-5_ggml-f16 has the lowest WER on dev of the fine-tuned rows for Mimir: 0.8 % on dev."


def test_what_would_be_promoted(tmp_path: Path) -> None:
    assert told(finished(tmp_path)) == {
        "row": "base_lr1e-5_ggml-f16",
        "sentences": [CHOSEN, "It meets all 5 conditions of the gate, and would be promoted."],
    }


def test_what_the_gate_refuses(tmp_path: Path) -> None:
    strict = SUITE.replace("by_wer: 0.02", "by_wer: 0.5").replace("rtf:", "peak_vram_mib: {max: 9}, rtf:")
    own, before = ([int(at < NUM_WRONG[name]) for at in range(NUM_UTTERANCES)] for name in ("lr1e-5", "zero-shot"))
    words = [len(normalise(reference(at)).split()) for at in range(NUM_UTTERANCES)]
    gain, lo, hi = paired_difference(before, own, words, seed=5, resamples=200)
    refusal = (
        f"The gate refuses it: WER gain over zero-shot on test is {gain:.4g} [{lo:.4g}, {hi:.4g}], but must be ≥ 0.5; "
        "peak_vram_mib on test is not measured, but must be ≤ 9."
    )
    assert told(finished(tmp_path, suite=strict)) == {"row": None, "sentences": [CHOSEN, refusal]}


def test_before_anything_is_scored_on_dev(tmp_path: Path) -> None:
    def is_dev(step: Step) -> bool:
        return step.stage == "score" and step.name.endswith(" dev")

    found = told(finished(tmp_path, but=is_dev))
    reason = "no fine-tuned row has a WER on dev yet; run the suite first: harness run SUITE"
    assert found == {"row": None, "sentences": [f"Nothing would be promoted: {reason}."]}


def test_a_suite_that_promotes_nothing(tmp_path: Path) -> None:
    assert told(finished(tmp_path, suite=SUITE.replace("promote: {target: mimir}\n", ""))) is None
