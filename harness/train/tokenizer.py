"""SentencePiece tokenizers for NeMo models: which letters one has, training one, putting it into a model."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from harness.core.files import beside
from harness.errors import DataError
from harness.suite.spec import Spec
from harness.train.speech_batches import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

ALPHABET = "абвгдежзийклмнопрстуфхцчшщъыьэюя"
"""Without ё, which is written е where a vocabulary does not have it."""
FEW_LETTERS = 4
"""Vocabularies of little text may lack so many rare letters; others are made for another language."""
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
SPACE = "▁"
UNKNOWN = "<unk>"
LANGUAGE = "ru"
MAX_SENTENCES = 2_000_000
"""Texts that a tokenizer is trained on; a larger set is sampled."""


class NewTokenizer(Spec):
    """A tokenizer that is trained on the training texts; the model's decoder then starts anew."""

    train: Literal["bpe"]
    vocab_size: int = Field(ge=40, description="Tokens, the unknown one included.")


def missing_letters(vocabulary: Sequence[str]) -> str:
    """Russian letters that no token of a vocabulary holds, in either case."""
    if any(BYTE.fullmatch(token) for token in vocabulary):
        return ""
    written = set("".join(vocabulary).lower())
    return "".join(letter for letter in ALPHABET if letter not in written)


def config_vocabulary(config: Mapping[str, Any]) -> list[str]:
    """The tokens that a NeMo model's configuration lists; none if it lists none."""
    places = [config.get(part) or {} for part in ("joint", "decoder")]
    lists = [config.get("labels"), *(part.get("vocabulary") for part in places)]
    return next((list(map(str, tokens)) for tokens in lists if tokens), [])


def model_vocabulary(model: Any) -> Vocabulary:
    """How a restored NeMo model writes texts."""
    tokens = [str(token) for token in (model.joint if hasattr(model, "joint") else model.decoder).vocabulary]
    tokenizer = model.tokenizer

    def encode(text: str) -> list[int]:
        # A tokenizer of several languages wants to be told which.
        ids = tokenizer.text_to_ids(text, LANGUAGE) if hasattr(tokenizer, "langs") else tokenizer.text_to_ids(text)
        return [int(token) for token in ids]

    everything = any(BYTE.fullmatch(token) for token in tokens)
    letters = frozenset("".join(token for token in tokens if token != UNKNOWN).replace(SPACE, ""))
    return Vocabulary(encode=encode, letters=letters, writes_everything=everything)


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, folder: Path, kind: Literal["bpe", "char"] = "bpe"
) -> Path:
    """Train a tokenizer and write it as NeMo reads it: `tokenizer.model`, `tokenizer.vocab`, `vocab.txt`.

    Raises DataError if the texts are too few for so many tokens, or have more characters than there are tokens.
    """
    from sentencepiece import SentencePieceTrainer, set_random_generator_seed

    temporary = beside(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    set_random_generator_seed(0)
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_prefix=str(temporary / "tokenizer"),
            vocab_size=vocab_size,
            model_type=kind,
            character_coverage=1.0,
            input_sentence_size=MAX_SENTENCES,
            shuffle_input_sentence=True,
            # NeMo's transducers begin and end without tokens of their own.
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(f"tokenizer of {vocab_size} tokens: {_reason(error)}; change tokenizer.vocab_size") from error
    pieces = [line.split("\t")[0] for line in _lines(temporary / "tokenizer.vocab")]
    # NeMo's own file of this name leaves the unknown token out.
    (temporary / "vocab.txt").write_text("\n".join(pieces[1:]) + "\n", encoding="utf-8", newline="\n")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)
    return folder


def change_tokenizer(model: Any, *, folder: Path) -> None:
    """Give a NeMo model the tokenizer of a folder; its decoder and joint start anew, its loss stays of its kind."""
    model.change_vocabulary(new_tokenizer_dir=str(folder), new_tokenizer_type="bpe")
    if not hasattr(model, "joint"):
        return
    # NeMo 3.0's change_vocabulary (rnnt_bpe_models.py and hybrid_rnnt_ctc_bpe_models.py) ends with
    # `RNNTLoss(num_classes=self.joint.num_classes_with_blank - 1)`, without the loss's name, arguments and reduction:
    # a TDT model silently goes on as a plain transducer, whose blank is the last of the *durations'* logits.
    from nemo.collections.asr.losses.rnnt import RNNTLoss

    name, arguments = model.extract_rnnt_loss_cfg(model.cfg.get("loss", None))
    num_tokens = model.joint.num_classes_with_blank - 1
    model.loss = RNNTLoss(
        num_classes=num_tokens - (model.joint.num_extra_outputs if name == "tdt" else 0),
        loss_name=name,
        loss_kwargs=arguments,
        reduction=model.cfg.get("rnnt_reduction", "mean_batch"),
    )
    if model.joint.fuse_loss_wer:
        model.joint.set_loss(model.loss)


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from (line.rstrip("\n") for line in file)


def _reason(error: RuntimeError) -> str:
    """SentencePiece's sentence, without the place in its source that stands before it."""
    lines = [re.sub(r"^.*?\]\s*", "", line).strip() for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if line), "there are no texts").rstrip(".")
