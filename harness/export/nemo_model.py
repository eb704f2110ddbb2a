"""Parakeet as NeMo has it, and what other runtimes have to know of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.core.manifests import SAMPLE_RATE_HZ
from harness.core.nemo_file import decode_greedily, restore
from harness.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from harness.core.artifact import Artifact

MODEL_FILE = "model.nemo"
NUM_MELS = (80, 128)
"""What onnx-asr has NeMo's preprocessor for."""
BLANK = "<blk>"
SPACE = "▁"
"""SentencePiece's; character models have a plain space, which would break the lines of `vocab.txt`."""
UNLIMITED = 1000
"""Tokens in one frame, for a model that sets no limit."""
PARAKEET_RS = {"model_type": "nemo-conformer-tdt", "num_mels": 128, "num_durations": 5, "prediction": (2, 640)}
"""What parakeet-rs, and so Mimir, takes for granted: layers and width of the prediction network among it.
Source: `model_tdt.rs` and `parakeet_tdt.rs` of parakeet-rs 0.3."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the files beside the graphs say."""

    model_type: str
    """As onnx-asr names it."""
    num_mels: int
    subsampling_factor: int
    """Frames of features in one frame of the encoder."""
    vocabulary: tuple[str, ...]
    """Pieces by id; the blank, which comes last, is not among them."""
    max_tokens_per_step: int
    """Tokens that one frame may emit."""
    num_durations: int
    """0: no TDT."""
    prediction: tuple[int, int] | None
    """Layers and width of the prediction network; None for CTC."""
    max_audio_s: float
    """What the graph's table of positions covers: longer recordings fail."""

    @property
    def is_ctc(self) -> bool:
        return self.prediction is None

    @property
    def lines(self) -> Iterator[str]:
        """Of `vocab.txt`."""
        return (f"{piece} {number}\n" for number, piece in enumerate([*self.vocabulary, BLANK]))


def load(source: Artifact) -> Any:
    """The model of an artifact that holds `model/model.nemo`, on the CPU, decoding greedily.

    Raises ExportError if the artifact has none, DataError for a file that is damaged or not to be trusted.
    """
    path = source.path / "model" / MODEL_FILE
    if not path.is_file():
        raise ExportError(f"{path}: there is no such file; a Parakeet's training and its base weights leave one")
    model = restore(path)
    decode_greedily(model)
    return model


def describe(model: Any, *, path: Path) -> Shape:
    """Raises ExportError for a model that the ONNX layout of NeMo's Conformers cannot say."""
    if model.cfg.sample_rate != SAMPLE_RATE_HZ:
        raise ExportError(f"{path}: made for {model.cfg.sample_rate} Hz, only {SAMPLE_RATE_HZ} Hz is exported")
    num_mels = int(model.cfg.preprocessor.features)
    if num_mels not in NUM_MELS:
        raise ExportError(f"{path}: {num_mels} mel bins; ONNX runtimes have NeMo's preprocessor for 80 and 128 only")
    encoder = type(model.encoder).__name__
    if encoder != "ConformerEncoder":
        raise ExportError(f"{path}: its encoder is a {encoder}, only NeMo's ConformerEncoder is exported")
    family, durations = _family(model, path=path)
    limit = None if family == "ctc" else model.decoding.decoding.max_symbols
    subsampling_factor = int(model.encoder.subsampling_factor)
    frame_s = subsampling_factor * float(model.cfg.preprocessor.window_stride)
    return Shape(
        model_type=f"nemo-conformer-{family}",
        num_mels=num_mels,
        subsampling_factor=subsampling_factor,
        vocabulary=_vocabulary(model, path=path),
        max_tokens_per_step=int(limit or UNLIMITED),
        num_durations=durations,
        prediction=None if family == "ctc" else (model.decoder.pred_rnn_layers, model.decoder.pred_hidden),
        max_audio_s=round(int(model.cfg.encoder.pos_emb_max_len) * frame_s, 2),
    )


def parakeet_rs_fault(shape: Shape) -> str | None:
    """Why parakeet-rs cannot run the model; None if nothing speaks against it."""
    for name, wanted in PARAKEET_RS.items():
        value = getattr(shape, name)
        if value != wanted:
            return f"its {name} is {value}, and Mimir (parakeet-rs) takes {wanted} for granted"
    return None


def _family(model: Any, *, path: Path) -> tuple[str, int]:
    """tdt, rnnt or ctc, and the number of durations."""
    if not hasattr(model, "joint"):
        return "ctc", 0
    parts = type(model.decoder).__name__, type(model.joint).__name__
    if parts[0] != "RNNTDecoder" or parts[1] not in {"RNNTJoint", "SampledRNNTJoint"}:
        raise ExportError(f"{path}: it decodes by {' and '.join(parts)}; only RNNTDecoder and RNNTJoint are exported")
    durations = list(model.decoding.durations or [])
    # Runtimes take the index of a duration for the duration.
    if durations != list(range(len(durations))) or len(durations) != model.joint.num_extra_outputs:
        raise ExportError(
            f"{path}: {model.joint.num_extra_outputs} outputs beside the tokens, for the durations {durations}; "
            "runtimes know none, or durations 0, 1, 2 and so on"
        )
    return ("tdt" if durations else "rnnt"), len(durations)


def _vocabulary(model: Any, *, path: Path) -> tuple[str, ...]:
    tokenizer = getattr(model, "tokenizer", None)
    pieces = list(tokenizer.ids_to_tokens(list(range(tokenizer.vocab_size))) if tokenizer else model.cfg.labels)
    pieces = [SPACE if piece == " " else piece for piece in pieces]
    broken = [piece for piece in pieces if not piece or re.search(r"\s", piece) or piece == BLANK]
    if broken:
        raise ExportError(f"{path}: the token {broken[0]!r} cannot stand in vocab.txt; train another tokenizer")
    return tuple(pieces)
