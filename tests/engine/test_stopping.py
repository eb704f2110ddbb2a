"""Searches that stop variants: what they are in a plan, and how a run walks it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from harness.board.leaderboard import lines
from harness.core.manifests import write_jsonl
from harness.engine.estimates import outlook
from harness.engine.local import LocalExecutor
from harness.engine.search import JUDGE, prospects, stopped, surviving, trained_name
from harness.engine.store import Store
from harness.engine.walk import Outcome, run_steps
from harness.promote.gate import candidate
from harness.terminal import Watch
from tests.boards import finish
from tests.engine.test_plan import differing, keys, small

if TYPE_CHECKING:
    from pathlib import Path

    from harness.engine.plan import Plan, Step

GRID = "    grid: {learning_rate: [1e-5, 3e-5]}\n"
ASHA = "    grid: {learning_rate: [1e-5, 3e-5, 1e-4, 3e-4]}\n    search: {kind: asha, rungs: [10, 50]}\n"
WERS = {
    10: {"lr1e-5": 0.40, "lr3e-5": 0.30, "lr1e-4": 0.20, "lr3e-4": None},
    50: {"lr3e-5": 0.19, "lr1e-4": 0.25},
}
"""Rung → variant → dev WER."""
HEARD = {"zero-shot": 12, "lr1e-5": 5, "lr3e-5": 2, "lr1e-4": 4, "lr3e-4": 5}


def searched(folder: Path, new: str = ASHA) -> Plan:
    return small(folder, (GRID, new))


def steps_of(planned: Plan, stage: str) -> dict[str, Step]:
    return {step.name.removeprefix(f"{stage} "): step for step in planned.steps if step.stage == stage}


def test_steps_of_a_search(tmp_path: Path) -> None:
    planned = searched(tmp_path)
    trained, judges = steps_of(planned, "train"), steps_of(planned, JUDGE)
    assert list(judges) == ["base at 10", "base at 50"]
    for variant in WERS[10]:
        first, second, last = (trained[f"base {variant}{to}"] for to in (" to 10", " to 50", ""))
        assert (first.spec.until, second.spec.until, hasattr(last.spec, "until")) == (10, 50, False)
        assert first.spec.max_steps == second.spec.max_steps == last.spec.max_steps == 100
        assert [step.key for step in second.inputs["resume"]] == [first.key]
        assert [step.key for step in last.inputs["resume"]] == [second.key, first.key]
        assert "resume" not in first.inputs
        assert [step.judge and step.judge.name for step in (first, second, last)] == [
            None, "rung base at 10", "rung base at 50",
        ]  # fmt: skip
        assert [trained_name(step) for step in (first, second, last)] == [f"base {variant}"] * 3
    early, late = judges.values()
    assert {step.name for step in early.inputs["trials"]} == {f"train base {variant} to 10" for variant in WERS[10]}
    assert {step.name for step in late.inputs["trials"]} == {f"train base {variant} to 50" for variant in WERS[10]}
    assert late.inputs["before"] == (early,)
    # What is exported and scored is the end of the training.
    assert {row.trained.name for row in planned.rows if row.trained} == {f"train base {item}" for item in WERS[10]}


def test_who_goes_on_is_decided_on_dev_alone(tmp_path: Path) -> None:
    """No judge reads a set of role test, nor anything that has; only training and its base are before it."""
    planned = searched(tmp_path)
    test_sets = {row.scored.inputs["heldout"][0].key for row in planned.rows if row.split_role == "test"}
    for judge in steps_of(planned, JUDGE).values():
        read = list(judge.inputs.values())
        direct = [step for steps in read for step in steps]
        assert {step.stage for step in direct} <= {"train", JUDGE}
        for segment in (step for step in direct if step.stage == "train"):
            assert set(segment.inputs) <= {"base", "train", "dev", "resume"}
            assert not {step.key for step in segment.inputs["dev"]} & test_sets


def test_an_order_in_which_steps_can_run(tmp_path: Path) -> None:
    done: set[str] = set()
    for step in searched(tmp_path).steps:
        assert {need.key for need in step.needs} <= done, step.name
        done.add(step.key)


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        # Another share decides anew, and trains nothing anew.
        ("rungs: [10, 50]", "rungs: [10, 50], keep: 0.3", {JUDGE}),
        # A later rung keeps what was trained up to the earlier one.
        ("[1e-5, 3e-5, 1e-4, 3e-4]", "[3e-4, 1e-4, 3e-5, 1e-5]", set()),
    ],
)
def test_what_a_change_of_the_search_computes_again(tmp_path: Path, old: str, new: str, changed: set[str]) -> None:
    assert differing(searched(tmp_path), searched(tmp_path, ASHA.replace(old, new))) == changed


def test_a_grid_searched_whole_has_the_steps_that_it_always_had(tmp_path: Path) -> None:
    plain = keys(small(tmp_path))
    assert keys(searched(tmp_path, f"{GRID}    search: grid\n")) == plain
    other = keys(searched(tmp_path, GRID.replace("}", "}\n    search: {kind: asha, rungs: [10]}")))
    assert {name for name in plain if other.get(name) != plain[name]} == {
        name for name in plain if "lr" in name and not name.startswith(("select", "base"))
    }


def test_a_named_variant_takes_part_and_the_untrained_model_does_not(tmp_path: Path) -> None:
    planned = searched(tmp_path, f"{GRID}    variants: {{guide: {{packing: null}}}}\n    search: asha\n")
    early, _ = steps_of(planned, JUDGE).values()
    assert {trained_name(step) for step in early.inputs["trials"]} == {"base lr1e-5", "base lr3e-5", "base guide"}
    # By default the shares keep² and keep of the steps.
    assert list(steps_of(planned, JUDGE)) == ["base at 25", "base at 50"]


def test_what_a_plan_promises(tmp_path: Path) -> None:
    assert list(prospects(searched(tmp_path).suite)) == [
        "search of base: 4 variants, at most 2 pass step 10, at most 1 finish"
    ]
    assert list(prospects(small(tmp_path).suite)) == []


def test_equal_variants_are_one_trial(tmp_path: Path) -> None:
    planned = searched(tmp_path, f"{GRID}    variants: {{same: {{learning_rate: 1e-5}}}}\n    search: asha\n")
    early, *_ = steps_of(planned, JUDGE).values()
    assert len(early.inputs["trials"]) == 2


class Quiet:
    """A listener that hears nothing."""

    def started(self, step: Step) -> None: ...
    def progressed(self, step: Step, *, done: int, total: int, note: str) -> None: ...
    def finished(self, step: Step, outcome: Outcome) -> None: ...


def heard(row: str, _heldout: str, number: int, text: str) -> str:
    return text.replace("окном", "окнам") if number < HEARD[row.split("_")[1]] else text


def with_everything_but_verdicts(planned: Plan, folder: Path) -> Store:
    """A store in which every step is done, as if nobody had been stopped, except that no judge has judged."""
    store = Store(folder / "results" / "store")
    rows = {row.scored.inputs["transcripts"][0].key: row for row in planned.rows}
    for step in planned.steps:
        if step.stage == "train":
            work = store.open(step.folder)
            until = getattr(step.spec, "until", None)
            dev_wer = WERS.get(until, {}).get(trained_name(step).removeprefix("base "))
            write_jsonl(work.path / "curves.jsonl", [{"step": until or 100, "eval_wer": dev_wer or 1.0}])
            meta = {"dev_wer": dev_wer, "dev_loss": None, "final_step": until or 100}
            store.publish(step.folder, key=step.key, stage="train", meta=meta, about={"wall_s": 1.5})
        elif step.stage != JUDGE:
            finish(step, store, row=rows.get(step.key), heard=heard)
    return store


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Store, dict[str, Outcome]]:
    """A run in which two variants are stopped at step 10, one at 50, and the last finishes; judges run as they do."""
    folder = tmp_path_factory.mktemp("ran")
    planned = searched(folder)
    store = with_everything_but_verdicts(planned, folder)
    outcomes = run_steps(planned.steps, store=store, executor=LocalExecutor(folder / "logs", jobs=2), listener=Quiet())
    return planned, store, outcomes


def ended(planned: Plan, outcomes: dict[str, Outcome], state: str) -> set[str]:
    return {step.name for step in planned.steps if outcomes[step.key].state == state}


def test_a_run_stops_the_worst_and_what_depends_on_them(ran: Any) -> None:
    planned, _, outcomes = ran
    assert ended(planned, outcomes, "done") == {"rung base at 10", "rung base at 50"}
    assert ended(planned, outcomes, "failed") | ended(planned, outcomes, "skipped") == set()
    pruned = ended(planned, outcomes, "pruned")
    assert {name for name in pruned if name.startswith("train")} == {
        "train base lr1e-5 to 50", "train base lr3e-4 to 50", "train base lr1e-5", "train base lr3e-4",
        "train base lr1e-4",
    }  # fmt: skip
    variants = ("lr1e-5", "lr3e-4", "lr1e-4")
    assert {name for name in pruned if not name.startswith("train")} == {
        step.name
        for step in planned.steps
        if step.stage in {"export", "transcribe", "score"} and any(variant in step.name for variant in variants)
    }
    assert all(outcomes[step.key].exit_code == 0 for step in planned.steps)


def test_a_second_run_decides_nothing_anew(ran: Any, tmp_path: Path) -> None:
    planned, store, outcomes = ran
    again = run_steps(planned.steps, store=store, executor=LocalExecutor(tmp_path, jobs=1), listener=Quiet())
    assert {key: outcome.state for key, outcome in again.items()} == {
        key: "cached" if outcome.state == "done" else outcome.state for key, outcome in outcomes.items()
    }
    left = surviving(planned, store)
    assert {outcomes[step.key].state for step in left.steps} == {"cached", "done"}


def test_stopped_variants_are_told_and_have_no_rows(ran: Any) -> None:
    planned, store, _ = ran
    assert [str(item) for item in stopped(planned, store)] == [
        "base lr1e-5: stopped at step 10: dev WER 0.400, 3rd of 4",
        "base lr3e-4: stopped at step 10: its loss broke before, 4th of 4",
        "base lr1e-4: stopped at step 50: dev WER 0.250, 2nd of 2",
    ]
    left = surviving(planned, store)
    assert {row.variant for row in left.rows} == {"zero-shot", "lr3e-5"}
    board = lines(left, store, run_ids={})
    assert {line["variant"] for line in board} == {"zero-shot", "lr3e-5"}
    assert candidate(left, board, exports=("whisper_ggml",), row=None).row == "base_lr3e-5_ggml-f16"
    # What is known to be stopped is not to do.
    assert all(item.is_measured for item in outlook(left, store).steps.values())
    assert stopped(left, store) == stopped(planned, store)


def test_before_the_verdict_everything_may_still_finish(tmp_path: Path) -> None:
    planned = searched(tmp_path)
    store = Store(tmp_path / "store")
    assert surviving(planned, store) == planned
    assert stopped(planned, store) == []


def test_a_trial_that_failed_holds_up_its_search_until_it_is_trained(tmp_path: Path) -> None:
    planned = searched(tmp_path)
    store = with_everything_but_verdicts(planned, tmp_path)
    victim = steps_of(planned, "train")["base lr3e-4 to 10"]
    (store.root / victim.folder).rename(tmp_path / "away")
    (tmp_path / "logs").mkdir()
    # Its inputs are made up: the training fails at once.
    executor = LocalExecutor(tmp_path / "logs", jobs=1)
    outcomes = run_steps(planned.steps, store=store, executor=executor, listener=Quiet())
    assert ended(planned, outcomes, "failed") == {"train base lr3e-4 to 10"}
    assert {"rung base at 10", "rung base at 50"} <= ended(planned, outcomes, "skipped")
    assert ended(planned, outcomes, "pruned") == set()


def test_what_is_pruned_takes_no_line_of_a_log(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    with Watch(console, total=1) as watch:
        watch.finished(searched(tmp_path).steps[-1], Outcome("pruned"))
    assert console.file.getvalue() == ""


def publish_training(store: Store, step: Step, *, final_step: int, wall_s: float) -> None:
    store.open(step.folder)
    about = {
        "wall_s": wall_s,
        "spec": step.spec.model_dump(mode="json"),
        "inputs": {role: [item.folder for item in items] for role, items in step.inputs.items()},
    }
    store.publish(step.folder, key=step.key, stage="train", meta={"final_step": final_step}, about=about)


def test_a_part_of_a_training_is_estimated_by_its_own_steps(tmp_path: Path) -> None:
    """Two seconds a step: measured on a segment of 40 steps that went on from step 10."""
    planned = searched(tmp_path)
    store = Store(tmp_path / "store")
    trained = steps_of(planned, "train")
    publish_training(store, trained["base lr1e-5 to 10"], final_step=10, wall_s=1.0)
    publish_training(store, trained["base lr1e-5 to 50"], final_step=50, wall_s=80.0)
    expected = outlook(planned, store).steps
    parts = [trained[f"base lr3e-5{to}"] for to in (" to 10", " to 50", "")]
    assert [expected[part.key].wall_s for part in parts] == pytest.approx([20.0, 80.0, 100.0])
