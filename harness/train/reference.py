"""Published models, scored beside the trained ones: what a user would pick instead. Nothing is trained or exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field

from harness.core.files import link_or_copy
from harness.errors import MissingError, first_line
from harness.suite.model import Candidate
from harness.suite.wording import did_you_mean
from harness.train.weights import HUB_ID, HUB_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.core.artifact import Inputs, Work

VERSION = 1

LICENCES = {
    "gigaam-": "MIT",
    "t-tech/t-one": "Apache-2.0",
    "alphacep/vosk-": "Apache-2.0",
    "nemo-": "CC-BY-4.0",
    "whisper-": "MIT",
}
"""By the start of the name under which onnx-asr knows a model."""


class Spec(Candidate):
    """Any model that onnx-asr runs, by its name there or from a local folder; one row, `zero-shot`."""

    kind: Literal["reference"] = "reference"
    base: str = Field(
        min_length=1,
        description="A name that onnx-asr knows (gigaam-v3-rnnt, t-tech/t-one, nemo-parakeet-tdt-0.6b-v3, …) or a "
        "local folder.",
    )
    type: str | None = Field(
        default=None,
        description="What a local folder holds, as onnx-asr calls it: gigaam-v3-rnnt, vosk, t-one-ctc, "
        "nemo-conformer-tdt, whisper, …; not needed where its config.json says so.",
    )
    quantization: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9_]+$", description="int8, where the model is published in it."
    )

    @property
    def runnable(self) -> Sequence[Spec]:
        """Itself: nothing is exported."""
        return [self]

    @property
    def label(self) -> str:
        """What the board calls its files."""
        return f"onnx-{self.quantization or 'fp32'}"

    def base_step(self) -> Spec:
        """What places the files that are run: itself."""
        return self

    def identity(self) -> dict[str, Any]:
        """A local folder counts by its content, which `outside` names, and not by where it lies."""
        return {**super().identity(), **({"base": "folder"} if self.outside() else {})}

    def outside(self) -> list[Path]:
        folder = Path(self.base).expanduser()
        return [folder.absolute()] if folder.is_dir() else []


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Place the files that onnx-asr loads.

    Raises MissingError for a name that onnx-asr does not know, and for files that are not to be had.
    """
    del inputs
    local = next(iter(spec.outside()), None)
    name = _type(spec, local) if local else spec.base
    found = _from_folder(local, name, spec.quantization) if local else _from_hub(name, spec.quantization)
    root = local or _snapshot(next(iter(found.values())))
    files = sorted({beside for path in found.values() for beside in _with_data(path)})
    for number, path in enumerate(files, start=1):
        target = work.path / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        # An artifact never changes, but somebody's own folder may: it is copied, a cache's files are shared.
        (shutil.copyfile if local else link_or_copy)(path.resolve(), target)
        work.progress(number, len(files), path.name)
    return {
        "base": spec.base,
        "origin": "folder" if local else "hub",
        "revision": None if local else root.name,
        "onnx_asr": {"type": name, "quantization": spec.quantization},
        "licence": next((licence for start, licence in LICENCES.items() if spec.base.startswith(start)), None),
        "size_bytes": sum(path.stat().st_size for path in files),
        "files": [path.relative_to(root).as_posix() for path in files],
    }


def _type(spec: Spec, folder: Path) -> str:
    if spec.type:
        return spec.type
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, LookupError, TypeError):
        name = None
    if not isinstance(name, str):
        raise MissingError(
            f"base: {folder}: no config.json with a model_type says what it holds; give `type`, one of: {_known()}"
        )
    return name


def _resolve(name: str, quantization: str | None, **where: Any) -> dict[str, Path]:
    """The files that onnx-asr loads, by role."""
    from onnx_asr.loader import create_asr_resolver

    return dict(create_asr_resolver(name, **where).resolve_model(quantization=quantization))


def _from_folder(folder: Path, name: str, quantization: str | None) -> dict[str, Path]:
    from onnx_asr.utils import ModelLoadingError, ModelNotSupportedError

    try:
        return _resolve(name, quantization, local_dir=folder)
    except ModelNotSupportedError as error:
        raise MissingError(_unknown("type", name)) from error
    except ModelLoadingError as error:
        raise MissingError(
            f"base: {folder}: {error} onnx-asr loads a {name} of quantization {quantization or 'none'} from it; "
            "give the folder, type and quantization that belong together"
        ) from error


def _from_hub(name: str, quantization: str | None) -> dict[str, Path]:
    """From Hugging Face's cache if all is there, else from the hub, where onnx-asr has the name from."""
    from onnx_asr.resolver import model_repos
    from onnx_asr.utils import ModelFileNotFoundError

    repository = name if HUB_ID.fullmatch(name) else model_repos.get(name)
    if repository is None:
        raise MissingError(_unknown("base", name))
    try:
        return _resolve(name, quantization, offline=True)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with the cache, the hub is tried
        tried = [f"  Hugging Face's cache: {first_line(error)}"]
    try:
        from huggingface_hub import HfApi

        # A download asks its first question without a timeout: a network that swallows packets would hold it for
        # minutes. So the question is asked here first.
        HfApi().model_info(repository, timeout=HUB_TIMEOUT_S)
        return _resolve(name, quantization)
    except ModelFileNotFoundError as error:
        raise MissingError(
            f"base: {name}: {repository} has no such files for quantization {quantization or 'none'}: {error}"
        ) from error
    except Exception as error:
        # The hub's client raises what its HTTP library raises.
        tried.append(f"  the hub: {first_line(error)}")
        lines = [
            f"base: {name} is not to be had; tried:",
            *tried,
            f"Without a network, copy the files of {repository} on the Hugging Face hub to this machine, and give",
            f"  base: their folder, type: {name}",
        ]
        raise MissingError("\n".join(lines)) from error


def _known() -> str:
    from onnx_asr.loader import AsrNames, AsrTypeNames

    return ", ".join(dict.fromkeys([*get_args(AsrTypeNames), *get_args(AsrNames)]))


def _unknown(field: str, name: str) -> str:
    known = _known()
    return (
        f"{field}: {name!r} is no folder on this machine and no model that onnx-asr knows"
        f"{did_you_mean(name, known.split(', '))} (known: {known}, and ids of Whisper models by onnx-community)"
    )


def _snapshot(path: Path) -> Path:
    """The folder of Hugging Face's cache that a file of it lies in; its name is the commit."""
    return next(parent for parent in path.parents if parent.parent.name == "snapshots")


def _with_data(path: Path) -> list[Path]:
    """A file, and the weights beside it if it is a graph: `model.onnx`, `model.onnx.data` or `model.onnx_data`."""
    return [path, *path.parent.glob(f"{path.name}?data")] if path.suffix == ".onnx" else [path]
