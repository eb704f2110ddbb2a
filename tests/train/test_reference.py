"""Published models: found by name or in a folder, placed whole, and never half."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from pydantic import ValidationError

from harness.errors import MissingError
from harness.train import reference
from harness.train.reference import Spec

TDT = ("encoder-model.onnx", "encoder-model.onnx.data", "decoder_joint-model.onnx", "vocab.txt")
INT8 = ("encoder-model.int8.onnx", "decoder_joint-model.int8.onnx")


def fill(folder: Path, *names: str, config: str | None = None) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name, encoding="utf-8")
    if config is not None:
        (folder / "config.json").write_text(config, encoding="utf-8")
    return folder


def placed(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("files", "fields", "expected"),
    [
        ((*TDT, *INT8, "README.md"), {"type": "nemo-conformer-tdt"}, {*TDT}),
        ((*TDT, *INT8), {"type": "nemo-conformer-tdt", "quantization": "int8"}, {*INT8, "vocab.txt"}),
        (
            ("am-onnx/encoder.onnx", "am-onnx/decoder.onnx", "am-onnx/joiner.onnx", "lang/tokens.txt", "lm/big.bin"),
            {"type": "vosk"},
            {"am-onnx/encoder.onnx", "am-onnx/decoder.onnx", "am-onnx/joiner.onnx", "lang/tokens.txt"},
        ),
        (
            ("v3_ctc.onnx", "v3_vocab.txt", "v3_rnnt_encoder.onnx"),
            {"type": "gigaam-v3-ctc"},
            {"v3_ctc.onnx", "v3_vocab.txt"},
        ),
    ],
)
def test_a_folder_is_placed_with_what_onnx_asr_loads_of_it(tmp_path, work, files, fields, expected):
    folder = fill(tmp_path / "model", *files)
    meta = reference.run(Spec(base=str(folder), **fields), {}, work)
    assert placed(work.path) == expected
    assert set(meta["files"]) == expected
    assert meta["size_bytes"] == sum(len(name) for name in expected)
    assert meta["onnx_asr"] == {"type": fields["type"], "quantization": fields.get("quantization")}
    assert (meta["origin"], meta["revision"]) == ("folder", None)
    assert json.loads(json.dumps(meta)) == meta


def test_a_folder_that_says_what_it_holds_needs_no_type(tmp_path, work):
    folder = fill(tmp_path / "model", *TDT, config='{"model_type": "nemo-conformer-tdt"}')
    meta = reference.run(Spec(base=str(folder)), {}, work)
    assert meta["onnx_asr"]["type"] == "nemo-conformer-tdt"
    assert "config.json" in placed(work.path)


@pytest.mark.parametrize("config", [None, "{}", "[1]", "nonsense", '{"model_type": 5}'])
def test_a_folder_that_does_not_say_what_it_holds_is_named(tmp_path, work, config):
    folder = fill(tmp_path / "model", *TDT, config=config)
    with pytest.raises(
        MissingError, match=r"no config\.json with a model_type .* give `type`, one of: kaldi-rnnt, nemo-"
    ):
        reference.run(Spec(base=str(folder)), {}, work)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "nemo-conformer-tdd"}, "type: 'nemo-conformer-tdd' is no .*; did you mean 'nemo-conformer-tdt'"),
        (
            {"type": "nemo-conformer-ctc"},
            r"File 'model\.onnx' not found .* loads a nemo-conformer-ctc of quantization none",
        ),
        ({"type": "nemo-conformer-tdt", "quantization": "int8"}, "of quantization int8 from it; give the folder, type"),
    ],
)
def test_a_folder_without_what_is_asked_for_is_named(tmp_path, work, fields, message):
    with pytest.raises(MissingError, match=message):
        reference.run(Spec(base=str(fill(tmp_path / "model", *TDT)), **fields), {}, work)


def test_a_name_that_onnx_asr_does_not_know_is_named_with_the_nearest(work):
    with pytest.raises(MissingError, match=r"base: 'gigaam-v3-rnt' is no folder .*; did you mean 'gigaam-v3-rnnt'\?"):
        reference.run(Spec(base="gigaam-v3-rnt"), {}, work)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Hugging Face's cache with one model in it; the hub is not to be reached."""
    folder = tmp_path / "models--istupakov--gigaam-v3-onnx" / "snapshots" / "c0ffee"
    fill(folder, "v3_ctc.onnx", "v3_ctc.onnx.data", "v3_vocab.txt", config="{}")

    def snapshot(repo_id: str, **options: object) -> str:
        if repo_id == "istupakov/gigaam-v3-onnx":
            return str(folder)
        raise FileNotFoundError(f"{repo_id} is not in the cache")

    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no_network)
    return folder


