from __future__ import annotations

from typing import Any

import pytest

from harness.board.verdict import about, isolated, points, sentences, to_tell_apart
from harness.score.significance import Difference


def line(row: str, wer: float | None, *, tied: bool | None = True, variant: str = "v", export: str = "onnx") -> Any:
    return {
        "split_role": "test",
        "delta_best": 0.018,
        "delta_best_lo": 0.009,
        "delta_best_hi": 0.027,
        "num_needed": 3240 if tied and row != "B" else None,
        "row": row,
        "rank": 1,
        "family": "whisper",
        "variant": variant,
        "export": export,
        "heldout": "test",
        "wer": wer,
        "wer_lo": None if wer is None else wer - 0.01,
        "wer_hi": None if wer is None else wer + 0.02,
        "num_utterances": 412,
        "tied_with_best": tied,
    }


def apart(better: str, worse: str) -> str:
    return f"To tell {better} and {worse} apart takes about 3,200 utterances like these (80 % power)."


LOWEST = "B has the lowest WER on 412 utterances of test: 10.0 % [9.0, 12.0]."


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ([], []),
        ([line("A", None)], []),
        ([line("B", 0.1)], ["B: WER 10.0 % [9.0, 12.0] on 412 utterances of test."]),
        (
            [line("B", 0.1), line("A", 0.118, tied=False)],
            [LOWEST, "B beats A by 1.8 points [0.9, 2.7]."],
        ),
        (
            [line("B", 0.1), line("C", 0.101), line("A", 0.118, tied=False)],
            [
                LOWEST,
                "B beats A by 1.8 points [0.9, 2.7].",
                "B and C cannot be told apart on 412 utterances: 1.8 points [0.9, 2.7].",
                apart("B", "C"),
            ],
        ),
        (
            [line("B", 0.1), *(line(name, 0.11) for name in "CDEFG")],
            [LOWEST, "B cannot be told apart from C, D, E and 2 more on 412 utterances.", apart("B", "C")],
        ),
        (
            [
                line("B", 0.1),
                line("A", 0.118, tied=False),
                line("Y", 0.12, tied=False, variant="zero-shot", export="ggml"),
                line("Z", 0.13, tied=False, variant="zero-shot"),
            ],
            [
                LOWEST,
                "B beats A by 1.8 points [0.9, 2.7].",
                "B beats the untrained Z by 1.8 points [0.9, 2.7].",
            ],
        ),
        (
            [line("B", 0.1), line("Z", 0.11, variant="zero-shot")],
            [LOWEST, "B and Z cannot be told apart on 412 utterances: 1.8 points [0.9, 2.7].", apart("B", "Z")],
        ),
        (
            [line("B", 0.1), line("C", 0.11), line("Z", 0.12, variant="zero-shot")],
            [
                LOWEST,
                "B cannot be told apart from C and Z on 412 utterances.",
                apart("B", "C"),
                "The untrained Z is among them: 1.8 points [0.9, 2.7].",
            ],
        ),
        (
            [line("B", 0.1, tied=None), line("A", 0.2, tied=None)],
            [LOWEST, "So few utterances do not say how sure this order is."],
        ),
    ],
)
def test_verdicts(group: list[Any], expected: list[str]) -> None:
    assert sentences(group) == expected


def test_one_utterance() -> None:
    alone = {**line("B", 0.1), "num_utterances": 1, "wer_lo": None, "wer_hi": None}
    assert sentences([alone]) == ["B: WER 10.0 % (no interval) on 1 utterance of test."]


@pytest.mark.parametrize(
    ("chosen", "role", "expected"),
    [
        ("B", "test", ["It is also the row that dev chooses."]),
        ("A", "test", ["Dev chooses A, whose WER here is 11.8 % [10.8, 13.8]; choose by dev, this set is sealed."]),
        ("gone", "test", []),
        (None, "test", []),
        ("B", "dev", []),
    ],
)
def test_best_here_and_chosen_on_dev(chosen: str | None, role: str, expected: list[str]) -> None:
    group = [{**line(row, wer, tied=row == "B"), "split_role": role} for row, wer in (("B", 0.1), ("A", 0.118))]
    assert sentences(group, chosen=chosen) == [LOWEST, *expected, "B beats A by 1.8 points [0.9, 2.7]."]


def test_equal_rows_need_no_more_utterances() -> None:
    """Two exports of one model may hear the same; the next row behind them is told of."""
    same = {**line("C", 0.1), "num_needed": None}
    assert to_tell_apart([line("B", 0.1), same]) == []
    assert to_tell_apart([line("B", 0.1), same, line("A", 0.11)]) == [
        "To tell B and A apart takes about 3,200 utterances like these (80 % power)."
    ]


@pytest.mark.parametrize(("count", "expected"), [(7, "7"), (50, "50"), (412, "410"), (18_734, "19,000")])
def test_about(count: int, expected: str) -> None:
    assert about(count) == expected


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        ((0.018, 0.009, 0.027), "1.8 points [0.9, 2.7]"),
        ((0.01, -0.002, 0.02), "1.0 point [−0.2, 2.0]"),
        ((-0.0001, -0.0001, 0.0), "0.0 points [0.0, 0.0]"),
    ],
)
def test_points(difference: tuple[float, float, float], expected: str) -> None:
    assert points(Difference(*difference)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("base_lr1e-5", "base_lr1e-5"),
        ("модель", "модель"),
        ("a\u202eb", "\u2068a\u202eb\u2069"),
        ("שלום", "\u2068שלום\u2069"),
    ],
)
def test_a_name_leaves_the_sentence_in_order(name: str, expected: str) -> None:
    assert isolated(name) == expected
