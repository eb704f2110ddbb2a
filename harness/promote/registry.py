"""Promoted models in MLflow's registry: a version each, and the aliases champion, previous and candidate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.promote.promotion import CANDIDATE, PROMOTE, ROLLBACK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.promote.history import Entry

CHAMPION = "champion"
PREVIOUS = "previous"
SQLITE = "sqlite:///"
FOLDER = "bundle"
"""Of the row's run: the manifest lies there, and the version points to it. The weights stay in the bundle."""
TAGS = ("bundle", "row", "reason", "forced", "by", "when", "target", "model_sha256")


def register(name: str, *, entry: Entry, bundle: Path, run_id: str, uri: str) -> str:
    """Add a version of the registered model `name`, and move the aliases. Returns the version.

    entry: of the history. run_id: of the row's run, whose page then leads to the version. Raises what MLflow raises.
    """
    client = _client(uri)
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        client.create_registered_model(name, tags={"kind": "promoted speech models"})
    version = _known(client, name, entry) or _created(client, name, entry, bundle=bundle, run_id=run_id)
    if entry["action"] == PROMOTE:
        _move_champion(client, name, version)
    else:
        client.set_registered_model_alias(name, CANDIDATE, version)
    return version


def follow_rollback(name: str, *, entries: Sequence[Entry], uri: str) -> None:
    """Move the aliases after the last rollback of a history."""
    if not entries or entries[-1]["action"] != ROLLBACK:
        return
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).is_file():
        return  # nothing was ever written there
    client = _client(uri)
    version = _known(client, name, entries[-1])
    if version:
        _move_champion(client, name, version)


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _known(client: Any, name: str, entry: Entry) -> str | None:
    """The version of the same bundle."""
    for item in client.search_model_versions(filter_string=f"name = '{name}'"):
        if item.tags.get("bundle") == entry["bundle"]:
            return str(item.version)
    return None


def _created(client: Any, name: str, entry: Entry, *, bundle: Path, run_id: str) -> str:
    client.log_artifact(run_id, str(bundle / "manifest.json"), FOLDER)
    tags = {tag: str(entry.get(tag, "")) for tag in TAGS}
    source = f"{client.get_run(run_id).info.artifact_uri}/{FOLDER}"
    created = client.create_model_version(name, source, run_id, tags=tags, description=str(entry["reason"]))
    return str(created.version)


def _move_champion(client: Any, name: str, version: str) -> None:
    aliases = dict(client.get_registered_model(name).aliases)
    before = aliases.get(CHAMPION)
    if before is not None and str(before) != version:
        client.set_registered_model_alias(name, PREVIOUS, str(before))
    client.set_registered_model_alias(name, CHAMPION, version)
    if str(aliases.get(CANDIDATE)) == version:
        client.delete_registered_model_alias(name, CANDIDATE)
