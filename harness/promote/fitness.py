"""Whether an application can run a model, told from the file itself and not from what its manifest claims."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from harness.core.files import parse_json
from harness.core.ggml_file import HEADER, MAGIC, SIZES, most
from harness.core.nemo_file import check_nemo
from harness.errors import HarnessError
from harness.export.whisper_ggml import VOCABULARIES

if TYPE_CHECKING:
    from pathlib import Path

    from harness.promote.manifest import Manifest
    from harness.promote.targets import Slot

FILTER_COLUMNS = 201
"""Frequencies below each mel filter: half of 400 samples and one."""
MEL_BANDS = (80, 128)
ENCODERS = ("encoder-model.onnx", "encoder.onnx", "encoder-model.int8.onnx")
"""As parakeet-rs 0.3 looks for them, the first that is there."""
DECODERS = ("decoder_joint-model.onnx", "decoder_joint-model.int8.onnx")
MAX_CONFIG_BYTES = 1 << 20
STARTS = {b"PK\x03\x04": "a zip", b"\x1f\x8b": "gzip", b"GGUF": "GGUF, which whisper.cpp does not read"}


def check(payload: Path, *, manifest: Manifest, slot: Slot) -> None:
    """Raises HarnessError with the reason why a model does not fit its slot.

    payload: the file or folder as the application will open it.
    """
    kind = manifest.export_kind
    if kind == "whisper_ggml":
        read_ggml_header(payload, name=manifest.name)
    elif kind == "parakeet_onnx":
        _check_parakeet(payload, manifest=manifest, slot=slot)
    elif kind == "parakeet_nemo":
        check_nemo(payload)


def read_ggml_header(path: Path, *, name: str) -> dict[str, int]:
    """The sizes of a Whisper for whisper.cpp. Raises HarnessError if it is none."""
    with path.open("rb") as file:
        content = file.read(HEADER.size)
    if len(content) < HEADER.size or content[:4] != struct.pack("<I", MAGIC):
        known = next((what for start, what in STARTS.items() if content.startswith(start)), "no ggml file")
        raise HarnessError(
            f"{name}: the Whisper slot takes a ggml file, but this begins with {content[:4]!r}: it is {known}; "
            "export it with whisper_ggml"
        )
    numbers = HEADER.unpack(content)
    sizes = dict(zip(SIZES, numbers[1:12], strict=True))
    fault = _ggml_fault(sizes, filters=numbers[12:])
    if fault:
        raise HarnessError(f"{name}: {fault}: whisper.cpp cannot run it; export it with whisper_ggml")
    return sizes


def _ggml_fault(sizes: dict[str, int], *, filters: tuple[int, ...]) -> str | None:
    for what, value in sizes.items():
        least, largest = (0, 10_000) if what == "ftype" else (1, most(what))
        if not least <= value <= largest:
            return f"its header says {what} {value}, outside of {least} to {largest}"
    if sizes["n_vocab"] not in VOCABULARIES:
        return f"its header says n_vocab {sizes['n_vocab']}, which is none of Whisper's {sorted(VOCABULARIES)}"
    if sizes["n_mels"] not in MEL_BANDS or filters != (sizes["n_mels"], FILTER_COLUMNS):
        return f"its header says n_mels {sizes['n_mels']} and filters of {filters[0]} x {filters[1]}"
    return None


def _check_parakeet(folder: Path, *, manifest: Manifest, slot: Slot) -> None:
    if slot.num_mels is None:
        return  # whoever opens a plain folder reads from its config.json what it needs
    if manifest.fault:
        raise HarnessError(f"{manifest.name}: {manifest.fault}; it runs in onnx-asr: --target folder --to DIR")
    names = {path.name for path in folder.iterdir()}
    for what, wanted in (("encoder", ENCODERS), ("decoder", DECODERS), ("vocabulary", ("vocab.txt",))):
        if not names & set(wanted):
            raise HarnessError(
                f"{manifest.name}: parakeet-rs looks for its {what} as {' or '.join(wanted)}, but the bundle has only "
                f"{', '.join(sorted(names))}; export a transducer with parakeet_onnx"
            )
    config = _read_config(folder / "config.json", name=manifest.name)
    bands = config.get("features_size")
    if bands != slot.num_mels:
        raise HarnessError(
            f"{manifest.name}: it has {bands} mel bands, and Mimir (parakeet-rs) takes {slot.num_mels} for granted; "
            "fine-tune nvidia/parakeet-tdt-0.6b-v3, which has them"
        )


def _read_config(path: Path, *, name: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            config = parse_json(file.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError) as error:
        raise HarnessError(
            f"{name}: config.json, which tells its mel bands, cannot be read ({error}); export it again"
        ) from error
    return config if isinstance(config, dict) else {}
