"""Sets of utterances as MLflow's datasets: what a model was trained on, and what a row was scored on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from harness.core.artifact import Artifact
    from harness.engine.plan import Step

Context = Literal["training", "validation", "testing"]
"""MLflow's own words."""
CONTEXT_TAG = "mlflow.data.context"
DIGEST_LENGTH = 16
"""So much of the key is also in the name of the step's folder; MLflow takes up to 36."""
FIGURES_FILE = "card.json"


def dataset_input(step: Step, artifact: Artifact, *, context: Context) -> Any:
    """An `mlflow.entities.DatasetInput`: its source is the folder in the store, its digest the key of the step.

    step: that selected the set, of which `artifact` came.
    """
    from mlflow.data.dataset_source_registry import get_dataset_source_from_json
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import Dataset, DatasetInput, InputTag

    uri = json.dumps({"uri": artifact.path.resolve().as_posix()})
    source = get_dataset_source_from_json(source_json=uri, source_type="local")
    described = MetaDataset(source, name=set_name(step), digest=set_digest(step)).to_dict()
    profile = json.dumps({**_figures(artifact), **_origins(step)}, ensure_ascii=False)
    return DatasetInput(Dataset(**described, profile=profile), [InputTag(CONTEXT_TAG, context)])


def set_name(step: Step) -> str:
    return step.name.removeprefix(f"{step.stage} ")


def set_digest(step: Step) -> str:
    return step.key[:DIGEST_LENGTH]


def _figures(artifact: Artifact) -> dict[str, Any]:
    """Flat: MLflow's page shows a profile line by line. From the card where the set has one."""
    if FIGURES_FILE in artifact.files:
        card = json.loads((artifact.path / FIGURES_FILE).read_text(encoding="utf-8"))
        more = {"median_clip_s": card["duration_s"]["median"], "median_letters_per_s": card["chars_per_s"]["median"]}
    else:
        card, more = {**artifact.meta, "num_clips": artifact.meta.get("num_utterances")}, {}
    figures = {
        "clips": card["num_clips"],
        "hours": None if card.get("audio_s") is None else round(card["audio_s"] / 3600, 3),
        "speakers": card.get("num_speakers") or None,  # 0: the corpus names none
        **more,
    }
    return {name: value for name, value in figures.items() if value is not None}


def _origins(step: Step) -> dict[str, str]:
    """Where the recordings came from, and under which licence."""
    origins = {}
    for prepared in step.inputs.get("datasets", ()):
        name = set_name(prepared)
        for field, of in (("path", "from"), ("licence", "licence of")):
            if value := getattr(prepared.spec, field, ""):
                origins[f"{of} {name}"] = str(value)
    return origins
