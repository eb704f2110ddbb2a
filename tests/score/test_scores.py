from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import jiwer
import pytest
from pydantic import ValidationError

from harness.core import text
from harness.core.artifact import Artifact, Work
from harness.core.manifests import read_jsonl, write_jsonl, write_manifests
from harness.core.records import Transcript, Utterance
from harness.core.text import normalise
from harness.errors import DataError
from harness.score import scores

if TYPE_CHECKING:
    from pathlib import Path

REFERENCES = {"a": "Мой дом — крепость.", "b": "Ёлка ещё зелёная!", "c": "Пять дней", "d": "да"}
HEARD = [
    Transcript("d", None, 0.9, error="RuntimeError: out of memory"),
    Transcript("a", "мои дом крепость", 0.1),
    Transcript("c", "5 дней прошло", 0.3),
    Transcript("b", "елка еще зеленая", 0.2),
]
META = {
    "load_s": 1.25,
    "peak_ram_mib": 512.5,
    "peak_vram_mib": None,
    "device": "cpu",
    "runtime": "onnxruntime 1.31",
    "decoding": {"beams": 1},
}


def artifact(path: Path, files: dict[str, str] | None = None, **meta: object) -> Artifact:
    return Artifact(key="0" * 64, stage="test", path=path, files=files or {}, meta=meta)


def prepared(folder: Path, *, heard: list[Transcript], references: dict[str, str], meta: dict) -> dict:
    for name in ("heldout", "transcripts", "export"):
        (folder / name).mkdir()
    rows = [
        Utterance(id=name, audio=f"{name}.wav", sha256=name.encode().hex().zfill(64), text=said, duration_s=2.0)
        for name, said in references.items()
    ]
    write_manifests(folder / "heldout", rows)
    write_jsonl(folder / "transcripts" / "transcripts.jsonl", [{**asdict(item), "duration_s": 2.0} for item in heard])
    (folder / "export" / "model.onnx").write_bytes(bytes(3 * 2**19))
    (folder / "export" / "not listed").write_bytes(bytes(99))
    return {
        "transcripts": [artifact(folder / "transcripts", **meta)],
        "heldout": [artifact(folder / "heldout")],
        "export": [artifact(folder / "export", {"model.onnx": "f" * 64})],
    }


def score(work: Work, *, heard=HEARD, references=REFERENCES, meta=META, **fields: object) -> dict:
    inputs = prepared(work.path.parent, heard=heard, references=references, meta=meta)
    return scores.run(scores.Spec(**{"seed": 17, **fields}), inputs, work)


def test_figures_of_a_row(work: Work) -> None:
    figures = score(work)
    intervals = {name: figures.pop(name) for name in ("wer_lo", "wer_hi", "cer_lo", "cer_hi")}
    assert figures == {
        # мой → мои substituted, прошло inserted, да deleted.
        "wer": 3 / 9,
        "word_counts": {"hits": 7, "substitutions": 1, "deletions": 1, "insertions": 1},
        "cer": 10 / 43,
        "char_counts": {"hits": 40, "substitutions": 1, "deletions": 2, "insertions": 7},
        "num_utterances": 4,
        "num_failed": 1,
        "audio_s": 8.0,
        "rtf": pytest.approx(0.6 / 6.0),
        "latency_p50_ms": pytest.approx(200.0),
        "latency_p95_ms": pytest.approx(290.0),
        "peak_vram_mib": None,
        "peak_ram_mib": 512.5,
        "load_s": 1.25,
        "device": "cpu",
        "runtime": "onnxruntime 1.31",
        "decoding": {"beams": 1},
        "size_mib": 1.5,
        "normalise": "ru",
        "interval_over": "utterances",
        "error_classes": {
            "num_words": 8,
            "yo": 3,
            "numbers": 1,
            "hyphens": 0,
            "joined": 0,
            "latin": 0,
            "silence": 0,
        },
    }
    assert intervals["wer_lo"] <= figures["wer"] <= intervals["wer_hi"]
    assert intervals["cer_lo"] <= figures["cer"] <= intervals["cer_hi"]
    written = json.loads((work.path / "score.json").read_text("utf-8"))
    assert written == {**figures, **intervals}


