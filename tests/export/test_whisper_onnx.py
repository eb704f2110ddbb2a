"""The ONNX export says what torch says, in a layout that onnx-asr loads."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from harness.core.artifact import Work
from harness.errors import ExportError
from harness.export import onnx_graph, whisper_graph, whisper_onnx
from harness.export.whisper_onnx import Spec
from tests.conftest import AELITA, artifact
from tests.whispers import enlivened

if TYPE_CHECKING:
    from pathlib import Path

CLIPS = ("ru_0001", "ru_0002", "ru_0003")
LANGUAGE, TASK, NO_TIMESTAMPS = "<|ru|>", "<|transcribe|>", "<|notimestamps|>"


def clip(name: str) -> np.ndarray:
    samples, rate_hz = soundfile.read(AELITA / "clips" / f"{name}.opus", dtype="float32")
    assert rate_hz == 16_000
    return samples


def export(model: Path, folder: Path) -> tuple[Path, dict]:
    """Run the step on a Hugging Face folder; gives the artifact's folder and its meta."""
    shutil.copytree(model, folder / "in" / "model")
    work = Work(path=folder / "out", scratch=folder / "scratch")
    work.path.mkdir()
    work.scratch.mkdir()
    return work.path, whisper_onnx.run(Spec(), {"model": [artifact(folder / "in")]}, work)


@pytest.fixture(scope="module")
def lively_whisper(tiny_whisper, tmp_path_factory) -> Path:
    return enlivened(tiny_whisper, tmp_path_factory.mktemp("lively-whisper"))


@pytest.fixture(scope="module")
def exported(lively_whisper, tmp_path_factory) -> tuple[Path, dict]:
    return export(lively_whisper, tmp_path_factory.mktemp("exported"))


def test_meta(exported):
    folder, meta = exported
    assert meta["opset"] == 17
    assert meta["files"] == sorted(path.name for path in folder.iterdir())
    assert {"encoder_model.onnx", "decoder_model_merged.onnx", "config.json", "vocab.json", "added_tokens.json"} <= set(
        meta["files"]
    )
    assert meta["size_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert 0 < meta["max_logit_difference"] < 1e-3
    assert Spec().label == "onnx-fp32"


def test_each_weight_is_stored_once(exported, lively_whisper):
    folder, _ = exported
    checkpoint = (lively_whisper / "model.safetensors").stat().st_size
    assert sum(path.stat().st_size for path in folder.glob("*.onnx")) < checkpoint * 1.02


@pytest.mark.parametrize("name", ["encoder_model.onnx", "decoder_model_merged.onnx"])
def test_the_files_are_valid_onnx(exported, name):
    import onnx

    onnx.checker.check_model(str(exported[0] / name), full_check=True)


def test_greedy_tokens_equal_torchs(exported, lively_whisper):
    import onnx_asr
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    folder, _ = exported
    processor = WhisperProcessor.from_pretrained(lively_whisper)
    model = WhisperForConditionalGeneration.from_pretrained(lively_whisper, dtype=torch.float32).eval()
    model.generation_config.suppress_tokens = model.generation_config.begin_suppress_tokens = None
    asr = onnx_asr.load_model("whisper", folder, providers=["CPUExecutionProvider"]).asr
    prompt = processor.tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", LANGUAGE, TASK, NO_TIMESTAMPS])
    heard = []
    for name in CLIPS:
        features = processor(clip(name), sampling_rate=16_000, return_tensors="pt").input_features
        generated = model.generate(features, language="ru", task="transcribe", num_beams=1, max_new_tokens=40)
        expected = generated[0].tolist()
        samples = clip(name)[None]
        encoded = asr._encode(samples, np.array([samples.shape[1]]))
        tokens = asr._decoding(encoded, np.array([prompt]), len(prompt) + 40)[0].tolist()
        assert tokens[len(prompt) :][: len(expected)] == expected[-40:]
        heard.append(tokens)
    assert len({tuple(tokens) for tokens in heard}) == len(CLIPS)
    assert min(len(set(tokens)) for tokens in heard) > 10


def test_a_batch_gives_what_each_item_gives(exported):
    import onnxruntime

    encoder, decoder = (
        onnxruntime.InferenceSession(exported[0] / name) for name in ("encoder_model.onnx", "decoder_model_merged.onnx")
    )
    random = np.random.default_rng(0)
    features = random.uniform(-1, 1, (3, 80, 3000)).astype(np.float32)
    ids = random.integers(0, 50_257, (3, 5))
    names = [item.name for item in decoder.get_outputs()]

    def run(rows: slice) -> list[np.ndarray]:
        """Logits of four tokens at once, then of the fifth through the cache."""
        (encoded,) = encoder.run(None, {"input_features": features[rows]})
        feed = {"encoder_hidden_states": encoded, "input_ids": ids[rows, :4], "use_cache_branch": np.array([False])}
        past = {item.name: np.zeros((0, 2, 0, 64), np.float32) for item in decoder.get_inputs() if "past" in item.name}
        first = dict(zip(names, decoder.run(names, feed | past), strict=True))
        past = {name: first[name.replace("past_key_values", "present")] for name in past}
        feed |= {"input_ids": ids[rows, 4:], "use_cache_branch": np.array([True])}
        later = dict(zip(names, decoder.run(names, feed | past), strict=True))
        assert later["present.0.decoder.key"].shape == (len(encoded), 2, 5, 64)
        assert later["present.0.encoder.key"].shape == (0, 2, 1, 64)
        return [first["logits"], later["logits"]]

    together = run(slice(None))
    alone = [np.concatenate(logits) for logits in zip(*(run(slice(n, n + 1)) for n in range(3)), strict=True)]
    assert all(np.allclose(mine, other, atol=1e-4) for mine, other in zip(together, alone, strict=True))


@pytest.mark.parametrize("past", [(0, 2, 0, 64), (1, 2, 0, 64), (1, 2, 1, 64)], ids=["onnx-asr", "web", "optimum"])
def test_the_first_step_ignores_every_form_of_an_empty_past(exported, past):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported[0] / "decoder_model_merged.onnx")
    encoded = np.random.default_rng(0).standard_normal((1, 1500, 128)).astype(np.float32)
    feed = {"input_ids": np.array([[50258, 50263]]), "encoder_hidden_states": encoded}

    def run(shape: tuple[int, ...]) -> list[np.ndarray]:
        empty = {item.name: np.ones(shape, np.float32) for item in session.get_inputs() if "past" in item.name}
        return session.run(None, {**feed, **empty, "use_cache_branch": np.array([False])})

    assert all(np.array_equal(mine, other) for mine, other in zip(run(past), run((0, 2, 0, 64)), strict=True))


