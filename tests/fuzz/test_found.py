"""What fuzzing has found, kept small: each once ended in a traceback, in a loop, or in the process's death."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.core.nemo_file import check_nemo
from harness.data.archives import Forward, members
from harness.data.audio import read_recording
from harness.data.report import RefusedError
from harness.errors import HarnessError
from harness.promote.bench import read_any
from harness.train import weights
from tests.conftest import ROOT
from tests.fuzz import corpora, models, records
from tests.fuzz.checksums import mend_tar
from tests.fuzz.corpora import clip

if TYPE_CHECKING:
    from collections.abc import Callable

DEEP = b"[" * 20_000
LONG = b"9" * 400


def manifest_line(**fields: object) -> bytes:
    return json.dumps({"audio_filepath": "0.wav", "text": "да", "duration": 0.25, **fields}).encode()


def bundled(**changes: object) -> bytes:
    return json.dumps(json.loads(records.bundles()["manifest.json"]) | changes).encode()


def state(**changes: object) -> bytes:
    return json.dumps(json.loads(records.states()[0]) | changes).encode()


def tokenizer(**changes: object) -> bytes:
    return json.dumps(json.loads(models.tokenizers()[0]) | changes).encode()


def nameless() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("Q"), b"")
    return buffer.getvalue().replace(b"Q", b"\0")


def with_name(name: bytes) -> bytes:
    """The bundle's zip, one of its names in the directory and in the local header not UTF-8, as their flag says."""
    data = records.bundles()["zip"]
    changed = bytearray(data)
    for mark, flags, start in ((b"PK\3\4", 6, 30), (b"PK\1\2", 8, 46)):
        place = changed.find(mark)
        struct.pack_into("<H", changed, place + flags, 0x800)
        changed[place + start : place + start + len(name)] = name
    return bytes(changed)


@pytest.mark.parametrize(
    ("read_it", "data", "message"),
    [
        (corpora.read_suite, b"suite: a\nmodels: " + DEEP, "is nested more deeply than any suite"),
        (corpora.read_excluded, b'{"id": "\xff"}', "e.jsonl:1: is no JSON"),
        (corpora.read_excluded, b'{"id": "\\ud800"}', "is no JSON"),
        (corpora.read_excluded, DEEP, "it is nested too deeply"),
        (corpora.read_nemo_manifest, manifest_line(duration=10**400), "'duration' is 1000"),
        (models.read_added_tokens, DEEP, "added_tokens.json: cannot be read"),
        (models.read_added_tokens, b"\xff", "added_tokens.json: cannot be read"),
        (models.read_added_tokens, b"[1]", "has no token <|ru|>"),
        (partial(models.read_onnx, name="model.onnx"), b"\x08\x01", "cannot be loaded as nemo-conformer-ctc"),
        (partial(models.read_onnx, name="vocab.txt"), b"a b c\n", "cannot be loaded as nemo-conformer-ctc"),
        (partial(models.read_onnx, name="config.json"), b"[]", "cannot be loaded as nemo-conformer-ctc"),
        (partial(models.read_onnx, name="vocab.txt"), b"a 90\n<blk> 91\n", "cannot run it on its smoke clip"),
        (models.read_nemo_config, b"tokenizer: {langs: [1]}\ntarget: " + models.CONFIG["target"].encode(), "not to"),
        (partial(models.read_base, name="config.json"), b"[]", "config.json holds no JSON object"),
        (partial(models.read_base, name="config.json"), DEEP, "nested too deeply"),
        (
            partial(models.read_base, name="config.json"),
            b'{"model_type": "whisper", "vocab_size": "x"}',
            "has vocab_size 'x', not a number",
        ),
        (partial(models.read_base, name=weights.INDEX_FILE), b"[]", "has no `weight_map` from tensors to files"),
        (partial(models.read_base, name=weights.INDEX_FILE), b'{"weight_map": null}', "has no `weight_map`"),
        (partial(models.read_whisper, name="tokenizer.json"), tokenizer(model=None), "is no tokenizer (TypeError"),
        (partial(models.read_whisper, name="tokenizer.json"), tokenizer(added_tokens=[{}]), "no tokenizer (KeyError"),
        (
            partial(models.read_whisper, name="config.json"),
            json.dumps({**models.WHISPER, "encoder_layers": 1 << 40}).encode(),
            "encoder_layers is 1099511627776, expected a whole number from 1 to 128",
        ),
        (records.read_bench, DEEP, "no measurements can be read"),
        (records.read_bench, b"\xff" * 200_000, "no measurements can be read (UnicodeDecodeError: "),
        (partial(records.read_bundle, name="manifest.json"), bundled(suite="\ud800"), "is no manifest of a bundle"),
        (partial(records.read_bundle, name="manifest.json"), bundled(gate=[{"nan": 1e999}]), "is no manifest of a"),
        (records.read_promotions, b'{"when": 1}\n{"when": 1, "action": [], "bundle": {}}', "nothing has been"),
        (records.read_promotions, DEEP, "nothing has been promoted"),
        (records.read_artifact, DEEP, "artifact.json: cannot be read"),
        (
            records.read_artifact,
            json.dumps(json.loads(records.artifacts()[0]) | {"meta": []}).encode(),
            "its meta is no object",
        ),
        (records.read_state, state(current=[1]), "current has no files"),
        (records.read_zip, nameless(), "zip"),
        (records.read_zip, with_name(b"\xff\xff\xff"), "is no zip, or a damaged one (UnicodeDecodeError"),
    ],
)
def test_one_message_says_what_is_wrong(
    tmp_path: Path, read_it: Callable[[bytes, Path], None], data: bytes, message: str
):
    with pytest.raises(HarnessError) as refused:
        read_it(data, tmp_path)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("read_it", "data"),
    [
        (records.read_readings, DEEP),
        (records.read_runs, b'{"uri": "URI", "runs": {}, "models": {"logged": {}, "replaced": 1.5}}'),
        (records.read_runs, b'{"uri": "URI", "runs": {}, "models": 1.5}'),
        (records.read_runs, DEEP),
        (partial(corpora.read_common_voice, name="clip_durations.tsv"), b"clip\tduration[ms]\n0.mp3\t" + LONG),
        (corpora.read_openstt, LONG * 2),
    ],
)
def test_what_cannot_be_used_is_passed_over(tmp_path, read_it, data):
    read_it(data, tmp_path)


