"""What a suite can get wrong about probes, each with its line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jsonschema
import pytest
import yaml

from harness.errors import SuiteError
from harness.suite.kinds import kinds
from harness.suite.load import load
from harness.suite.schema import json_schema

if TYPE_CHECKING:
    from pathlib import Path

SOUND = """\
suite: small
datasets:
  aelita: {kind: manifest, path: clips.jsonl, split: {dev: 0.1}}
  voices: {kind: manifest, path: voices.jsonl}
train: {from: aelita/train}
heldout:
  dev: {from: aelita/dev, role: dev}
  test: {from: aelita/test, role: test}
  general: {from: voices/ru, role: probe}
  english: {from: voices/en, role: probe, language: en}
models:
  base: {kind: whisper, base: openai/whisper-base, train: {max_steps: 9}, export: [whisper_ggml]}
score:
  runtimes: [whispercpp]
  probes: [hallucination, {kind: timestamps, windows: 4}, fallback, language]
gate:
  probes:
    silence_wpm: {max: 0}
    timestamps_ok: {min: 0.9, max: 1}
    fallback_slowdown: {max: 1.2}
    forgetting: {max: 0.02}
"""


def written(folder: Path, text: str) -> Path:
    (folder / "small.yaml").write_text(text, encoding="utf-8")
    return folder / "small.yaml"


def test_a_sound_suite(tmp_path: Path) -> None:
    suite = load(written(tmp_path, SOUND))
    assert [probe.kind for probe in suite.score.probes] == ["hallucination", "timestamps", "fallback", "language"]
    assert suite.score.probes[1].windows == 4
    assert suite.gate.probes["timestamps_ok"].min == 0.9
    assert suite.heldout["english"].language == "en"
    jsonschema.validate(yaml.safe_load(SOUND), json_schema())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "[hallucination, ",
            "[halucination, ",
            ["15: score.probes[0].kind: unknown kind 'halucination'; did you mean 'hallucination'? (known: {probes})"],
        ),
        (
            "windows: 4",
            "windows: 0",
            ["15: score.probes[1].windows: expected at least 1, found 0 (whole number)"],
        ),
        (
            "windows: 4",
            "window: 4",
            [
                (
                    "15: score.probes[1].window: unknown key 'window'; did you mean 'windows'? "
                    "(known: kind, runtime, windows)"
                )
            ],
        ),
        (
            "fallback, language]",
            "{kind: fallback, runtime: {kind: whispercpp}}, language]",
            ["15: score.probes: probe 'fallback' has a runtime; remove it: score.runtimes are probed"],
        ),
        (
            "fallback, language]",
            "fallback, language, fallback]",
            ["15: score.probes: probe 'fallback' is here twice; the board has one column for each figure"],
        ),
        (
            "export: [whisper_ggml]}\nscore:\n  runtimes: [whispercpp]",
            "export: [whisper_onnx]}\nscore:\n  runtimes: [onnx]",
            [
                "15: score.probes[1]: no model exports what 'timestamps' looks at (whisper_ggml)",
                "15: score.probes[2]: no model exports what 'fallback' looks at (whisper_ggml)",
            ],
        ),
        (
            ", language]",
            "]",
            ["10: heldout.english.language: nothing listens to this set; add `language` to score.probes"],
        ),
        (
            ", language: en}",
            "}",
            [
                (
                    "15: score.probes[3]: 'language' needs speech in other languages; declare a held-out set "
                    "{from: …, role: probe, language: en}"
                )
            ],
        ),
        (
            "role: probe, language: en",
            "role: test, language: en",
            ["10: heldout.english: language: en belongs to sets with `role: probe`, but the role is test"],
        ),
        (
            "language: en",
            "language: English",
            ["10: heldout.english.language: expected Whisper's code of a language, such as en, found 'English' (text)"],
        ),
        (
            "fallback, language",
            "language",
            ["20: gate.probes.fallback_slowdown: the probe 'fallback' measures it; add it to score.probes"],
        ),
        (
            "  general: {from: voices/ru, role: probe}\n",
            "",
            [
                (
                    "20: gate.probes.forgetting: is measured on held-out sets with `role: probe`; declare one of "
                    "general Russian speech"
                )
            ],
        ),
        (
            "silence_wpm: {max: 0}",
            "silence: {max: 0}",
            ["17: gate.probes: unknown column 'silence'; did you mean 'silence_wpm'?"],
        ),
        (
            "silence_wpm: {max: 0}",
            "silence_wpm: {}",
            ["18: gate.probes.silence_wpm: expected `max: NUMBER`, `min: NUMBER` or both"],
        ),
        (
            "role: test}",
            "role: dev}",
            ["6: heldout: no set has `role: test`; declare one: the verdict is given on it"],
        ),
    ],
)
def test_each_mistake_is_told_with_its_line(tmp_path: Path, old: str, new: str, expected: list[str]) -> None:
    assert SOUND.count(old) == 1
    with pytest.raises(SuiteError) as caught:
        load(written(tmp_path, SOUND.replace(old, new)))
    expected = [line.replace("{probes}", ", ".join(kinds("probe"))) for line in expected]
    assert [f"{item.line}: {item.where}: {item.message}" for item in caught.value.problems] == expected


def test_no_two_probes_share_a_column() -> None:
    columns = [column for module in kinds("probe").values() for column in (*module.Spec.columns, *module.Spec.ratios)]
    assert len(set(columns)) == len(columns)
    for module in kinds("probe").values():
        assert set(module.Spec.ratios.values()) <= set(module.Spec.columns)
