from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from harness.core import text
from harness.core.artifact import Resources
from harness.engine.plan import Builder, Plan, plan
from harness.errors import SuiteError
from harness.suite.load import load
from harness.suite.mix import Criteria
from harness.suite.spec import Spec
from tests.boards import SUITE

ROOT = Path(__file__).parent.parent.parent
QUICKSTART = ROOT / "suites" / "quickstart.yaml"
GOLDEN = Path(__file__).parent / "quickstart_plan.txt"
"""After a change that is meant: write `table(quickstart())` into it."""

VERSION = 1


def digest(path: Path) -> str:
    return f"content of {path.name}"


def quickstart() -> Plan:
    """The plan of the quickstart's structure; its numbers may be tuned."""
    suite = load(QUICKSTART)
    (name,) = suite.models
    model = suite.models[name].model_copy(update={"grid": {"learning_rate": [1e-5, 3e-5], "warmup_steps": [4, 12]}})
    return plan(suite.model_copy(update={"models": {name: model}}), digest=digest)


def table(planned: Plan) -> str:
    """Each step with the numbers of the steps that it reads, and of those that must only come before."""
    numbers = {step.key: number for number, step in enumerate(planned.steps, start=1)}
    lines = []
    for step in planned.steps:
        read = {role: [numbers[need.key] for need in needs] for role, needs in step.inputs.items()}
        if step.stage == "select" and "heldout" in read:
            read["heldout"].sort()  # they stand in the order of their keys
        roles = [f"{role} {' '.join(map(str, found))}" for role, found in read.items()]
        after = [f"after {numbers[need.key]}" for need in step.after]
        lines.append(f"{numbers[step.key]:>2} {step.name} <- {', '.join(roles + after) or 'nothing'}")
    return "\n".join(lines) + "\n"


def small(folder: Path, *changes: tuple[str, str]) -> Plan:
    """The plan of a small suite with some of its text replaced."""
    content = SUITE
    for old, new in changes:
        assert content.count(old) == 1, old
        content = content.replace(old, new)
    folder.mkdir(exist_ok=True)
    (folder / "small.yaml").write_text(content, encoding="utf-8")
    return plan(load(folder / "small.yaml"), digest=digest)


def keys(planned: Plan, *stages: str) -> dict[str, str]:
    """Name → key, of all steps or of those of some stages."""
    return {step.name: step.key for step in planned.steps if not stages or step.stage in stages}


def differing(one: Plan, other: Plan) -> set[str]:
    """The stages of steps that both plans have, under different keys."""
    before, after = keys(one), keys(other)
    return {step.stage for step in one.steps if step.name in after and before[step.name] != after[step.name]}


def test_golden_plan_of_the_quickstart() -> None:
    planned = quickstart()
    assert table(planned) == GOLDEN.read_text(encoding="utf-8")
    assert len(planned.rows) == 5 * 2 * 2, "variants x exports x held-out sets"


def test_the_quickstart_as_it_is_shipped() -> None:
    planned = plan(load(QUICKSTART), digest=digest)
    assert {row.row for row in planned.rows} >= {"whisper-base_zero-shot_onnx-fp32", "whisper-base_zero-shot_ggml-f16"}
    assert {(row.heldout, row.split_role) for row in planned.rows} == {("dev", "dev"), ("test", "test")}
    # Every recording's content counts, not only the manifest's.
    assert len(planned.steps[0].spec.outside()) == 191


def test_an_order_in_which_steps_can_run() -> None:
    done: set[str] = set()
    for step in quickstart().steps:
        assert {need.key for need in step.needs} <= done, step.name
        done.add(step.key)


def test_training_waits_for_the_leakage_check_but_is_not_keyed_by_it(tmp_path: Path) -> None:
    before = small(tmp_path)
    wider = small(tmp_path, ("  test: {", "  unseen: {from: aelita/test, role: test}\n  test: {"))
    for planned in (before, wider):
        trained = [step for step in planned.steps if step.stage == "train"]
        assert all([need.stage for need in step.after] == ["leakage"] for step in trained)
    # One more name of a sealed set: another leakage check, the same models.
    assert keys(before, "leakage") != keys(wider, "leakage")
    assert keys(before, "train", "export", "base") == keys(wider, "train", "export", "base")
    assert differing(before, wider) == {"leakage"}


AFTER_SELECT = {"select", "leakage", "train", "export", "transcribe", "score"}


