"""The protocol of speed: on a clock that the recogniser turns, and on real runtimes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from harness.core.artifact import Artifact, Work
from harness.core.manifests import read_jsonl
from harness.errors import DataError
from harness.export import whisper_onnx
from harness.score import onnx, whispercpp
from harness.score.probes import recognisers, speed
from harness.score.probes.speed import SEED, Spec, chosen
from harness.suite.kinds import kinds
from tests.conftest import artifact
from tests.ggmls import said, write_ggml
from tests.runtimes import heldout_of, recordings
from tests.whispers import enlivened

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

RATE_HZ = 16_000
CALL_S, CLIP_S = 0.3, 0.1
"""What a call costs, and each second of the longest clip of a batch."""


class Clock:
    """Stands still but for what a recogniser takes."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Single:
    """Says how long a clip is. Its second repeat is slower, its third faster; at 13 s it fails."""

    def __init__(self, clock: Clock, *, num_clips: int, num_warm_ups: int) -> None:
        self.clock, self.num_clips, self.calls = clock, num_clips, -num_warm_ups

    def transcribe(self, samples: np.ndarray, /) -> str:
        number, self.calls = self.calls // self.num_clips, self.calls + 1
        seconds = len(samples) / RATE_HZ
        self.clock.now_s += CLIP_S * seconds * {-1: 50, 0: 1.0, 1: 1.2, 2: 0.9}[number]
        if seconds == 13:
            raise ValueError("unlucky")
        return f"{seconds:g}"


class Batched(Single):
    """A call costs as much as 3 s of audio; four clips are the most that fit."""

    most = 4

    def transcribe_batch(self, clips: Sequence[np.ndarray], /) -> list[str]:
        if len(clips) > self.most:
            raise MemoryError(f"{len(clips)} clips")
        self.clock.now_s += CALL_S + CLIP_S * max(map(len, clips)) / RATE_HZ
        return [f"{len(samples) / RATE_HZ:g}" if len(clips) < 4 else "?" for samples in clips]


def dev(folder: Path, *seconds: float) -> Artifact:
    folder.mkdir()
    clips = {f"u{number}": np.zeros(int(each * RATE_HZ), np.int16) for number, each in enumerate(seconds)}
    return heldout_of(clips, folder=folder)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("time.perf_counter", made)
    return made


def measured(
    kind: type[Single], clock: Clock, folder: Path, work: Work, monkeypatch: pytest.MonkeyPatch, **fields: Any
) -> dict[str, Any]:
    """Eight clips of 4 s and one of 13 s, which fails: two buckets."""
    model = kind(clock, num_clips=9, num_warm_ups=2)
    monkeypatch.setattr(recognisers, "load", lambda _spec, _inputs: model)
    spec = Spec(runtime=onnx.Spec(device="cpu", threads=3), **fields)
    found = speed.run(spec, {"dev": [dev(folder / "dev", *[4.0] * 8, 13.0)]}, work)
    assert json.loads(json.dumps(found)) == found
    return found


