"""Windows into what Whisper trains on: a spectrogram, what the decoder reads, and what it shall say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from harness.core.files import beside
from harness.core.manifests import BATCH, SAMPLE_RATE_HZ, iterate_utterances
from harness.core.recordings import read_samples
from harness.core.targets import left_out, target_text
from harness.errors import DataError
from harness.train.packing import (
    MAX_TOKENS,
    MAX_WINDOW_S,
    TIMESTAMPS_PER_S,
    TOKENS_AROUND_CLIP,
    TOKENS_AROUND_WINDOW,
    Packing,
    Window,
    epoch_size,
    windows,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy as np
    import pyarrow as pa

    from harness.core.artifact import Artifact
    from harness.core.targets import Policy
    from harness.train.augmentation import Augmenter

SAMPLES_PER_TIMESTAMP = SAMPLE_RATE_HZ // TIMESTAMPS_PER_S
IGNORED = -100
"""Label that the loss passes over."""


@dataclass(frozen=True, slots=True)
class Clips:
    """A manifest's clips that can be learnt from and fit one window, and how many others there were."""

    table: Any
    """datasets.Dataset, memory-mapped: audio, duration_s, text (as it is learnt), and `tokens`, it encoded."""
    folder: Path
    cache: Path
    """Where the table lies, and others like it."""
    max_tokens: int
    """The model's text context."""
    num_without_text: int
    num_too_long: int
    num_too_wordy: int

    def samples(self, index: int) -> np.ndarray:
        """float32 [num_samples], zero-padded to the timestamp grid."""
        import numpy as np

        samples = read_samples(self.folder / self.table[index]["audio"])
        return np.pad(samples, (0, -len(samples) % SAMPLES_PER_TIMESTAMP))

    def speech(
        self, window: Window, *, augmenter: Augmenter | None = None, place: int = 0
    ) -> tuple[np.ndarray, list[int]]:
        """A window's clips, one after the other: float32 [num_samples], and the sample at which each of them ends.

        augmenter: what changes them, by the window's place in the training.
        """
        import numpy as np

        pieces = [self.samples(index) for index in window.clips]
        if augmenter is not None:
            room = MAX_WINDOW_S * SAMPLE_RATE_HZ
            grid = SAMPLES_PER_TIMESTAMP
            pieces = augmenter.window(pieces, place=place, indices=window.clips, grid=grid, longest=room)
        return np.concatenate(pieces), [int(end) for end in np.cumsum([len(piece) for piece in pieces])]

    def sizes(self) -> tuple[list[float], list[int]]:
        """Seconds and tokens of each clip; 50 bytes a clip."""
        import pyarrow.compute as pc

        columns = self.table.data
        num_tokens = pc.list_value_length(columns.column("tokens"))
        return columns.column("duration_s").to_pylist(), num_tokens.to_pylist()

    def notes(self, *, of: str, policy: Policy) -> list[str]:
        """Sentences about the clips that are not in the table. of: train, dev."""
        reasons = {
            f"are longer than {MAX_WINDOW_S} s, which is all that Whisper hears at once": self.num_too_long,
            f"have more than {_longest_text(self.max_tokens)} tokens of text, of the {self.max_tokens} that Whisper "
            "writes at once": self.num_too_wordy,
        }
        notes = [f"{count} {of} clips {reason}, and were left out" for reason, count in reasons.items() if count]
        return left_out(self.num_without_text, of=of, policy=policy) + notes