def test_a_cached_model_needs_no_network(cache, work):
    meta = reference.run(Spec(base="gigaam-v3-ctc"), {}, work)
    assert placed(work.path) == {"v3_ctc.onnx", "v3_ctc.onnx.data", "v3_vocab.txt", "config.json"}
    assert (meta["origin"], meta["revision"], meta["licence"]) == ("hub", "c0ffee", "MIT")
    assert meta["onnx_asr"] == {"type": "gigaam-v3-ctc", "quantization": None}


def test_without_a_network_the_error_says_what_was_tried_and_how_to_go_on(cache, work):
    with pytest.raises(MissingError) as caught:
        reference.run(Spec(base="t-tech/t-one"), {}, work)
    assert str(caught.value).splitlines() == [
        "base: t-tech/t-one is not to be had; tried:",
        "  Hugging Face's cache: FileNotFoundError: t-tech/t-one is not in the cache",
        "  the hub: ConnectionError: Name or service not known",
        "Without a network, copy the files of t-tech/t-one on the Hugging Face hub to this machine, and give",
        "  base: their folder, type: t-tech/t-one",
    ]
    assert not list(work.path.iterdir())


def test_a_quantization_that_is_not_published_is_named(cache, work, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    with pytest.raises(MissingError, match="istupakov/gigaam-v3-onnx has no such files for quantization int4: File 'v"):
        reference.run(Spec(base="gigaam-v3-ctc", quantization="int4"), {}, work)


def test_a_step_that_was_killed_in_the_middle_starts_anew(tmp_path, work):
    fill(work.path, "vocab.txt")
    (work.path / "vocab.txt").write_text("half", encoding="utf-8")
    reference.run(Spec(base=str(fill(tmp_path / "model", *TDT)), type="nemo-conformer-tdt"), {}, work)
    assert (work.path / "vocab.txt").read_text(encoding="utf-8") == "vocab.txt"


def test_a_local_folder_counts_by_its_content(tmp_path):
    spec = Spec(base=str(tmp_path), type="vosk")
    assert spec.outside() == [tmp_path]
    assert spec.identity() == Spec(base=str(tmp_path.parent), type="vosk").identity()
    assert Spec(base="gigaam-v3-ctc").outside() == []
    assert Spec(base="gigaam-v3-ctc").identity()["base"] == "gigaam-v3-ctc"


def test_the_spec():
    assert Spec(base="a").label == "onnx-fp32"
    assert Spec(base="a", quantization="int8").label == "onnx-int8"
    specs = [Spec(base="a"), Spec(base="b"), Spec(base="a", type="vosk"), Spec(base="a", quantization="int8")]
    assert len({json.dumps(spec.identity(), sort_keys=True) for spec in specs}) == len(specs)
    for wrong in ({"base": ""}, {"base": "a", "quantization": "../x"}, {"base": "a", "train": {}}):
        with pytest.raises(ValidationError):
            Spec(**wrong)


def test_the_kind_loads_nothing_heavy():
    code = "import sys, harness.train.reference; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "torch", "onnxruntime", "onnx_asr", "huggingface_hub"} & {*loaded}