def test_anyone_can_recompute_the_rates(work: Work) -> None:
    figures = score(work)
    rows = list(read_jsonl(work.path / "hypotheses.jsonl"))
    assert [row["id"] for row in rows] == list("abcd")
    references, hypotheses = [[row[f"{side}_norm"] for row in rows] for side in ("reference", "hypothesis")]
    assert figures["wer"] == pytest.approx(jiwer.wer(references, hypotheses))
    assert figures["cer"] == pytest.approx(jiwer.cer(references, hypotheses))
    assert references == [normalise(row["reference"]) for row in rows]
    assert rows[0] == {
        "id": "a",
        "reference": "Мой дом — крепость.",
        "hypothesis": "мои дом крепость",
        "reference_norm": "мой дом крепость",
        "hypothesis_norm": "мои дом крепость",
        "duration_s": 2.0,
        "wall_s": 0.1,
        "error": None,
        "speaker": None,
    }
    assert (rows[3]["hypothesis"], rows[3]["error"]) == (None, "RuntimeError: out of memory")


@pytest.mark.parametrize(
    ("metrics", "measured"),
    [
        (["wer"], {"wer", "wer_lo", "wer_hi", "word_counts"}),
        (["cer"], {"cer", "cer_lo", "cer_hi", "char_counts"}),
        (["rtf"], {"rtf"}),
        (["latency"], {"latency_p50_ms", "latency_p95_ms"}),
        (["memory"], {"peak_ram_mib", "peak_vram_mib"}),
        (["size"], {"size_mib"}),
    ],
)
def test_what_was_not_asked_for_is_null(work: Work, metrics: list[str], measured: set[str]) -> None:
    figures = score(work, metrics=metrics, meta={**META, "peak_vram_mib": 99.0})
    always = {"num_utterances", "num_failed", "audio_s", "load_s", "device", "runtime", "decoding", "normalise"}
    always |= {"interval_over", "error_classes"}
    assert {name for name, value in figures.items() if value is not None} == always | measured
    assert len(figures) == 24


def test_where_all_failed_nothing_was_fast(work: Work) -> None:
    failed = [Transcript(name, None, 1.0, error="x") for name in REFERENCES]
    figures = score(work, heard=failed)
    assert (figures["wer"], figures["wer_lo"], figures["cer"], figures["num_failed"]) == (1.0, 1.0, 1.0, 4)
    assert (figures["rtf"], figures["latency_p50_ms"], figures["latency_p95_ms"]) == (None, None, None)


def test_profiles_differ(work: Work) -> None:
    figures = score(work, normalise="ru-strict")
    assert figures["normalise"] == "ru-strict"
    assert figures["wer"] > 3 / 9


@pytest.mark.parametrize(
    ("heard", "message"),
    [
        (HEARD[:3], "3 transcripts of 3 ids for 4 utterances, without b; transcribe this held-out set again"),
        ([*HEARD, HEARD[0]], "5 transcripts of 4 ids for 4 utterances, without none"),
        ([*HEARD[:3], Transcript("e", "да", 0.1)], "4 transcripts of 4 ids for 4 utterances, without b"),
    ],
)
def test_transcripts_of_another_set(work: Work, heard: list[Transcript], message: str) -> None:
    with pytest.raises(DataError, match=message):
        score(work, heard=heard)


def test_an_empty_set_has_no_score(work: Work) -> None:
    with pytest.raises(DataError, match="no utterances to count errors in"):
        score(work, heard=[], references={})