def read_clips(
    artifact: Artifact, *, policy: Policy, tokenizer: Any, cache: Path, max_tokens: int = MAX_TOKENS
) -> Clips:
    """The clips of a prepared set, their target texts encoded as Whisper writes them (with a leading space).

    cache: folder for the table, which is streamed into a file: a million clips take no more memory than one batch.
    max_tokens: the model's text context.
    Raises DataError if no clip is left.
    """
    import pyarrow as pa

    columns = {"audio": pa.string(), "duration_s": pa.float64(), "text": pa.string(), "tokens": pa.list_(pa.int32())}
    schema = pa.schema(columns)
    total = num_with_text = num_short = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal total, num_with_text, num_short
        for batch in iterate_utterances(artifact.path, columns=["audio", "duration_s", "text"]):
            rows = [{**row, "text": target_text(row["text"], policy)} for row in batch.to_pylist()]
            rows = [row for row in rows if row["text"] is not None]
            total, num_with_text = total + len(batch), num_with_text + len(rows)
            rows = [row for row in rows if row["duration_s"] <= MAX_WINDOW_S]
            num_short += len(rows)
            tokens = (
                tokenizer([f" {row['text']}" for row in rows], add_special_tokens=False)["input_ids"] if rows else []
            )
            pairs = zip(rows, tokens, strict=True)
            fitting = [{**row, "tokens": ids} for row, ids in pairs if len(ids) <= _longest_text(max_tokens)]
            yield pa.RecordBatch.from_pylist(fitting, schema)

    table = _streamed(cache / f"{artifact.path.name}.arrow", schema=schema, batches=batches())
    clips = Clips(
        table=table,
        folder=artifact.path,
        cache=cache,
        max_tokens=max_tokens,
        num_without_text=total - num_with_text,
        num_too_long=num_with_text - num_short,
        num_too_wordy=num_short - len(table),
    )
    if not len(table):
        reasons = "; ".join(clips.notes(of=f"of {total}", policy=policy)) or "it is empty"
        raise DataError(f"{artifact.path.name}: no clip is left to train on: {reasons}; cut them, or change the set")
    return clips


def text_context(model: Path) -> int:
    """How many tokens the decoder of a Hugging Face folder takes, from its config."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return int(config.get("max_target_positions", MAX_TOKENS))


class Renderer:
    """Turns windows of clips into model inputs."""

    def __init__(self, processor: Any, *, language: str) -> None:
        """Raises DataError if the tokenizer lacks a token of it: the model cannot be asked for the language."""
        tokenizer = processor.tokenizer
        names = ["<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>", "<|startofprev|>"]
        vocabulary = tokenizer.get_added_vocab()
        missing = [name for name in names if name not in vocabulary]
        if missing:
            raise DataError(
                f"the tokenizer has no {', '.join(missing)}: it is not that of a Whisper that knows '{language}'; "
                "take a multilingual base such as openai/whisper-base"
            )
        self.start, language_id, task, self.no_timestamps, self.previous = (vocabulary[name] for name in names)
        self.extract = processor.feature_extractor
        self.task = [language_id, task]
        self.end = tokenizer.eos_token_id
        self.pad = tokenizer.pad_token_id

    def labels(self, texts: list[list[int]], ends: list[int], *, timestamps: bool) -> list[int]:
        """What the decoder shall say: language, task, then each clip's tokens between its timestamps.

        texts: tokens of each clip. ends: the sample at which each clip ends, on the timestamp grid.
        """
        if not timestamps:
            return [*self.task, self.no_timestamps, *(token for text in texts for token in text), self.end]
        first = self.no_timestamps + 1
        out = [*self.task]
        begin = 0
        for text, end in zip(texts, ends, strict=True):
            out += [first + begin // SAMPLES_PER_TIMESTAMP, *text, first + end // SAMPLES_PER_TIMESTAMP]
            begin = end
        return [*out, self.end]

    def prompt(self, tokens: list[int], *, num_labels: int, max_tokens: int) -> list[int]:
        """What the decoder reads before the start token: the end of what was said before, as far as there is room.

        OpenAI's decoder takes half of the text context for it, `<|startofprev|>` among them.
        """
        longest = min(max_tokens // 2, max_tokens - num_labels) - 1
        return [self.previous, *tokens[-longest:]] if tokens and longest > 0 else []

    def example(
        self, clips: Clips, window: Window, *, augmenter: Augmenter | None = None, place: int = 0
    ) -> dict[str, Any]:
        """input_features float32 [num_mels, 3000], decoder_input_ids and labels of one length."""
        samples, ends = clips.speech(window, augmenter=augmenter, place=place)
        texts = [clips.table[index]["tokens"] for index in window.clips]
        features = self.extract(samples, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np")
        labels = self.labels(texts, ends, timestamps=window.timestamps)
        before = [token for index in window.prompt for token in clips.table[index]["tokens"]]
        prompt = self.prompt(before, num_labels=len(labels), max_tokens=clips.max_tokens)
        return {
            "input_features": features["input_features"][0],
            # The model itself would make padding of what is ignored, and never read a prompt.
            "decoder_input_ids": [*prompt, self.start, *labels[:-1]],
            "labels": [IGNORED] * len(prompt) + labels,
        }

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """input_features float32 [batch, num_mels, 3000]; decoder_input_ids and labels int64 [batch, longest]."""
        import numpy as np
        import torch

        def padded(name: str, filler: int) -> torch.Tensor:
            rows = [torch.tensor(example[name], dtype=torch.long) for example in examples]
            return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=filler)

        features = torch.from_numpy(np.stack([example["input_features"] for example in examples]))
        return {
            "input_features": features,
            "decoder_input_ids": padded("decoder_input_ids", self.pad),
            "labels": padded("labels", IGNORED),
        }


@dataclass(frozen=True, slots=True)
class Rendering:
    """A table's rows into examples, when they are asked for; picklable, for the processes that prepare batches."""

    clips: Clips
    renderer: Renderer
    augmenter: Augmenter | None = None

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = zip(batch["clips"], batch["timestamps"], batch["prompt"], strict=True)
        chosen = [Window(tuple(clips), timestamps, tuple(prompt)) for clips, timestamps, prompt in rows]
        examples = [
            self.renderer.example(self.clips, window, augmenter=self.augmenter, place=place)
            for window, place in zip(chosen, batch["place"], strict=True)
        ]
        return {name: [example[name] for example in examples] for name in examples[0]}