def test_the_interface_is_optimums(exported):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported[0] / "decoder_model_merged.onnx")
    cache = [f"{n}.{side}.{what}" for n in range(2) for side in ("decoder", "encoder") for what in ("key", "value")]
    assert [item.name for item in session.get_inputs()] == [
        "input_ids",
        "encoder_hidden_states",
        *(f"past_key_values.{name}" for name in cache),
        "use_cache_branch",
    ]
    assert [item.name for item in session.get_outputs()] == ["logits", *(f"present.{name}" for name in cache)]


def test_the_vocabulary_is_the_tokenizers(exported, lively_whisper):
    from transformers import WhisperTokenizer

    vocabulary, added = (
        json.loads((exported[0] / name).read_text(encoding="utf-8")) for name in ("vocab.json", "added_tokens.json")
    )
    assert not vocabulary.keys() & added.keys()
    assert vocabulary | added == WhisperTokenizer.from_pretrained(lively_whisper).get_vocab()
    assert sorted((vocabulary | added).values()) == list(range(51_865))
    assert added["<|ru|>"] == 50_263


def test_the_same_checkpoint_gives_the_same_bytes(exported, lively_whisper, tmp_path):
    again, _ = export(lively_whisper, tmp_path)
    for path in exported[0].iterdir():
        digests = [hashlib.sha256(file.read_bytes()).digest() for file in (path, again / path.name)]
        assert digests[0] == digests[1], path.name


