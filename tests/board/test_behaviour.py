"""What probes found, on the board."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient

from harness.board.behaviour import BEHAVIOUR
from harness.board.leaderboard import lines, publish, render
from harness.board.mlflow import Projection
from harness.core.manifests import write_jsonl
from harness.terminal import leaderboard
from tests import boards
from tests.boards import NUM_UTTERANCES, SUITE, Finished, finished

if TYPE_CHECKING:
    from pathlib import Path

    from harness.core.artifact import Work
    from harness.engine.plan import Step

PROBES = "resamples: 200, probes: [hallucination, fallback]}"
MORE_SETS = """\
  test: {from: aelita/test, role: test}
  general: {from: aelita/general, role: probe}
  calls: {from: aelita/calls, role: probe}
"""
PROBED = SUITE.replace("resamples: 200}", PROBES).replace("  test: {from: aelita/test, role: test}\n", MORE_SETS)
RTF = {"zero-shot": 0.2, "lr1e-5": 0.3, "lr3e-5": 0.1}
NUM_WRONG = {"zero-shot": (4, 4), "lr1e-5": (10, 1), "lr3e-5": (2, 3)}
"""Variant → utterances of `general` and of `calls` in which it mishears one word."""


def probe(work: Work, step: Step) -> dict[str, Any]:
    """An untrained model says three words a minute in silence."""
    row = step.name.split()[1]
    write_jsonl(work.path / "probe.jsonl", [{"id": step.name}])
    if step.spec.kind == "fallback":
        return {"fallback_rate": 0.0, "fallback_rtf": RTF[row.split("_")[1]], "num_windows": 4}
    return {"silence_wpm": 3.0 if "zero-shot" in row else 0.0, "noise_wpm": 1.5, "music_wpm": 20.0}


def heard(row: str, heldout: str, number: int, text: str) -> str:
    wrong = NUM_WRONG[row.split("_")[1]][heldout == "calls"]
    return text.replace("окном", "окнам") if number < wrong else text


def made(folder: Path, suite: str = PROBED, **options: Any) -> Finished:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(boards.MAKE, "probe", probe)
        return finished(folder, suite=suite, heard=heard, **options)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return made(tmp_path_factory.mktemp("behaviour"))


def board(done: Finished) -> list[dict[str, Any]]:
    return lines(done.plan, done.store, run_ids={})


def figures(done: Finished, row: str) -> dict[str, Any]:
    """The columns of a row, which are alike for all held-out sets."""
    found = [{name: line[name] for name in BEHAVIOUR} for line in board(done) if line["row"] == row]
    assert len(found) == len({row.heldout for row in done.plan.rows})
    assert all(item == found[0] for item in found)
    return found[0]


def test_every_line_of_a_row_has_its_figures(done: Finished) -> None:
    found = figures(done, "base_lr1e-5_ggml-f16")
    assert {name: found[name] for name in ("silence_wpm", "noise_wpm", "music_wpm")} == {
        "silence_wpm": 0.0, "noise_wpm": 1.5, "music_wpm": 20.0,
    }  # fmt: skip
    assert (found["fallback_rate"], found["fallback_rtf"]) == (0.0, 0.3)
    assert found["fallback_slowdown"] == pytest.approx(1.5)
    assert figures(done, "base_lr3e-5_ggml-f16")["fallback_slowdown"] == pytest.approx(0.5)
    assert figures(done, "base_zero-shot_ggml-f16")["fallback_slowdown"] == 1.0


def test_what_was_not_measured_is_empty(done: Finished, tmp_path: Path) -> None:
    assert figures(done, "base_lr1e-5_ggml-f16")["timestamps_ok"] is None
    onnx = figures(done, "base_lr1e-5_onnx-fp32")
    assert [name for name in BEHAVIOUR if onnx[name] is not None] == [
        "silence_wpm", "noise_wpm", "music_wpm", "forgetting",
    ]  # fmt: skip
    publish(board(done), done.plan, done.store, folder=tmp_path)
    with (tmp_path / "leaderboard.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["language_accuracy"] for row in rows} == {""}
    assert {row["silence_wpm"] for row in rows} == {"0.0", "3.0"}


def test_forgetting_is_the_rise_on_the_set_where_it_rose_most(done: Finished) -> None:
    wer = {(line["row"], line["heldout"]): line["wer"] for line in board(done)}
    for export in ("ggml-f16", "onnx-fp32"):
        for variant, heldout in (("lr1e-5", "general"), ("lr3e-5", "calls")):
            row = f"base_{variant}_{export}"
            rise = wer[row, heldout] - wer[f"base_zero-shot_{export}", heldout]
            assert figures(done, row)["forgetting"] == pytest.approx(rise)
            assert rise != 0
        assert figures(done, f"base_zero-shot_{export}")["forgetting"] == 0.0
    assert figures(done, "base_lr1e-5_ggml-f16")["forgetting"] > 0 > figures(done, "base_lr3e-5_ggml-f16")["forgetting"]


@pytest.mark.parametrize("missing", ["score base_zero-shot_ggml-f16 calls", "score base_lr1e-5_ggml-f16 general"])
def test_a_set_that_is_not_scored_leaves_forgetting_open(tmp_path: Path, missing: str) -> None:
    half = made(tmp_path, but=lambda step: step.name == missing)
    found = {line["forgetting"] for line in board(half) if line["row"] == "base_lr1e-5_ggml-f16"}
    assert found == {None}
    assert all(line["forgetting"] is not None for line in board(half) if line["row"] == "base_lr1e-5_onnx-fp32")


def test_without_an_untrained_model_nothing_is_compared(tmp_path: Path) -> None:
    alone = made(tmp_path, suite=PROBED.replace("train: {max", "zero_shot: false\n    train: {max").replace(
        "gate: {better_than: zero-shot", "gate: {better_than: lr3e-5"
    ))  # fmt: skip
    found = figures(alone, "base_lr1e-5_ggml-f16")
    assert (found["fallback_rtf"], found["fallback_slowdown"], found["forgetting"]) == (0.3, None, None)


def test_probe_sets_come_last_and_are_ranked_like_the_others(done: Finished) -> None:
    known = board(done)
    assert list(dict.fromkeys(line["heldout"] for line in known)) == ["test", "dev", "general", "calls"]
    assert [line["rank"] for line in known if line["heldout"] == "general"] == [1, 2, 3, 4, 5, 6]


def test_tables_have_the_columns_only_where_there_are_probes(done: Finished, tmp_path: Path) -> None:
    head, _, first = render(board(done), form="md").splitlines()[:3]
    assert [name for name in BEHAVIOUR if f" {name} " in head] == [
        "fallback_rate", "fallback_rtf", "fallback_slowdown", "silence_wpm", "noise_wpm", "music_wpm", "forgetting",
    ]  # fmt: skip
    assert first.count("|") == head.count("|")
    plain = render(board(finished(tmp_path)), form="md")
    assert not any(name in plain for name in BEHAVIOUR)


def test_what_was_heard_is_published(done: Finished, tmp_path: Path) -> None:
    (tmp_path / "probes").mkdir()
    (tmp_path / "probes" / "old__hallucination.jsonl").touch()
    publish(board(done), done.plan, done.store, folder=tmp_path)
    names = {path.name for path in (tmp_path / "probes").iterdir()}
    assert names == {row.row + "__hallucination.jsonl" for row in done.plan.rows} | {
        row.row + "__fallback.jsonl" for row in done.plan.rows if "ggml" in row.row
    }
    content = (tmp_path / "probes" / "base_lr1e-5_ggml-f16__fallback.jsonl").read_text(encoding="utf-8")
    assert json.loads(content) == {"id": "probe base_lr1e-5_ggml-f16 fallback"}


def test_mlflow_gets_figures_that_come_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    suite = PROBED.replace("[whisper_onnx, whisper_ggml]", "[whisper_ggml]").replace(
        "[onnx, whispercpp]", "[whispercpp]"
    )
    half = made(tmp_path, suite=suite, but=lambda step: step.stage == "probe" or "lr3e-5" in step.name)

    def project() -> dict[str, dict[str, float]]:
        known = [row.scored for row in half.plan.rows]
        artifacts = {step.key: half.store.find(step.folder, key=step.key) for step in known}
        tracking = Projection("small", folder=tmp_path / "mlruns", record=tmp_path / "runs.json")
        found = {key: artifact for key, artifact in artifacts.items() if artifact}
        tracking.project(half.plan, board(half), artifacts=found)
        tracking.close(attach=[], status="FINISHED")
        client = MlflowClient(tracking_uri=tracking.uri)
        experiment = client.get_experiment_by_name("small")
        runs = client.search_runs([experiment.experiment_id], "tags.stage = 'score'")
        return {run.info.run_name: run.data.metrics for run in runs}

    before = project()
    assert len(before) == 2 * 4
    assert not any("silence_wpm" in metrics for metrics in before.values())
    assert all(metrics["num_utterances"] == NUM_UTTERANCES for metrics in before.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(boards.MAKE, "probe", probe)
        for step in half.plan.steps:
            if step.stage == "probe" and "lr3e-5" not in step.name:
                boards.finish(step, half.store)
    after = project()
    assert after.keys() == before.keys(), "the same runs"
    assert {name: metrics["silence_wpm"] for name, metrics in after.items() if name.endswith(" test")} == {
        "base_zero-shot_ggml-f16 test": 3.0, "base_lr1e-5_ggml-f16 test": 0.0,
    }  # fmt: skip
    assert after["base_lr1e-5_ggml-f16 dev"]["fallback_slowdown"] == pytest.approx(1.5)
    assert project() == after


def test_the_terminal_shows_the_columns_where_there_is_room(done: Finished) -> None:
    def shown(width: int) -> tuple[list[str], str]:
        table = leaderboard(board(done), width=width)[0]
        return [str(column.header) for column in table.columns], str(table.caption)

    wide, _ = shown(400)
    assert [name for name in wide if name in BEHAVIOUR] == [
        name for name in BEHAVIOUR if figures(done, "base_lr1e-5_ggml-f16")[name] is not None
    ]
    narrow, caption = shown(110)
    assert "WER" in narrow
    assert "silence_wpm" not in narrow
    assert "silence_wpm" in caption
