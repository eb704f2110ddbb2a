"""Augmentation inside the batches that trainings take."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.artifact import Artifact
from harness.suite.model import TextPolicy
from harness.train import examples, speech_batches
from harness.train.augmentation import Augmentation, Augmenter, Gain, Noise, Speed
from harness.train.packing import Packing, Window
from harness.train.speech_batches import Batches, Vocabulary
from tests.trainings import short_clips

GRID, LONGEST = 320, 480_000
CHANGE = Augmenter(
    Augmentation(speed=Speed(p=0.7), noise=Noise(p=0.5), gain=Gain(p=0.5)),
    seed=3,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Twelve real clips, the shortest."""
    return short_clips(tmp_path_factory.mktemp("sets") / "set", num=12)


@pytest.fixture(scope="module")
def renderer(whisper_base: Path) -> examples.Renderer:
    from transformers import WhisperProcessor

    return examples.Renderer(WhisperProcessor.from_pretrained(whisper_base), language="ru")


@pytest.fixture(scope="module")
def clips(prepared: Artifact, whisper_base: Path, tmp_path_factory: pytest.TempPathFactory) -> examples.Clips:
    from transformers import WhisperTokenizer

    tokenizer = WhisperTokenizer.from_pretrained(whisper_base)
    return examples.read_clips(prepared, policy=TextPolicy(), tokenizer=tokenizer, cache=tmp_path_factory.mktemp("c"))


def table(clips: examples.Clips, renderer: examples.Renderer, augmenter: Augmenter | None) -> Any:
    packing = Packing(timestamps=1.0, singles=0.5)
    return examples.training_table(clips, renderer=renderer, packing=packing, count=12, seed=1, augmenter=augmenter)


def test_windows_are_the_same_whoever_renders_them_and_in_whatever_order(
    clips: examples.Clips, renderer: examples.Renderer
) -> None:
    augmented = table(clips, renderer, CHANGE)
    first = [augmented[place] for place in range(12)]
    copy = pickle.loads(pickle.dumps(examples.Rendering(clips, renderer, CHANGE)))  # noqa: S301  # as a worker gets it
    elsewhere = augmented.with_transform(copy)
    for place in reversed(range(12)):
        again = elsewhere[place]
        np.testing.assert_array_equal(again["input_features"], first[place]["input_features"])
        assert again["labels"] == first[place]["labels"]
    plain = table(clips, renderer, None)
    differ = [not np.array_equal(plain[place]["input_features"], first[place]["input_features"]) for place in range(12)]
    assert sum(differ) >= 9


def test_timestamps_follow_the_changed_lengths(clips: examples.Clips, renderer: examples.Renderer) -> None:
    window = Window(tuple(range(4)), timestamps=True)
    _, plain_ends = clips.speech(window)
    moved = 0
    for place in range(6):
        samples, ends = clips.speech(window, augmenter=CHANGE, place=place)
        labels = renderer.example(clips, window, augmenter=CHANGE, place=place)["labels"]
        first = renderer.no_timestamps + 1
        stamps = [(label - first) * GRID for label in labels if label >= first]
        assert stamps == [stamp for begin, end in zip([0, *ends], ends, strict=False) for stamp in (begin, end)]
        assert ends[-1] == len(samples) <= LONGEST
        for index, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            alone = CHANGE.clip(clips.samples(index), place=place, index=index)
            np.testing.assert_array_equal(samples[begin:end][: len(alone)], alone)
        moved += ends != plain_ends
    assert moved >= 4


def test_dev_clips_are_as_they_were_recorded(clips: examples.Clips, renderer: examples.Renderer) -> None:
    dev = examples.evaluation_table(clips, renderer=renderer)
    plain = renderer.example(clips, Window((3,), timestamps=False))
    np.testing.assert_array_equal(dev[3]["input_features"], plain["input_features"])


def read(prepared: Artifact, cache: Path) -> speech_batches.Clips:
    vocabulary = Vocabulary(lambda text: [ord(letter) for letter in text], letters=frozenset(), writes_everything=True)
    return speech_batches.read_clips(
        prepared, policy=TextPolicy(), vocabulary=vocabulary, max_clip_s=40, cache=cache, role="train"
    )


def test_a_resumed_training_augments_its_batches_as_an_unbroken_one(prepared: Artifact, tmp_path: Path) -> None:
    clips = read(prepared, tmp_path)
    whole = Batches(clips, seconds=40, seed=5, num_batches=8)
    unbroken = list(speech_batches.loader(clips, whole, num_workers=0, augmenter=CHANGE))
    resumed = list(speech_batches.loader(clips, replace(whole, start=5), num_workers=0, augmenter=CHANGE))
    assert (len(unbroken), len(resumed)) == (8, 3)
    for one, other in zip(unbroken[5:], resumed, strict=True):
        for expected, found in zip(one, other, strict=True):
            np.testing.assert_array_equal(expected, found)
    plain = list(speech_batches.loader(clips, whole, num_workers=0))
    assert any(one[1].tolist() != other[1].tolist() for one, other in zip(plain, unbroken, strict=True))


def test_a_clip_is_another_one_each_epoch(prepared: Artifact, tmp_path: Path) -> None:
    clips = read(prepared, tmp_path)
    numbered = [speech_batches.Examples(clips.table, clips.folder, CHANGE)[place, [0]][0] for place in range(5)]
    assert len({wave.numpy().tobytes() for wave in numbered}) >= 4
