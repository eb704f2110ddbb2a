"""The board in MLflow: a projection of the store, made once per row and variant, rebuilt when asked.

One experiment per suite; a parent run per `harness run`; below it a run per variant, with its training curves, and a
run per row of the board. Each export is a logged model that its rows refer to.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness import __version__
from harness.board.environment import ENVIRONMENT_FILE, environment
from harness.board.inputs import dataset_input, set_digest, set_name
from harness.board.mlflow_models import Models
from harness.core.files import parse_json_file, replace_text
from harness.core.manifests import read_jsonl
from harness.engine.search import RESUMED, trained_name
from harness.errors import MissingError
from harness.train.curves import curve_metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from harness.board.inputs import Context
    from harness.board.leaderboard import Line
    from harness.core.artifact import Artifact
    from harness.engine.plan import Plan, Row, Step
    from harness.engine.search import Stopped

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Says that it is of trained models. MLflow's page may open on prompts and traces all the same, until it is told."""
PARENT_TAG = "mlflow.parentRunId"
STOPPED_TAG = "stopped_at_step"
"""Of a variant that a search has stopped."""
METRICS_PER_CALL = 500
"""MLflow takes at most 1,000 metrics at once."""
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""For a server, unless the user says otherwise: MLflow's own defaults wait for minutes, at every call."""
SILENCE = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
"""A server's client prints a line for each run that ends, into the board that a program reads."""


