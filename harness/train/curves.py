"""Training curves into MLflow while the training runs.

The engine passes `MLFLOW_TRACKING_URI` and `MLFLOW_RUN_ID`. A tracking server that is away costs its curve, never the
training: the curves are also in the artifact, from where `harness board --rebuild` brings them back.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

LOG = logging.getLogger(__name__)
CURVES = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "epoch": "epoch",
    "eval_loss": "dev_loss",
    "eval_wer": "dev_wer",
    "eval_cer": "dev_cer",
}
"""The trainer's name → MLflow's."""


def curve_logger() -> Any:
    """A TrainerCallback that sends every logged number to the MLflow run named in the environment, if any."""
    from transformers import TrainerCallback

    class CurveLogger(TrainerCallback):  # type: ignore[misc]  # untyped
        def __init__(self) -> None:
            self.run_id = os.environ.get("MLFLOW_RUN_ID", "")
            self.client: Any = None
            if self.run_id:
                from mlflow import MlflowClient

                self.client = MlflowClient()

        def on_log(self, _args: Any, state: Any, _control: Any, logs: dict[str, Any], **_: Any) -> None:
            if self.client is None:
                return
            try:
                self.client.log_batch(self.run_id, metrics=curve_metrics(logs, step=state.global_step))
            except Exception as error:  # noqa: BLE001  # whatever a tracking server does, training goes on
                LOG.warning("MLflow took no curve point at step %d: %s", state.global_step, error)

    return CurveLogger()


def curve_metrics(logs: dict[str, Any], *, step: int) -> list[Any]:
    """One log entry of the trainer as MLflow metrics; what it says about its own run time is left out."""
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    return [Metric(CURVES[name], float(value), now_ms, step) for name, value in logs.items() if name in CURVES]