@pytest.mark.parametrize(
    ("old", "new", "stages"),
    [
        ("promote: {target: mimir}\n", "", set()),
        ("by_wer: 0.02", "by_wer: 0.1", set()),
        ("suite: small", "suite: other", set()),
        ("resamples: 200", "resamples: 300", {"score"}),
        ("resamples: 200", "normalise: ru-strict, resamples: 200", {"score"}),
        ("resamples: 200", "metrics: [wer], resamples: 200", {"score"}),
        ("[onnx, whispercpp]", "[{kind: onnx, threads: 3}, whispercpp]", {"transcribe", "score"}),
        ("max_steps: 100", "max_steps: 200", {"train", "export", "transcribe", "score"}),
        ("max_steps: 100", "max_steps: 100, num_workers: 4", set()),
        ("base: openai/whisper-base", "base: openai/whisper-tiny", {"train", "export", "transcribe", "score"}),
        ("dev: 0.1, ", "dev: 0.2, ", AFTER_SELECT),
        ("seed: 5", "seed: 6", AFTER_SELECT),
        ("manifest.jsonl", "other.jsonl", {"prepare"} | AFTER_SELECT),
        ("by permission", "CC0", {"prepare"} | AFTER_SELECT),
    ],
)
def test_what_a_change_of_the_suite_computes_again(tmp_path: Path, old: str, new: str, stages: set[str]) -> None:
    assert differing(small(tmp_path), small(tmp_path, (old, new))) == stages


def test_a_changed_normaliser_rescores_and_hears_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = small(tmp_path)
    monkeypatch.setattr(text, "VERSION", text.VERSION + 1)
    # It also decides which transcripts are equal, and so which split they are in.
    assert differing(before, small(tmp_path)) == AFTER_SELECT


def test_a_changed_stage_computes_what_comes_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = small(tmp_path)
    module = next(step.module for step in before.steps if step.name.endswith("ggml-f16") and step.stage == "export")
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    after = small(tmp_path)
    changed = {name for name, key in keys(before).items() if keys(after)[name] != key}
    assert changed == {
        step.name
        for step in before.steps
        if "ggml-f16" in step.name and step.stage in {"export", "transcribe", "score"}
    }


def test_recordings_count_by_content(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "small.yaml").write_text(SUITE, encoding="utf-8")
    (tmp_path / "clips" / "manifest.jsonl").write_text('{"audio_filepath": "a.wav", "text": "да"}\n', encoding="utf-8")
    contents = {"manifest.jsonl": "one", "a.wav": "two"}

    def stages() -> Plan:
        return plan(load(tmp_path / "small.yaml"), digest=lambda path: contents[path.name])

    before = stages()
    contents["a.wav"] = "three"
    assert differing(before, stages()) == {"prepare"} | AFTER_SELECT


def test_the_same_suite_elsewhere_gives_the_same_keys(tmp_path: Path) -> None:
    assert keys(small(tmp_path / "here")) == keys(small(tmp_path / "there"))


def test_a_local_base_counts_by_content(tmp_path: Path) -> None:
    def planned(place: str) -> Plan:
        folder = tmp_path / place
        (folder / "weights").mkdir(parents=True)
        return small(folder, ("base: openai/whisper-base", "base: weights"))

    here, there = planned("here"), planned("there")
    assert here.steps[5].spec.base == str(tmp_path / "here" / "weights")
    assert set(keys(here).values()) == set(keys(there).values())


def test_several_steps_that_prepare_a_corpus_change_no_key(tmp_path: Path) -> None:
    old = "kind: manifest, path"
    one, several = small(tmp_path, (old, old)), small(tmp_path, (old, "kind: manifest, tasks: 3, path"))
    assert not differing(one, several)
    added = [step.name for step in several.steps if step.name not in keys(one)]
    assert added == ["list aelita", "decode aelita 1/3", "decode aelita 2/3", "decode aelita 3/3"]
    steps = {step.name: step for step in several.steps}
    joined = steps["prepare aelita"]
    assert [need.name for need in joined.needs] == added
    assert not joined.inputs
    assert [need.name for need in steps["decode aelita 2/3"].needs] == ["list aelita"]
    other = small(tmp_path, (old, "kind: manifest, tasks: 3, storage: flac, path"))
    assert differing(several, other) >= {"list", "decode", "prepare"}