def training_table(
    clips: Clips,
    *,
    renderer: Renderer,
    packing: Packing | None,
    count: int,
    seed: int,
    augmenter: Augmenter | None = None,
) -> Any:
    """A datasets.Dataset of the first `count` windows, rendered (and augmented) when they are asked for.

    All epochs stand in one file in their order: a resumed run takes it up at the very window it was killed at.
    """
    durations_s, num_tokens = clips.sizes()
    endless = windows(durations_s, num_tokens, packing=packing, seed=seed, max_tokens=clips.max_tokens)
    return _rendered(islice(endless, count), rendering=Rendering(clips, renderer, augmenter), name="train")


def evaluation_table(clips: Clips, *, renderer: Renderer) -> Any:
    """A datasets.Dataset of single clips without timestamps, as they will be dictated."""
    singles = (Window((index,), timestamps=False) for index in range(len(clips.table)))
    return _rendered(singles, rendering=Rendering(clips, renderer), name="dev")


def windows_per_epoch(clips: Clips, *, packing: Packing | None) -> int:
    return epoch_size(*clips.sizes(), packing=packing, max_tokens=clips.max_tokens)


def _longest_text(max_tokens: int) -> int:
    """Tokens of a clip that still fit a window."""
    return max_tokens - TOKENS_AROUND_WINDOW - TOKENS_AROUND_CLIP


def _rendered(chosen: Iterator[Window], *, rendering: Rendering, name: str) -> Any:
    import pyarrow as pa

    indices = pa.list_(pa.int32())
    schema = pa.schema({"clips": indices, "timestamps": pa.bool_(), "prompt": indices, "place": pa.int64()})

    def batches() -> Iterator[pa.RecordBatch]:
        place = 0
        while some := list(islice(chosen, BATCH)):
            rows: dict[str, Any] = {field: [getattr(window, field) for window in some] for field in schema.names[:-1]}
            rows["place"] = range(place, place + len(some))
            place += len(some)
            yield pa.record_batch(rows, schema=schema)

    table = _streamed(rendering.clips.cache / f"{name}-windows.arrow", schema=schema, batches=batches())
    return table.with_transform(rendering)


def _streamed(path: Path, *, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Any:
    """A datasets.Dataset on a memory-mapped file that the batches are written to, one after the other."""
    import pyarrow as pa
    from datasets import Dataset

    path.parent.mkdir(parents=True, exist_ok=True)
    # A table that is still mapped into memory must not change under its reader.
    with pa.ipc.new_stream(str(beside(path)), schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    beside(path).replace(path)
    return Dataset.from_file(str(path))
