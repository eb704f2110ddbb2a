"""NeMo's `.nemo` files: checked before anything of them is believed, and restored without running what they bring.

A `.nemo` is a tar of `model_config.yaml`, `model_weights.ckpt` and the tokenizer's files. It may come from anywhere:
names in it may leave the folder, its configuration names classes to construct, its weights are a pickle.
"""

from __future__ import annotations

import logging
import re
import tarfile
import warnings
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.core.tar_headers import Header
from harness.errors import DataError, MissingError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy as np

CONFIG_FILE = "model_config.yaml"
WEIGHTS_FILE = "model_weights.ckpt"
MEMBER = re.compile(r"(?:\./)?(?P<name>[A-Za-z0-9_][A-Za-z0-9_.+-]*(?<!\.))")
"""Flat and plain: no path, and nothing that Windows or a Mac would write under another name."""
MAX_MEMBERS = 1000
MAX_BYTES = 64 * 2**30
"""Ten times the largest model there is."""
MAX_CONFIG_BYTES = 16 * 2**20

MODELS = frozenset(
    {
        "EncDecCTCModel",
        "EncDecCTCModelBPE",
        "EncDecHybridRNNTCTCBPEModel",
        "EncDecHybridRNNTCTCModel",
        "EncDecRNNTBPEModel",
        "EncDecRNNTModel",
    }
)
MODEL = re.compile(r"nemo\.collections\.asr\.models(?:\.[a-z0-9_]+)?\.(?P<name>\w+)")
TARGET = re.compile(
    r"""
    (?: nemo\.collections\.asr\.(?:models|modules|losses|metrics|parts\.submodules)
      | nemo\.collections\.common\.(?:losses|tokenizers)
      | nemo\.core\.(?:optim|classes\.mixins)
      | torch\.(?:nn|optim)
    )
    (?:\.[a-z0-9_]+){0,2} \.[A-Z]\w*
    """,
    re.VERBOSE,
)
"""What a configuration may have constructed; NeMo then looks whether it is a module, an optimizer or the like."""
TARGET_KEYS = ("_target_", "target", "cls")
TOKENIZER_FILES = {"bpe": "model_path", "wpe": "vocab_path"}
"""Type of tokenizer → the field that names the file without which it would be looked for on this machine."""
ARTIFACT_FIELDS = ("model_path", "vocab_path", "spe_tokenizer_vocab")
ARTIFACT = "nemo:"
"""Before the name of a file inside the archive."""


def check_nemo(path: Path) -> dict[str, Any]:
    """Look through a `.nemo` file without extracting or constructing anything, and without NeMo or torch.

    Returns the model's configuration, as plain values.
    Raises DataError that names what is wrong, MissingError if there is no file.
    """
    if not path.is_file():
        raise MissingError(f"{path}: there is no such .nemo file")
    with _open(path) as archive:
        members = _check_members(path, archive)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if name not in members:
                raise DataError(f"{path}: no {name} among its {len(members)} files; it is no NeMo model")
        if members[CONFIG_FILE].size > MAX_CONFIG_BYTES:
            raise DataError(
                f"{path}: {CONFIG_FILE} has {members[CONFIG_FILE].size:,} bytes, at most {MAX_CONFIG_BYTES:,} are read"
            )
        config = _parse(path, _read(archive, members[CONFIG_FILE]))
        weights = archive.extractfile(members[WEIGHTS_FILE])
        # Torch's first format is one bare pickle, which its safe reader was not made for.
        if weights is None or weights.read(4) != b"PK\x03\x04":
            raise DataError(f"{path}: {WEIGHTS_FILE} is not what torch.save writes since 1.6; save the model again")
    _check_model(path, config)
    _check_values(path, config, members=members, place="")
    _check_tokenizer(path, config.get("tokenizer"))
    return config


def check_config(path: Path) -> dict[str, Any]:
    """Read the configuration of a model that is yet to be made, checked as one inside a `.nemo` file is.

    Raises DataError that names what is wrong, MissingError if there is no file.
    """
    if not path.is_file():
        raise MissingError(f"{path}: there is no such configuration of a model")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise DataError(f"{path}: {path.stat().st_size:,} bytes, at most {MAX_CONFIG_BYTES:,} are read")
    config = _parse(path, path.read_bytes(), name="it")
    _check_model(path, config)
    _check_values(path, config, members=(), place="")
    return config