def test_a_changed_normaliser_is_another_step(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = scores.Spec(seed=1)
    before = spec.identity()
    assert before["normaliser"] == text.VERSION
    monkeypatch.setattr(text, "VERSION", text.VERSION + 1)
    assert spec.identity() != before


def test_an_unknown_normaliser() -> None:
    for declared in ({"normalise": "en"}, {"also": ["ru-strict", "en"]}):
        with pytest.raises(ValidationError, match=r"unknown normaliser 'en' \(known: ru, ru-strict, ru-no-digits\)"):
            scores.Spec(**declared, seed=1)


def test_a_normaliser_that_leaves_utterances_out_does_not_rank() -> None:
    with pytest.raises(ValidationError, match="'ru-no-digits' leaves utterances out; name it under also, beside ru"):
        scores.Spec(normalise="ru-no-digits", seed=1)


def test_other_profiles_of_the_same_transcripts(work: Work) -> None:
    references = {"a": "Мой дом.", "b": "Пять ёлок", "c": "Их было 5", "d": "Это iPhone"}
    heard = [
        Transcript("a", "мой дом", 0.1), Transcript("b", "пять елок", 0.1), Transcript("c", "их было шесть", 0.1),
        Transcript("d", "это айфон", 0.1),
    ]  # fmt: skip
    figures = score(work, heard=heard, references=references, also=["ru-strict", "ru-no-digits"])
    assert figures["wer"] == 2 / 9
    # Both words of "a", and of "b"; of the others the capital, and the number or the name.
    assert (figures["wer@ru-strict"], figures["num_utterances@ru-strict"]) == (8 / 9, 4)
    assert figures["cer@ru-strict"] > figures["cer"]
    assert figures["wer_lo@ru-strict"] <= figures["wer@ru-strict"] <= figures["wer_hi@ru-strict"]
    assert (figures["wer@ru-no-digits"], figures["num_utterances@ru-no-digits"]) == (0.0, 2)


def test_a_profile_that_leaves_nothing_has_no_rate(work: Work) -> None:
    references = {"a": "5", "b": "10"}
    figures = score(
        work, heard=[Transcript(name, "5", 0.1) for name in "ab"], references=references, also=["ru-no-digits"]
    )
    assert (figures["wer@ru-no-digits"], figures["cer@ru-no-digits"], figures["num_utterances@ru-no-digits"]) == (
        None, None, 0,
    )  # fmt: skip


def test_the_nearest_wording_is_scored(work: Work) -> None:
    references = {"a": "{Ну|} да, {конечно|разумеется}", "b": "нет"}
    figures = score(
        work, heard=[Transcript("a", "да разумеется", 0.1), Transcript("b", "нет", 0.1)], references=references
    )
    assert figures["word_counts"] == {"hits": 3, "substitutions": 0, "deletions": 0, "insertions": 0}
    first, _ = read_jsonl(work.path / "hypotheses.jsonl")
    assert (first["reference"], first["reference_norm"]) == (references["a"], "да разумеется")


def test_braces_that_do_not_match_name_the_utterance(work: Work) -> None:
    with pytest.raises(
        DataError, match=r"utterance b: a brace that stands alone or inside another in '\{да\|нет'; write"
    ):
        score(work, heard=[Transcript("b", "да", 0.1)], references={"b": "{да|нет"})


def test_references_without_words_are_told_and_never_help(work: Work) -> None:
    references = {"a": "да", "b": "…", "c": "!"}
    heard = [Transcript("a", "да", 0.1), Transcript("b", "спасибо за просмотр", 0.1), Transcript("c", "", 0.1)]
    figures = score(work, heard=heard, references=references)
    assert (figures["wer"], figures["error_classes"]["silence"]) == (3.0, 3)
    assert figures["notes"] == [
        "2 of 3 references are empty after the normaliser ru (b, c): every word heard there counts as inserted"
    ]


def test_a_set_without_any_words_has_no_score(work: Work) -> None:
    with pytest.raises(DataError, match="an error rate needs a reference, but this one has 0 units"):
        score(work, heard=[Transcript("a", "да", 0.1)], references={"a": "…"})


def test_slices_are_written_and_unknown_tags_told(work: Work) -> None:
    figures = score(work, slices=["duration", "gender"])
    assert figures["notes"] == ["no utterance has the tag 'gender' that score.slices asks for; tags of this set: none"]
    (only,) = json.loads((work.path / "slices.json").read_text("utf-8"))
    assert (only["by"], only["value"], only["num_utterances"], only["wer"]) == (
        "duration",
        "2 to 5 s",
        4,
        figures["wer"],
    )
    assert only["is_small"] is True


def test_no_slices_where_wer_is_not_asked_for(work: Work) -> None:
    score(work, metrics=["cer"])
    assert json.loads((work.path / "slices.json").read_text("utf-8")) == []


@pytest.mark.parametrize("wall_s", [float("nan"), float("inf")])
def test_a_time_that_is_not_a_number_is_refused(work: Work, wall_s: float) -> None:
    heard = [Transcript(name, "да", wall_s if name == "c" else 0.1) for name in REFERENCES]
    with pytest.raises(DataError, match=rf"the time of c is {wall_s} s \(1 of 4 are no numbers\); transcribe this"):
        score(work, heard=heard)


def test_one_utterance_has_a_rate_and_no_interval(work: Work) -> None:
    figures = score(work, heard=[Transcript("a", "мой дом", 0.1)], references={"a": "Мой дом — крепость."})
    assert figures["wer"] == 1 / 3
    assert {figures[name] for name in ("wer_lo", "wer_hi", "cer_lo", "cer_hi", "interval_over")} == {None}