def test_large_weights_lie_beside_the_graph(exported, lively_whisper, tmp_path, monkeypatch):
    import onnx_asr

    monkeypatch.setattr(whisper_graph, "MAX_EMBEDDED_BYTES", 10_000_000)
    folder, meta = export(lively_whisper, tmp_path)
    assert {"decoder_model_merged.onnx_data"} == {name for name in meta["files"] if name.endswith("_data")}
    assert (folder / "decoder_model_merged.onnx").stat().st_size < 200_000
    assert meta["max_logit_difference"] == exported[1]["max_logit_difference"]
    texts = [
        onnx_asr.load_model("whisper", path, providers=["CPUExecutionProvider"]).recognize(
            clip(CLIPS[0]), language="ru"
        )
        for path in (folder, exported[0])
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_checkpoints_are_written_as_float32(lively_whisper, tmp_path, dtype):
    import onnx
    import torch
    from transformers import WhisperForConditionalGeneration

    half = tmp_path / "half"
    shutil.copytree(lively_whisper, half)
    WhisperForConditionalGeneration.from_pretrained(half, dtype=getattr(torch, dtype)).save_pretrained(half)
    folder, meta = export(half, tmp_path)
    graph = onnx.load(folder / "encoder_model.onnx").graph
    assert {tensor.data_type for tensor in graph.initializer} == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert meta["max_logit_difference"] < 1e-3


def test_128_mel_bins_and_other_sizes_come_from_the_config(whisper_base, tmp_path):
    import onnxruntime
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig.from_pretrained(whisper_base)
    config.num_mel_bins, config.d_model, config.vocab_size = 128, 48, 51_866
    config.encoder_layers, config.decoder_layers = 1, 3
    config.encoder_attention_heads, config.decoder_attention_heads = 4, 3
    config.encoder_ffn_dim, config.decoder_ffn_dim = 64, 80
    source = tmp_path / "model"
    shutil.copytree(whisper_base, source, ignore=shutil.ignore_patterns("*.safetensors"))
    WhisperForConditionalGeneration(config).save_pretrained(source)
    folder, _ = export(source, tmp_path)
    encoder = onnxruntime.InferenceSession(folder / "encoder_model.onnx")
    assert encoder.get_inputs()[0].shape == ["batch_size", 128, 3000]
    decoder = onnxruntime.InferenceSession(folder / "decoder_model_merged.onnx")
    assert next(item.shape[1:] for item in decoder.get_inputs() if "past" in item.name)[::2] == [3, 16]
    assert decoder.get_outputs()[0].shape[2] == 51_866


def damaged(model: Path, folder: Path, name: str, **changes: object) -> Path:
    """A copy of a model whose JSON file `name` has these changes."""
    copy = folder / "damaged"
    shutil.copytree(model, copy)
    content = json.loads((copy / name).read_text(encoding="utf-8")) | changes
    (copy / name).write_text(json.dumps(content), encoding="utf-8")
    return copy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bart"}, "model_type is 'bart', only 'whisper' is exported"),
        ({"activation_function": "relu"}, "activation_function is 'relu', only 'gelu' is exported"),
    ],
)
def test_other_models_are_refused(lively_whisper, tmp_path, changes, message):
    source = damaged(lively_whisper, tmp_path, "config.json", **changes)
    with pytest.raises(ExportError, match=message):
        export(source, tmp_path)


def test_a_folder_without_a_tokenizer_is_refused(lively_whisper, tmp_path):
    source = damaged(lively_whisper, tmp_path, "config.json")
    (source / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"no tokenizer.json; a Hugging Face folder of a Whisper model has them"):
        export(source, tmp_path)


def test_weights_that_are_not_numbers_are_refused(lively_whisper, tmp_path):
    import torch
    from transformers import WhisperForConditionalGeneration

    source = damaged(lively_whisper, tmp_path, "config.json")
    model = WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        model.model.decoder.layers[0].fc1.weight[0, 0] = float("nan")
    model.save_pretrained(source)
    with pytest.raises(
        ExportError, match=r"the fp32 export's logits differ .*: max_logit_difference is nan, .* 0.01; look"
    ):
        export(source, tmp_path)


def test_real_weights_say_what_torch_says(whisper_base, tmp_path):
    import onnx_asr
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    folder, meta = export(whisper_base, tmp_path)
    assert meta["max_logit_difference"] < 1e-3
    onnx_model = onnx_asr.load_model("whisper", folder, providers=["CPUExecutionProvider"])
    processor = WhisperProcessor.from_pretrained(whisper_base)
    model = WhisperForConditionalGeneration.from_pretrained(whisper_base, dtype=torch.float32).eval()
    for name in CLIPS[:2]:
        features = processor(clip(name), sampling_rate=16_000, return_tensors="pt").input_features
        tokens = model.generate(features, language="ru", task="transcribe", num_beams=1)
        expected = processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()
        assert onnx_model.recognize(clip(name), language="ru").strip() == expected
        assert len(expected) > 10


def test_the_graph_builder_knows_its_limit():
    assert onnx_graph.MAX_EMBEDDED_BYTES < 2**31
