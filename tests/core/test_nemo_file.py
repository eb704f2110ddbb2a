"""`.nemo` files from strangers: whatever is wrong is named, and nothing of theirs runs."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.core import nemo_file
from harness.core.nemo_file import check_config, check_nemo, restore
from harness.errors import DataError, MissingError
from tests.parakeets import build_parakeet

MODEL = "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel"
CONFIG: dict[str, Any] = {
    "target": MODEL,
    "tokenizer": {"type": "bpe", "dir": "/home/a/tok", "model_path": "nemo:1_t.model", "vocab_path": "nemo:1_v.txt"},
    "preprocessor": {"_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor", "features": 128},
    "rate": "${preprocessor.features}",
    "optim": {"name": "adamw", "betas": [0.9, 0.98]},
}
WEIGHTS = b"PK\x03\x04 and so on"


def regular(name: str, content: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def special(name: str, kind: bytes, *, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b""


def write(path: Path, *extra: tuple[tarfile.TarInfo, bytes], config: Any = CONFIG, mode: str = "w:") -> Path:
    text = config if isinstance(config, bytes) else yaml.safe_dump(config).encode()
    files = [special(".", tarfile.DIRTYPE), regular("./model_config.yaml", text)]
    files += [regular("./model_weights.ckpt", WEIGHTS), regular("./1_t.model"), regular("./1_v.txt")]
    with tarfile.open(path, mode) as archive:
        for info, content in [*files, *extra]:
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("mode", ["w:", "w:gz"])
def test_a_sound_file_gives_its_configuration(tmp_path, mode):
    assert check_nemo(write(tmp_path / "model.nemo", mode=mode)) == CONFIG


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (regular("../evil.txt"), r"'\.\./evil\.txt' is not the plain name of a file"),
        (regular("./../evil.txt"), "not the plain name"),
        (regular("/srv/evil.txt"), "not the plain name"),
        (regular("a/b.txt"), "not the plain name"),
        (regular("C:evil.txt"), "not the plain name"),
        (regular("..\\evil.txt"), "not the plain name"),
        (regular("model_config.yaml."), "not the plain name"),
        (regular("a\n"), "not the plain name"),
        (special("link.txt", tarfile.SYMTYPE, link="/etc/passwd"), "no regular file, but a link to '/etc/passwd'"),
        (special("link.txt", tarfile.LNKTYPE, link="model_config.yaml"), "no regular file, but a link to 'model_"),
        (special("tty", tarfile.CHRTYPE), "no regular file, but a device"),
        (special("pipe", tarfile.FIFOTYPE), "no regular file, but a device"),
        (special("folder", tarfile.DIRTYPE), "no regular file, but a folder"),
        (special("sparse", tarfile.GNUTYPE_SPARSE), "no regular file, but a member of type b'S'"),
        (regular("model_config.yaml", b"target: x"), "is in it twice"),
        (regular("./MODEL_CONFIG.yaml", b"target: x"), "is in it twice"),
    ],
)
def test_what_would_leave_the_folder_or_replace_a_file_is_refused(tmp_path, member, message):
    with pytest.raises(DataError, match=message):
        check_nemo(write(tmp_path / "model.nemo", member))


def changed(place: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    *parents, last = place.split(".")
    inner = config
    for name in parents:
        inner = inner.setdefault(name, {})
    inner[last] = value
    return config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed("target", "os.system"), r"its model is 'os\.system'; only EncDecCTCModel, EncDecCTCModelBPE"),
        (changed("target", MODEL.replace("EncDecRNNTBPEModel", "EncDecMultiTaskModel")), "its model is"),
        (changed("target", None), "its model is None"),
        (changed("preprocessor._target_", "os.system"), r"preprocessor\._target_ is 'os\.system', which is not on"),
        (changed("preprocessor._target_", "builtins.eval"), "not on the list"),
        (changed("preprocessor._target_", "torch.hub.load"), "not on the list"),
        (changed("preprocessor._target_", "torch.nn.modules.module.torch.load"), "not on the list"),
        (changed("preprocessor._target_", "${optim.name}"), "not on the list"),
        (
            changed("optim.deep", [{"_target_": "subprocess.Popen"}]),
            r"optim\.deep\[0\]\._target_ is 'subprocess\.Popen'",
        ),
        (changed("optim.cls", "subprocess.Popen"), r"optim\.cls is"),
        (changed("optim.name", "${oc.env:HOME}"), r"optim\.name is '\$\{oc\.env:HOME\}', which would be evaluated"),
        (changed("labels", "nemo:../labels.txt"), "there is no such file in it"),
        (changed("labels", "nemo:/etc/passwd"), "there is no such file in it"),
        (changed("tokenizer.vocab_path", "/etc/passwd"), r"tokenizer\.vocab_path is '/etc/passwd', not a file in the"),
        (changed("tokenizer.model_path", None), r"tokenizer\.model_path is None, not a file in the archive"),
        (changed("tokenizer.langs", {"ru": {"type": "bpe", "model_path": "a"}}), r"tokenizer\.langs\.ru\.model_path"),
        (b"a: !!python/object/apply:os.system [exit]", r"no plain YAML \(could not determine a constructor"),
        (b"a: [1", "no plain YAML"),
        (b"\xff\xfe\xff", "no plain YAML"),
        (b"- 1", "holds a list, not a model's configuration"),
        (b"a: &x [1]\nb: [*x, *x]", "uses YAML aliases"),
    ],
)
def test_a_configuration_that_would_run_or_read_more_than_a_model_is_refused(tmp_path, config, message):
    with pytest.raises(DataError, match=message):
        check_nemo(write(tmp_path / "model.nemo", config=config))


def test_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(nemo_file, "MAX_BYTES", 10_000)
    zeros = regular("zeros", bytes(10_000_000))
    with pytest.raises(
        DataError, match=r"5 files with 10,0\d\d,\d\d\d bytes; a model has at most 1,000 files with 10,000"
    ):
        check_nemo(write(tmp_path / "model.nemo", zeros, mode="w:gz"))
    monkeypatch.setattr(nemo_file, "MAX_BYTES", 2**40)
    monkeypatch.setattr(nemo_file, "MAX_CONFIG_BYTES", 100)
    with pytest.raises(DataError, match=r"model_config\.yaml has \d+ bytes, at most 100 are read"):
        check_nemo(write(tmp_path / "model.nemo"))
    monkeypatch.setattr(nemo_file, "MAX_MEMBERS", 2)
    with pytest.raises(DataError, match="a model has at most 2 files"):
        check_nemo(write(tmp_path / "model.nemo"))


def test_a_damaged_file_is_named(tmp_path):
    whole = write(tmp_path / "whole.nemo", regular("more.bin", os.urandom(50_000))).read_bytes()
    for length in (0, 100, len(whole) // 2):
        (tmp_path / "cut.nemo").write_bytes(whole[:length])
        with pytest.raises(DataError, match="no whole tar archive"):
            check_nemo(tmp_path / "cut.nemo")
    with pytest.raises(MissingError, match=r"there is no such \.nemo file"):
        check_nemo(tmp_path / "none.nemo")
    with tarfile.open(tmp_path / "empty.nemo", "w:"):
        pass
    with pytest.raises(DataError, match=r"no model_config\.yaml among its 0 files"):
        check_nemo(tmp_path / "empty.nemo")


def test_weights_in_torchs_first_format_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "WEIGHTS", pickle.dumps({}))
    with pytest.raises(DataError, match=r"not what torch\.save writes since 1\.6"):
        check_nemo(write(tmp_path / "model.nemo"))


def test_the_check_loads_neither_nemo_nor_torch(tmp_path):
    path = write(tmp_path / "model.nemo")
    code = f"import sys, pathlib; from harness.core import nemo_file as n; n.check_nemo(pathlib.Path({str(path)!r})); "
    loaded = subprocess.run(
        [sys.executable, "-c", code + "print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert not {"torch", "nemo", "omegaconf", "numpy"} & set(loaded.stdout.split())


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def repacked(source: Path, target: Path, *, weights: Any) -> Path:
    import torch

    buffer = io.BytesIO()
    torch.save(weights, buffer)
    with tarfile.open(source, "r:") as old, tarfile.open(target, "w:") as new:
        for member in old:
            if member.name == "./model_weights.ckpt":
                info, content = regular(member.name, buffer.getvalue())
                new.addfile(info, io.BytesIO(content))
            else:
                new.addfile(member, old.extractfile(member) if member.isfile() else None)
    return target


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return build_parakeet(tmp_path_factory.mktemp("saved"))


def test_a_saved_model_is_restored(saved):
    model = restore(saved)
    assert type(model).__name__ == "EncDecRNNTBPEModel"
    assert not model.training
    assert next(model.parameters()).device.type == "cpu"


def test_weights_that_run_code_are_not_loaded(saved, tmp_path, monkeypatch):
    # What would make torch, left to its default, run them.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    hostile = repacked(saved, tmp_path / "evil.nemo", weights={"weight": Evil(tmp_path / "mark")})
    check_nemo(hostile)
    with pytest.raises(
        DataError, match=r"model_weights\.ckpt is damaged or holds more than tensors, and was not loaded"
    ):
        restore(hostile)
    assert not (tmp_path / "mark").exists()


def test_weights_of_another_model_are_named(saved, tmp_path):
    with pytest.raises(DataError, match=r"NeMo cannot restore it: Error.* in loading state_dict"):
        restore(repacked(saved, tmp_path / "other.nemo", weights={}))


def test_a_configuration_of_its_own_is_read_with_the_same_care(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text(f"target: {MODEL}\nrate: 16000\n", encoding="utf-8")
    assert check_config(path) == {"target": MODEL, "rate": 16000}
    hostile = {
        f"target: {MODEL}\na: {{_target_: os.system}}": r"a\._target_ is 'os\.system'",
        f"target: {MODEL}\nlabels: nemo:labels.txt": "there is no such file in it",
        "a: [": "it is no plain YAML",
        "target: os.system": r"its model is 'os\.system'",
    }
    for text, message in hostile.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            check_config(path)
    path.write_bytes(bytes(nemo_file.MAX_CONFIG_BYTES + 1))
    with pytest.raises(DataError, match=r"16,777,217 bytes, at most 16,777,216 are read"):
        check_config(path)
    with pytest.raises(MissingError, match="no such configuration of a model"):
        check_config(tmp_path / "none.yaml")