def default_uri(folder: Path) -> str:
    """`MLFLOW_TRACKING_URI`, or the SQLite store in `folder`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').resolve().as_posix()}"


class Projection:
    """Writes one suite into MLflow. Nothing is imported or opened before there is something to write."""

    def __init__(
        self,
        suite: str,
        *,
        folder: Path,
        record: Path,
        find: Callable[[Step], Artifact | None] = lambda _step: None,
        rebuild: bool = False,
    ) -> None:
        """folder: of the local store and artifacts. record: file that remembers which run is whose.

        find: the artifact of a step that selected a set, for the runs' dataset inputs.
        """
        self.suite = suite
        self.find = find
        self.folder = folder
        self.record = record
        self.uri = default_uri(folder)
        self.runs: dict[str, str] = {}
        """Key of a score or train step → its run."""
        self.parent = ""
        self._client: Any = None
        self._experiment = ""
        self._training: set[str] = set()
        self._refusal: Exception | None = None
        self._replaced: dict[str, str] = {}
        """Runs that a rebuild puts others in the place of."""
        self._figures: dict[str, str] = {}
        """Key of a score step → hash of its line as MLflow has it: ranks and intervals change with other rows."""
        self._devices: list[str] = []
        known = _read_record(record, uri=self.uri)
        self.runs, self._replaced = ({}, known["runs"]) if rebuild else (known["runs"], {})
        self._figures = {} if rebuild else known["figures"]
        self.models = Models.of_record(known["models"], rebuild=rebuild)

    @property
    def is_served(self) -> bool:
        """Whether other machines can write to it; a database in a file is of this one alone."""
        return not self.uri.startswith("sqlite:")

    def training_environment(self, step: Step) -> dict[str, str]:
        """Where the process of a train step logs its curves; a resumed training goes on in its old run."""
        run_id = self._run_of(step)
        self._open().update_run(run_id, status="RUNNING")
        self._training.add(step.key)
        return {"MLFLOW_TRACKING_URI": self.uri, "MLFLOW_RUN_ID": run_id}

    def training_ended(self, step: Step, *, succeeded: bool) -> None:
        self._training.discard(step.key)
        if step.key in self.runs:
            self._open().set_terminated(self.runs[step.key], "FINISHED" if succeeded else "FAILED")

    def project(
        self, plan: Plan, board: list[Line], *, artifacts: dict[str, Artifact], stopped: Sequence[Stopped] = ()
    ) -> None:
        """Write every row, and every variant's curves, that MLflow does not have yet, or has with other figures.

        artifacts: key of a score or train step → its artifact. stopped: variants without rows.
        """
        self._devices = [line["device"] for line in board if line["device"]]
        trained = {row.trained.key: row.trained for row in plan.rows if row.trained}
        for step in (trained | {variant.trial.key: variant.trial for variant in stopped}).values():
            if step.key in artifacts and step.key not in self.runs:
                self._curves(self._run_of(step), artifacts[step.key])
                self.training_ended(step, succeeded=True)
        for variant in stopped:
            self._tag_stopped(variant)
        rows = {(row.row, row.heldout): row for row in plan.rows}
        # The best last: among equal figures MLflow's page puts the latest run first.
        for line in reversed(board):
            row = rows[line["row"], line["heldout"]]
            if row.scored.key in artifacts and row.scored.key not in self.runs:
                self._row(row, line, artifacts[row.scored.key])
            elif row.scored.key in self.runs and self._figures.get(row.scored.key) != _hash(line):
                self._refresh(row, line)
        if self.models.register(plan, board, runs=self.runs, connect=self._open):
            self._save()

    def close(self, *, attach: list[Path], status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """End the parent run, if one was begun, with the board's files attached, and trainings that were cut off."""
        for key in self._training:
            self._open().set_terminated(self.runs[key], "KILLED")
        if self.parent:
            self._open().log_text(self.parent, environment(self._devices), ENVIRONMENT_FILE)
            for path in attach:
                self._open().log_artifact(self.parent, str(path))
            self._open().set_terminated(self.parent, status)

    def _open(self) -> Any:
        if self._refusal:
            raise self._refusal  # a server that is away is not asked, and waited for, at every step
        if self._client is None:
            try:
                self._client, self._experiment = self._connect()
                self.parent = self._run(f"run of {self.suite}", parent="", tags={"harness": __version__})
            except Exception as error:
                self._refusal, self._client = error, None
                raise
        return self._client

    def _connect(self) -> tuple[Any, str]:
        """A client, and the suite's experiment."""
        if self.is_served:
            for name, value in (PATIENCE | {SILENCE: "true"}).items():
                os.environ.setdefault(name, value)
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            raise MissingError("MLflow is not installed; run: pip install '.[train]'") from error
        # It tells how it makes its tables.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        self.folder.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        known = client.get_experiment_by_name(self.suite)
        if known is None:
            # A server keeps artifacts where it was told to; the local store's lie beside its database.
            place = None if self.is_served else (self.folder / "artifacts").resolve().as_uri()
            return client, str(client.create_experiment(self.suite, artifact_location=place, tags=EXPERIMENT_TAGS))
        if known.lifecycle_stage == "deleted":
            client.restore_experiment(known.experiment_id)
        return client, str(known.experiment_id)

    def _run(self, name: str, *, parent: str, tags: dict[str, str]) -> str:
        tags = {**tags, **({PARENT_TAG: parent} if parent else {})}
        return str(self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id)

    def _variant(self, step: Step) -> str:
        client = self._open()
        run_id = self._run(trained_name(step), parent=self.parent, tags={"stage": "train"})
        for name, value in _flat(step.spec.identity()).items():
            if name != "until":  # where its first part ends
                client.log_param(run_id, name, value)
        self._inputs(run_id, {"training": step.inputs["train"], "validation": step.inputs["dev"]})
        self._remember(step.key, run_id)
        return run_id

    def _run_of(self, step: Step) -> str:
        """The run of a training, begun if there is none: its parts up to the rungs of a search share one."""
        parts = [step, *step.inputs.get(RESUMED, ())]
        known = next((self.runs[part.key] for part in parts if part.key in self.runs), "")
        if known and step.key not in self.runs:
            self._remember(step.key, known)
        return known or self._variant(step)

    def _tag_stopped(self, variant: Stopped) -> None:
        """Say at which step a search has stopped a variant."""
        told = f"{variant.trial.key} stopped"
        run_id = self.runs.get(variant.trial.key)
        if run_id and told not in self.runs:
            self._open().set_tag(run_id, STOPPED_TAG, str(variant.step))
            self._remember(told, run_id)

    def _inputs(self, run_id: str, sets: Mapping[Context, Sequence[Step]]) -> None:
        """Name the sets that a run used; `mlflow.data` shows them on its page."""
        found = [(step, self.find(step), context) for context, steps in sets.items() for step in steps]
        inputs = [dataset_input(step, artifact, context=context) for step, artifact, context in found if artifact]
        if inputs:
            self._client.log_inputs(run_id, inputs)

    def _curves(self, run_id: str, artifact: Artifact) -> None:
        metrics = [
            metric
            for entry in read_jsonl(artifact.path / "curves.jsonl")
            for metric in curve_metrics(entry, step=entry["step"])
        ]
        for start in range(0, len(metrics), METRICS_PER_CALL):
            self._open().log_batch(run_id, metrics=metrics[start : start + METRICS_PER_CALL])

    def _row(self, row: Row, line: Line, artifact: Artifact) -> None:
        from mlflow.entities import LoggedModelInput, Param

        client = self._open()
        run_id = self._run(f"{row.row} {row.heldout}", parent=self.parent, tags={"stage": "score", "model": row.model})
        model_id = self._model(row)
        if model_id:
            client.log_inputs(run_id, models=[LoggedModelInput(model_id)])
        self._log_figures(run_id, row, line)
        decoding = _flat(artifact.meta.get("decoding") or {})
        client.log_batch(run_id, params=[Param(f"decoding.{name}", str(value)) for name, value in decoding.items()])
        client.log_artifact(run_id, str(artifact.path / "hypotheses.jsonl"))
        heldout: Context = "testing" if row.split_role == "test" else "validation"
        trained_on = row.trained.inputs["train"] if row.trained else ()
        self._inputs(run_id, {heldout: row.scored.inputs["heldout"], "training": trained_on})
        client.set_terminated(run_id)
        self._figures[row.scored.key] = _hash(line)
        self._remember(row.scored.key, run_id)

    def _model(self, row: Row) -> str | None:
        """The logged model of a row's export; None where the export is not at hand."""
        artifact = self.find(row.exported)
        if artifact is None:
            return None
        source_run = self.runs.get(row.trained.key) if row.trained else None
        model_id = self.models.log(
            row, artifact, client=self._client, experiment=self._experiment, source_run=source_run
        )
        self._save()
        return model_id

    def _log_figures(self, run_id: str, row: Row, line: Line) -> None:
        from mlflow.entities import Metric, RunTag

        numbers = {name: value for name, value in line.items() if isinstance(value, int | float | bool)}
        words = {name: value for name, value in line.items() if isinstance(value, str) and name != "run_id"}
        now_ms = int(time.time() * 1000)
        model_id = self.models.of_row(row)
        (heldout,) = row.scored.inputs["heldout"]
        of_model = {"model_id": model_id, "dataset_name": set_name(heldout), "dataset_digest": set_digest(heldout)}
        self._open().log_batch(
            run_id,
            # MLflow allows no "@" in a name.
            metrics=[
                Metric(name.replace("@", "/"), float(value), now_ms, 0, **(of_model if model_id else {}))
                for name, value in numbers.items()
            ],
            tags=[RunTag(name, value) for name, value in words.items()],
        )

    def _refresh(self, row: Row, line: Line) -> None:
        """Other rows, probes and machines change the line of a row that MLflow already has."""
        run_id = self.runs[row.scored.key]
        if self._open().get_run(run_id).info.lifecycle_stage == "active":  # else somebody has deleted it
            self._log_figures(run_id, row, line)
        self._figures[row.scored.key] = _hash(line)
        self._save()

    def _remember(self, key: str, run_id: str) -> None:
        from mlflow.exceptions import MlflowException

        self.runs[key] = run_id
        old = self._replaced.pop(key, "")
        # The parts of a training share a run.
        self._replaced = {other: run for other, run in self._replaced.items() if run != old}
        self._save()
        if old:
            with suppress(MlflowException):  # somebody has deleted it already
                self._client.delete_run(old)

    def _save(self) -> None:
        record = {
            "uri": self.uri,
            "runs": self._replaced | self.runs,
            "figures": self._figures,
            "models": self.models.as_record(),
        }
        replace_text(self.record, json.dumps(record, indent=1))


def _read_record(path: Path, *, uri: str) -> dict[str, Any]:
    """What was written to `uri` before; nothing where the record is damaged or the local store is gone.

    Older records have runs only.
    """
    nothing: dict[str, Any] = {"runs": {}, "figures": {}, "models": {}}
    database = uri.removeprefix("sqlite:///")
    if not path.is_file() or (database != uri and not Path(database).is_file()):
        return nothing
    try:
        stored = parse_json_file(path)
        if stored["uri"] != uri:
            return nothing
        known = nothing | {"runs": stored["runs"]} | {name: stored[name] for name in nothing if name in stored}
        Models.of_record(known["models"], rebuild=False)
        return {name: dict(value) for name, value in known.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return nothing


def _hash(line: Line) -> str:
    """Of what a line tells. `sealed_readings` grows by looking at it."""
    told = {name: value for name, value in line.items() if name not in {"run_id", "sealed_readings"}}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
