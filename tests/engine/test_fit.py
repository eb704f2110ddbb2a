from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.core.estimates import Memory
from harness.engine.fit import GIB, check_fit, memories
from harness.engine.plan import Plan, Step, plan
from harness.engine.store import Store
from harness.errors import SuiteError
from harness.suite.load import load
from harness.train import vram
from harness.train.whisper import Training
from tests.boards import SUITE, finish

SUITES = Path(__file__).parent.parent.parent / "suites"
LARGE = ("openai/whisper-base", "openai/whisper-large-v3")


def planned(folder: Path, *changes: tuple[str, str]) -> tuple[Plan, Store]:
    content = SUITE
    for old, new in changes:
        assert content.count(old) == 1, old
        content = content.replace(old, new)
    (folder / "small.yaml").write_text(content, encoding="utf-8")
    return plan(load(folder / "small.yaml"), digest=lambda _: ""), Store(folder / "store")


def budget(gib: float) -> tuple[str, str]:
    return ("seed: 5", f"seed: 5\nbudget: {{vram_gib: {gib}}}")


def refusal(found: tuple[Plan, Store], *, steps: list[Step] | None = None) -> str:
    suite, store = found
    with pytest.raises(SuiteError) as caught:
        check_fit(suite.steps if steps is None else steps, store, budget=suite.suite.budget)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_each_training_has_its_memory_and_nothing_else_has(tmp_path: Path) -> None:
    suite, store = planned(tmp_path)
    found = memories(suite.steps, store, budget=suite.suite.budget)
    assert set(found) == {step.key for step in suite.steps if step.stage == "train"}
    expected = vram.predict(vram.KNOWN["openai/whisper-base"], Training(), micro_batch=16)
    assert {memory.total_b for memory in found.values()} == {expected.total_b}
    done = next(step for step in suite.steps if step.stage == "train")
    for step in (*(item for item in suite.steps if item.stage in {"prepare", "select", "leakage", "base"}), done):
        finish(step, store)
    assert done.key not in memories(suite.steps, store, budget=suite.suite.budget), "it has fitted"


def test_a_suite_without_a_budget_refuses_nothing(tmp_path: Path) -> None:
    suite, store = planned(tmp_path, LARGE)
    check_fit(suite.steps, store, budget=suite.suite.budget)


def test_what_fits_is_not_refused(tmp_path: Path) -> None:
    suite, store = planned(tmp_path, budget(24))
    check_fit(suite.steps, store, budget=suite.suite.budget)


def test_what_cannot_fit_is_refused_with_the_nearest_change(tmp_path: Path) -> None:
    found = planned(tmp_path, LARGE, budget(24))
    told, *variants = refusal(found).splitlines()
    assert told == "2 trainings do not fit into budget.vram_gib 24 (predicted, not measured on a card)"
    shape = vram.KNOWN["openai/whisper-large-v3"]
    spec = Training(optimizer="adamw_8bit", gradient_checkpointing=True, batch_size=8, gradient_accumulation_steps=2)
    now = vram.predict(shape, Training(), micro_batch=16).total_b / GIB
    then = vram.predict(shape, spec, micro_batch=8).total_b / GIB
    change = "optimizer: adamw_8bit, batch_size: 8, gradient_accumulation_steps: 2, gradient_checkpointing: true"
    assert variants == [
        f"  base {name}: {now:.1f} GiB; {change} would take {then:.1f} GiB" for name in ("lr1e-5", "lr3e-5")
    ]


@pytest.mark.parametrize(
    ("gib", "training", "change"),
    [
        (40, "{max_steps: 100}", "gradient_checkpointing: true would take"),
        (30, "{max_steps: 100, gradient_checkpointing: true}", "batch_size: 2, gradient_accumulation_steps: 8 would"),
        (15, "{max_steps: 100, gradient_checkpointing: true}", "freeze: encoder"),
        (8, "{max_steps: 100, gradient_checkpointing: true, eval_batch_size: 1}", "lora: {r: 32, alpha: 64, dropout:"),
        (2, "{max_steps: 100}", "no setting makes it fit: take a smaller model"),
    ],
)
def test_the_less_is_there_the_more_must_change(tmp_path: Path, gib: float, training: str, change: str) -> None:
    found = planned(tmp_path, LARGE, budget(gib), ("train: {max_steps: 100}", f"train: {training}"))
    assert change in refusal(found).splitlines()[1]


def test_a_change_that_is_told_does_fit(tmp_path: Path) -> None:
    for gib in (10, 16, 24, 32):
        found = planned(tmp_path, LARGE, budget(gib))
        for line in refusal(found).splitlines()[1:]:
            assert float(line.split("would take ")[1].split()[0]) <= gib