def restore(path: Path, *, device: str = "cpu") -> Any:
    """Check a `.nemo` file and load its model, an `ASRModel` in evaluation mode.

    Its weights are read by torch's restricted unpickler, which knows tensors and no functions.
    Raises DataError for a file that is damaged or not to be trusted, MissingError without NeMo.
    """
    check_nemo(path)
    with quiet():
        return _restore(path, device=device)


def _restore(path: Path, *, device: str) -> Any:
    try:
        from nemo.collections.asr.models import ASRModel
    except ImportError as error:
        raise MissingError(
            f"{path.name} needs NeMo, which does not load here ({error}); pip install 'nemo_toolkit[asr]'"
        ) from error
    import torch
    from nemo.core.classes.common import UnsafeTargetError

    try:
        model = ASRModel.restore_from(
            str(path), map_location=torch.device(device), save_restore_connector=_weights_only_connector(path)
        )
    except UnsafeTargetError as error:
        raise DataError(f"{path}: NeMo refuses to construct what {CONFIG_FILE} names: {_first_line(error)}") from error
    except DataError:
        raise
    except Exception as error:
        # NeMo, Hydra, OmegaConf and SentencePiece raise what they like.
        raise DataError(f"{path}: NeMo cannot restore it: {_first_line(error)}; save the model again") from error
    return model.eval()


def decode_greedily(model: Any, *, strategy: str = "greedy_batch") -> None:
    """Set a restored model's decoding, whatever it was saved with.

    strategy: "greedy_batch", NeMo's default, or "greedy", its plain loop over frames; both give the same text.
    """
    from omegaconf import OmegaConf, open_dict

    decoding = OmegaConf.create(OmegaConf.to_container(model.cfg.decoding))
    with open_dict(decoding):
        decoding.strategy = strategy
    with quiet():
        model.change_decoding_strategy(decoding, verbose=False)
    # Its new metric is in training mode, and then NeMo's own `transcribe` would leave the whole encoder in it.
    model.eval()


def transcribe(model: Any, samples: np.ndarray) -> str:
    """The text that a restored model hears, by its own decoding; a hybrid's is its transducer's.

    samples: float32 [num_samples], 16 kHz mono.
    """
    return transcribe_batch(model, [samples])[0]


def transcribe_batch(model: Any, recordings: Sequence[np.ndarray]) -> list[str]:
    """The texts of recordings that a restored model hears at once, the shorter ones padded.

    Without `model.transcribe`, which writes temporary files, starts a data loader, and leaves modules in training mode.
    """
    import torch

    with torch.inference_mode():
        signals = [torch.from_numpy(samples) for samples in recordings]
        signal = torch.nn.utils.rnn.pad_sequence(signals, batch_first=True).to(model.device)
        length = torch.tensor([len(samples) for samples in recordings], device=model.device)
        outputs = model(input_signal=signal, input_signal_length=length)
        decoding = model.decoding
        # A hybrid has both, and its forward is the transducer's encoder.
        decode = getattr(decoding, "rnnt_decoder_predictions_tensor", None) or decoding.ctc_decoder_predictions_tensor
        hypotheses = decode(*outputs[:2])
    return [str(hypothesis.text) for hypothesis in hypotheses]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings and messages of NeMo and what it brings along off standard error, also while it is imported."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _weights_only_connector(path: Path) -> Any:
    from nemo.core.connectors.save_restore_connector import SaveRestoreConnector

    class Connector(SaveRestoreConnector):  # type: ignore[misc]  # untyped
        """NeMo's own leaves the choice to torch's default, which an environment variable can turn off."""

        @staticmethod
        def _load_state_dict_from_disk(model_weights: str, map_location: Any = "cpu") -> Any:
            import torch

            try:
                return torch.load(model_weights, map_location=map_location, weights_only=True)
            except Exception as error:
                # Torch's own error for what it does not unpickle has no name here; whatever it is, nothing was loaded.
                raise DataError(
                    f"{path}: {WEIGHTS_FILE} is damaged or holds more than tensors, and was not loaded: "
                    f"{_first_line(error)}"
                ) from error

    return Connector()


@contextmanager
def _open(path: Path) -> Iterator[tarfile.TarFile]:
    """As NeMo opens it: a plain tar, else a gzipped one."""
    try:
        try:
            archive = tarfile.open(path, "r:", tarinfo=Header)  # noqa: SIM115 - closed below
        except tarfile.ReadError:
            archive = tarfile.open(path, "r:gz", tarinfo=Header)  # noqa: SIM115 - closed below
        with archive:
            yield archive
    except (tarfile.TarError, zlib.error, EOFError, OSError, ValueError) as error:
        raise DataError(f"{path}: it is no whole tar archive ({_first_line(error)}); fetch or save it again") from error


