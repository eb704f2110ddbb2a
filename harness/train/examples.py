"""Windows into what Whisper trains on: a spectrogram and label tokens."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from harness.core.manifests import HUGGING_FACE_FILE, SAMPLE_RATE_HZ
from harness.core.recordings import read_samples
from harness.errors import DataError
from harness.train.packing import MAX_LABEL_TOKENS, TOKENS_AROUND_WINDOW, Packing, epoch_size, windows

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from harness.core.artifact import Artifact

MAX_CLIP_S = 30.0
SAMPLES_PER_TIMESTAMP = 320
"""Whisper's timestamps lie on a grid of 20 ms."""
IGNORED = -100
"""Label that the loss passes over."""


@dataclass(frozen=True, slots=True)
class Clips:
    """A manifest's clips that fit one window, and how many did not."""

    table: Any
    """datasets.Dataset, memory-mapped: audio, sentence, duration, and `tokens`, the encoded sentence."""
    folder: Path
    num_too_long: int

    def samples(self, index: int) -> np.ndarray:
        """float32 [num_samples], zero-padded to the timestamp grid."""
        import numpy as np

        samples = read_samples(self.folder / self.table[index]["audio"]["path"])
        return np.pad(samples, (0, -len(samples) % SAMPLES_PER_TIMESTAMP))


def read_clips(artifact: Artifact, *, tokenizer: Any, cache: Path) -> Clips:
    """The clips of a prepared set, sentences encoded as Whisper writes them (with a leading space)."""
    from datasets import Dataset

    table = Dataset.from_json(str(artifact.path / HUGGING_FACE_FILE), cache_dir=str(cache))
    total = len(table)
    table = table.map(
        lambda row: {"tokens": tokenizer.encode(f" {row['sentence']}", add_special_tokens=False)},
        desc=None,
    )
    fits = MAX_LABEL_TOKENS - TOKENS_AROUND_WINDOW - 2
    table = table.filter(lambda row: row["duration"] <= MAX_CLIP_S and len(row["tokens"]) <= fits, desc=None)
    if not len(table):
        raise DataError(f"{artifact.path.name}: none of its {total} clips is at most {MAX_CLIP_S:g} s long; cut them")
    return Clips(table, artifact.path, total - len(table))


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
    plan = list(islice(windows(clips.table["duration"], lengths, packing=packing, seed=seed), count))
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
    return epoch_size(clips.table["duration"], [len(tokens) for tokens in clips.table["tokens"]], packing=packing)


def _rendered(table: Any, clips: Clips, renderer: Renderer) -> Any:
    def render(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pairs = zip(batch["clips"], batch["timestamps"], strict=True)
        examples = [renderer.example(clips, indices, timestamps=timestamps) for indices, timestamps in pairs]
        return {name: [example[name] for example in examples] for name in examples[0]}

    return table.with_transform(render)
