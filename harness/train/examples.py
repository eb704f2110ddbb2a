"""Windows into what Whisper trains on: a spectrogram and label tokens."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from harness.core.files import beside
from harness.core.manifests import SAMPLE_RATE_HZ, iterate_utterances
from harness.core.recordings import read_samples
from harness.core.targets import left_out, target_text
from harness.errors import DataError
from harness.train.packing import MAX_LABEL_TOKENS, TOKENS_AROUND_WINDOW, Packing, epoch_size, windows

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from harness.core.artifact import Artifact
    from harness.core.targets import Policy

MAX_CLIP_S = 30.0
SAMPLES_PER_TIMESTAMP = 320
"""Whisper's timestamps lie on a grid of 20 ms."""
IGNORED = -100
"""Label that the loss passes over."""


@dataclass(frozen=True, slots=True)
class Clips:
    """A manifest's clips that can be learnt from and fit one window, and how many others there were."""

    table: Any
    """datasets.Dataset, memory-mapped: audio, duration_s, text (as it is learnt), and `tokens`, it encoded."""
    folder: Path
    num_without_text: int
    num_too_long: int

    def samples(self, index: int) -> np.ndarray:
        """float32 [num_samples], zero-padded to the timestamp grid."""
        import numpy as np

        samples = read_samples(self.folder / self.table[index]["audio"])
        return np.pad(samples, (0, -len(samples) % SAMPLES_PER_TIMESTAMP))

    def notes(self, *, of: str, policy: Policy) -> list[str]:
        """Sentences about the clips that are not in the table. of: train, dev."""
        long = "are longer than 30 s, or than Whisper's text context, and were left out"
        too_long = [f"{self.num_too_long} {of} clips {long}"] if self.num_too_long else []
        return left_out(self.num_without_text, of=of, policy=policy) + too_long


def read_clips(artifact: Artifact, *, policy: Policy, tokenizer: Any, cache: Path) -> Clips:
    """The clips of a prepared set, their target texts encoded as Whisper writes them (with a leading space).

    cache: folder for the table, which is streamed into a file: a million clips take no more memory than one batch.
    """
    import pyarrow as pa
    from datasets import Dataset

    columns = {"audio": pa.string(), "duration_s": pa.float64(), "text": pa.string(), "tokens": pa.list_(pa.int32())}
    schema = pa.schema(columns)
    fits = MAX_LABEL_TOKENS - TOKENS_AROUND_WINDOW - 2
    total = num_with_text = 0
    cache.mkdir(exist_ok=True)
    file = cache / f"{artifact.path.name}.arrow"
    # A table that is still mapped into memory must not change under its reader.
    with pa.ipc.new_stream(str(beside(file)), schema) as writer:
        for batch in iterate_utterances(artifact.path, columns=["audio", "duration_s", "text"]):
            rows = [{**row, "text": target_text(row["text"], policy)} for row in batch.to_pylist()]
            rows = [row for row in rows if row["text"] is not None]
            total, num_with_text = total + len(batch), num_with_text + len(rows)
            tokens = (
                tokenizer([f" {row['text']}" for row in rows], add_special_tokens=False)["input_ids"] if rows else []
            )
            rows = [{**row, "tokens": ids} for row, ids in zip(rows, tokens, strict=True) if len(ids) <= fits]
            rows = [row for row in rows if row["duration_s"] <= MAX_CLIP_S]
            writer.write_table(pa.Table.from_pylist(rows, schema))
    beside(file).replace(file)
    table = Dataset.from_file(str(file))
    clips = Clips(table, artifact.path, total - num_with_text, num_with_text - len(table))
    if not len(table):
        reasons = "; ".join(clips.notes(of=f"of {total}", policy=policy))
        raise DataError(f"{artifact.path.name}: no clip is left to train on: {reasons}; cut them, or change the set")
    return clips


