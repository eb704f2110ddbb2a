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

import pyarrow as pa
import pytest

from harness.core.manifests import UTTERANCES_FILE
from harness.core.nemo_file import check_nemo
from harness.core.whisper_folder import read_model, read_processor
from harness.data import hub
from harness.data.archives import Forward, members
from harness.data.audio import read_recording
from harness.data.report import RefusedError
from harness.errors import HarnessError
from harness.promote.bench import read_any
from harness.train import weights
from tests.conftest import ROOT
from tests.fuzz import checkpoints, corpora, hubs, models, records, remotes
from tests.fuzz.checksums import mend_tar
from tests.fuzz.corpora import clip, put

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


def whisper_config(**changes: object) -> bytes:
    return json.dumps(json.loads(checkpoints.whole()["config.json"]) | changes).encode()


def weights_without(name: str) -> bytes:
    from safetensors.torch import load, save

    return save({key: value for key, value in load(checkpoints.whole()[weights.WEIGHTS_FILE]).items() if key != name})


def generation(**changes: object) -> bytes:
    return json.dumps({**checkpoints.GENERATION, **changes}).encode()


def tokenizer_config(**changes: object) -> bytes:
    return json.dumps(json.loads(checkpoints.whole()["tokenizer_config.json"]) | changes).encode()


def saved_state(**changes: object) -> bytes:
    return json.dumps(json.loads(hubs.saved()[f"train/{hub.STATE}"]) | changes).encode()


def beyond() -> bytes:
    """A saved dataset whose second text begins far behind the file's end."""
    data = bytearray(hubs.saved()[f"train/{hubs.SHARD}"])
    ends = [len("".join(hubs.WORDS[:count]).encode()) for count in range(3)]
    struct.pack_into("<i", data, data.index(struct.pack("<3i", *ends)) + 4, 0x7000_0000)
    return bytes(data)


def empty_rows() -> bytes:
    count = 1 << 18
    return hubs.parquet(pa.table({"audio": pa.nulls(count, hubs.STRUCT), "text": pa.nulls(count, pa.string())}))


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
            "has vocab_size 'x', expected a whole number from 1 to 65536",
        ),
        (partial(models.read_base, name=weights.INDEX_FILE), b"[]", "index.json holds no JSON object"),
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
        (partial(checkpoints.read_trained, name="generation_config.json"), b"{", "generation_config.json is no JSON"),
        (partial(checkpoints.read_trained, name="generation_config.json"), generation(lang_to_id=True), "have lang_to"),
        (partial(checkpoints.read_trained, name="generation_config.json"), generation(suppress_tokens=[-1]), "[-1]"),
        (partial(checkpoints.read_trained, name="tokenizer_config.json"), tokenizer_config(gguf_file="x"), "gguf_file"),
        (
            partial(checkpoints.read_trained, name="tokenizer_config.json"),
            tokenizer_config(model_max_length=[]),
            "cannot be loaded as a Whisper (TypeError: ",
        ),
        (
            partial(checkpoints.read_trained, name="config.json"),
            whisper_config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
            "is quantised, which cannot be trained; take it in float32 or float16",
        ),
        (partial(checkpoints.read_trained, name="config.json"), whisper_config(dropout=2), "config has dropout 2"),
        (partial(checkpoints.read_trained, name="config.json"), whisper_config(pad_token_id=-1), "pad_token_id -1"),
        (
            partial(checkpoints.read_trained, name="config.json"),
            whisper_config(encoder_layers=128, d_model=1 << 16),
            "its config.json describes at least 2237450747904 weights, its files hold 4",
        ),
        (
            partial(checkpoints.read_trained, name=weights.WEIGHTS_FILE),
            weights_without("model.encoder.layers.0.fc1.bias"),
            "has no weights for model.encoder.layers.0.fc1.bias and 0 others",
        ),
        (partial(hubs.read_saved, name=f"train/{hubs.SHARD}"), beyond(), "out of bounds"),
        (
            partial(hubs.read_saved, name=f"train/{hub.STATE}"),
            saved_state(_data_files=[{"filename": "../../x.arrow"}]),
            "it names '../../x.arrow', which is no plain name",
        ),
        (partial(hubs.read_saved, name=hub.SAVED), b'{"splits": ["../x"]}', "'../x', which is no plain name"),
        (hubs.read_parquet, empty_rows(), "train.parquet claims 262144 rows in "),
        (
            hubs.read_parquet,
            hubs.parquet(hubs.changed(seconds=pa.array(hubs.WORDS))),
            "column 'seconds' holds string, not seconds",
        ),
        (partial(remotes.read_object, name=UTTERANCES_FILE), b"PAR1", "utterances.parquet: cannot be read (ArrowInv"),
        (
            partial(remotes.read_object, name=UTTERANCES_FILE),
            hubs.parquet(pa.table({"audio": [1]})),
            "its column 'audio' is not string",
        ),
        (
            partial(checkpoints.read_exported, name="tokenizer.json"),
            checkpoints.whole()["tokenizer.json"].replace(b'"added_tokens"', b'"other_tokens"'),
            "tokenizer.json: is no tokenizer (KeyError('added_tokens')",
        ),
        (
            partial(remotes.read_object, name=UTTERANCES_FILE),
            remotes.files()[UTTERANCES_FILE].replace(b"speaker", b"\xff" * 7),
            "utterances.parquet: cannot be read (",
        ),
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
        (partial(checkpoints.read_trained, name="config.json"), whisper_config(attn_implementation="somebody/kernels")),
        (partial(checkpoints.read_trained, name="config.json"), whisper_config(num_labels=10**12, return_dict=False)),
        (partial(checkpoints.read_trained, name="config.json"), whisper_config(output_hidden_states="x")),
        (partial(checkpoints.read_trained, name="adapter_config.json"), b'{"peft_type": "LORA"}'),
        (
            partial(checkpoints.read_trained, name="generation_config.json"),
            generation(num_beams=4, max_new_tokens=9**9),
        ),
        (partial(checkpoints.read_trained, name="processor_config.json"), b'{"feature_extractor": {"n_fft": 1e18}}'),
        (
            partial(hubs.read_saved, name="train/dataset_info.json"),
            b'{"features": {"text": {"names_file": "/outside/secret", "_type": "ClassLabel"}}}',
        ),
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


def test_no_code_of_a_checkpoint_runs_and_no_pickle_is_opened(tmp_path, monkeypatch):
    mapped = checkpoints.DIVERTING[0]
    (tmp_path / "here").mkdir()
    (tmp_path / "outside").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    told = {"config.json": whisper_config(**mapped), "tokenizer_config.json": tokenizer_config(**mapped)}
    put(tmp_path / "base", checkpoints.whole() | told)
    (tmp_path / "base" / "adapter_config.json").unlink()
    read_processor(tmp_path / "base")
    read_model(tmp_path / "base")
    (tmp_path / "base" / weights.WEIGHTS_FILE).unlink()
    with pytest.raises(HarnessError, match=r"no file named model\.safetensors"):
        read_model(tmp_path / "base")
    assert not any((tmp_path / "outside").iterdir())


def test_a_sound_folder_of_several_files_is_taken_whole(tmp_path):
    checkpoints.read_trained(checkpoints.shards()[0], tmp_path, name=weights.INDEX_FILE)


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