def test_equal_work_is_one_step(tmp_path: Path) -> None:
    planned = small(
        tmp_path,
        (
            "  test: {from: aelita/test, role",
            "  again: {from: aelita/dev, role: test}\n  test: {from: aelita/test, role",
        ),
    )
    assert len({step.key for step in planned.steps}) == len(planned.steps)
    assert [step.name for step in planned.steps if step.stage == "select"] == [
        "select dev",
        "select test",
        "select train",
    ]
    # Two names of one set are still two lines of the board.
    assert {row.heldout for row in planned.rows} == {"dev", "again", "test"}


def test_several_runtimes_of_one_export_are_told_apart(tmp_path: Path) -> None:
    planned = small(tmp_path, ("[onnx, whispercpp]", "[onnx, {kind: onnx, device: cpu}, whispercpp]"))
    assert [row.row for row in planned.rows if row.variant == "zero-shot" and row.heldout == "test"] == [
        "base_zero-shot_onnx-fp32_onnx",
        "base_zero-shot_onnx-fp32_onnx-cpu",
        "base_zero-shot_ggml-f16",
    ]


def test_rows_of_one_name_are_refused(tmp_path: Path) -> None:
    second = "  base_zero-shot: {kind: whisper, base: b, variants: {X: {}}, export: [whisper_onnx]}\nscore:"
    first = "    variants: {zero-shot_X: {}}\n    export:"
    with pytest.raises(
        SuiteError, match="two rows are called 'base_zero-shot_X_onnx-fp32' on dev: variant 'zero-shot_X'"
    ):
        small(tmp_path, ("\nscore:", f"\n{second}"), ("    export:", first))


def test_folder_and_resources_of_a_step(tmp_path: Path) -> None:
    planned = small(tmp_path)
    for step in planned.steps:
        assert step.folder == f"{step.stage}-{step.key[:16]}"
        heavy = step.stage in {"train", "transcribe"}
        assert step.resources == (Resources(whole_machine=True, gpu=heavy) if heavy else step.resources)
    assert next(step for step in planned.steps if step.stage == "select").resources == Resources()


FROM = "train: {from: aelita/train}"
MIX = """\
  voice: {kind: manifest, path: voice.jsonl}
train:
  mix:
    aelita: 1h
    voice: {take: 2h, filter: {max_cer: 0.2, agrees_with: base}, where: {part: [a, b]}}
  filter: {duration_s: [0.5, 30], max_hours_per_speaker: 3}
"""


def test_plan_of_a_mix(tmp_path: Path) -> None:
    planned = small(tmp_path, (f"{FROM}\n", MIX))
    assert table(planned).splitlines()[:11] == [
        " 1 prepare aelita <- nothing",
        " 2 prepare voice <- nothing",
        " 3 select dev <- datasets 1",
        " 4 select test <- datasets 1",
        " 5 select candidates voice/train <- datasets 2, heldout 3 4",
        " 6 base openai/whisper-base <- nothing",
        " 7 export base zero-shot onnx-fp32 <- model 6",
        " 8 transcribe base_zero-shot_onnx-fp32 candidates voice/train <- export 7, heldout 5",
        " 9 select train <- datasets 1 2, heldout 3 4, transcripts 8",
        "10 leakage train against held-out <- train 9, heldout 3 4",
        "11 transcribe base_zero-shot_onnx-fp32 dev <- export 7, heldout 3",
    ]
    candidates, train = planned.steps[4].spec, planned.steps[8].spec
    everywhere = Criteria(duration_s=[0.5, 30], max_hours_per_speaker=3)
    assert [part.label for part in train.parts] == ["aelita/train", "voice/train"]
    assert [part.criteria for part in train.parts] == [[everywhere]] * 2
    assert [part.max_cer for part in train.parts] == [[], [0.2]]
    assert [part.hours for part in train.parts] == [1, 2]
    # What is listened to is filtered before, but capped only by what is kept.
    (heard,) = candidates.parts
    assert (heard.criteria, heard.max_cer, heard.hours) == ([Criteria(duration_s=[0.5, 30])], [], 6)
    assert heard.where == {"part": ["a", "b"]}
    assert len(planned.rows) == 3 * 2 * 2, "listening for training is no row"


