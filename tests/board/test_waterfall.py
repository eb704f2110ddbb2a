"""The chain of a variant's exports: differences in WER, and the first words in which they part."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, get_args

import pytest
from rich.console import Console
from typer.testing import CliRunner

from harness.board.waterfall import CHAIN, Waterfall, cells, publish_waterfalls, render_waterfalls, waterfalls
from harness.cli import app
from harness.core.text import normalise
from harness.export import ggml_types, onnx_graph
from harness.score.significance import paired_difference
from harness.suite.kinds import kinds
from harness.terminal import waterfall_tables
from tests.boards import NUM_UTTERANCES, SUITE, Finished, finished, reference

if TYPE_CHECKING:
    from pathlib import Path

EXPORTS = "[{kind: whisper_ggml, quantize: [q5_0, f16]}, {kind: whisper_onnx, quantize: int8}, whisper_checkpoint]"
CHAINED = SUITE.replace("[whisper_onnx, whisper_ggml]", EXPORTS).replace(
    "[onnx, whispercpp]", "[onnx, whispercpp, transformers]"
)
LABELS = ["torch-fp32", "onnx-int8", "ggml-f16", "ggml-q5_0"]
WORDS = [len(normalise(reference(number)).split()) for number in range(NUM_UTTERANCES)]
NUM_WORDS = sum(WORDS)


def lose(row: str, _heldout: str, number: int, text: str) -> str | None:
    """Torch misses a word everywhere; int8 one more word in three utterances; q5_0 hears some otherwise."""
    export = row.split("_", 2)[2]
    heard = text.replace("окном", "окнам")
    if export == "onnx-int8" and number < 3:
        return heard.replace("шумел", "шумит")
    if export == "ggml-q5_0":
        # An inserted word, nothing at all, a failure, and a better hearing.
        return {0: f"{heard} да", 1: "", 2: None, 3: text}.get(number, heard)
    return heard


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished(tmp_path_factory.mktemp("waterfall"), suite=CHAINED, heard=lose)


@pytest.fixture(scope="module")
def found(done: Finished) -> list[Waterfall]:
    return waterfalls(done.plan, done.store)


def shown(found: list[Waterfall], *, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    for table in waterfall_tables(found, width=width):
        console.print(table)
    return console.file.getvalue()


def test_a_chain_for_each_variant_and_set_in_the_order_of_bits(found: list[Waterfall]) -> None:
    assert [(item.model, item.variant, item.heldout) for item in found] == [
        ("base", variant, heldout) for variant in ("zero-shot", "lr1e-5", "lr3e-5") for heldout in ("dev", "test")
    ]
    assert [[fall.name for fall in item.falls] for item in found] == [LABELS] * 6


def test_differences_are_paired_and_to_the_first(done: Finished, found: list[Waterfall]) -> None:
    first, int8, f16, q5_0 = found[0].falls
    assert first.difference is None
    assert first.wer == pytest.approx(NUM_UTTERANCES / NUM_WORDS)
    assert int8.difference.delta == pytest.approx(3 / NUM_WORDS) == pytest.approx(int8.wer - first.wer)
    assert f16.difference == (0.0, 0.0, 0.0)
    more, as_many = [2, 2, 2, *[1] * (NUM_UTTERANCES - 3)], [1] * NUM_UTTERANCES
    expected = paired_difference(more, as_many, WORDS, resamples=200, seed=done.plan.suite.seed)
    assert int8.difference == expected
    assert q5_0.difference.lo < q5_0.difference.delta < q5_0.difference.hi


def test_the_first_word_that_parts(found: list[Waterfall]) -> None:
    first, int8, f16, q5_0 = (fall.partings for fall in found[0].falls)
    assert (first, f16) == ((), ())
    assert int8 == tuple((f"u{number}", 3, "шумел", "шумит") for number in range(3))
    assert q5_0 == (
        ("u0", WORDS[0] + 1, None, "да"),
        ("u1", 1, "за", None),
        ("u2", 1, "за", None),
        ("u3", 2, "окнам", "окном"),
    )


def test_published_line_by_line(found: list[Waterfall], tmp_path: Path) -> None:
    publish_waterfalls(found, folder=tmp_path / "new")
    text = (tmp_path / "new" / "waterfall.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == sum(len(fall.partings) for item in found for fall in item.falls) == 6 * 7
    assert lines[0] == {
        "heldout": "dev", "row": "base_zero-shot_onnx-int8", "against": "base_zero-shot_torch-fp32", "id": "u0",
        "position": 3, "there": "шумел", "here": "шумит",
    }  # fmt: skip
    publish_waterfalls([], folder=tmp_path / "new")
    assert not list((tmp_path / "new").iterdir()), "what no longer holds is gone"


def test_nothing_without_two_exports(tmp_path: Path) -> None:
    alone = SUITE.replace("[whisper_onnx, whisper_ggml]", "[whisper_onnx]").replace(
        "[onnx, whispercpp]", "[onnx, {kind: onnx, device: cpu}]"
    )
    for name, suite in (("alone", alone), ("no WER", SUITE.replace("resamples: 200", "metrics: [cer]"))):
        done = finished(tmp_path / name, suite=suite)
        assert waterfalls(done.plan, done.store) == []
    half = finished(tmp_path / "half", but=lambda step: step.stage == "score" and "onnx" in step.name)
    assert waterfalls(half.plan, half.store) == []
    assert (render_waterfalls([]), waterfall_tables([], width=100)) == ("", [])


def test_runtimes_of_one_export_are_told_apart(tmp_path: Path) -> None:
    done = finished(tmp_path, suite=SUITE.replace("[onnx, ", "[onnx, {kind: onnx, device: cpu}, "))
    names = [fall.name for fall in waterfalls(done.plan, done.store)[0].falls]
    assert names == ["onnx-fp32 onnx", "onnx-fp32 onnx-cpu", "ggml-f16"]


def test_parakeet_falls_from_nemo(tmp_path: Path) -> None:
    suite = SUITE
    for old, new in (
        ("kind: whisper\n", "kind: parakeet\n"),
        ("openai/whisper-base", "nvidia/parakeet-tdt-0.6b-v3"),
        ("[whisper_onnx, whisper_ggml]", "[{kind: parakeet_onnx, quantize: [int8, fp32]}, parakeet_nemo]"),
        ("[onnx, whispercpp]", "[onnx, nemo]"),
        ("promote: {target: mimir}\n", ""),
    ):
        assert suite.count(old) == 1
        suite = suite.replace(old, new)
    done = finished(tmp_path, suite=suite)
    names = [[fall.name for fall in item.falls] for item in waterfalls(done.plan, done.store)]
    assert names == [["nemo", "onnx-fp32", "onnx-int8"]] * len(names)
    assert names


def test_tables(found: list[Waterfall]) -> None:
    rows = cells(found[1])
    assert [row["variant"] for row in rows] == ["base zero-shot", "", "", ""]
    assert (rows[0]["ΔWER"], rows[0]["95 %"], rows[0]["part"], rows[2]["part"]) == ("", "", "", "0 of 24")
    assert rows[1]["ΔWER"] == f"{3 / NUM_WORDS:+.3f}"
    assert rows[3]["for instance"] == f"u0, word {WORDS[0] + 1}: (end) → да"
    wide = shown(found, width=200)
    assert wide.index("dev: what each export changes") < wide.index("test: what each export changes")
    assert wide.count("u0, word 3: шумел → шумит") == 6
    narrow = shown(found, width=60)
    assert max(map(len, narrow.splitlines())) <= 60
    assert "for instance" not in narrow
    assert "ggml-q5_0" in narrow


def test_markdown(found: list[Waterfall]) -> None:
    odd = found[0].falls[1].partings[0]._replace(id="a|b\\c")
    fall = type(found[0].falls[1])("r", "onnx-int8", 0.2, None, found[0].falls[1].difference, (odd,))
    text = render_waterfalls([Waterfall("m", "v", "dev", 24, (found[0].falls[0], fall))])
    title, _, head, rule, first, second = text.strip().splitlines()
    assert title == "**What each export changes: dev**"
    assert head.startswith("| variant | export | WER | ΔWER | 95 % |")
    assert head.count("|") == rule.count("|") == first.count("|") == second.replace("\\|", "").count("|")
    assert "a\\|b\\\\c, word 3: шумел → шумит" in second


@pytest.mark.parametrize(("form", "shows"), [("table", True), ("md", True), ("csv", False), ("json", False)])
def test_the_command_shows_it_to_people(
    form: str, *, shows: bool, done: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    results = done.store.root.parent
    told = CliRunner().invoke(app, ["board", str(done.path), "--results", str(results), "--format", form])
    assert told.exit_code == 0, told.output
    assert ("what each export changes" in told.output.lower()) is shows
    assert "ggml-q5_0" in told.output


def test_every_export_has_its_place() -> None:
    labels = {f"ggml-{kind}" for kind in get_args(ggml_types.Kind)}
    labels |= {f"onnx-{precision}" for precision in get_args(onnx_graph.Precision)}
    labels |= {kinds("export")[kind].Spec().label for kind in ("whisper_checkpoint", "parakeet_nemo")}
    assert labels == set(CHAIN)
