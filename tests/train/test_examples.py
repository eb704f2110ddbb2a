from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from harness.core.manifests import write_manifests
from harness.core.records import Utterance
from harness.errors import DataError
from harness.suite.model import TextPolicy
from harness.train.examples import IGNORED, Clips, Renderer, evaluation_table, read_clips, training_table
from harness.train.packing import Packing
from tests.conftest import artifact

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def processor(whisper_base: Path):
    from transformers import WhisperProcessor

    return WhisperProcessor.from_pretrained(whisper_base)


def write_set(folder: Path, clips: list[tuple[float, str]]) -> Path:
    """Clips of noise of the given seconds, each with its text."""
    rng = np.random.default_rng(0)
    (folder / "audio").mkdir(parents=True)
    utterances = []
    for number, (seconds, text) in enumerate(clips):
        samples = (rng.standard_normal(round(seconds * RATE_HZ)) * 1000).astype(np.int16)
        soundfile.write(folder / "audio" / f"{number}.wav", samples, RATE_HZ)
        utterances.append(Utterance(str(number), f"audio/{number}.wav", f"{number:064x}", text, len(samples) / RATE_HZ))
    write_manifests(folder, utterances)
    return folder


def read(processor, folder: Path, **policy: str) -> Clips:
    return read_clips(
        artifact(folder), policy=TextPolicy(**policy), tokenizer=processor.tokenizer, cache=folder / "cache"
    )


def test_labels_without_timestamps(processor) -> None:
    labels = Renderer(processor, language="ru").labels([[1, 2], [3]], [320, 640], timestamps=False)
    words = processor.tokenizer.convert_ids_to_tokens([*labels[:3], labels[-1]])
    assert words == ["<|ru|>", "<|transcribe|>", "<|notimestamps|>", "<|endoftext|>"]
    assert labels[3:-1] == [1, 2, 3]


def test_timestamps_stand_where_the_audio_is(processor, tmp_path: Path) -> None:
    """Cut the window's samples at its own timestamps: each piece is the clip whose text stands between them."""
    texts = ["первый", "второй", "третий"]
    clips = read(processor, write_set(tmp_path / "set", list(zip([1.234, 2.5, 0.777], texts, strict=True))))
    renderer = Renderer(processor, language="ru")
    order = [2, 0, 1]
    pieces = [clips.samples(index) for index in order]
    window = np.concatenate(pieces)
    ends = [int(end) for end in np.cumsum([len(piece) for piece in pieces])]
    labels = renderer.labels([clips.table[index]["tokens"] for index in order], ends, timestamps=True)
    first = renderer.no_timestamps + 1
    stamps = [label - first for label in labels if label >= first]
    assert len(stamps) == 6
    for number, index in enumerate(order):
        begin, end = (stamp * 320 for stamp in stamps[2 * number : 2 * number + 2])
        np.testing.assert_array_equal(window[begin:end], clips.samples(index))
    spoken = [label for label in labels if label < processor.tokenizer.eos_token_id]
    assert processor.tokenizer.decode(spoken).split() == ["третий", "первый", "второй"]


def test_collated_labels_are_padded_with_what_the_loss_ignores(processor) -> None:
    features = np.zeros((80, 3000), np.float32)
    examples = [{"input_features": features, "labels": [1, 2, 3]}, {"input_features": features, "labels": [4]}]
    batch = Renderer(processor, language="ru").collate(examples)
    assert batch["labels"].tolist() == [[1, 2, 3], [4, IGNORED, IGNORED]]
    assert tuple(batch["input_features"].shape) == (2, 80, 3000)


def test_clips_that_fit_no_window_are_counted(processor, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", [(1.0, "раз"), (30.5, "слишком долго"), (2.0, "слово " * 500)])
    clips = read(processor, folder)
    assert len(clips.table) == 1
    assert clips.num_too_long == 2
    (note,) = clips.notes(of="dev", policy=TextPolicy())
    assert note.startswith("2 dev clips are longer than 30 s")


def test_a_set_of_too_long_clips_is_refused(processor, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", [(31.0, "раз")])
    with pytest.raises(DataError, match="set: no clip is left to train on: 1 of 1 clips are longer than 30 s"):
        read(processor, folder)


def test_the_policy_makes_the_texts(processor, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", [(1.0, "Привет, [шум] Анна!"), (1.0, "привет"), (1.0, "[шум]")])
    texts = {case: read(processor, folder, case=case) for case in ("as_is", "lower", "cased")}
    assert {case: clips.table["text"][:] for case, clips in texts.items()} == {
        "as_is": ["Привет, Анна!", "привет"],
        "lower": ["привет анна", "привет"],
        "cased": ["Привет, Анна!"],
    }
    assert {case: clips.num_without_text for case, clips in texts.items()} == {"as_is": 1, "lower": 1, "cased": 2}
    for clips in texts.values():
        decoded = [processor.tokenizer.decode(tokens) for tokens in clips.table["tokens"]]
        assert decoded == [f" {text}" for text in clips.table["text"]]
    (note,) = texts["cased"].notes(of="train", policy=TextPolicy(case="cased"))
    assert note.startswith("2 train clips have no words to train on, or neither capitals nor punctuation")


def test_a_set_without_a_target_is_refused(processor, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", [(1.0, "привет"), (1.0, "пока")])
    with pytest.raises(DataError, match=r"no clip is left to train on: 2 of 2 clips have no words .*`text: cased`"):
        read(processor, folder, case="cased")


def test_the_training_table_renders_windows_and_the_dev_table_single_clips(processor, tmp_path: Path) -> None:
    clips = read(processor, write_set(tmp_path / "set", [(10.0, "один"), (9.0, "два"), (8.0, "три")]))
    renderer = Renderer(processor, language="ru")
    packing = Packing(timestamps=1.0, singles=0.0)
    table = training_table(clips, renderer=renderer, packing=packing, count=2, seed=1)
    first = renderer.no_timestamps + 1
    assert [sum(label >= first for label in table[index]["labels"]) for index in range(2)] == [6, 6]
    dev = evaluation_table(clips, renderer=renderer)
    assert len(dev) == 3
    assert all(renderer.no_timestamps in dev[index]["labels"] for index in range(3))