class Renderer:
    """Turns windows of clips into model inputs."""

    def __init__(self, processor: Any, *, language: str) -> None:
        tokenizer = processor.tokenizer
        start, language_id, task, no_timestamps = tokenizer.convert_tokens_to_ids(
            ["<|startoftranscript|>", f"<|{language}|>", "<|transcribe|>", "<|notimestamps|>"]
        )
        self.extract = processor.feature_extractor
        self.start = start
        self.prompt = [language_id, task]
        self.no_timestamps = no_timestamps
        self.end = tokenizer.eos_token_id
        self.pad = tokenizer.pad_token_id

    def labels(self, texts: list[list[int]], ends: list[int], *, timestamps: bool) -> list[int]:
        """What the decoder shall say: language, task, then each clip's tokens between its timestamps.

        texts: tokens of each clip. ends: the sample at which each clip ends, on the timestamp grid.
        """
        if not timestamps:
            return [*self.prompt, self.no_timestamps, *(token for text in texts for token in text), self.end]
        first = self.no_timestamps + 1
        out = [*self.prompt]
        begin = 0
        for text, end in zip(texts, ends, strict=True):
            out += [first + begin // SAMPLES_PER_TIMESTAMP, *text, first + end // SAMPLES_PER_TIMESTAMP]
            begin = end
        return [*out, self.end]

    def example(self, clips: Clips, indices: list[int], *, timestamps: bool) -> dict[str, Any]:
        import numpy as np

        pieces = [clips.samples(index) for index in indices]
        ends = [int(end) for end in np.cumsum([len(piece) for piece in pieces])]
        texts = [clips.table[index]["tokens"] for index in indices]
        features = self.extract(np.concatenate(pieces), sampling_rate=SAMPLE_RATE_HZ, return_tensors="np")
        labels = self.labels(texts, ends, timestamps=timestamps)
        return {"input_features": features["input_features"][0], "labels": labels}

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """input_features float32 [batch, num_mels, 3000], labels int64 [batch, longest], padded with IGNORED."""
        import numpy as np
        import torch

        longest = max(len(example["labels"]) for example in examples)
        labels = torch.full((len(examples), longest), IGNORED, dtype=torch.long)
        for row, example in zip(labels, examples, strict=True):
            row[: len(example["labels"])] = torch.tensor(example["labels"])
        features = torch.from_numpy(np.stack([example["input_features"] for example in examples]))
        return {"input_features": features, "labels": labels}


def training_table(clips: Clips, *, renderer: Renderer, packing: Packing | None, count: int, seed: int) -> Any:
    """A datasets.Dataset of the first `count` windows, rendered when they are asked for.

    All epochs stand in one list in their order: a resumed run takes it up at the very window it was killed at.
    """
    from datasets import Dataset

    lengths = [len(tokens) for tokens in clips.table["tokens"]]
    plan = list(islice(windows(clips.table["duration_s"], lengths, packing=packing, seed=seed), count))
    table = Dataset.from_dict(
        {"clips": [list(window.clips) for window in plan], "timestamps": [window.timestamps for window in plan]}
    )
    return _rendered(table, clips, renderer)


def evaluation_table(clips: Clips, *, renderer: Renderer) -> Any:
    """A datasets.Dataset of single clips without timestamps, as they will be dictated."""
    from datasets import Dataset

    count = len(clips.table)
    table = Dataset.from_dict({"clips": [[index] for index in range(count)], "timestamps": [False] * count})
    return _rendered(table, clips, renderer)


def windows_per_epoch(clips: Clips, *, packing: Packing | None) -> int:
    return epoch_size(clips.table["duration_s"], [len(tokens) for tokens in clips.table["tokens"]], packing=packing)


def _rendered(table: Any, clips: Clips, renderer: Renderer) -> Any:
    def render(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pairs = zip(batch["clips"], batch["timestamps"], strict=True)
        examples = [renderer.example(clips, indices, timestamps=timestamps) for indices, timestamps in pairs]
        return {name: [example[name] for example in examples] for name in examples[0]}

    return table.with_transform(render)
