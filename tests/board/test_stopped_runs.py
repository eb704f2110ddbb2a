"""Variants that a search has stopped, in a real MLflow on a SQLite file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from harness.board.leaderboard import lines
from harness.board.mlflow import STOPPED_TAG, Projection, default_uri
from harness.engine.local import LocalExecutor
from harness.engine.search import stopped, surviving
from harness.engine.walk import run_steps
from tests.engine.test_stopping import Quiet, searched, steps_of, with_everything_but_verdicts

if TYPE_CHECKING:
    from pathlib import Path

    from harness.engine.plan import Plan
    from harness.engine.store import Store


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Store]:
    folder = tmp_path_factory.mktemp("ran")
    planned = searched(folder)
    store = with_everything_but_verdicts(planned, folder)
    run_steps(planned.steps, store=store, executor=LocalExecutor(folder / "logs", jobs=2), listener=Quiet())
    return planned, store


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "mlruns"


def projection(folder: Path, **options: Any) -> Projection:
    return Projection("small", folder=folder, record=folder / "runs.json", **options)


def project(into: Projection, planned: Plan, store: Store) -> None:
    left, ended = surviving(planned, store), stopped(planned, store)
    keyed = [step for row in left.rows for step in (row.scored, row.trained) if step]
    keyed += [variant.trial for variant in ended]
    artifacts = {step.key: store.find(step.folder, key=step.key) for step in keyed}
    into.project(left, lines(left, store, run_ids={}), artifacts=artifacts, stopped=ended)
    into.close(attach=[], status="FINISHED")


def trainings(folder: Path) -> dict[str, Any]:
    """Name → run, of what MLflow shows."""
    client = MlflowClient(tracking_uri=default_uri(folder))
    experiment = client.get_experiment_by_name("small")
    runs = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ACTIVE_ONLY, max_results=1000)
    found = [run for run in runs if run.data.tags.get("stage") == "train"]
    assert len({run.info.run_name for run in found}) == len(found), "a run for each variant"
    return {run.info.run_name: run for run in found}


def tags(folder: Path) -> dict[str, str | None]:
    return {name: run.data.tags.get(STOPPED_TAG) for name, run in trainings(folder).items()}


TAGS = {"base lr1e-5": "10", "base lr3e-4": "10", "base lr1e-4": "50", "base lr3e-5": None}


def test_the_parts_of_a_training_share_a_run_and_stopped_ones_are_tagged(ran: Any, folder: Path) -> None:
    planned, store = ran
    live = projection(folder)
    trained = steps_of(planned, "train")
    parts = [trained[f"base lr3e-5{to}"] for to in (" to 10", " to 50", "")]
    runs = set()
    for part in parts:
        runs.add(live.training_environment(part)["MLFLOW_RUN_ID"])
        live.training_ended(part, succeeded=True)
    assert len(runs) == 1
    # As it ran: the run was left while it could still go on.
    live.training_environment(trained["base lr1e-4 to 10"])
    live.training_environment(trained["base lr1e-4 to 50"])
    project(live, planned, store)
    assert tags(folder) == TAGS
    (run_id,) = runs
    assert trainings(folder)["base lr3e-5"].info.run_id == run_id
    assert "until" not in trainings(folder)["base lr3e-5"].data.params
    # Nothing is written twice.
    before = (folder / "runs.json").read_text(encoding="utf-8")
    project(projection(folder), planned, store)
    assert (folder / "runs.json").read_text(encoding="utf-8") == before
    assert tags(folder) == TAGS


def test_a_board_built_anew_has_the_same(ran: Any, folder: Path) -> None:
    planned, store = ran
    for rebuild in (False, True):
        project(projection(folder, rebuild=rebuild), planned, store)
        assert tags(folder) == TAGS
        shown = {run.info.run_id for run in trainings(folder).values()}
        known = json.loads((folder / "runs.json").read_text(encoding="utf-8"))["runs"]
        of_trainings = {known[step.key] for step in planned.steps if step.stage == "train" and step.key in known}
        assert of_trainings == shown
    dev_wers = trainings(folder)["base lr1e-4"].data.metrics
    assert dev_wers["dev_wer"] == 0.25
