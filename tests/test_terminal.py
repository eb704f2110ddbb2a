from __future__ import annotations

import io
from dataclasses import dataclass

import pytest
from rich.console import Console

from harness.board.leaderboard import COLUMNS
from harness.engine.walk import Outcome
from harness.promote.gate import Condition
from harness.terminal import Watch, _clips, _hours, _seconds, about, amount, gate_table, leaderboard, summary


@dataclass(frozen=True)
class Step:
    """As much of a step as is shown."""

    key: str
    name: str
    stage: str


STEPS = [
    Step("a", "train base [x]", "train"),
    Step("b", "score base dev", "score"),
    Step("c", "score base test", "score"),
]


def shown(*what: object, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    for item in what:
        console.print(item)
    return console.file.getvalue()


def line(**fields: object) -> dict[str, object]:
    known = {
        "rank": 1, "row": "whisper-base_lr1e-5-warmup12_onnx-fp32", "variant": "lr1e-5-warmup12", "heldout": "far",
        "split_role": "test", "wer": 0.1589, "wer_lo": 0.1, "wer_hi": 0.2, "cer": 0.035, "cer_lo": 0.02, "cer_hi": 0.05,
        "num_utterances": 36, "num_failed": 0, "audio_s": 339.4, "rtf": 0.278, "latency_p50_ms": 2626.3,
        "latency_p95_ms": 3428.4, "load_s": 1.2, "peak_ram_mib": 842.4, "size_mib": 281.7, "tied_with_best": True,
        "device": "a CPU, 2 threads",
    }  # fmt: skip
    return {**dict.fromkeys(COLUMNS), **known, **fields}


def test_leaderboard_with_room() -> None:
    text = shown(*leaderboard([line(), line(rank=2, variant="zero-shot", tied_with_best=False)], width=160), width=160)
    title, head, _rule, first, second, *caption = [row.rstrip() for row in text.splitlines() if row.strip()]
    assert title.strip() == "far (test set): 36 utterances, 5.7 min"
    names = [
        "#",
        "row",
        "WER",
        "WER 95 %",
        "CER",
        "CER 95 %",
        "RTF",
        "p50 ms",
        "p95 ms",
        "load s",
        "RAM MiB",
        "size MiB",
    ]
    assert head.split() == " ".join(names).split()
    figures = "0.159 0.100 - 0.200 0.035 0.020 - 0.050 0.278 2626 3428 1.2 842 281.7"
    assert " ".join(first.split()) == f"1 · whisper-base_lr1e-5-warmup12_onnx-fp32 {figures}"
    assert second.startswith("2    whisper")
    assert caption == ["measured on a CPU, 2 threads"]


def test_columns_without_a_value_are_not_shown() -> None:
    measured = shown(*leaderboard([line(peak_vram_mib=900.0, num_failed=2)], width=200), width=200)
    assert "VRAM MiB" in measured
    assert "failed" in measured
    bare = shown(*leaderboard([line(wer=None, wer_lo=None, wer_hi=None, rtf=None)], width=200), width=200)
    assert not {"VRAM MiB", "failed", "WER", "RTF"} & set(bare.replace("  ", "\n").split("\n"))


@pytest.mark.parametrize("width", [140, 120, 100, 90, 80, 72])
def test_leaderboard_fits_into_narrow_terminals(width: int) -> None:
    text = shown(*leaderboard([line(), line(rank=12)], width=width), width=width)
    assert "whisper-base_lr1e-5-warmup12_onnx-fp32" in text, "the name is what --model takes: it is shown whole"
    assert "0.159" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    if width < 130:
        assert "not shown here: load s" in text.replace("\n", " ")


def test_ties_are_explained_only_where_there_are_some() -> None:
    assert "can be chance" in shown(*leaderboard([line(), line(rank=2)], width=120))
    assert "can be chance" not in shown(*leaderboard([line(), line(rank=2, tied_with_best=False)], width=120))


def test_one_table_a_set() -> None:
    text = shown(*leaderboard([line(), line(heldout="dev", split_role="dev")], width=120))
    assert text.index("far (test set)") < text.index("dev (dev set)")


def test_summary() -> None:
    outcomes = {"a": Outcome("failed", 75.0, "boom"), "b": Outcome("skipped"), "c": Outcome("cached")}
    rows = [" ".join(row.split()) for row in shown(summary(STEPS, outcomes)).splitlines() if row.strip()]
    assert rows[:2] == ["What happened", "stage cached failed skipped took"]
    assert rows[3:] == ["train 1 1 min 15 s", "score 1 1"]


def test_gate_table() -> None:
    text = shown(
        gate_table(
            "a_row", [Condition("rtf", "test", None, "≤ 1", met=False), Condition("x", "t", 0.5, "> 0", met=True)]
        )
    )
    assert "Gate: a_row" in text
    assert "rtf        test      not measured    ≤ 1  not met" in text
    assert "met" in text.splitlines()[-1]


def test_plain_lines_without_a_terminal() -> None:
    ends: list[tuple[str, str]] = []
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    with Watch(console, total=3, on_end=lambda step, outcome: ends.append((step.key, outcome.state))) as watch:
        watch.finished(STEPS[2], Outcome("cached"))
        watch.started(STEPS[0])
        watch.progressed(STEPS[0], done=1, total=4, note="loss 0.5")
        watch.finished(STEPS[0], Outcome("failed", 1.25, "boom"))
        watch.finished(STEPS[1], Outcome("skipped"))
    assert console.file.getvalue().splitlines() == [
        "[  1/3] start   train base [x]",
        "[  2/3] failed  train base [x]  1.2 s",
        "[  3/3] skipped score base dev",
    ]
    assert ends == [("c", "cached"), ("a", "failed"), ("b", "skipped")]


def test_a_log_hears_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("harness.terminal.time.monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    watch = Watch(console, total=1)
    for done in (1, 2, 3, 3):
        watch.progressed(STEPS[0], done=done, total=9, note="")
        now[0] += 20
    assert console.file.getvalue().splitlines() == ["[  0/1]         train base [x]: 3/9"]


def test_bars_in_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with Watch(console, total=2) as watch:
        watch.started(STEPS[0])
        watch.progressed(STEPS[0], done=1, total=4, note="loss 0.5")
        watch.finished(STEPS[0], Outcome("done", 3.0))
    assert "train base [x]" in console.file.getvalue()
    assert "done    train base [x]  3.0 s" in console.file.getvalue()


@pytest.mark.parametrize(
    ("shown_as", "value", "expected"),
    [
        (_seconds, None, ""),
        (_seconds, 59.94, "59.9 s"),
        (_seconds, 61, "1 min 01 s"),
        (_seconds, 7260, "2 h 01 min"),
        (about, None, ""),
        (about, 61.4, "61 s"),
        (about, 3660, "61 min"),
        (about, 7260, "2.0 h"),
        (_hours, None, ""),
        (_hours, 36, "0.01"),
        (_hours, 36_000, "10.0"),
        (_hours, 4_417_560, "1,227"),
        (amount, None, ""),
        (amount, 999, "999 B"),
        (amount, 1_234, "1.2 kB"),
        (amount, 141_000_000_000, "141 GB"),
        (amount, 2_000_000_000_000, "2.0 TB"),
    ],
)
def test_amounts(shown_as: object, value: float | None, expected: str) -> None:
    assert shown_as(value) == expected


def test_an_estimated_count_pretends_no_precision() -> None:
    assert [_clips(number, exact=False) for number in (None, 7, 140, 1_109_715)] == ["", "7", "140", "1,110,000"]
    assert _clips(1_109_715, exact=True) == "1,109,715"