def _check_members(path: Path, archive: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """Name → member. Headers only; a compressed archive is not read past the limit."""
    members: dict[str, tarfile.TarInfo] = {}
    seen: set[str] = set()
    num_bytes = 0
    for member in archive:
        if member.isdir() and member.name == ".":
            continue
        match = MEMBER.fullmatch(member.name)
        if not match:
            raise DataError(f"{path}: refused: {member.name!r} is not the plain name of a file")
        # Not `isreg`, which takes sparse files for regular ones: their size says nothing.
        if member.type not in {tarfile.REGTYPE, tarfile.AREGTYPE}:
            raise DataError(f"{path}: refused: {member.name!r} is no regular file, but {_kind(member)}")
        if match["name"].lower() in seen:
            raise DataError(f"{path}: refused: {member.name!r} is in it twice, and the second would replace the first")
        num_bytes += member.size
        if num_bytes > MAX_BYTES or len(members) == MAX_MEMBERS:
            raise DataError(
                f"{path}: refused: {len(members) + 1:,} files with {num_bytes:,} bytes; "
                f"a model has at most {MAX_MEMBERS:,} files with {MAX_BYTES:,} bytes"
            )
        seen.add(match["name"].lower())
        members[match["name"]] = member
    return members


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return f"a link to {member.linkname!r}"
    if member.isdir():
        return "a folder"
    return "a device" if member.isdev() else f"a member of type {member.type!r}"


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read() if file is not None else b""


def _parse(path: Path, text: bytes, *, name: str = CONFIG_FILE) -> dict[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        # A few lines of aliases can stand for gigabytes; NeMo writes none.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=loader)):
            raise DataError(f"{path}: refused: {name} uses YAML aliases, which NeMo never writes")
        config = yaml.load(text, Loader=loader)  # noqa: S506 - one of the two safe loaders
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: refused: {name} is no plain YAML ({_first_line(error)})") from error
    if not isinstance(config, dict):
        raise DataError(f"{path}: {name} holds a {type(config).__name__}, not a model's configuration")
    return config


def _check_model(path: Path, config: Mapping[str, Any]) -> None:
    target = config.get("target")
    match = MODEL.fullmatch(target) if isinstance(target, str) else None
    if not match or match["name"] not in MODELS:
        raise DataError(f"{path}: its model is {target!r}; only {', '.join(sorted(MODELS))} are used")


def _check_values(path: Path, value: Any, *, members: Collection[str], place: str) -> None:
    """Refuse classes outside the list, files outside the archive, and expressions that OmegaConf would evaluate."""
    if isinstance(value, dict):
        for key, item in value.items():
            where = f"{place}.{key}" if place else str(key)
            if key in TARGET_KEYS and not (isinstance(item, str) and TARGET.fullmatch(item)):
                raise DataError(f"{path}: refused: {where} is {item!r}, which is not on the list of NeMo's and torch's")
            _check_values(path, item, members=members, place=where)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_values(path, item, members=members, place=f"{place}[{index}]")
    elif isinstance(value, str):
        if value.startswith(ARTIFACT) and value.removeprefix(ARTIFACT) not in members:
            raise DataError(f"{path}: refused: {place} is {value!r}, and there is no such file in it")
        # A plain `${model.sample_rate}` repeats a value; one with a colon calls a function.
        if "${" in value and ":" in value:
            raise DataError(f"{path}: refused: {place} is {value!r}, which would be evaluated")


def _check_tokenizer(path: Path, tokenizer: Any, *, place: str = "tokenizer") -> None:
    """A tokenizer's files lie in the archive: another path would be read, and packed when the model is saved."""
    if not isinstance(tokenizer, dict):
        return
    languages = tokenizer.get("langs") or {}
    if not isinstance(languages, dict):
        raise DataError(f"{path}: refused: {place}.langs is {languages!r}, not tokenizers by language")
    for language, inner in languages.items():
        _check_tokenizer(path, inner, place=f"{place}.langs.{language}")
    needed = TOKENIZER_FILES.get(str(tokenizer.get("type")).lower())
    for field in ARTIFACT_FIELDS:
        value = tokenizer.get(field)
        if (value is not None and not str(value).startswith(ARTIFACT)) or (value is None and field == needed):
            raise DataError(f"{path}: refused: {place}.{field} is {value!r}, not a file in the archive")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
