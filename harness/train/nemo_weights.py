"""Base weights of NeMo models: finding the `.nemo` file that a suite's `base:` names, or making one from a config.

Looked for in this order: a file or folder on this machine, the project's cache, Hugging Face's local cache, the hub.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import harness.suite.spec
from harness.core.files import link_or_copy
from harness.core.nemo_file import check_nemo
from harness.errors import DataError, MissingError, first_line
from harness.suite.spec import Seed
from harness.train.nemo_config import build, locate
from harness.train.tokenizer import FEW_LETTERS, config_vocabulary, missing_letters
from harness.train.weights import HUB_ID, HUB_TIMEOUT_S, cache_folder, licence

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.core.artifact import Inputs, Work

VERSION = 1
SUFFIX = ".nemo"
MODEL_FILE = "model.nemo"


class Spec(harness.suite.spec.Spec):
    """The base weights of a NeMo model. No kind: a suite names them by a model's `base:`."""

    base: str = ""
    """A `.nemo` file, a folder with one, or an id on the Hugging Face hub; empty with `config`."""
    revision: str = "main"
    """Of the hub's repository: a branch, a tag or a commit."""
    config: str = ""
    """A model's configuration (a YAML file, or the name of one that comes with harness): random weights."""
    seed: Seed = 17
    """Of random weights."""
    vocabulary: Literal["kept", "replaced"] = "kept"
    """replaced: every variant trains a tokenizer of its own, so that the base need not know Russian letters."""

    def identity(self) -> dict[str, Any]:
        """A local file counts by its content, which `outside` names, and not by where it lies."""
        local = {"base": "file", "config": ""} if self.base else {"base": "", "config": "file"}
        return {**super().identity(), **(local if self.outside() else {})}

    def outside(self) -> list[Path]:
        if self.config:
            return [locate(self.config)]
        path = Path(self.base).expanduser()
        return [path.absolute()] if path.exists() else []


class _NotHereError(Exception):
    """One place has no weights; the message is the reason."""


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:  # noqa: ARG001 - a step's signature
    """Place the base weights, checked, in `model/model.nemo`."""
    target = work.path / "model" / MODEL_FILE
    # A step that was killed in the middle starts anew.
    shutil.rmtree(target.parent, ignore_errors=True)
    target.parent.mkdir()
    if spec.config:
        build(spec.config, seed=spec.seed, scratch=work.scratch, target=target)
        origin = "config"
    else:
        path, origin = find(spec.base, revision=spec.revision)
        check_nemo(path)
        # An artifact never changes, but somebody's own file may: it is copied, a cache's files are shared.
        (shutil.copyfile if origin == "file" else link_or_copy)(path.resolve(), target)
    config = check_nemo(target)
    return {
        "base": spec.base or f"config {spec.config}",
        "revision": spec.revision,
        "origin": origin,
        "model_type": "parakeet",
        "model_class": str(config["target"]).rpartition(".")[2],
        "vocab_size": len(config_vocabulary(config)),
        "licence": licence(spec.base),
        "file_bytes": {MODEL_FILE: target.stat().st_size},
        "notes": _language_notes(spec, config),
    }


def find(base: str, *, revision: str = "main") -> tuple[Path, str]:
    """The `.nemo` file of `base`, not checked, and where it came from: file, cache or hub.

    Raises MissingError, which lists what was tried, and how to place the file by hand.
    """
    path = Path(base).expanduser()
    if path.exists():
        try:
            return _only_model(path) if path.is_dir() else path, "file"
        except _NotHereError as error:
            raise MissingError(f"base: {path}: {error}; give the .nemo file itself") from error
    if not HUB_ID.fullmatch(base):
        raise MissingError(f"base: {base!r} is no file here, and no hub id such as nvidia/parakeet-tdt-0.6b-v3")
    folder = cache_folder(base, revision=revision)
    places: dict[str, tuple[str, Callable[[], Path]]] = {
        "the project's cache": ("cache", lambda: _only_model(folder)),
        "Hugging Face's cache": ("hub", lambda: _from_hub(base, revision=revision, local_files_only=True)),
        "the hub": ("hub", lambda: _from_hub(base, revision=revision, local_files_only=False)),
    }
    tried = []
    for name, (origin, look) in places.items():
        try:
            return look(), origin
        except _NotHereError as error:
            tried.append(f"  {name}: {error}")
    lines = [
        f"base: {base} (revision {revision}) is not to be had; tried:",
        *tried,
        f"To place it by hand, put the .nemo file of {base} into",
        f"  {folder}",
        "or give the file as base.",
    ]
    raise MissingError("\n".join(lines))


def _only_model(folder: Path) -> Path:
    found = sorted(folder.glob(f"*{SUFFIX}"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found)
        raise _NotHereError(f"{folder} has {len(found)} .nemo files{': ' if names else ''}{names}, not one")
    return found[0]


def _from_hub(base: str, *, revision: str, local_files_only: bool) -> Path:
    try:
        from huggingface_hub import HfApi, snapshot_download

        if not local_files_only:
            # snapshot_download asks its first question without a timeout: a network that swallows packets would
            # hold it for minutes. So the question is asked here first.
            HfApi().model_info(base, revision=revision, timeout=HUB_TIMEOUT_S)
        folder = snapshot_download(
            base,
            revision=revision,
            allow_patterns=[f"*{SUFFIX}"],
            ignore_patterns=["*/*"],
            etag_timeout=HUB_TIMEOUT_S,
            local_files_only=local_files_only,
        )
    except Exception as error:
        # The hub's client raises what its HTTP library raises; whatever it is, the next place is tried.
        raise _NotHereError(first_line(error)) from error
    return _only_model(Path(folder))


def _language_notes(spec: Spec, config: dict[str, Any]) -> list[str]:
    """A warning about a base that does not write Russian. Raises DataError where a variant would keep its tokens."""
    vocabulary = config_vocabulary(config)
    missing = missing_letters(vocabulary)
    if not missing:
        return []
    name = spec.base or spec.config
    if spec.vocabulary == "kept" and len(missing) > FEW_LETTERS:
        raise DataError(
            f"base: {name}: none of its {len(vocabulary)} tokens writes {missing}; take a base that knows Russian, "
            "such as nvidia/parakeet-tdt-0.6b-v3, or train a tokenizer: tokenizer: {train: bpe, vocab_size: 1024}"
        )
    if len(missing) <= FEW_LETTERS:
        return [f"{name}: none of its {len(vocabulary)} tokens writes {missing}"]
    return [f"{name} cannot write {missing}: its zero-shot rows know no Russian, its variants learn new tokens"]