@pytest.mark.parametrize(
    ("new", "stages"),
    [
        ("train: {mix: {aelita: all}}", set()),
        ("train: {mix: {aelita/train: 1}, filter: {}}", set()),
        ("train: {from: aelita/train, drop_heldout: [transcript, transcript]}", set()),
        ("train: {from: aelita/train}\nallow_leakage: {reason: one and the same reader}", {"leakage"}),
        ("train: {mix: {aelita: 2}}", {"select", "leakage", "train", "export", "transcribe", "score"}),
        ("train: {from: aelita/train, filter: {alphabet: ru}}", AFTER_SELECT),
        ("train: {from: aelita/train, drop_heldout: [recording]}", AFTER_SELECT),
        ("train: {from: aelita/train, drop_heldout: []}", AFTER_SELECT),
    ],
)
def test_what_another_training_set_computes_again(tmp_path: Path, new: str, stages: set[str]) -> None:
    before, after = small(tmp_path), small(tmp_path, (FROM, new))
    assert differing(before, after) == stages
    assert keys(before, "base") == keys(after, "base")
    selections = keys(before, "select")
    assert {name for name in selections if selections[name] != keys(after, "select")[name]} <= {"select train"}


def test_names_roles_and_order_of_held_out_sets_do_not_train_anew(tmp_path: Path) -> None:
    dev, test = "  dev: {from: aelita/dev, role: dev}\n", "  test: {from: aelita/test, role: test}\n"
    before = small(tmp_path)
    swapped = small(tmp_path, (dev + test, f"{test.replace('test:', 'sealed:')}{dev}"))
    assert keys(before, "train") == keys(swapped, "train")


def test_held_out_sets_count_for_training_only_where_they_may_take_from_it(tmp_path: Path) -> None:
    more = ("  test: {", "  far: {from: aelita/test, where: {room: far}, role: test}\n  test: {")
    kept = (FROM, "train: {from: aelita/train, drop_heldout: []}")
    assert differing(small(tmp_path), small(tmp_path, more)) == {"select", "leakage", "train"} | AFTER_SELECT
    assert differing(small(tmp_path, kept), small(tmp_path, kept, more)) == {"leakage"}


def test_transcripts_that_may_be_shared_are_no_leak(tmp_path: Path) -> None:
    def ignored(drop: str) -> list[str]:
        planned = small(tmp_path, (FROM, f"train: {{from: aelita/train, drop_heldout: {drop}}}"))
        (check,) = (step.spec for step in planned.steps if step.stage == "leakage")
        return list(check.ignore)

    assert ignored("[transcript]") == ignored("[speaker, transcript]") == []
    assert ignored("[]") == ignored("[recording]") == ["transcript"]


def test_the_reason_for_a_leak_reaches_the_check(tmp_path: Path) -> None:
    planned = small(tmp_path, (FROM, f"{FROM}\nallow_leakage: {{reason: one and the same reader}}"))
    (check,) = (step.spec for step in planned.steps if step.stage == "leakage")
    assert check.allow == "one and the same reader"


def test_excluded_clips_count_by_the_content_of_their_list(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    for name in ("one.jsonl", "two.jsonl"):
        (tmp_path / "lists" / name).write_text("", encoding="utf-8")

    def planned(name: str, content: str) -> Plan:
        text = SUITE.replace(FROM, f"train: {{from: aelita/train, exclude: lists/{name}}}")
        (tmp_path / "small.yaml").write_text(text, encoding="utf-8")
        return plan(load(tmp_path / "small.yaml"), digest=lambda path: content if path.suffix == ".jsonl" else "")

    assert keys(planned("one.jsonl", "a")) == keys(planned("two.jsonl", "a"))
    assert differing(planned("one.jsonl", "a"), planned("one.jsonl", "b")) >= {"select", "train"}


class Sample(Spec):
    """For the golden key."""

    rate: float = 1e-5
    name: str = "ё"


def test_golden_key() -> None:
    """A change of how keys are made throws every store away: it must be meant."""
    build = Builder(digest)
    first = build.add("prepare", "a", Sample(), {})
    second = build.add("train", "b", Sample(rate=0.5), {"base": (first,)}, (first,))
    where = f'"kind":"{__name__}","outside":[]'
    one = f'{{"inputs":{{}},{where},"spec":{{"name":"ё","rate":1e-05}},"stage":"prepare","version":1}}'
    other = (
        f'{{"inputs":{{"base":["{first.key}"]}},{where},"spec":{{"name":"ё","rate":0.5}},"stage":"train","version":1}}'
    )
    assert first.key == hashlib.sha256(one.encode()).hexdigest()
    assert second.key == hashlib.sha256(other.encode()).hexdigest()
