"""A champion that is no row of the suite any more is heard again, from its bundle, on the clips of today."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from harness.board.leaderboard import lines
from harness.core.text import normalise
from harness.core.wer import count_errors, pool
from harness.errors import HarnessError, SuiteError
from harness.promote import challenge
from harness.promote.history import append
from harness.promote.promotion import Decision, decide
from harness.promote.targets import target
from tests.boards import NUM_UTTERANCES, NUM_WRONG, SUITE, Finished, finished, reference
from tests.ggmls import bundle, parakeet, said, write_ggml

if TYPE_CHECKING:
    from pathlib import Path

    from harness.core.artifact import Work

CHALLENGED = SUITE.replace("better_than: zero-shot, by_wer: 0.02", "better_than: champion, no_slice_worse_than: 0.5")
REFERENCES = [reference(number) for number in range(NUM_UTTERANCES)]


class Silent:
    """Watches, and remembers what has run."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def started(self, step: Any) -> None:
        self.ran.append(step.stage)

    def progressed(self, step: Any, **_: object) -> None: ...
    def finished(self, step: Any, outcome: Any) -> None: ...


def results(done: Finished) -> Path:
    return done.path.parent / "results" / "small"


def crowned(done: Finished, *, row: str = "base_old_ggml-f16", **changes: Any) -> Path:
    """Somebody has promoted a model that whisper.cpp runs, and that says five words whatever it hears."""
    model = write_ggml(done.path.parent / "model.bin").read_bytes()
    made = bundle(results(done) / "bundles", model, name=row, **changes)
    entry = {"when": "2026-01-02", "action": "promote", "row": row, "bundle": made.name, "model_sha256": "0" * 64}
    append(results(done) / "promotions.jsonl", entry)
    return made


def judged(done: Finished, *, watch: Any = None) -> Decision:
    board = lines(done.plan, done.store, run_ids={})
    return decide(done.plan, board, done.store, folder=results(done), target=target("mimir"), watch=watch)


def wer(hypotheses: list[str]) -> float:
    references, heard = (list(map(normalise, texts)) for texts in (REFERENCES, hypotheses))
    return pool(count_errors(references, heard, unit="word")).rate


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished(tmp_path_factory.mktemp("challenge"), suite=CHALLENGED)


def test_it_is_heard_once_and_compared_on_the_same_clips(template: Finished) -> None:
    made = crowned(template)
    with pytest.raises(HarnessError, match=r"has not been heard on test yet; this hears it: harness promote SUITE --d"):
        judged(template)
    watch = Silent()
    first, *others = judged(template, watch=lambda _total: nullcontext(watch)).conditions
    assert watch.ran == ["export", "transcribe", "score"]
    assert first.what == f"WER gain over champion {made.name}"
    wrong = NUM_WRONG["lr1e-5"]
    own = wer([text.replace("окном", "окнам") if at < wrong else text for at, text in enumerate(REFERENCES)])
    assert first.value == pytest.approx(wer([said(1000)] * NUM_UTTERANCES) - own)
    assert first.met
    assert first.lo < first.value < first.hi
    (slices,) = (item for item in others if "worst slice" in item.what)
    assert slices.value == pytest.approx(-first.value), "every clip has the same length: they are one slice"
    # What has been heard is known, also of the zip alone.
    shutil.rmtree(made)
    assert judged(template).conditions == [first, *others]
    made.with_name(f"{made.name}.zip").unlink()
    with pytest.raises(SuiteError, match=r"is no row of this suite any more, and its bundle .* is gone, so nothing"):
        judged(template)


@pytest.mark.parametrize("form", ["", ".zip"])
def test_a_folder_of_onnx_files_becomes_an_export_again(work: Work, tmp_path: Path, form: str) -> None:
    made = parakeet(tmp_path / "p")
    meta = challenge.run(challenge.Spec(bundle=f"{made}{form}", model_sha256="0" * 64), {}, work)
    assert meta == {"onnx_asr": {"type": "nemo-conformer-tdt", "quantization": None}}
    model = {path.name: path.read_bytes() for path in work.path.iterdir()}
    assert model == {path.name: path.read_bytes() for path in (tmp_path / "p" / "export").iterdir()}


def test_a_row_that_is_trained_otherwise_now_is_not_taken_for_it(tmp_path: Path) -> None:
    done = finished(tmp_path, suite=CHALLENGED)
    made = crowned(done, row="base_lr1e-5_ggml-f16")
    with pytest.raises(HarnessError, match=f"the champion {made.name} has not been heard on test yet"):
        judged(done)


def test_another_baseline_needs_no_champion(tmp_path: Path) -> None:
    done = finished(tmp_path)
    crowned(done)
    first, *_ = judged(done).conditions
    assert first.what == "WER gain over zero-shot"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda made: made.rename(made.with_name("base_old_ggml-f16-00000000")), "is gone, so nothing can be compared"),
        (lambda made: (made / "ggml-model.bin").write_bytes(b"x"), "1 bytes, its manifest says .*; copy it again"),
        (
            lambda made: (made / "manifest.json").write_text(
                (made / "manifest.json").read_text("utf-8") + " ", "utf-8"
            ),
            "is base_old_ggml-f16-.*, and not the champion base_old_ggml-f16-.*; copy it again",
        ),
    ],
)
def test_a_bundle_that_is_not_the_champions(tmp_path: Path, spoil: Any, message: str) -> None:
    done = finished(tmp_path, suite=CHALLENGED)
    made = crowned(done)
    made.with_name(f"{made.name}.zip").unlink()
    spoil(made)
    with pytest.raises(HarnessError, match=message):
        judged(done)


def test_a_runtime_that_nobody_knows(tmp_path: Path) -> None:
    done = finished(tmp_path, suite=CHALLENGED)
    crowned(done, serving={"kind": "kaldi"})
    with pytest.raises(HarnessError, match=r"`serving` names no runtime that can be run \(kaldi\); known: .*onnx"):
        judged(done)


def test_a_model_that_cannot_be_read_is_one_message(tmp_path: Path) -> None:
    done = finished(tmp_path, suite=CHALLENGED)
    made = crowned(done)
    (made / "ggml-model.bin").write_bytes(bytes((made / "ggml-model.bin").stat().st_size))
    with pytest.raises(HarnessError, match=f"export champion {made.name}: .*ggml-model.bin: sha256 is .*; its log: "):
        judged(done, watch=lambda _total: nullcontext(Silent()))
