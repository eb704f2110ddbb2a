"""The ggml file holds what the checkpoint holds, in the layout that whisper.cpp loads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file, save_file

from harness.core.artifact import Work
from harness.errors import ExportError
from harness.export import whisper_ggml
from harness.export.mel import filter_bank
from harness.export.whisper_ggml import Spec
from harness.score import whispercpp
from tests.conftest import AELITA, artifact
from tests.ggml_files import read_ggml

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WIDTH, LAYERS, MELS = 64, 2, 80


def export(source: Path, folder: Path, *, quantize: str = "f16") -> tuple[Path, dict[str, Any]]:
    """Run the step on a folder that holds `model/`; gives the file and the meta."""
    work = Work(path=folder / "out", scratch=folder / "scratch")
    work.path.mkdir(parents=True)
    work.scratch.mkdir()
    meta = whisper_ggml.run(Spec(quantize=quantize), {"model": [artifact(source)]}, work)
    return work.path / "ggml-model.bin", meta


def weights(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Random weights of a Whisper, by an independent list of its parameters."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    model = WhisperForConditionalGeneration(WhisperConfig(**config))
    return {name: value.numpy() for name, value in model.state_dict().items() if name != "proj_out.weight"}


def tokenizer(num_text: int) -> dict[str, Any]:
    """A tokenizer of bytes and pairs of bytes, with special tokens both ways that files list them."""
    letters = list(whisper_ggml.BYTE_OF)
    texts = [*letters, *(a + b for a in letters for b in letters)][: num_text - 1]
    vocab = {text: number for number, text in enumerate([*texts, ""])}
    vocab["<|endoftext|>"] = num_text
    return {
        "model": {"vocab": vocab},
        "added_tokens": [{"id": num_text, "content": "<|endoftext|>"}, {"id": num_text + 1, "content": "<|ru|>"}],
    }


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Make a tiny random Whisper; gives the folder that holds `model/`."""

    def build(*, vocab_size: int = 51865, num_text: int = 50257, mels: int = MELS, **extra: Any) -> Path:
        config = {
            "model_type": "whisper",
            "vocab_size": vocab_size,
            "num_mel_bins": mels,
            "d_model": WIDTH,
            "encoder_layers": LAYERS,
            "decoder_layers": LAYERS + 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 4 * WIDTH,
            "decoder_ffn_dim": 4 * WIDTH,
            "max_source_positions": 1500,
            "max_target_positions": 448,
        }
        folder = tmp_path / "in" / "model"
        folder.mkdir(parents=True)
        save_file(weights(config), folder / "model.safetensors")
        write(folder / "config.json", {**config, "max_length": 99, **extra})
        write(folder / "tokenizer.json", tokenizer(num_text))
        return folder.parent

    return build


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def change(path: Path, **fields: Any) -> None:
    write(path, {**json.loads(path.read_text(encoding="utf-8")), **fields})


# Written out by hand from OpenAI's model.py, so that the module's own table is not its own judge.
OPENAI = {
    "encoder.conv1.weight": "model.encoder.conv1.weight",
    "encoder.conv1.bias": "model.encoder.conv1.bias",
    "encoder.positional_embedding": "model.encoder.embed_positions.weight",
    "encoder.blocks.1.attn.query.bias": "model.encoder.layers.1.self_attn.q_proj.bias",
    "encoder.blocks.1.attn.key.weight": "model.encoder.layers.1.self_attn.k_proj.weight",
    "encoder.blocks.0.attn_ln.weight": "model.encoder.layers.0.self_attn_layer_norm.weight",
    "encoder.blocks.0.mlp.2.weight": "model.encoder.layers.0.fc2.weight",
    "encoder.ln_post.bias": "model.encoder.layer_norm.bias",
    "decoder.token_embedding.weight": "model.decoder.embed_tokens.weight",
    "decoder.positional_embedding": "model.decoder.embed_positions.weight",
    "decoder.blocks.2.cross_attn.key.weight": "model.decoder.layers.2.encoder_attn.k_proj.weight",
    "decoder.blocks.2.cross_attn.out.bias": "model.decoder.layers.2.encoder_attn.out_proj.bias",
    "decoder.blocks.2.cross_attn_ln.bias": "model.decoder.layers.2.encoder_attn_layer_norm.bias",
    "decoder.blocks.0.mlp.0.weight": "model.decoder.layers.0.fc1.weight",
    "decoder.blocks.0.mlp_ln.weight": "model.decoder.layers.0.final_layer_norm.weight",
    "decoder.ln.weight": "model.decoder.layer_norm.weight",
}