def negative(kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar whose only header says that its content has -1,024 bytes: the next header would be itself."""
    header = tarfile.TarInfo("a.wav")
    header.type = kind
    header.size = 0
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (-1024 & ((1 << 96) - 1)).to_bytes(12, "big")
    return mend_tar(bytes(block) + bytes(1024))


@pytest.mark.timeout(60)
def test_a_size_below_zero_is_no_endless_loop(tmp_path):
    (tmp_path / "a.tar").write_bytes(negative())
    with pytest.raises(HarnessError, match="is damaged"):
        list(members(tmp_path / "a.tar"))
    with pytest.raises(HarnessError, match="no whole tar archive"):
        check_nemo(tmp_path / "a.tar")


def test_a_size_that_no_system_counts_to_is_refused(tmp_path):
    data = bytearray(negative(tarfile.GNUTYPE_LONGNAME))
    data[124:136] = b"\x80" + b"\x7f" * 11
    (tmp_path / "m.nemo").write_bytes(mend_tar(bytes(data)))
    with pytest.raises(HarnessError, match=r"a member has a header of \d{27} bytes, over 1048576"):
        check_nemo(tmp_path / "m.nemo")


def test_a_rate_that_no_recording_has_is_refused(tmp_path):
    """One second at 1 Hz would become 16,000 seconds, and so on."""
    data = bytearray(clip(0))
    data[24:28] = struct.pack("<I", 3)
    with pytest.raises(RefusedError, match="3 Hz, not one of 1,000 to"):
        read_recording(bytes(data), name="a.wav")
    (tmp_path / "a.wav").write_bytes(data)
    with pytest.raises(HarnessError, match="3 Hz"):
        read_any(tmp_path / "a.wav")


def flac(num_frames: int) -> bytes:
    """A FLAC whose header promises so many frames; 0 stands for unknown, as what is written into a pipe has it."""
    data = bytearray(clip(0, "FLAC", "PCM_16"))
    about = int.from_bytes(data[18:26], "big") & ~((1 << 36) - 1)
    data[18:26] = (about | num_frames).to_bytes(8, "big")
    return bytes(data)


@pytest.mark.parametrize("num_frames", [0, (1 << 36) - 16_000])
def test_a_false_length_takes_no_memory_and_is_told(num_frames):
    with pytest.raises(RefusedError, match=r"a\.flac (cannot be decoded|is cut off)"):
        read_recording(flac(num_frames), name="a.flac")


def test_a_name_that_says_there_is_no_header_is_refused(tmp_path):
    (tmp_path / "a.raw").write_bytes(clip(0))
    with pytest.raises(RefusedError, match="samplerate must be specified"):
        read_recording(tmp_path / "a.raw", name="a.raw")


def test_tensors_of_no_whole_size_are_refused(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[1e308,1e308],"data_offsets":[0,4]}}'
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(HarnessError, match="it is no safetensors file"):
        weights.num_parameters(tmp_path / "m.safetensors")


def test_a_database_of_another_version_of_mlflow_costs_its_pages_only(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("harness.console.TOLD", set())
    records.read_database(records.older(), tmp_path)
    told = capsys.readouterr().err
    assert "MLflow: " in told
    assert "the results are safe" in told


@pytest.mark.timeout(60)
def test_a_size_without_end_in_a_compressed_archive_is_no_endless_search(tmp_path):
    data = bytearray(negative())
    data[124:136] = (1 << 60 | 1 << 95).to_bytes(12, "big")
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(mend_tar(bytes(data))))
    with pytest.raises(HarnessError, match="a member claims 1152921504606846976 bytes"):
        list(members(tmp_path / "a.tar.gz"))


def test_a_claimed_size_takes_no_memory(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(b"abc"))
    stream = Forward(tmp_path / "a.tar.gz")
    assert stream.read(1, size=1 << 62) == b"bc"
    stream.close()


def test_onnx_runtime_reports_nothing_and_keeps_nothing_at_home(tmp_path):
    (tmp_path / "m.onnx").write_bytes(models.onnx_graphs()[0])
    code = "import harness, onnxruntime, sys; onnxruntime.InferenceSession(sys.argv[1])"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")}
    home = dict.fromkeys(("HOME", "USERPROFILE", "XDG_CACHE_HOME", "LOCALAPPDATA"), str(tmp_path / "home"))
    command = [sys.executable, "-c", code, str(tmp_path / "m.onnx")]
    subprocess.run(command, env=kept | home | {"PYTHONPATH": str(ROOT)}, check=True, timeout=120)
    assert not (tmp_path / "home").exists()
