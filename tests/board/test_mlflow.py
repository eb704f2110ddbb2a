"""Against a real MLflow on a SQLite file; its empty tables are made once."""

from __future__ import annotations

import json
import shutil
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from mlflow import MlflowClient
from mlflow.data import get_source
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

from harness.board import mlflow as module
from harness.board.inputs import dataset_input
from harness.board.leaderboard import COLUMNS, lines
from harness.board.mlflow import PARENT_TAG, PATIENCE, SILENCE, Projection, default_uri
from harness.core.manifests import write_manifests
from harness.core.records import Utterance
from harness.data.card import FIGURES_FILE, write_card
from tests.boards import SUITE, Finished, finished
from tests.conftest import artifact


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One variant and one export beside the base model: four rows."""
    suite = SUITE.replace("[1e-5, 3e-5]", "[3e-5]").replace("[whisper_onnx, whisper_ggml]", "[whisper_ggml]")
    return finished(tmp_path_factory.mktemp("done"), suite=suite.replace("[onnx, whispercpp]", "[whispercpp]"))


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path.as_posix()}").search_experiments()
    return path


@pytest.fixture
def folder(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlruns").mkdir()
    shutil.copyfile(empty_database, tmp_path / "mlruns" / "mlflow.db")
    return tmp_path / "mlruns"


@pytest.fixture(scope="module")
def projected(done: Finished, empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests that only read."""
    folder = tmp_path_factory.mktemp("projected")
    shutil.copyfile(empty_database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        project(done, folder)
    return folder


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nobody had set anything; put back afterwards."""
    for name in (*PATIENCE, SILENCE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@dataclass
class Tracked:
    """What a store of MLflow holds after a projection."""

    client: MlflowClient
    experiment: Any

    def runs(self, view: int = ViewType.ACTIVE_ONLY, **tags: str) -> list[Any]:
        found = self.client.search_runs([self.experiment.experiment_id], run_view_type=view, max_results=1000)
        return [run for run in found if tags.items() <= run.data.tags.items()]


def tracked(folder: Path, suite: str = "small") -> Tracked:
    client = MlflowClient(tracking_uri=default_uri(folder))
    return Tracked(client, client.get_experiment_by_name(suite))


def project(done: Finished, folder: Path, *, rebuild: bool = False) -> Projection:
    keyed = [step for row in done.plan.rows for step in (row.scored, row.trained) if step]
    found = {step.key: done.store.find(step.folder, key=step.key) for step in keyed}
    artifacts = {key: artifact for key, artifact in found.items() if artifact}
    projection = Projection(
        "small",
        folder=folder,
        record=folder / "runs.json",
        find=lambda step: done.store.find(step.folder, key=step.key),
        rebuild=rebuild,
    )
    board = lines(done.plan, done.store, run_ids={})
    projection.project(done.plan, board, artifacts=artifacts)
    projection.close(attach=[done.path], status="FINISHED")
    return projection


def test_figures_by_another_profile_have_names_that_mlflow_allows(folder: Path, tmp_path: Path) -> None:
    done = finished(tmp_path / "suite", suite=SUITE.replace("resamples: 200", "resamples: 200, also: [ru-strict]"))
    project(done, folder)
    board = {(line["row"], line["heldout"]): line for line in lines(done.plan, done.store, run_ids={})}
    runs = tracked(folder).runs(stage="score")
    assert len(runs) == len(board)
    for run in runs:
        line = board[run.data.tags["row"], run.data.tags["heldout"]]
        assert run.data.metrics["wer/ru-strict"] == line["wer@ru-strict"]


def test_a_board_in_mlflow(projected: Path) -> None:
    store = tracked(projected)
    assert store.experiment.artifact_location == (projected / "artifacts").resolve().as_uri()

    (parent,) = [run for run in store.runs() if PARENT_TAG not in run.data.tags]
    assert (parent.info.run_name, parent.info.status) == ("run of small", "FINISHED")
    assert [item.path for item in store.client.list_artifacts(parent.info.run_id)] == ["environment.txt", "small.yaml"]

    variants = {run.info.run_name: run for run in store.runs(stage="train")}
    assert set(variants) == {"base lr3e-5"}
    rows = {run.info.run_name: run for run in store.runs(stage="score")}
    assert set(rows) == {f"base_{v}_ggml-f16 {heldout}" for v in ("zero-shot", "lr3e-5") for heldout in ("dev", "test")}
    for run in [*variants.values(), *rows.values()]:
        assert run.data.tags[PARENT_TAG] == parent.info.run_id
        assert run.info.status == "FINISHED"
    recorded = json.loads((projected / "runs.json").read_text("utf-8"))["runs"]
    assert len(recorded) == 5
    assert set(recorded.values()) == {run.info.run_id for run in [*variants.values(), *rows.values()]}


def test_a_variant_has_its_curves_and_parameters(projected: Path) -> None:
    store = tracked(projected)
    (run,) = store.runs(stage="train")
    parameters = run.data.params
    assert (parameters["learning_rate"], parameters["max_steps"], parameters["packing.window_s"]) == (
        "3e-05",
        "100",
        "29.5",
    )
    losses = store.client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in losses] == [(step, 1 / step) for step in range(10, 101, 10)]
    assert run.data.metrics["dev_wer"] == 0.1
    assert run.data.metrics["dev_loss"] == 0.2


def test_a_row_has_the_names_of_the_csv(done: Finished, projected: Path) -> None:
    store = tracked(projected)
    line = lines(done.plan, done.store, run_ids={})[0]
    (run,) = [item for item in store.runs(stage="score") if item.info.run_name == f"{line['row']} {line['heldout']}"]
    metrics, tags = run.data.metrics, run.data.tags
    assert set(metrics) <= set(COLUMNS)
    for name, value in line.items():
        if value is None or name == "run_id":
            assert name not in metrics
        elif isinstance(value, str):
            assert tags[name] == value
        else:
            assert metrics[name] == pytest.approx(float(value))
    assert "peak_vram_mib" not in metrics, "not measured is not 0"
    assert run.data.params == {"decoding.strategy": "greedy", "decoding.language": "ru", "decoding.threads": "2"}
    assert [item.path for item in store.client.list_artifacts(run.info.run_id)] == ["hypotheses.jsonl"]
    (point,) = store.client.get_metric_history(run.info.run_id, "wer")
    assert abs(point.timestamp - run.info.start_time) < 600_000, "the day of the run, not 1970"


def sets(run: Any) -> dict[str, str]:
    """Context → name of the set."""
    return {tag.value: item.dataset.name for item in run.inputs.dataset_inputs for tag in item.tags}


def test_runs_name_the_sets_that_they_used(done: Finished, projected: Path) -> None:
    store = tracked(projected)
    used = {run.info.run_name: sets(run) for run in [*store.runs(stage="train"), *store.runs(stage="score")]}
    assert used == {
        "base lr3e-5": {"training": "train", "validation": "dev"},
        "base_zero-shot_ggml-f16 dev": {"validation": "dev"},
        "base_zero-shot_ggml-f16 test": {"testing": "test"},
        "base_lr3e-5_ggml-f16 dev": {"training": "train", "validation": "dev"},
        "base_lr3e-5_ggml-f16 test": {"training": "train", "testing": "test"},
    }
    (run,) = store.runs(stage="train")
    selected = next(step for step in done.plan.steps if step.name == "select train")
    (dataset,) = [item.dataset for item in run.inputs.dataset_inputs if item.dataset.name == "train"]
    assert selected.folder == f"select-{dataset.digest}"
    profile = json.loads(dataset.profile)
    assert (profile["clips"], profile["hours"]) == (24, round(48 / 3600, 3))
    assert profile["licence of aelita"] == "by permission"
    assert profile["from aelita"].endswith("manifest.jsonl")
    # MLflow itself finds its way back to the manifests.
    assert Path(get_source(dataset).load()) == (done.store.root / selected.folder).resolve()


def test_a_set_with_a_card_says_more(done: Finished, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "0.wav", np.zeros(32_000), 16_000)
    write_manifests(tmp_path, [Utterance("0", "0.wav", "0" * 64, "да", 2.0)])
    write_card(tmp_path, title="train", licences={})
    selected = next(step for step in done.plan.steps if step.name == "select train")
    item = dataset_input(selected, replace(artifact(tmp_path), files={FIGURES_FILE: ""}), context="training")
    profile = json.loads(item.dataset.profile)
    assert (profile["clips"], "speakers" in profile) == (1, False), "nobody is named, which is not 0"
    assert profile["median_clip_s"] == pytest.approx(2.0, abs=0.01)
    assert profile["median_letters_per_s"] == pytest.approx(1.0, abs=0.05)


def test_a_second_projection_writes_nothing(done: Finished, projected: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(Projection, "_open", lambda _self: pytest.fail("MLflow was opened"))
    assert len(project(done, projected).runs) == 5


def test_rebuild_puts_new_runs_in_the_place_of_the_old(done: Finished, folder: Path) -> None:
    first = project(done, folder)
    second = project(done, folder, rebuild=True)
    assert set(second.runs) == set(first.runs)
    assert not set(second.runs.values()) & set(first.runs.values())
    store = tracked(folder)
    children = [run.info.run_id for run in store.runs() if PARENT_TAG in run.data.tags]
    assert sorted(children) == sorted(second.runs.values()), "nothing stands there twice"
    deleted = {run.info.run_id for run in store.runs(view=ViewType.DELETED_ONLY)}
    assert deleted == set(first.runs.values())
    assert json.loads((folder / "runs.json").read_text("utf-8"))["runs"] == second.runs


def test_rebuild_after_somebody_deleted_a_run(done: Finished, folder: Path) -> None:
    first = project(done, folder)
    tracked(folder).client.delete_run(next(iter(first.runs.values())))
    assert len(project(done, folder, rebuild=True).runs) == 5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"uri": 1}',
        '{"uri": "%URI%"}',
        '{"uri": "elsewhere", "runs": {"a": "b"}}',
        '{"uri": "%URI%", "runs": {"a": "b"}, "models": {"logged": 1}}',
    ],
)
def test_a_record_that_does_not_fit_is_not_believed(folder: Path, text: str) -> None:
    record = folder / "runs.json"
    record.write_text(text.replace("%URI%", default_uri(folder)), encoding="utf-8")
    assert Projection("small", folder=folder, record=record).runs == {}


def test_a_record_without_its_database_is_not_believed(folder: Path) -> None:
    record = folder / "runs.json"
    record.write_text(json.dumps({"uri": default_uri(folder), "runs": {"a": "b"}}), encoding="utf-8")
    assert Projection("small", folder=folder, record=record).runs == {"a": "b"}
    (folder / "mlflow.db").unlink()
    assert Projection("small", folder=folder, record=record).runs == {}


def test_a_deleted_experiment_comes_back(folder: Path) -> None:
    client = tracked(folder).client
    client.delete_experiment(client.create_experiment("small"))
    Projection("small", folder=folder, record=folder / "runs.json")._open()
    assert tracked(folder).experiment.lifecycle_stage == "active"


def test_a_training_while_it_runs(done: Finished, folder: Path) -> None:
    projection = Projection("small", folder=folder, record=folder / "runs.json")
    step = next(row.trained for row in done.plan.rows if row.trained)
    environment = projection.training_environment(step)
    assert environment == {"MLFLOW_TRACKING_URI": default_uri(folder), "MLFLOW_RUN_ID": projection.runs[step.key]}
    client, run_id = tracked(folder).client, environment["MLFLOW_RUN_ID"]
    assert client.get_run(run_id).info.status == "RUNNING"

    # Ctrl-C: nothing goes on running in MLflow.
    projection.close(attach=[], status="KILLED")
    assert {run.info.status for run in tracked(folder).runs()} == {"KILLED"}

    # The next `harness run` goes on in the same run.
    again = Projection("small", folder=folder, record=folder / "runs.json")
    assert again.training_environment(step)["MLFLOW_RUN_ID"] == run_id
    assert client.get_run(run_id).info.status == "RUNNING"
    again.training_ended(step, succeeded=False)
    assert client.get_run(run_id).info.status == "FAILED"
    again.training_ended(step, succeeded=True)
    assert client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.usefixtures("patience")
def test_a_server_that_is_away_is_asked_once_and_briefly(
    done: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setitem(PATIENCE, "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    asked: list[str] = []
    connect = Projection._connect
    monkeypatch.setattr(Projection, "_connect", lambda self: asked.append("") or connect(self))
    projection = Projection("small", folder=tmp_path, record=tmp_path / "runs.json")
    step = next(row.trained for row in done.plan.rows if row.trained)
    for _ in range(3):
        with pytest.raises(MlflowException, match="Max retries exceeded"):
            projection.training_environment(step)
    assert len(asked) == 1
    projection.close(attach=[done.path], status="FINISHED")
    assert not (tmp_path / "runs.json").exists()


@pytest.mark.usefixtures("patience")
def test_patience_is_what_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(MlflowException):
        Projection("small", folder=tmp_path, record=tmp_path / "runs.json")._open()
    assert module.os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
    assert module.os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "20"
    assert module.os.environ[SILENCE] == "true"
