from __future__ import annotations

import tarfile
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.manifests import write_manifests
from harness.core.records import Utterance
from harness.errors import DataError
from harness.suite.model import TextPolicy
from harness.train.speech_batches import (
    Batches,
    Clips,
    Vocabulary,
    batch_size,
    epoch_batches,
    evaluation_batches,
    loader,
    read_clips,
)
from tests.conftest import artifact

LETTERS = Vocabulary(encode=lambda text: [ord(letter) for letter in text], letters=frozenset("абвгдежё"))
RATE_HZ = 16_000


def of_durations(durations_s: list[float]) -> Clips:
    """Clips without recordings: what batches are made of."""
    count = len(durations_s)
    return Clips(
        table=None,
        folder=Path(),
        rows=np.arange(count) + 100,
        durations_s=np.array(durations_s),
        num_tokens=np.ones(count, dtype=np.int64),
        left_out={},
        unwritable={},
    )


def prepared(folder: Path, rows: list[tuple[str, float]]) -> Path:
    """A set of (text, duration) without recordings."""
    folder.mkdir()
    write_manifests(
        folder,
        (
            Utterance(id=str(place), audio=f"{place}.wav", sha256="00" * 32, text=text, duration_s=duration_s)
            for place, (text, duration_s) in enumerate(rows)
        ),
    )
    return folder


def read(folder: Path, cache: Path, *, vocabulary: Vocabulary = LETTERS, policy: str = "as_is") -> Clips:
    return read_clips(
        artifact(folder),
        policy=TextPolicy(case=policy),
        vocabulary=vocabulary,
        max_clip_s=40.0,
        cache=cache,
        role="train",
    )


@settings(max_examples=30, deadline=None)
@given(
    durations_s=st.lists(st.floats(0.1, 40.0), min_size=1, max_size=120),
    seconds=st.floats(40.0, 200.0),
    seed=st.integers(0, 5),
)
def test_an_epoch_has_every_clip_once_in_batches_that_fit(durations_s: list[float], seconds: float, seed: int) -> None:
    clips = of_durations(durations_s)
    batches = list(epoch_batches(clips, seconds=seconds, seed=seed, epoch=0))
    assert sorted(chain.from_iterable(batches)) == clips.rows.tolist()
    for batch in [*batches, *evaluation_batches(clips, seconds=seconds)]:
        longest_s = max(durations_s[row - 100] for row in batch)
        assert len(batch) <= batch_size(longest_s, seconds=seconds)
        assert len(batch) * longest_s <= seconds
    assert list(epoch_batches(clips, seconds=seconds, seed=seed, epoch=0)) == batches


def test_clips_of_like_length_share_a_batch() -> None:
    rng = np.random.default_rng(0)
    clips = of_durations(rng.uniform(1, 20, 3000).tolist())
    padded = paid = 0.0
    for batch in epoch_batches(clips, seconds=200, seed=1, epoch=0):
        lengths = clips.durations_s[np.array(batch) - 100]
        padded += len(lengths) * lengths.max()
        paid += lengths.sum()
    assert padded / paid < 1.15  # unsorted: about 1.8


def test_epochs_and_seeds_differ_in_their_order() -> None:
    clips = of_durations([1.0 + place / 100 for place in range(200)])
    orders = [
        list(epoch_batches(clips, seconds=40, seed=seed, epoch=epoch)) for seed, epoch in ((1, 0), (1, 1), (2, 0))
    ]
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize("start", [0, 3, 17, 40])
def test_a_resumed_training_takes_the_batches_up_where_it_was(start: int) -> None:
    clips = of_durations([1.0 + place % 7 for place in range(60)])
    whole = list(Batches(clips, seconds=40, seed=3, num_batches=40))
    rest = Batches(clips, seconds=40, seed=3, num_batches=40, start=start)
    assert len(whole) == len(rest) == 40  # what Lightning counts up to
    assert list(rest) == whole[start:]
    heard = Counter(chain.from_iterable(whole))
    assert max(heard.values()) - min(heard.values()) <= 1


def test_evaluation_begins_with_the_longest_clips() -> None:
    clips = of_durations([3.0, 10.0, 5.0, 9.0])
    assert evaluation_batches(clips, seconds=30) == [[101, 103], [102, 100]]


@pytest.mark.parametrize(("longest_s", "count"), [(1.0, 114), (4.0, 25), (10.0, 8), (20.0, 3), (30.0, 1), (40.0, 1)])
def test_long_clips_count_for_what_they_cost(longest_s: float, count: int) -> None:
    assert batch_size(longest_s, seconds=120.0) == count


