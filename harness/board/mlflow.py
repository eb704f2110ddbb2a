"""The board in MLflow: a projection of the store, made once per row and variant, rebuilt when asked.

One experiment per suite; a parent run per `harness run`; below it a run per variant, with its training curves, and a
run per row of the board.
"""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness import __version__
from harness.board.behaviour import BEHAVIOUR
from harness.board.inputs import dataset_input
from harness.core.files import replace_text
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
"""Opens the pages on runs and charts; without it MLflow takes the experiment for one of prompts and traces."""
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
        known = _read_record(record, uri=self.uri)
        self.runs, self._replaced = ({}, known) if rebuild else (known, {})

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
        """Write every row, and every variant's curves, that MLflow does not have yet.

        artifacts: key of a score or train step → its artifact. stopped: variants without rows.
        """
        trained = {row.trained.key: row.trained for row in plan.rows if row.trained}
        for step in (trained | {variant.trial.key: variant.trial for variant in stopped}).values():
            if step.key in artifacts and step.key not in self.runs:
                self._curves(self._run_of(step), artifacts[step.key])
                self.training_ended(step, succeeded=True)
        for variant in stopped:
            self._tag_stopped(variant)
        lines = {(line["row"], line["heldout"]): line for line in board}
        for row in plan.rows:
            if row.scored.key in artifacts and row.scored.key not in self.runs:
                self._row(row, lines[row.row, row.heldout], artifacts[row.scored.key])
            if row.scored.key in self.runs and (row.row, row.heldout) in lines:
                self._behaviour(row, lines[row.row, row.heldout])

    def close(self, *, attach: list[Path], status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """End the parent run, if one was begun, with the board's files attached, and trainings that were cut off."""
        for key in self._training:
            self._open().set_terminated(self.runs[key], "KILLED")
        if self.parent:
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
        if not self.uri.startswith("sqlite:"):
            for name, value in PATIENCE.items():
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
            place = (self.folder / "artifacts").resolve().as_uri() if self.uri.startswith("sqlite:") else None
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
        from mlflow.entities import Metric, Param, RunTag

        client = self._open()
        run_id = self._run(f"{row.row} {row.heldout}", parent=self.parent, tags={"stage": "score", "model": row.model})
        numbers = {
            name: value
            for name, value in line.items()
            if isinstance(value, int | float | bool) and name not in BEHAVIOUR
        }
        words = {name: value for name, value in line.items() if isinstance(value, str) and name != "run_id"}
        decoding = _flat(artifact.meta.get("decoding") or {})
        now_ms = int(time.time() * 1000)
        client.log_batch(
            run_id,
            # MLflow allows no "@" in a name.
            metrics=[Metric(name.replace("@", "/"), float(value), now_ms, 0) for name, value in numbers.items()],
            params=[Param(f"decoding.{name}", str(value)) for name, value in decoding.items()],
            tags=[RunTag(name, value) for name, value in words.items()],
        )
        client.log_artifact(run_id, str(artifact.path / "hypotheses.jsonl"))
        heldout: Context = "testing" if row.split_role == "test" else "validation"
        trained_on = row.trained.inputs["train"] if row.trained else ()
        self._inputs(run_id, {heldout: row.scored.inputs["heldout"], "training": trained_on})
        client.set_terminated(run_id)
        self._remember(row.scored.key, run_id)

    def _behaviour(self, row: Row, line: Line) -> None:
        """What probes found: a suite may add them to rows that MLflow already has."""
        figures = {name: line[name] for name in BEHAVIOUR if line[name] is not None}
        known = f"{row.scored.key} {json.dumps(figures, sort_keys=True)}"
        if figures and known not in self.runs:
            for name, value in figures.items():
                self._open().log_metric(self.runs[row.scored.key], name, value)
            self._remember(known, self.runs[row.scored.key])

    def _remember(self, key: str, run_id: str) -> None:
        from mlflow.exceptions import MlflowException

        self.runs[key] = run_id
        old = self._replaced.pop(key, "")
        # The parts of a training share a run.
        self._replaced = {other: run for other, run in self._replaced.items() if run != old}
        replace_text(self.record, json.dumps({"uri": self.uri, "runs": self._replaced | self.runs}, indent=1))
        if old:
            with suppress(MlflowException):  # somebody has deleted it already
                self._client.delete_run(old)


def _read_record(path: Path, *, uri: str) -> dict[str, str]:
    """The runs that were written to `uri` before; none where the record is damaged or the local store is gone."""
    database = uri.removeprefix("sqlite:///")
    if not path.is_file() or (database != uri and not Path(database).is_file()):
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return dict(stored["runs"]) if stored["uri"] == uri else {}
    except (ValueError, KeyError, TypeError):
        return {}


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