def test_one_training_of_many(tmp_path: Path) -> None:
    lora = "{max_steps: 100, batch_size: 1, lora: {r: 8}, gradient_checkpointing: true, eval_batch_size: 1}"
    variants = ("    export:", "    variants: {all: {lora: null}}\n    export:")
    found = planned(tmp_path, LARGE, budget(12), ("train: {max_steps: 100}", f"train: {lora}"), variants)
    told, only = refusal(found).splitlines()
    assert told.startswith("1 training does not fit into budget.vram_gib 12")
    assert only.startswith("  base all: ")


def test_steps_that_are_not_asked_for_are_not_judged(tmp_path: Path) -> None:
    suite, store = planned(tmp_path, LARGE, budget(2))
    check_fit([step for step in suite.steps if step.stage != "train"], store, budget=suite.suite.budget)


def test_auto_is_refused_only_if_one_window_does_not_fit(tmp_path: Path) -> None:
    auto = ("train: {max_steps: 100}", "train: {max_steps: 100, batch_size: auto, gradient_checkpointing: true}")
    suite, store = planned(tmp_path, auto, budget(4))
    (memory, _) = memories(suite.steps, store, budget=suite.suite.budget).values()
    assert memory.micro_batch in {2, 4, 8}
    assert memory.total_b <= 4 * GIB
    check_fit(suite.steps, store, budget=suite.suite.budget)
    assert "fit into budget.vram_gib 1.5" in refusal(planned(tmp_path, auto, budget(1.5)))


def test_a_base_model_of_unknown_size_is_known_once_it_is_here(tmp_path: Path) -> None:
    other = ("openai/whisper-base", "somebody/whisper-large-russian")
    suite, store = planned(tmp_path, other, budget(2))
    assert set(memories(suite.steps, store, budget=suite.suite.budget).values()) == {None}
    check_fit(suite.steps, store, budget=suite.suite.budget)
    base = next(step for step in suite.steps if step.stage == "base")
    placed = finish(base, store)
    shape = vram.KNOWN["openai/whisper-large-v3"]
    (placed.path / "model").mkdir(exist_ok=True)
    config = {name: getattr(shape, name) for name in vram.Shape.__slots__}
    (placed.path / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "2 trainings do not fit into budget.vram_gib 2" in refusal((suite, store))


@pytest.mark.parametrize("preset", ["whisper_4090.yaml", "whisper_10gb.yaml"])
def test_every_training_of_the_presets_is_predicted_to_fit_its_card(tmp_path: Path, preset: str) -> None:
    suite = plan(load(SUITES / preset), digest=lambda _: "")
    found = memories(suite.steps, Store(tmp_path), budget=suite.suite.budget)
    assert None not in found.values()
    assert suite.suite.budget.vram_gib is not None
    check_fit(suite.steps, Store(tmp_path), budget=suite.suite.budget)
    # The guide's recipe is one of them: sixteen windows a step, one clip in each.
    guide = [step.spec for step in suite.steps if step.stage == "train" and step.name.endswith(" guide")]
    assert guide
    for spec in guide:
        assert (spec.per_step, spec.learning_rate, spec.warmup_steps, spec.max_steps) == (16, 1e-5, 500, 5000)
        assert (spec.precision, spec.gradient_checkpointing, spec.packing) == ("fp16", True, None)


def test_parts_of_a_search_are_told_once(tmp_path: Path) -> None:
    search = ("    export:", "    search: {kind: asha, rungs: [20, 50]}\n    export:")
    lines = refusal(planned(tmp_path, LARGE, budget(2), search)).splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == ["  base lr1e-5", "  base lr3e-5"]


def test_parakeet_is_known_in_part(tmp_path: Path) -> None:
    parakeet = "  parakeet:\n    kind: parakeet\n    export: [{kind: parakeet_onnx}]\n"
    suite, store = planned(tmp_path, ("score:", f"{parakeet}score:"), budget(10))
    step = next(item for item in suite.steps if item.name == "train parakeet tuned")
    memory = memories([step], store, budget=suite.suite.budget)[step.key]
    assert isinstance(memory, Memory)
    assert memory.is_least
    # Weights, gradients and two moments of 627 million weights, and the joint.
    assert memory.parts["weights and optimizer"] == 627_000_000 * 16
    assert memory.parts["joint"] > 0
    assert "  parakeet tuned: at least " in refusal((suite, store))
    other = parakeet.replace("export:", "base: nvidia/other\n    export:")
    local, store = planned(tmp_path, ("score:", f"{other}score:"))
    step = next(item for item in local.steps if item.name == "train parakeet tuned")
    assert memories([step], store, budget=local.suite.budget) == {step.key: None}
