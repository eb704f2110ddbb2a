from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.core.artifact import Resources
from harness.engine.plan import Plan, plan
from harness.suite.load import load
from tests.boards import SUITE

if TYPE_CHECKING:
    from pathlib import Path

PROBES = ("resamples: 200}", "resamples: 200, probes: [hallucination, timestamps, fallback]}")
MORE_SETS = "  test: {from: aelita/test, role: test}\n"
GENERAL = (MORE_SETS, f"{MORE_SETS}  general: {{from: aelita/other, role: probe}}\n")
LANGUAGES = (
    (MORE_SETS, f"{MORE_SETS}  english: {{from: aelita/en, role: probe, language: en}}\n"),
    ("resamples: 200}", "resamples: 200, probes: [language]}"),
)


def small(folder: Path, *changes: tuple[str, str]) -> Plan:
    content = SUITE
    for old, new in changes:
        assert content.count(old) == 1, old
        content = content.replace(old, new)
    folder.mkdir(exist_ok=True)
    (folder / "small.yaml").write_text(content, encoding="utf-8")
    return plan(load(folder / "small.yaml"), digest=lambda path: f"content of {path.name}")


def keys(planned: Plan) -> dict[str, str]:
    return {step.name: step.key for step in planned.steps}


def test_probes_are_steps_of_their_own(tmp_path: Path) -> None:
    before, after = small(tmp_path), small(tmp_path, PROBES)
    # Nothing that was computed without them is computed again.
    assert keys(before).items() <= keys(after).items()
    added = [step for step in after.steps if step.name not in keys(before)]
    assert {step.stage for step in added} == {"probe"}
    assert [step.name for step in added if "zero-shot" in step.name] == [
        "probe base_zero-shot_onnx-fp32 hallucination",
        "probe base_zero-shot_ggml-f16 hallucination",
        "probe base_zero-shot_ggml-f16 timestamps",
        "probe base_zero-shot_ggml-f16 fallback",
    ]
    assert len(added) == 3 * 4, "one for each variant and probe, whatever the number of held-out sets"
    assert all(step.resources == Resources(whole_machine=True, gpu=True) for step in added)


def test_what_probes_read(tmp_path: Path) -> None:
    planned = small(tmp_path, PROBES)
    named = {step.name: step for step in planned.steps}
    export, dev = named["export base lr1e-5 ggml-f16"], named["select dev"]
    for kind, read in (("hallucination", {}), ("timestamps", {"dev": (dev,)}), ("fallback", {"dev": (dev,)})):
        step = named[f"probe base_lr1e-5_ggml-f16 {kind}"]
        assert dict(step.inputs) == {"export": (export,), **read}
        assert step.spec.runtime == planned.suite.score.runtimes[1]


def test_rows_know_their_probes(tmp_path: Path) -> None:
    planned = small(tmp_path, PROBES)
    for row in planned.rows:
        kinds = [step.spec.kind for step in row.probed]
        assert kinds == (["hallucination", "timestamps", "fallback"] if "ggml" in row.row else ["hallucination"])
        assert all(step in planned.steps for step in row.probed)
    assert not any(row.probed for row in small(tmp_path).rows)


@pytest.mark.parametrize(
    ("old", "new", "stages"),
    [
        ("[onnx, whispercpp]", "[onnx, {kind: whispercpp, threads: 3}]", {"transcribe", "score", "probe"}),
        ("probes: [hallucination", "probes: [{kind: hallucination, lengths_s: [9]}", {"probe"}),
        ("by_wer: 0.02", "by_wer: 0.1", set()),
        ("resamples: 200", "resamples: 300", {"score"}),
    ],
)
def test_what_a_change_probes_again(tmp_path: Path, old: str, new: str, stages: set[str]) -> None:
    before, after = small(tmp_path, PROBES), small(tmp_path, PROBES, (old, new))
    assert {
        step.stage for step in before.steps if step.name in keys(after) and keys(after)[step.name] != step.key
    } == stages


def test_a_set_to_forget_is_scored_beside_the_others(tmp_path: Path) -> None:
    planned = small(tmp_path, GENERAL)
    roles = {row.heldout: row.split_role for row in planned.rows}
    assert roles == {"dev": "dev", "test": "test", "general": "probe"}
    # It is held out from training like any other, and chooses nothing.
    named = {step.name: step for step in planned.steps}
    assert named["select general"] in named["leakage train against held-out"].inputs["heldout"]
    assert named["train base lr1e-5"].inputs["dev"] == (named["select dev"],)


def test_speech_in_other_languages_is_not_scored(tmp_path: Path) -> None:
    planned = small(tmp_path, *LANGUAGES)
    assert {row.heldout for row in planned.rows} == {"dev", "test"}
    named = {step.name: step for step in planned.steps}
    for export in ("onnx-fp32", "ggml-f16"):
        step = named[f"probe base_lr3e-5_{export} language"]
        assert step.spec.languages == ["en"]
        assert step.inputs["clips"] == (named["select english"],)
    assert not [name for name in named if name.startswith(("transcribe", "score")) and "english" in name]
