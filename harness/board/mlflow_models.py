"""The exports of a board in MLflow: a logged model each, and a version each of the suite's registered model.

Files of models are not copied: a logged model says where in the store they lie, and how to know that they are the same.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from harness.board.comparison import best_on_dev
from harness.board.devices import model_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from harness.board.leaderboard import Line
    from harness.core.artifact import Artifact
    from harness.engine.plan import Plan, Row

BEST = "best"
"""Alias of what the board would choose: the lowest WER on dev. With several families there is `best-<family>` too."""
EXPORT_FILE = "export.json"
DIGEST_TAG = "model_sha256"
LOGGED_TAG = "logged_model"
"""Of a version: MLflow's own store does not keep this reference."""
VERSIONS_TAG = "mlflow.modelVersions"
"""Of a logged model: its page leads to the version. MLflow's servers write it themselves."""
FORBIDDEN = str.maketrans(dict.fromkeys("/:.%\"'", "-"))
"""In the name of a logged model."""
MIB = 2**20


@dataclass
class Models:
    """What MLflow has of the exports of one suite. All fields are JSON, and part of the projection's record."""

    logged: dict[str, str] = field(default_factory=dict)
    """`model_key` of a row → its logged model."""
    versions: dict[str, str] = field(default_factory=dict)
    """Logged model → its version in the registry."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Alias → version, as it was last set here."""
    replaced: dict[str, str] = field(default_factory=dict)
    """Logged models that a rebuild puts others in the place of, by `model_key`."""

    @classmethod
    def of_record(cls, stored: Mapping[str, Any], *, rebuild: bool) -> Models:
        """An older record has nothing of this."""
        known = cls(**{name: dict(value) for name, value in stored.items()})
        return cls(replaced=known.replaced | known.logged) if rebuild else known

    def as_record(self) -> dict[str, Any]:
        return asdict(self)

    def of_row(self, row: Row) -> str | None:
        return self.logged.get(model_key(row))

    def log(self, row: Row, artifact: Artifact, *, client: Any, experiment: str, source_run: str | None) -> str:
        """The logged model of an export, made if there is none.

        artifact: the export. source_run: that trained it; None for weights that somebody has published.
        """
        key = model_key(row)
        if key not in self.logged:
            self.logged[key] = _log(row, artifact, client=client, experiment=experiment, source_run=source_run)
            old = self.replaced.pop(key, "")
            if old:
                _quietly(lambda: client.delete_logged_model(old))
        return self.logged[key]

    def register(
        self, plan: Plan, board: Sequence[Line], *, runs: Mapping[str, str], connect: Callable[[], Any]
    ) -> bool:
        """Bring the registry up to the board: a version per logged model, and the aliases. Whether there was anything.

        runs: key of a score step → its run; that of a row's first line leads to the version.
        connect: the client, asked for only if there is something to write.
        """
        rows = {(row.row, row.heldout): row for row in plan.rows}
        wanted: dict[str, tuple[Row, str]] = {}
        for line in board:
            row = rows[line["row"], line["heldout"]]
            model, run = self.of_row(row), runs.get(row.scored.key)
            if model and run:
                wanted.setdefault(model, (row, run))
        missing = {model: found for model, found in wanted.items() if model not in self.versions}
        for model, (row, run) in missing.items():
            self.versions[model] = put_version(connect(), plan.suite.suite, model_id=model, row=row.row, run_id=run)
        by_row = {row.row: self.versions[model] for model, (row, _) in wanted.items()}
        aliases = {alias: by_row[row] for alias, row in best_rows(plan, board).items() if row in by_row}
        moved = {alias: version for alias, version in aliases.items() if self.aliases.get(alias) != version}
        for alias, version in moved.items():
            connect().set_registered_model_alias(plan.suite.suite, alias, version)
        self.aliases |= moved
        return bool(missing or moved)


def model_key(row: Row) -> str:
    """A row that is exported anew, or renamed, is another model."""
    return f"{row.row} {row.exported.key}"