@pytest.mark.parametrize(("quantize", "number"), [("f16", 1), ("f32", 0)])
def test_all_tensors_are_there_and_equal(make, tmp_path, quantize, number):
    source = make()
    path, meta = export(source, tmp_path, quantize=quantize)
    found, expected = read_ggml(path), load_file(source / "model" / "model.safetensors")
    assert found.sizes == (51865, 1500, WIDTH, 2, LAYERS, 448, WIDTH, 4, LAYERS + 1, MELS, number)
    assert len(found.tensors) == len(expected) == meta["num_tensors"]
    assert sum(value.size for value in found.tensors.values()) == meta["num_parameters"]
    assert meta["size_bytes"] == path.stat().st_size
    for name, source_name in OPENAI.items():
        small = expected[source_name].ndim == 1 or name.endswith("positional_embedding")
        assert found.tensors[name].dtype == (np.float32 if small or quantize == "f32" else np.float16)
        wanted = expected[source_name].astype(found.tensors[name].dtype)
        shape = (WIDTH, 1) if ".conv" in name and name.endswith("bias") else wanted.shape
        assert found.tensors[name].shape == shape
        assert np.array_equal(found.tensors[name].reshape(wanted.shape), wanted)


@pytest.mark.parametrize(
    ("vocab_size", "num_text", "mels"), [(51864, 50256, 80), (51865, 50257, 80), (51866, 50257, 128)]
)
def test_the_three_vocabularies(make, tmp_path, vocab_size, num_text, mels):
    path, meta = export(make(vocab_size=vocab_size, num_text=num_text, mels=mels), tmp_path)
    found = read_ggml(path)
    assert (found.sizes[0], found.sizes[9]) == (vocab_size, mels)
    assert found.filters.shape == (mels, 201)
    assert len(found.tokens) == num_text
    assert found.tokens[:2] == [b"!", b'"']
    assert found.tokens[-1] == b""
    assert set(found.tokens[:256]) == {bytes([byte]) for byte in range(256)}
    assert (meta["vocab_size"], meta["num_mels"]) == (vocab_size, mels)
    assert whispercpp.load(path, spec=whispercpp.Spec(), threads=1)


