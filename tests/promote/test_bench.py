from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from harness.board import devices
from harness.errors import DataError, HarnessError, MissingError, SuiteError
from harness.promote.bench import host_name, measure, read_any, sounds, unpacked
from harness.promote.parcel import opened
from harness.promote.runtime import Loaded, load
from tests.conftest import AELITA
from tests.ggmls import bundle, parakeet, write_ggml

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    return bundle(folder, write_ggml(folder / "model.bin").read_bytes())


def run(path: Path, audio: Path | None = None, **changes: Any) -> devices.Measurement:
    with opened(path) as parcel, unpacked(parcel) as home:
        clips = sounds(audio, smoke=home / "smoke.wav")
        return measure(parcel, home=home, clips=clips, **{"device": "cpu", "host": "here", **changes})


def test_whisper_cpp_is_measured_on_real_clips(made: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (AELITA / "manifest.jsonl").read_text("utf-8").splitlines()]
    rows.sort(key=lambda row: row["duration"])
    lines = [json.dumps({"audio_filepath": str(AELITA / row["audio_filepath"])}) for row in (*rows[:2], rows[-1])]
    (tmp_path / "clips.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = run(made.with_name(f"{made.name}.zip"), tmp_path / "clips.jsonl")
    assert (found.num_clips, found.num_failed, found.row) == (3, 0, "tiny_tuned_ggml-f16")
    assert found.audio_s == pytest.approx(sum(row["duration"] for row in (*rows[:2], rows[-1])), abs=0.05)
    assert found.rtf is not None
    assert found.rtf > 0
    assert found.latency_p50_ms is not None
    assert found.latency_p95_ms is not None
    assert 0 < found.latency_p50_ms <= found.latency_p95_ms
    assert found.load_s > 0
    assert found.peak_ram_mib > 30
    assert sum(bucket["num_clips"] for bucket in found.buckets) == 3
    assert "thread" in found.device
    assert found.runtime.startswith("whisper.cpp of pywhispercpp")


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has them")
def test_devices_that_are_not_there(made: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"this whisper\.cpp runs on .* only, not on metal; use --device cpu"):
        run(made, device="metal")
    with pytest.raises(MissingError, match="ONNX Runtime has no Metal of its own; use --device coreml or cpu"):
        run(parakeet(tmp_path / "p"), device="metal")
    with pytest.raises(MissingError, match="device is 'coreml', but this ONNX Runtime has only"):
        run(parakeet(tmp_path / "q"), device="coreml")


def test_nemo_is_not_measured(tmp_path: Path) -> None:
    with opened(parakeet(tmp_path / "p")) as parcel:
        manifest = parcel.manifest.model_copy(update={"export_kind": "parakeet_nemo"})
    with pytest.raises(MissingError, match="parakeet_nemo is run by NeMo, which `install` and `bench` do without"):
        load(tmp_path, manifest=manifest)


class Broken:
    def __init__(self, *, fails: int) -> None:
        self.fails, self.count = fails, 0

    def transcribe(self, _samples: np.ndarray, /) -> str:
        self.count += 1
        if self.count > 1 and self.count <= 1 + self.fails:
            raise RuntimeError("out of memory")
        return "да"


@pytest.mark.parametrize("fails", [1, 3])
def test_clips_that_fail(made: Path, tmp_path: Path, fails: int) -> None:
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", np.zeros(16_000), 16_000)

    def broken(*_: object, **__: object) -> Loaded:
        return Loaded(Broken(fails=fails), "runtime", "device")

    if fails == 3:
        with pytest.raises(DataError, match="all 3 clips failed, the first with: RuntimeError: out of memory"):
            run(made, tmp_path, load=broken)
    else:
        assert run(made, tmp_path, load=broken).num_failed == 1


def test_recordings_of_any_kind(tmp_path: Path) -> None:
    stereo = np.zeros((44_100, 2), np.float32)
    stereo[:, 0] = 0.5
    soundfile.write(tmp_path / "stereo.flac", stereo, 44_100)
    samples = read_any(tmp_path / "stereo.flac")
    assert (samples.shape, samples.dtype) == ((16_000,), np.float32)
    assert samples[8000] == pytest.approx(0.25, abs=0.01)
    (tmp_path / "no.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"no\.wav: cannot be read .*; leave it out"):
        read_any(tmp_path / "no.wav")


def test_where_recordings_come_from(tmp_path: Path) -> None:
    smoke = tmp_path / "smoke.wav"
    assert [item.path for item in sounds(None, smoke=smoke)] == [smoke]
    (tmp_path / "clips").mkdir()
    with pytest.raises(SuiteError, match="clips: holds no recordings"):
        sounds(tmp_path / "clips", smoke=smoke)
    for name in ("b.opus", "a.wav", "notes.txt"):
        (tmp_path / "clips" / name).touch()
    assert [item.id for item in sounds(tmp_path / "clips", smoke=smoke)] == ["a.wav", "b.opus"]
    (tmp_path / "m.jsonl").write_text('{"audio": {"path": "clips/a.wav"}}\n\n', encoding="utf-8")
    assert [item.path for item in sounds(tmp_path / "m.jsonl", smoke=smoke)] == [tmp_path / "clips" / "a.wav"]
    (tmp_path / "m.jsonl").write_text('{"text": "да"}\n', encoding="utf-8")
    with pytest.raises(SuiteError, match=r"m\.jsonl: a line names no recording"):
        sounds(tmp_path / "m.jsonl", smoke=smoke)
    with pytest.raises(SuiteError, match="none: there is no such folder or manifest; give one: --audio DIR"):
        sounds(tmp_path / "none", smoke=smoke)


def test_a_host_has_a_name_fit_for_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for node, expected in (("Аня's MacBook.local", "s-MacBook"), ("mac", "mac"), ("", "unnamed"), ("../x", "x")):
        monkeypatch.setattr("platform.node", lambda node=node: node)
        assert host_name() == expected


def measurement(**changes: Any) -> devices.Measurement:
    given = {
        "host": "studio", "asked": "metal", "device": "Metal GPU", "row": "r", "bundle": "b", "model_sha256": "0" * 64,
        "runtime": "whisper.cpp", "when": "2026-01-01", "num_clips": 1, "num_failed": 0, "audio_s": 1.0, "load_s": 1.0,
        "warm_up_s": 0.5, "rtf": 0.1, "latency_p50_ms": 10.0, "latency_p95_ms": 20.0, "peak_ram_mib": 100.0,
        "peak_vram_mib": None,
    }  # fmt: skip
    return devices.Measurement.model_validate(given | changes)


def test_newer_figures_take_the_place_of_older_ones(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    devices.write(path, [measurement(), measurement(asked="cpu", rtf=0.5)])
    devices.write(path, [measurement(rtf=0.2)])
    assert [(item.place, item.rtf) for item in devices.read(path)] == [("studio-metal", 0.2), ("studio-cpu", 0.5)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no measurements can be read .*; measure again"),
        ('{"schema": 2, "measurements": []}', "schema 2 is newer than 1; update harness"),
        ('{"schema": 1, "measurements": [{"host": "../x"}]}', "host: String should match pattern .*; measure again"),
    ],
)
def test_a_file_that_is_no_measurement(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "bench.json").write_text(content, encoding="utf-8")
    with pytest.raises(HarnessError, match=message):
        devices.read(tmp_path / "bench.json")