def best_rows(plan: Plan, board: Sequence[Line]) -> dict[str, str]:
    """Alias → row. Chosen on dev, as a promotion is; a family without fine-tuned rows gives its best published one."""
    found = {BEST: best_on_dev(plan, board)}
    families = {row.family for row in plan.rows}
    for family in families if len(families) > 1 else ():
        own = {row.row for row in plan.rows if row.family == family}
        tuned = {row.row for row in plan.rows if row.family == family and row.trained}
        found[f"{BEST}-{family}"] = best_on_dev(plan, board, among=tuned or own)
    return {alias: row for alias, row in found.items() if row}


def put_version(client: Any, name: str, *, model_id: str, row: str, run_id: str) -> str:
    """The version of a logged model under the registered model `name`, which is created if it is not there.

    Versions of the same files that point to an older logged model, or to none, give way to new ones with their tags,
    description and aliases: MLflow cannot turn a version to another run. Raises what MLflow raises.
    """
    ensure_model(client, name)
    model = client.get_logged_model(model_id)
    tags = {"row": row, DIGEST_TAG: model.params[DIGEST_TAG], LOGGED_TAG: model_id}
    versions = client.search_model_versions(filter_string=f"name = '{name}'")
    same = [old for old in versions if all(old.tags.get(tag) == tags[tag] for tag in ("row", DIGEST_TAG))]
    newest = ""
    # Oldest first, so that numbers keep their order.
    for old in sorted(same, key=lambda old: int(old.version)) or [None]:
        if old is not None and old.tags.get(LOGGED_TAG) == model_id:
            newest = str(old.version)
            continue
        before, told = (old.tags, old.description) if old else ({}, None)
        created = client.create_model_version(
            name,
            model.artifact_location,
            run_id,
            tags=before | tags,
            description=told,
            await_creation_for=0,
            model_id=model_id,
        )
        newest = str(created.version)
        if old is not None:
            for alias in _aliases(client, name, str(old.version)):
                client.set_registered_model_alias(name, alias, newest)
            client.delete_model_version(name, old.version)
    client.set_logged_model_tags(model_id, {VERSIONS_TAG: json.dumps([{"name": name, "version": newest}])})
    return newest


def ensure_model(client: Any, name: str) -> None:
    """Somebody may have deleted it."""
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        client.create_registered_model(name, tags={"kind": "speech models"})


def _aliases(client: Any, name: str, version: str) -> list[str]:
    return [alias for alias, of in client.get_registered_model(name).aliases.items() if str(of) == version]


def _log(row: Row, artifact: Artifact, *, client: Any, experiment: str, source_run: str | None) -> str:
    from mlflow.entities import LoggedModelOutput

    sizes = {name: (artifact.path / name).stat().st_size for name in artifact.files}
    params = {
        "family": row.family,
        "base": row.base,
        "variant": row.variant,
        "export": row.export,
        "runtime": row.runtime,
        "size_mib": f"{sum(sizes.values()) / MIB:.3f}",
        "store": artifact.path.name,
        DIGEST_TAG: model_digest(artifact.files),
    }
    model = client.create_logged_model(
        experiment,
        name=row.row.translate(FORBIDDEN),
        source_run_id=source_run,
        tags={"row": row.row, "model": row.model},
        params=params,
        model_type=row.family,
    )
    files = [{"name": name, "sha256": sha256, "bytes": sizes[name]} for name, sha256 in sorted(artifact.files.items())]
    with TemporaryDirectory() as folder:
        path = Path(folder) / EXPORT_FILE
        path.write_text(json.dumps({"row": row.row, **params, "files": files}, indent=1) + "\n", encoding="utf-8")
        client.log_model_artifact(model.model_id, str(path))
    client.finalize_logged_model(model.model_id, "READY")
    if source_run:
        _quietly(lambda: client.log_outputs(source_run, [LoggedModelOutput(model.model_id, step=0)]))
    return str(model.model_id)


def _quietly(act: Callable[[], Any]) -> None:
    """For what concerns a run or model that somebody may have deleted."""
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):
        act()