@pytest.mark.parametrize("mels", [80, 128])
def test_the_filters_are_transformers_own(mels):
    from transformers.audio_utils import mel_filter_bank

    wanted = mel_filter_bank(201, mels, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
    assert np.abs(filter_bank(mels) - wanted.T).max() < 1e-8


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_and_shards(make, tmp_path, dtype):
    source = make()
    folder = source / "model"
    tensors = {name: value.astype(dtype) for name, value in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{n % 3 + 1:05}-of-00003.safetensors" for n, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, folder / file)
    write(folder / "model.safetensors.index.json", {"weight_map": places})
    path, _ = export(source, tmp_path)
    found = read_ggml(path).tensors
    for name, source_name in OPENAI.items():
        wanted = tensors[source_name].astype(np.float32).astype(found[name].dtype)
        assert np.array_equal(found[name].reshape(wanted.shape), wanted)


def test_a_tied_projection_that_is_stored_is_left_out(make, tmp_path):
    source = make(tie_word_embeddings=False)
    change_tensor(source / "model", "proj_out.weight", lambda all_: all_["model.decoder.embed_tokens.weight"].copy())
    path, _ = export(source, tmp_path)
    assert not [name for name in read_ggml(path).tensors if "proj" in name]


def change_tensor(folder: Path, name: str, make: Callable[[dict[str, np.ndarray]], np.ndarray | None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    value = make(tensors)
    tensors = {key: tensor for key, tensor in tensors.items() if key != name}
    if value is not None:
        tensors[name] = value
    save_file(tensors, folder / "model.safetensors")


EMBEDDING, KEY = "model.decoder.embed_tokens.weight", "model.encoder.layers.0.self_attn.k_proj.weight"
BAD_CONFIGS = [
    ({"model_type": "bert"}, "model_type is 'bert'"),
    ({"d_model": "64"}, "d_model is '64', expected a whole number from 1 to 65536"),
    ({"vocab_size": 51870}, r"vocab_size is 51870, whisper.cpp knows only \[51864, 51865, 51866\]"),
    ({"vocab_size": 51864}, "50257 text tokens, but a model of 51864 tokens has the ids 0 to 50255"),
    ({"activation_function": "relu"}, "activation_function is 'relu', not 'gelu'"),
    ({"encoder_ffn_dim": 128}, "encoder_ffn_dim is 128, not 256"),
    ({"encoder_layers": 3}, "no tensor 'model.encoder.layers.2.self_attn.q_proj.weight'"),
    ({"encoder_layers": 1}, "tensors that Whisper does not have, such as 'model.encoder.layers.1"),
    ({"max_target_positions": 447}, r"embed_positions.weight' is \(448, 64\), its config.json says \(447, 64\)"),
]
BAD_TENSORS = [
    ("lora.weight", lambda _: np.ones(3, np.float32), "1 tensors that Whisper does not have, such as 'lora.weight'"),
    (KEY, lambda all_: np.full_like(all_[KEY], np.nan), "holds NaN or infinity; the training diverged"),
    (KEY, lambda all_: np.full_like(all_[KEY], 70_000), "reaches 70000, but float16 ends at 65504; export it as f32"),
    (KEY, lambda all_: all_[KEY].astype(np.int8), "is stored as I8; save it as F32, F16 or BF16"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_CONFIGS)
def test_a_config_that_whisper_cpp_could_not_load_is_refused(make, tmp_path, fields, message):
    source = make()
    change(source / "model" / "config.json", **fields)
    with pytest.raises(ExportError, match=message):
        export(source, tmp_path)


@pytest.mark.parametrize(("name", "value", "message"), BAD_TENSORS)
def test_weights_that_do_not_fit_are_refused(make, tmp_path, name, value, message):
    source = make()
    change_tensor(source / "model", name, value)
    with pytest.raises(ExportError, match=message):
        export(source, tmp_path)


def test_an_untied_projection_is_refused(make, tmp_path):
    source = make(tie_word_embeddings=False)
    change_tensor(source / "model", "proj_out.weight", lambda all_: all_[EMBEDDING] + 1)
    with pytest.raises(ExportError, match="proj_out differs from the token embedding"):
        export(source, tmp_path)


def test_what_is_not_there_or_damaged_is_named(make, tmp_path):
    source = make()
    model = source / "model" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(ExportError, match=r"model.safetensors: cannot be read .* the checkpoint is not whole"):
        export(source, tmp_path / "a")
    model.unlink()
    with pytest.raises(ExportError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        export(source, tmp_path / "b")
    write(source / "model" / "model.safetensors.index.json", {"weight_map": {"a": "../../x.safetensors"}})
    with pytest.raises(ExportError, match=r"'\.\./\.\./x\.safetensors' is not the name of a file beside it"):
        export(source, tmp_path / "c")
    (source / "model" / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"tokenizer.json: cannot be read"):
        export(source, tmp_path / "d")


def test_a_vocabulary_that_is_not_byte_level_is_refused(make, tmp_path):
    source = make()
    value = tokenizer(50257)
    vocab = {("слово" if number == 7 else text): number for text, number in value["model"]["vocab"].items()}
    write(source / "model" / "tokenizer.json", {**value, "model": {"vocab": vocab}})
    with pytest.raises(ExportError, match="'с' stands for no byte"):
        export(source, tmp_path)


def test_the_export_needs_no_torch(tiny_whisper, tmp_path):
    shutil.copytree(tiny_whisper, tmp_path / "in" / "model")
    code = (
        "import sys; from pathlib import Path; from harness.core.artifact import Artifact, Work\n"
        "from harness.export import whisper_ggml as kind; root = Path(sys.argv[1])\n"
        "model = Artifact('', '', root / 'in', {}, {}); (root / 's').mkdir(); (root / 'o').mkdir()\n"
        "kind.run(kind.Spec(), {'model': [model]}, Work(root / 'o', root / 's'))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert len(read_ggml(tmp_path / "o" / "ggml-model.bin").tokens) == 50257


def test_real_weights_transcribe_a_real_clip(whisper_base, tmp_path):
    import jiwer

    from harness.core.text import normalise

    (tmp_path / "in").mkdir()
    shutil.copytree(whisper_base, tmp_path / "in" / "model")
    path, meta = export(tmp_path / "in", tmp_path)
    # The size of ggml-base.bin as whisper.cpp's authors publish it.
    assert meta["size_bytes"] == 147_951_465
    rows = [json.loads(line) for line in (AELITA / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    samples, _ = soundfile.read(AELITA / rows[1]["audio_filepath"], dtype="float32")
    text = whispercpp.load(path, spec=whispercpp.Spec(), threads=2).transcribe(samples)
    assert jiwer.cer(normalise(rows[1]["text"]), normalise(text)) < 0.1