def test_one_by_one(clock: Clock, tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(Single, clock, tmp_path, work, monkeypatch)
    expected = {
        "speed_rtf": 0.1,
        "speed_rtf_spread": (0.12 - 0.09) / 0.1,
        "latency_p50_ms": 400,
        "latency_p95_ms": 480,
        "latency_p99_ms": 480,
        "throughput_x": 10,
        "best_batch": 1,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert (found["num_clips"], found["num_failed"]) == (9, 1)
    assert found["energy_j_per_audio_s"] is None
    assert found["batches"] == [{"batch": 1, "throughput_x": pytest.approx(10)}]
    assert [(item["from_s"], item["num_clips"], item["latency_p50_ms"]) for item in found["buckets"]] == [
        (3.0, 8, pytest.approx(400)),
        (10.0, 1, None),
    ]
    assert "notes" not in found


def test_the_protocol_and_the_device_stand_beside_the_figures(
    clock: Clock, tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measured(Single, clock, tmp_path, work, monkeypatch, repeats=2, clips=10)
    protocol = {"version": speed.VERSION, "batch": 1, "repeats": 2, "clips_per_bucket": 10, "threads": 3, "seed": SEED}
    assert protocol.items() <= found["protocol"].items()
    assert found["device"].endswith(", 3 threads")
    assert found["device_details"]["cpu"]["model"] in found["device"]
    rows = list(read_jsonl(work.path / "probe.jsonl"))
    assert [row["what"] for row in rows] == ["protocol", "device", "bucket", "bucket", "batch", *["clip"] * 9]
    assert rows[0] == {"what": "protocol", **found["protocol"]}
    assert rows[1] == {"what": "device", "device": found["device"], **found["device_details"]}
    (failed,) = (row for row in rows if row.get("error"))
    assert (failed["id"], failed["duration_s"], failed["error"]) == ("u8", 13, "ValueError: unlucky")
    clip = next(row for row in rows if row.get("id") == "u0")
    assert clip["walls_s"] == pytest.approx([0.4, 0.48])
    assert clip["hypothesis"] == "4"


def test_batches_of_a_library_that_has_them(
    clock: Clock, tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measured(Batched, clock, tmp_path, work, monkeypatch)
    assert [(item["batch"], item["throughput_x"]) for item in found["batches"]] == [
        (1, pytest.approx(10)),
        (2, pytest.approx(8 / (CALL_S + 4 * CLIP_S))),
        (4, pytest.approx(16 / (CALL_S + 4 * CLIP_S))),
        (8, None),
    ]
    assert found["throughput_x"] == pytest.approx(16 / 0.7)
    assert found["best_batch"] == 4
    assert [item.get("num_changed_texts") for item in found["batches"]] == [None, 0, 8, None]
    assert found["notes"] == ["batch 8 failed, throughput is of smaller ones: MemoryError: 8 clips"]


@pytest.mark.parametrize(("max_batch", "best"), [(1, 1), (3, 2), (4, 4)])
def test_the_largest_batch_is_told(
    clock: Clock, tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch, max_batch: int, best: int
) -> None:
    found = measured(Batched, clock, tmp_path, work, monkeypatch, max_batch=max_batch)
    assert found["best_batch"] == best
    told = [f"batch {best} was the largest of 9 clips and max_batch: {max_batch}"]
    assert found.get("notes", []) == (told if best > 1 else [])


@pytest.mark.parametrize(
    ("power_w", "vram_mib", "expected"),
    # Three passes of 1, 1.2 and 0.9 times 0.1 s a second, over 45 s of audio of which 32 s were transcribed.
    [(300.0, 700.0, 300 * 0.31 * 45 / 96), (300.0, None, None), (None, 700.0, None)],
    ids=["a GPU", "a model on the CPU", "no counter"],
)
def test_energy(
    clock: Clock,
    tmp_path: Path,
    work: Work,
    monkeypatch: pytest.MonkeyPatch,
    power_w: float | None,
    vram_mib: float | None,
    expected: float | None,
) -> None:
    """Of the passes alone: warming up takes fifty times as long here."""
    monkeypatch.setattr(speed, "energy_j", lambda: power_w and power_w * clock.now_s)
    monkeypatch.setattr("harness.score.memory.VramMeter.peak_mib", vram_mib)
    found = measured(Single, clock, tmp_path, work, monkeypatch)
    assert found["energy_j_per_audio_s"] == (expected and pytest.approx(expected))
    assert found["peak_vram_mib"] == vram_mib


def test_clips_are_chosen_alike_over_all_durations(tmp_path: Path) -> None:
    sets = [dev(tmp_path / "a", *[1.0] * 9, *[5.0] * 2), dev(tmp_path / "b", *[12.0] * 9, 40.0, 0.0)]
    taken = chosen(sets, count=4)
    assert sorted(clip.duration_s for clip in taken) == [1.0] * 4 + [5.0] * 2 + [12.0] * 4 + [40.0]
    assert [clip.duration_s for clip in taken] != sorted(clip.duration_s for clip in taken)
    assert [clip.id for clip in chosen(sets, count=4)] == [clip.id for clip in taken]


def test_what_cannot_be_measured(tmp_path: Path, work: Work, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="probe speed: the dev sets have no utterances; it needs at least 1"):
        chosen([dev(tmp_path / "empty")], count=4)
    model = Single(clock, num_clips=1, num_warm_ups=1)
    monkeypatch.setattr(recognisers, "load", lambda _spec, _inputs: model)
    with pytest.raises(DataError, match="probe speed: all 1 clips failed, the first with: ValueError: unlucky"):
        speed.run(Spec(runtime=onnx.Spec()), {"dev": [dev(tmp_path / "bad", 13.0)]}, work)


def test_whisper_cpp_on_real_clips(tmp_path: Path, work: Work) -> None:
    (tmp_path / "dev").mkdir()
    heard = heldout_of(recordings(["ru_0001", "ru_0002", "ru_0003"]), folder=tmp_path / "dev")
    (tmp_path / "export").mkdir()
    write_ggml(tmp_path / "export" / whispercpp.MODEL_FILE)
    spec = Spec(runtime=whispercpp.Spec(device="cpu", threads=1), repeats=2)
    found = speed.run(spec, {"export": [artifact(tmp_path / "export")], "dev": [heard]}, work)
    assert (found["num_clips"], found["num_failed"], found["best_batch"]) == (3, 0, 1)
    assert found["throughput_x"] == pytest.approx(1 / found["speed_rtf"])
    assert found["speed_rtf_spread"] >= 0
    assert 0 < found["latency_p50_ms"] <= found["latency_p95_ms"] <= found["latency_p99_ms"]
    assert sum(item["num_clips"] for item in found["buckets"]) == 3
    assert found["device_details"]["packages"]["pywhispercpp"]
    clips = [row for row in read_jsonl(work.path / "probe.jsonl") if row["what"] == "clip"]
    assert {row["hypothesis"] for row in clips} == {said(1000)}


def test_onnx_runtime_hears_real_clips_in_batches(tiny_whisper: Path, tmp_path: Path, work: Work) -> None:
    for name in ("dev", "in", "export"):
        (tmp_path / name).mkdir()
    enlivened(tiny_whisper, tmp_path / "in" / "model")
    whisper_onnx.run(
        whisper_onnx.Spec(), {"model": [artifact(tmp_path / "in")]}, Work(tmp_path / "export", tmp_path / "scratch")
    )
    heard = heldout_of(recordings(["ru_0001", "ru_0002"]), folder=tmp_path / "dev")
    spec = Spec(runtime=onnx.Spec(device="cpu", threads=1), repeats=1)
    found = speed.run(spec, {"export": [artifact(tmp_path / "export")], "dev": [heard]}, work)
    assert [item["batch"] for item in found["batches"]] == [1, 2]
    assert min(item["throughput_x"] for item in found["batches"]) > 0
    assert found["throughput_x"] == max(item["throughput_x"] for item in found["batches"])
    assert found["speed_rtf_spread"] is None, "of one repeat nothing is known"
    assert found["num_failed"] == 0
    assert {"onnxruntime", "onnx_asr"} <= found["device_details"]["packages"].keys()


@pytest.mark.parametrize("name", kinds("runtime"))
def test_the_device_is_that_of_the_scores(name: str) -> None:
    runtime = kinds("runtime")[name].Spec(device="cpu", threads=3)
    assert recognisers.device(Spec(runtime=runtime)).endswith(", 3 threads")
