"""What Whisper trains on: audio where its timestamps say, prompts read and not learnt, whatever the model's sizes."""

from __future__ import annotations

import json
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from harness.core.artifact import Work
from harness.core.manifests import read_manifest, write_manifests
from harness.core.records import Utterance
from harness.errors import DataError
from harness.suite.model import TextPolicy
from harness.train import whisper
from harness.train.examples import (
    IGNORED,
    Clips,
    Renderer,
    evaluation_table,
    read_clips,
    text_context,
    training_table,
    windows_per_epoch,
)
from harness.train.packing import Packing, Window
from harness.train.whisper import Training
from tests.conftest import AELITA, artifact

RATE_HZ = 16_000
ROWS = [json.loads(line) for line in (AELITA / "manifest.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def processor(whisper_base: Path):
    from transformers import WhisperProcessor

    return WhisperProcessor.from_pretrained(whisper_base)


@pytest.fixture(scope="module")
def renderer(processor) -> Renderer:
    return Renderer(processor, language="ru")


def write_set(folder: Path, clips: list[tuple[float, str]]) -> Path:
    """Clips of noise of the given seconds, each with its text."""
    rng = np.random.default_rng(0)
    noise = [(rng.standard_normal(round(seconds * RATE_HZ)) / 10, text) for seconds, text in clips]
    return write_samples(folder, noise)


def write_samples(folder: Path, clips: list[tuple[np.ndarray, str]]) -> Path:
    (folder / "audio").mkdir(parents=True)
    utterances = []
    for number, (samples, text) in enumerate(clips):
        soundfile.write(folder / "audio" / f"{number}.wav", samples, RATE_HZ, subtype="PCM_16")
        utterances.append(Utterance(str(number), f"audio/{number}.wav", f"{number:064x}", text, len(samples) / RATE_HZ))
    write_manifests(folder, utterances)
    return folder


def write_real(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Shipped recordings, shortest first, with their transcripts."""
    return write_samples(folder, [(soundfile.read(AELITA / row["audio_filepath"])[0], row["text"]) for row in rows])


SHORTEST = sorted(ROWS, key=lambda row: row["duration"])


def read(processor, folder: Path, **policy: str) -> Clips:
    return read_clips(
        artifact(folder), policy=TextPolicy(**policy), tokenizer=processor.tokenizer, cache=folder.parent / "cache"
    )


def test_labels_without_timestamps(processor, renderer: Renderer) -> None:
    labels = renderer.labels([[1, 2], [3]], [320, 640], timestamps=False)
    words = processor.tokenizer.convert_ids_to_tokens([*labels[:3], labels[-1]])
    assert words == ["<|ru|>", "<|transcribe|>", "<|notimestamps|>", "<|endoftext|>"]
    assert labels[3:-1] == [1, 2, 3]


def spans(renderer: Renderer, labels: list[int], *, end: int) -> list[tuple[int, int, list[int]]]:
    """From and to, in samples, and tokens of each clip that the labels tell of."""
    first, found, begin, text = renderer.no_timestamps + 1, [], None, []
    for label in labels:
        if label >= first and begin is None:
            begin, text = (label - first) * 320, []
        elif label >= first:
            found.append((begin, (label - first) * 320, text))
            begin = None
        elif label < end:
            text.append(label)
    assert begin is None, "a clip without its end"
    return found


def test_timestamps_stand_where_the_audio_is(processor, renderer: Renderer, tmp_path: Path) -> None:
    """Cut the window's samples at its own timestamps: each piece is the recording whose text stands between them."""
    folder = write_real(tmp_path / "set", SHORTEST[:12])
    clips = read(processor, folder)
    recordings = {item.text: soundfile.read(folder / item.audio, dtype="float32")[0] for item in read_manifest(folder)}
    table = training_table(
        clips, renderer=renderer, packing=Packing(window_s=30.0, timestamps=1.0, singles=0.0), count=6, seed=1
    )
    plan = table.with_format(None)
    seen = []
    for example, row in zip(table, plan, strict=True):
        samples, _ = clips.speech(Window(tuple(row["clips"]), timestamps=True))
        extracted = processor.feature_extractor(samples, sampling_rate=RATE_HZ, return_tensors="np")
        np.testing.assert_array_equal(example["input_features"], extracted["input_features"][0])
        found = spans(renderer, example["labels"], end=processor.tokenizer.eos_token_id)
        assert [begin for begin, _, _ in found] == [0, *(end for _, end, _ in found[:-1])]
        assert found[-1][1] == len(samples) <= 30 * RATE_HZ
        for begin, end, tokens in found:
            text = processor.tokenizer.decode(tokens).strip()
            recording = recordings[text]
            assert 0 <= end - begin - len(recording) < 320
            np.testing.assert_array_equal(samples[begin : begin + len(recording)], recording)
            assert not samples[begin + len(recording) : end].any()
            seen.append(text)
    assert set(seen) == set(recordings)
    assert len(seen) > 12, "more than an epoch"


def test_a_window_of_thirty_seconds_ends_at_the_last_timestamp(processor, renderer: Renderer, tmp_path: Path) -> None:
    clips = read(processor, write_set(tmp_path / "set", [(30.0, "один"), (14.5, "два"), (15.5, "три")]))
    packing = Packing(window_s=30.0, timestamps=1.0, singles=0.0)
    table = training_table(clips, renderer=renderer, packing=packing, count=40, seed=1)
    vocabulary = len(processor.tokenizer)
    ends = {example["labels"][-2] for example in table}
    assert processor.tokenizer.convert_tokens_to_ids("<|30.00|>") == vocabulary - 1 == max(ends)
    assert {len(row["clips"]) for row in table.with_format(None)} == {1, 2}


def test_the_decoder_reads_what_the_model_itself_would_make_of_the_labels(
    processor, renderer: Renderer, tmp_path: Path
) -> None:
    from transformers.models.whisper.modeling_whisper import shift_tokens_right

    clips = read(processor, write_set(tmp_path / "set", [(2.0, "раз"), (3.0, "два два"), (29.0, "три")]))
    table = training_table(clips, renderer=renderer, packing=Packing(), count=8, seed=1)
    batch = renderer.collate([table[index] for index in range(8)])
    expected = shift_tokens_right(batch["labels"], renderer.pad, renderer.start)
    assert batch["decoder_input_ids"].tolist() == expected.tolist()
    assert (batch["labels"] == IGNORED).any()
    assert tuple(batch["input_features"].shape) == (8, 80, 3000)


def test_a_prompt_is_read_and_not_learnt(processor, renderer: Renderer, tmp_path: Path) -> None:
    texts = ["первый", "второй раз", "третий"]
    clips = read(processor, write_set(tmp_path / "set", [(20.0, text) for text in texts]))
    packing = Packing(timestamps=0.0, singles=0.0, prompts=1.0)
    table = training_table(clips, renderer=renderer, packing=packing, count=9, seed=1)
    num_prompts = 0
    for example, row in zip(table, table.with_format(None), strict=True):
        read_ids, labels = example["decoder_input_ids"], example["labels"]
        assert len(read_ids) == len(labels)
        start = read_ids.index(renderer.start)
        assert labels[:start] == [IGNORED] * start
        assert read_ids[start + 1 :] == labels[start:-1], "the targets are read one token later"
        assert processor.tokenizer.decode(labels[start + 3 : -1]).strip() == texts[row["clips"][0]]
        if row["prompt"]:
            num_prompts += 1
            assert processor.tokenizer.decode(read_ids[0]) == "<|startofprev|>"
            assert processor.tokenizer.decode(read_ids[1:start]).strip() == texts[row["prompt"][0]]
        else:
            assert start == 0
    assert num_prompts == 6, "all but the first window of each epoch"


@pytest.mark.parametrize(
    ("num_before", "num_labels", "max_tokens", "expected"),
    [
        (10, 100, 448, 11),
        (500, 100, 448, 224),  # half of the text context, as OpenAI's decoder has it
        (500, 300, 448, 148),
        (500, 447, 448, 0),
        (500, 446, 448, 2),
        (0, 100, 448, 0),
        (500, 20, 64, 32),
    ],
)
def test_prompt_and_targets_fit_the_text_context(
    renderer: Renderer, num_before: int, num_labels: int, max_tokens: int, expected: int
) -> None:
    before = list(range(num_before))
    prompt = renderer.prompt(before, num_labels=num_labels, max_tokens=max_tokens)
    assert len(prompt) == expected
    assert len(prompt) + num_labels <= max_tokens
    assert prompt[1:] == (before[num_before - expected + 1 :] if expected else []), "the end of what was said"


def test_training_never_hears_held_out_clips(processor, renderer: Renderer, tmp_path: Path) -> None:
    """Both sets are read into one cache, as in a training."""
    train = read(processor, write_real(tmp_path / "train", SHORTEST[:8]))
    dev = read(processor, write_real(tmp_path / "dev", SHORTEST[8:14]))
    packing = Packing(timestamps=0.0, prompts=0.5)
    count = 2 * windows_per_epoch(train, packing=packing)
    table = training_table(train, renderer=renderer, packing=packing, count=count, seed=1)
    evaluated = evaluation_table(dev, renderer=renderer)
    special = renderer.no_timestamps
    read_ids = {tuple(example["decoder_input_ids"]) for example in table}
    said = " ".join(processor.tokenizer.decode([i for i in ids if i < special]) for ids in read_ids)
    assert all(row["text"] in said for row in SHORTEST[:8])
    assert not any(row["text"] in said for row in SHORTEST[8:14])
    assert len(evaluated) == 6
    for example, row in zip(evaluated, SHORTEST[8:14], strict=True):
        assert processor.tokenizer.decode(example["labels"], skip_special_tokens=True).strip() == row["text"]


def test_clips_that_fit_no_window_are_counted(processor, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", [(30.0, "раз"), (30.02, "долго"), (2.0, "слово " * 500), (31.0, "два")])
    clips = read(processor, folder)
    assert len(clips.table) == 1
    assert (clips.num_too_long, clips.num_too_wordy) == (2, 1)
    long, wordy = clips.notes(of="dev", policy=TextPolicy())
    assert long.startswith("2 dev clips are longer than 30 s, which is all that Whisper hears at once, and were left")
    assert wordy.startswith("1 dev clips have more than 441 tokens of text, of the 448 that Whisper writes at once")


def test_a_set_of_too_long_clips_is_refused(processor, tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", [(31.0, "раз"), (2.0, "слово " * 500)])
    message = "set: no clip is left to train on: 1 of 2 clips are longer than 30 s.*; 1 of 2 clips have more than 441"
    with pytest.raises(DataError, match=message):
        read(processor, folder)


def test_an_empty_set_is_refused(processor, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="set: no clip is left to train on: it is empty; cut them, or change the set"):
        read(processor, write_set(tmp_path / "set", []))


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


def test_the_training_table_renders_windows_and_the_dev_table_single_clips(
    processor, renderer: Renderer, tmp_path: Path
) -> None:
    clips = read(processor, write_set(tmp_path / "set", [(10.0, "один"), (9.0, "два"), (8.0, "три")]))
    packing = Packing(timestamps=1.0, singles=0.0)
    table = training_table(clips, renderer=renderer, packing=packing, count=2, seed=1)
    first = renderer.no_timestamps + 1
    assert [sum(label >= first for label in table[index]["labels"]) for index in range(2)] == [6, 6]
    dev = evaluation_table(clips, renderer=renderer)
    assert len(dev) == 3
    assert all(renderer.no_timestamps in dev[index]["labels"] for index in range(3))


def test_other_processes_prepare_the_same_batches(processor, renderer: Renderer, tmp_path: Path) -> None:
    """Started anew, as on Windows and a Mac: all that they are given is pickled."""
    import torch

    clips = read(processor, write_set(tmp_path / "set", [(2.0, "раз"), (3.0, "два"), (4.0, "три")]))
    table = training_table(clips, renderer=renderer, packing=Packing(window_s=6.0), count=8, seed=1)

    def batches(**workers: Any) -> list[dict[str, torch.Tensor]]:
        return list(torch.utils.data.DataLoader(table, batch_size=4, collate_fn=renderer.collate, **workers))

    here = batches()
    there = batches(num_workers=1, multiprocessing_context="spawn")
    assert len(here) == len(there) == 2
    for one, other in zip(here, there, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=0, atol=0)


def test_a_training_with_other_processes_ends_with_the_same_weights(tiny_whisper: Path, tmp_path: Path) -> None:
    sets = {"train": write_real(tmp_path / "train", SHORTEST[:8]), "dev": write_real(tmp_path / "dev", SHORTEST[8:9])}
    (tmp_path / "base").mkdir()
    shutil.copytree(tiny_whisper, tmp_path / "base" / "model")
    inputs = {name: [artifact(folder)] for name, folder in {**sets, "base": tmp_path / "base"}.items()}
    packing = Packing(window_s=20.0, timestamps=0.5, prompts=1.0)
    weights = []
    for num_workers in (0, 1):
        work = Work(tmp_path / f"out-{num_workers}", tmp_path / f"scratch-{num_workers}")
        work.path.mkdir()
        work.scratch.mkdir()
        spec = Training(max_steps=3, batch_size=2, packing=packing, precision="fp32", num_workers=num_workers)
        whisper.run(spec, inputs, work)
        weights.append((work.path / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != (tiny_whisper / "model.safetensors").read_bytes()


def test_windows_are_streamed_into_a_file(processor, renderer: Renderer, tmp_path: Path) -> None:
    """More windows than a batch of the file holds; the file, not the process, has them."""
    clips = read(processor, write_set(tmp_path / "set", [(1.0, "раз"), (1.5, "два")]))
    table = training_table(clips, renderer=renderer, packing=None, count=25_001, seed=1)
    assert len(table) == 25_001
    (file,) = table.cache_files
    assert Path(file["filename"]) == tmp_path / "cache" / "train-windows.arrow"
    pairs = table.with_format(None)["clips"][:]
    assert all(sorted(first + second) == [0, 1] for first, second in zip(pairs[0::2], pairs[1::2], strict=False))


def large_v3(folder: Path, *, base: Path, num_mels: int, languages: list[str]) -> Path:
    """A tiny model shaped as large-v3: more mel bins, more languages in the tokenizer, so that later tokens move."""
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    added = tokenizer["added_tokens"]
    after = next(token["id"] for token in added if token["content"] == "<|su|>") + 1
    for token in added:
        token["id"] += len(languages) * (token["id"] >= after)
    like = next(token for token in added if token["content"] == "<|su|>")
    new = [{**like, "id": after + n, "content": f"<|{language}|>"} for n, language in enumerate(languages)]
    tokenizer["added_tokens"] = sorted(added + new, key=lambda token: token["id"])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    config = WhisperConfig.from_pretrained(base)
    config.update({"d_model": 64, "encoder_layers": 1, "decoder_layers": 3, "num_mel_bins": num_mels})
    config.update({"encoder_attention_heads": 2, "decoder_attention_heads": 2})
    config.update({"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 51865 + len(languages)})
    config.max_target_positions = 96
    torch.manual_seed(0)
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=num_mels).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("num_mels", "languages"), [(80, []), (128, ["yue"])])
def test_every_whisper_gets_what_its_config_says(
    whisper_base: Path, tmp_path: Path, num_mels: int, languages: list[str]
) -> None:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    folder = large_v3(tmp_path / "model", base=whisper_base, num_mels=num_mels, languages=languages)
    processor = WhisperProcessor.from_pretrained(folder)
    renderer = Renderer(processor, language="ru")
    assert text_context(folder) == 96
    words = [(4.0, "слово " * 9)] * 10
    clips = read_clips(
        artifact(write_set(tmp_path / "set", [*words, (3.0, "слово " * 95)])),
        policy=TextPolicy(),
        tokenizer=processor.tokenizer,
        cache=tmp_path / "cache",
        max_tokens=text_context(folder),
    )
    assert clips.num_too_wordy == 1
    packing = Packing(window_s=30.0, timestamps=1.0, singles=0.0, prompts=1.0)
    table = training_table(clips, renderer=renderer, packing=packing, count=8, seed=1)
    batch = renderer.collate(list(islice(table, 8)))
    assert tuple(batch["input_features"].shape) == (8, num_mels, 3000)
    assert batch["labels"].shape[1] <= 96
    assert batch["labels"].max() < 51865 + len(languages)
    assert (batch["decoder_input_ids"] == renderer.previous).any()
    names = processor.tokenizer.convert_ids_to_tokens([renderer.start, *renderer.task, renderer.no_timestamps + 1])
    assert names == ["<|startoftranscript|>", "<|ru|>", "<|transcribe|>", "<|0.00|>"]
    loss = WhisperForConditionalGeneration.from_pretrained(folder)(**batch).loss
    assert 0 < float(loss.detach()) < 20


def test_a_tokenizer_without_the_language_is_refused(processor) -> None:
    with pytest.raises(
        DataError, match=r"the tokenizer has no <\|xx\|>: .* a Whisper that knows 'xx'; take a multiling"
    ):
        Renderer(processor, language="xx")
