"""A Hugging Face folder of Whisper from anywhere, loaded by transformers: as data, and no more of it than is needed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.core.files import parse_json_file
from harness.errors import DataError, first_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZES = (
    *("vocab_size", "max_source_positions", "max_target_positions"),
    *("encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim"),
    *("d_model", "num_mel_bins", "encoder_attention_heads", "decoder_attention_heads"),
)
"""Of a config, that the weights are made for."""
SHARES = ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop")
HABITS = ("activation_function", "scale_embedding", "tie_word_embeddings", "init_std", "median_filter_width")
TOKENS = (
    *("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id", "no_timestamps_token_id"),
    *("prev_sot_token_id", "lang_to_id", "task_to_id", "suppress_tokens", "begin_suppress_tokens"),
)
DECODING = (*TOKENS, "alignment_heads", "is_multilingual", "max_initial_timestamp_index")
"""What is taken of a generation config: no search, sampling or length of its own, which would change any score."""

PATHS = ("gguf_file", "tokenizer_file", "vocab_file", "merges_file", "normalizer_file")
"""Settings of a tokenizer."""


def read_model(folder: Path, **changes: Any) -> Any:
    """In float32. changes: of its config. Raises DataError if it cannot be loaded, or has no whole set of weights."""
    import torch
    from transformers import WhisperForConditionalGeneration

    with _told(folder):
        model, found = WhisperForConditionalGeneration.from_pretrained(
            folder,
            config=_config(folder, changes),
            # Said explicitly: fp16 checkpoints would load as fp16, and mixed precision cannot unscale fp16 gradients.
            dtype=torch.float32,
            attn_implementation="sdpa",  # whatever the config says, which may name a kernel of the hub
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model.generation_config = _decoding(model)
    if found["missing_keys"]:
        names = sorted(found["missing_keys"])
        raise DataError(f"{folder}: has no weights for {names[0]} and {len(names) - 1} others; fetch or save it again")
    return model


def read_processor(folder: Path) -> Any:
    """Tokenizer, and the features that all Whispers hear. Raises DataError if the tokenizer is not the model's."""
    from transformers import WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer

    with _told(folder):
        config = parse_json_file(folder / "config.json")
        _refuse_paths(folder)
        # Not by a class that the files name, which may be one of the hub.
        tokenizer = WhisperTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer.decode(tokenizer("да").input_ids, skip_special_tokens=True)
        last = max(tokenizer.get_vocab().values())
        if last >= config["vocab_size"]:
            told = f"its tokenizer has token {last}, the model {config['vocab_size']} tokens"
            raise ValueError(told)
        return WhisperProcessor(WhisperFeatureExtractor(feature_size=config["num_mel_bins"]), tokenizer)


def _decoding(model: Any) -> Any:
    from transformers import GenerationConfig

    given: Any = model.generation_config
    kept = {name: getattr(given, name) for name in DECODING if getattr(given, name, None) is not None}
    _check_tokens(kept, size=model.config.vocab_size)
    return GenerationConfig(**kept, max_length=model.config.max_target_positions)


def _config(folder: Path, changes: dict[str, Any]) -> Any:
    """Of a config what makes a Whisper: the rest could have its outputs, or classes, be of another kind."""
    from transformers import WhisperConfig

    given = parse_json_file(folder / "config.json")
    kept = {name: given[name] for name in (*SIZES, *SHARES, *HABITS, *TOKENS) if given.get(name) is not None} | changes
    for name in SHARES:
        if not 0 <= kept.get(name, 0) < 1:
            raise ValueError(f"its config has {name} {kept[name]!r}"[:200])
    _check_tokens(kept, size=kept["vocab_size"])
    return WhisperConfig(**kept)


def _check_tokens(given: dict[str, Any], *, size: int) -> None:
    for name in given.keys() & set(TOKENS):
        value = given[name]
        ids = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
        is_sound = isinstance(value, dict) == name.endswith("_to_id") and all(type(token) is int for token in ids)
        if not (is_sound and all(0 <= token < size for token in ids)):
            raise ValueError(f"its settings have {name} {value!r}"[:200])


def _refuse_paths(folder: Path) -> None:
    """Of settings that transformers would follow to a file anywhere. Raises ValueError."""
    path = folder / "tokenizer_config.json"
    settings = parse_json_file(path) if path.is_file() else {}
    for name in ("gguf_file",) if (folder / "tokenizer.json").is_file() else PATHS:
        if settings.get(name) is not None:
            raise ValueError(f"its {path.name} names a file by {name}; remove that")


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise DataError(
            f"{folder}: cannot be loaded as a Whisper ({first_line(error)}); fetch or save it again"
        ) from error
