"""Promoted models in MLflow's registry: the aliases champion, previous and candidate.

The board has registered every export under the suite's name already; a promotion says on its version what became of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.board.mlflow_models import DIGEST_TAG, ensure_model
from harness.promote.promotion import CANDIDATE, PROMOTE, ROLLBACK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.promote.history import Entry

CHAMPION = "champion"
PREVIOUS = "previous"
SQLITE = "sqlite:///"
FOLDER = "bundle"
"""Of the row's run: the manifest lies there. The weights stay in the bundle."""
TAGS = ("bundle", "row", "reason", "forced", "by", "when", "target", DIGEST_TAG)


def register(name: str, *, entry: Entry, bundle: Path, run_id: str, uri: str) -> str:
    """Mark the bundle's version of the registered model `name`, and move the aliases. Returns the version.

    Where MLflow has no version of its files, one is added.

    entry: of the history. run_id: of the row's run, whose page then leads to the version. Raises what MLflow raises.
    """
    client = _client(uri)
    ensure_model(client, name)
    version = _known(client, name, entry) or _same_files(client, name, entry) or _created(client, name, run_id)
    client.log_artifact(run_id, str(bundle / "manifest.json"), FOLDER)
    for tag in TAGS:
        client.set_model_version_tag(name, version, tag, str(entry.get(tag, "")))
    client.update_model_version(name, version, description=str(entry["reason"]))
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


def _same_files(client: Any, name: str, entry: Entry) -> str | None:
    """A version of the same row and files that is of no bundle yet."""
    for item in client.search_model_versions(filter_string=f"name = '{name}'"):
        if "bundle" not in item.tags and all(item.tags.get(tag) == entry.get(tag) for tag in ("row", DIGEST_TAG)):
            return str(item.version)
    return None


def _created(client: Any, name: str, run_id: str) -> str:
    source = f"{client.get_run(run_id).info.artifact_uri}/{FOLDER}"
    return str(client.create_model_version(name, source, run_id, await_creation_for=0).version)


def _move_champion(client: Any, name: str, version: str) -> None:
    aliases = dict(client.get_registered_model(name).aliases)
    before = aliases.get(CHAMPION)
    if before is not None and str(before) != version:
        client.set_registered_model_alias(name, PREVIOUS, str(before))
    client.set_registered_model_alias(name, CHAMPION, version)
    if str(aliases.get(CANDIDATE)) == version:
        client.delete_registered_model_alias(name, CANDIDATE)