def test_what_cannot_be_trained_on_is_left_out_and_told(tmp_path: Path) -> None:
    rows = [("где", 2.0), ("  ", 2.0), ("где", 41.0), ("где", 0.05), ("(смех)", 50.0), ("аб", 40.0), *[("е", 1.0)] * 20]
    clips = read(prepared(tmp_path / "set", rows), tmp_path)
    assert clips.rows.tolist() == [0, 5, *range(6, 26)]
    assert clips.durations_s.tolist() == [2.0, 40.0, *[1.0] * 20]
    assert clips.num_tokens.tolist() == [3, 2, *[1] * 20]
    assert clips.notes(of="train", policy=TextPolicy(), max_clip_s=40.0) == [
        "2 train clips have no words to train on, and were left out",
        "1 train clips are longer than 40 s (max_clip_s), and were left out",
        "1 train clips are shorter than 0.1 s, and were left out",
    ]


def test_a_set_without_a_usable_clip_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no clip is left to train on: 1 of 1 clips are longer than 40 s"):
        read(prepared(tmp_path / "set", [("где", 90.0)]), tmp_path)


def test_texts_that_the_vocabulary_cannot_write_are_an_error_that_counts_the_letters(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "set", [("Где", 2.0), ("Да", 2.0), ("где", 2.0)])
    message = r"set: 2 of 3 clips have characters .* cannot write: 'Г' \(1 clips\), 'Д' \(1 clips\); write them"
    with pytest.raises(DataError, match=message):
        read(folder, tmp_path)
    assert len(read(folder, tmp_path, policy="lower").rows) == 3


def test_a_few_strange_letters_are_told_and_learnt_as_unknown(tmp_path: Path) -> None:
    clips = read(prepared(tmp_path / "set", [*[("где", 2.0)] * 19, ("где z", 2.0)]), tmp_path)
    assert len(clips.rows) == 20
    assert clips.notes(of="dev", policy=TextPolicy(), max_clip_s=40.0) == [
        "dev: the vocabulary cannot write 'z' (1 clips); they are learnt as unknown"
    ]


@pytest.mark.parametrize(
    ("vocabulary", "fitted", "unwritable"),
    [
        (Vocabulary(encode=LETTERS.encode, letters=frozenset("её")), "ещё Ёж…", set("щЁж…")),
        (Vocabulary(encode=LETTERS.encode, letters=frozenset("еЕщж.")), "еще Еж…", set()),
        (Vocabulary(encode=LETTERS.encode, letters=frozenset(), writes_everything=True), "ещё Ёж…", set()),
    ],
)
def test_a_vocabulary_knows_what_it_can_write(vocabulary: Vocabulary, fitted: str, unwritable: set[str]) -> None:
    """ё may become е; SentencePiece writes "…" as three dots."""
    text = vocabulary.fitted("ещё Ёж…")
    assert (text, vocabulary.unwritable(text)) == (fitted, unwritable)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_holds_the_recordings_and_tokens_of_its_rows(tmp_path: Path, num_workers: int) -> None:
    """One recording is a file, the other lies in a shard that two sets share."""
    import soundfile

    folder, audio = tmp_path / "select", tmp_path / "prepare" / "audio"
    folder.mkdir()
    audio.mkdir(parents=True)
    tones = [np.full(800 * (place + 1), 0.25 * (place + 1), dtype=np.float32) for place in range(2)]
    soundfile.write(audio / "0.wav", tones[0], RATE_HZ, subtype="FLOAT")
    soundfile.write(tmp_path / "1.wav", tones[1], RATE_HZ, subtype="FLOAT")
    with tarfile.open(audio / "0.tar", "w") as shard:
        shard.add(tmp_path / "1.wav", arcname="1.wav")
    with tarfile.open(audio / "0.tar") as shard:
        (member,) = shard.getmembers()
    size = (tmp_path / "1.wav").stat().st_size
    places = ["../prepare/audio/0.wav", f"../prepare/audio/0.tar/1.wav@{member.offset_data}+{size}"]
    write_manifests(
        folder,
        [
            Utterance(id=str(place), audio=name, sha256="00" * 32, text=text, duration_s=len(tone) / RATE_HZ)
            for place, (name, text, tone) in enumerate(zip(places, ("аб", "где"), tones, strict=True))
        ],
    )
    clips = read(folder, tmp_path)
    ((waves, num_samples, tokens, num_tokens),) = loader(clips, [[1, 0]], num_workers=num_workers)
    assert num_samples.tolist() == [1600, 800]
    assert num_tokens.tolist() == [3, 2]
    assert tokens.tolist() == [[ord(letter) for letter in "где"], [ord("а"), ord("б"), 0]]
    np.testing.assert_array_equal(waves[0].numpy(), tones[1])
    np.testing.assert_array_equal(waves[1].numpy(), np.pad(tones[0], (0, 800)))
