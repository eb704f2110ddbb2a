"""Exports as logged models and registered versions, in a real MLflow on a SQLite file."""

from __future__ import annotations

import io
import json
import platform
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

from harness.board.devices import model_digest
from harness.board.environment import environment
from harness.board.leaderboard import COLUMNS, lines, read_csv, render
from harness.board.mlflow import PARENT_TAG
from harness.board.mlflow_models import BEST, DIGEST_TAG, EXPORT_FILE, LOGGED_TAG, VERSIONS_TAG, best_rows
from harness.promote.registry import register
from tests.board.test_mlflow import Tracked, empty_database, folder, project, tracked
from tests.boards import SUITE, Finished, finish, finished

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.engine.plan import Row, Step
    from tests.conftest import Harness

__all__ = ["empty_database", "folder"]
BASE, TUNED, BETTER = (f"base_{variant}_ggml-f16" for variant in ("zero-shot", "lr3e-5", "lr1e-5"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Two exports of a variant and of the base model."""
    return finished(tmp_path_factory.mktemp("done"), suite=SUITE.replace("[1e-5, 3e-5]", "[3e-5]"))


@pytest.fixture(scope="module")
def projected(done: Finished, empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests that only read."""
    place = tmp_path_factory.mktemp("projected")
    (place / "mlflow.db").write_bytes(empty_database.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        project(done, place)
    return place


def models(store: Tracked) -> dict[str, Any]:
    """Row → its logged model; one each."""
    found = store.client.search_logged_models([store.experiment.experiment_id])
    by_row = {model.tags["row"]: model for model in found}
    assert len(by_row) == len(found)
    return by_row


def versions(store: Tracked) -> dict[str, Any]:
    """Row → its version in the registry; one each."""
    found = store.client.search_model_versions("name = 'small'")
    by_row = {item.tags["row"]: item for item in found}
    assert len(by_row) == len(found)
    return by_row


def aliases(store: Tracked) -> dict[str, str]:
    """Alias → row."""
    named = store.client.get_registered_model("small").aliases
    return {name: store.client.get_model_version("small", number).tags["row"] for name, number in named.items()}


def rows_of(done: Finished) -> dict[str, Row]:
    return {row.row: row for row in done.plan.rows}


def test_an_export_is_a_logged_model(done: Finished, projected: Path) -> None:
    store = tracked(projected)
    found = models(store)
    assert set(found) == set(rows_of(done))
    model, row = found[TUNED], rows_of(done)[TUNED]
    export = done.store.find(row.exported.folder, key=row.exported.key)
    assert export is not None
    size_mib = sum(path.stat().st_size for path in map(export.path.joinpath, export.files)) / 2**20
    assert model.params == {
        "family": "whisper",
        "base": "openai/whisper-base",
        "variant": "lr3e-5",
        "export": "ggml-f16",
        "runtime": "whispercpp",
        "size_mib": f"{size_mib:.3f}",
        "store": row.exported.folder,
        DIGEST_TAG: model_digest(export.files),
    }
    assert (model.name, model.model_type, model.status.name) == (TUNED, "whisper", "READY")

    # Its files stay where they are.
    assert [item.path for item in store.client.list_logged_model_artifacts(model.model_id)] == [EXPORT_FILE]
    path = projected / "artifacts" / "models" / model.model_id / "artifacts" / EXPORT_FILE
    content = json.loads(path.read_text("utf-8"))
    assert {item["name"]: item["sha256"] for item in content["files"]} == export.files
    assert sum(item["bytes"] for item in content["files"]) == pytest.approx(size_mib * 2**20)
    assert str(done.store.root) not in path.read_text("utf-8")


def test_runs_refer_to_the_models_that_they_made_and_scored(projected: Path) -> None:
    store = tracked(projected)
    found = {model.model_id: name for name, model in models(store).items()}
    runs = [store.client.get_run(run.info.run_id) for run in store.runs(stage="score")]  # a search leaves models out
    scored = {run.info.run_name: [found[item.model_id] for item in run.inputs.model_inputs] for run in runs}
    assert scored == {f"{name} {heldout}": [name] for name in found.values() for heldout in ("dev", "test")}
    (training,) = store.runs(stage="train")
    made = {found[item.model_id] for item in training.outputs.model_outputs}
    assert made == {TUNED, "base_lr3e-5_onnx-fp32"}
    assert {name for name, model in models(store).items() if model.source_run_id == training.info.run_id} == made


def test_a_model_has_the_figures_of_each_set(done: Finished, projected: Path) -> None:
    board = {(line["row"], line["heldout"]): line for line in lines(done.plan, done.store, run_ids={})}
    selected = {step.name.removeprefix("select "): step for step in done.plan.steps if step.stage == "select"}
    for name, model in models(tracked(projected)).items():
        wer = {(item.dataset_name, item.dataset_digest): item.value for item in model.metrics if item.key == "wer"}
        assert wer == {
            (heldout, selected[heldout].key[:16]): board[name, heldout]["wer"] for heldout in ("dev", "test")
        }


def test_figures_and_order_are_those_of_the_csv(done: Finished, projected: Path) -> None:
    """Two exports of a model hear the same: their WER is equal."""
    csv = render(lines(done.plan, done.store, run_ids={}), form="csv")
    board = read_csv(io.StringIO(csv))  # type: ignore[arg-type]  # pandas reads both
    store = tracked(projected)
    for heldout in ("dev", "test"):
        group = [line for line in board if line["heldout"] == heldout]
        assert len({line["wer"] for line in group}) == len(group) / 2
        runs = store.client.search_runs(
            [store.experiment.experiment_id], f"tags.heldout = '{heldout}'", order_by=["metrics.wer ASC"]
        )
        assert [run.data.tags["row"] for run in runs] == [line["row"] for line in group]
        for run, line in zip(runs, group, strict=True):
            assert run.data.metrics == {
                name: float(line[name])
                for name in COLUMNS
                if line[name] is not None and not isinstance(line[name], str)
            }


def test_every_export_is_registered_and_the_best_is_named(projected: Path) -> None:
    store = tracked(projected)
    found, logged = versions(store), models(store)
    assert set(found) == set(logged)
    assert aliases(store) == {BEST: TUNED}
    runs = {run.info.run_id: run for run in store.runs(stage="score")}
    for name, item in found.items():
        assert item.tags[LOGGED_TAG] == logged[name].model_id
        assert item.source == logged[name].artifact_location
        assert json.loads(logged[name].tags[VERSIONS_TAG]) == [{"name": "small", "version": str(item.version)}]
        assert (runs[item.run_id].data.tags["row"], runs[item.run_id].data.tags["heldout"]) == (name, "test")


def test_several_families_have_a_best_each(done: Finished) -> None:
    board = lines(done.plan, done.store, run_ids={})
    assert best_rows(done.plan, board) == {BEST: TUNED}
    rows = tuple(replace(row, family="parakeet") if not row.trained else row for row in done.plan.rows)
    assert best_rows(replace(done.plan, rows=rows), board) == {
        BEST: TUNED,
        "best-parakeet": BASE,
        "best-whisper": TUNED,
    }
    unread = [line for line in board if line["heldout"] != "dev"]
    assert best_rows(done.plan, unread) == {}, "a sealed set does not choose"


def promote(done: Finished, folder: Path, row: str, run_id: str) -> str:
    export = done.store.find(rows_of(done)[row].exported.folder, key=rows_of(done)[row].exported.key)
    assert export is not None
    bundle = folder / f"{row}-12345678"
    bundle.mkdir(exist_ok=True)
    (bundle / "manifest.json").write_text("{}", encoding="utf-8")
    entry = {
        "action": "promote",
        "bundle": bundle.name,
        "row": row,
        "reason": "the gate let it pass",
        DIGEST_TAG: model_digest(export.files),
    }
    uri = f"sqlite:///{(folder / 'mlflow.db').as_posix()}"
    return register("small", entry=entry, bundle=bundle, run_id=run_id, uri=uri)


def test_a_promotion_marks_the_version_that_is_there_and_a_rebuild_keeps_it(done: Finished, folder: Path) -> None:
    first = project(done, folder)
    store = tracked(folder)
    before = versions(store)
    run_id = first.runs[rows_of(done)[BASE].scored.key]
    assert promote(done, folder, BASE, run_id) == str(before[BASE].version)
    assert promote(done, folder, BASE, run_id) == str(before[BASE].version)
    assert aliases(store) == {BEST: TUNED, "champion": BASE}

    second = project(done, folder, rebuild=True)
    after = versions(store)
    assert set(after) == set(before)
    assert aliases(store) == {BEST: TUNED, "champion": BASE}
    assert after[BASE].description == "the gate let it pass"
    assert after[BASE].tags["bundle"] == f"{BASE}-12345678"
    assert {item.run_id for item in after.values()} <= set(second.runs.values())
    logged = models(store)  # of which none is there twice
    assert {name: item.tags[LOGGED_TAG] for name, item in after.items()} == {
        name: model.model_id for name, model in logged.items()
    }


def delete_registered(store: Tracked) -> None:
    store.client.delete_registered_model("small")


def delete_logged(store: Tracked) -> None:
    for model in models(store).values():
        store.client.delete_logged_model(model.model_id)


def delete_runs(store: Tracked) -> None:
    for run in store.runs():
        store.client.delete_run(run.info.run_id)


@pytest.mark.parametrize("delete", [delete_registered, delete_logged, delete_runs])
def test_what_somebody_deleted_breaks_nothing_and_comes_back(
    done: Finished, folder: Path, delete: Callable[[Tracked], None]
) -> None:
    project(done, folder)
    store = tracked(folder)
    delete(store)
    project(done, folder)
    project(done, folder, rebuild=True)
    assert set(versions(store)) == set(models(store)) == set(rows_of(done))
    assert len([run for run in store.runs() if PARENT_TAG in run.data.tags]) == 9


def test_a_record_from_before_there_were_models(done: Finished, folder: Path) -> None:
    first = project(done, folder)
    record = folder / "runs.json"
    content = json.loads(record.read_text("utf-8"))
    record.write_text(json.dumps({"uri": content["uri"], "runs": content["runs"]}), encoding="utf-8")
    delete_registered(tracked(folder))
    assert project(done, folder).runs == first.runs
    assert len(tracked(folder).runs(stage="score")) == 8


def test_a_row_that_comes_later_changes_the_ranks_of_the_others(tmp_path: Path, folder: Path) -> None:
    suite = SUITE.replace("[whisper_onnx, whisper_ggml]", "[whisper_ggml]").replace(
        "[onnx, whispercpp]", "[whispercpp]"
    )

    def is_late(step: Step) -> bool:
        return step.stage == "transcribe" and "lr1e-5" in step.name

    done = finished(tmp_path / "suite", suite=suite, but=is_late)
    project(done, folder)
    store = tracked(folder)
    assert {run.data.metrics["rank"] for run in store.runs(row=TUNED)} == {1}
    assert aliases(store) == {BEST: TUNED}
    store.client.delete_run(store.runs(row=BASE)[0].info.run_id)

    heard = {row.scored.inputs["transcripts"][0].key: row for row in done.plan.rows}
    for step in done.plan.steps:
        if done.store.find(step.folder, key=step.key) is None:
            finish(step, done.store, row=heard.get(step.key))
    project(done, folder)
    assert {run.data.metrics["rank"] for run in store.runs(row=TUNED)} == {2}
    assert [len(store.runs(row=row)) for row in (TUNED, BETTER, BASE)] == [2, 2, 1], "the same runs"
    assert aliases(store) == {BEST: BETTER}


def test_the_environment(done: Finished, projected: Path) -> None:
    store = tracked(projected)
    (parent,) = [run for run in store.runs() if PARENT_TAG not in run.data.tags]
    path = projected / "artifacts" / parent.info.run_id / "artifacts" / "environment.txt"
    told = path.read_text("utf-8").splitlines()
    assert told[-1] == "device a CPU, 2 threads"
    assert f"python {platform.python_version()}" in told
    assert f"mlflow {version('mlflow')}" in told
    assert platform.node() not in told


def test_the_parent_run_keeps_suite_board_report_and_environment(harness: Harness, tmp_path: Path) -> None:
    whole = finished(tmp_path, suite=SUITE.replace("[1e-5, 3e-5]", "[3e-5]"))
    assert harness("board", whole.path, "--rebuild").code == 0
    store = tracked(tmp_path / "mlruns")
    (parent,) = [run for run in store.runs() if PARENT_TAG not in run.data.tags]
    kept = {item.path for item in store.client.list_artifacts(parent.info.run_id)}
    assert kept == {"small.yaml", "leaderboard.csv", "report.html", "environment.txt"}
    assert len(models(store)) == len(versions(store)) == 4


def test_a_package_that_is_missing_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.board.environment.PACKAGES", ("no-such-package",))
    assert environment([]).splitlines()[-1] == "no-such-package not installed"
