"""Timestamps and fallback, through whisper.cpp on real weights and real speech."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from harness.core.artifact import Artifact, Work
from harness.core.manifests import read_jsonl, write_manifests
from harness.core.records import Utterance
from harness.errors import DataError
from harness.export import whisper_ggml
from harness.score import whispercpp
from harness.score.probes import fallback, recognisers, timestamps
from harness.score.probes.timestamps import errors_s, flaw
from harness.score.probes.windows import Window
from harness.score.whispercpp import Segment
from tests.conftest import AELITA, artifact

if TYPE_CHECKING:
    from pathlib import Path

WINDOW = Window(np.zeros(20 * 16_000, np.float32), ((4.0, 5.0), (19.0, 20.0)))
"""Speech from 0 to 4 s and from 5 to 19 s."""


def segments(*times: tuple[float, float], **written: bool) -> list[Segment]:
    """Segments with timestamps, but for those that are said to have none."""
    flags = {"start_is_written": True, "end_is_written": True, **written}
    return [Segment(start_s, end_s, "да", **flags) for start_s, end_s in times]


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        (segments((0, 4.5), (4.5, 19.28)), None),
        (segments((0, 19)), None),
        (segments((0.14, 19.98)), None),
        ([], "no segment"),
        (segments((0, 19), end_is_written=False), "text without timestamps"),
        (segments((0, 19), start_is_written=False), "text without timestamps"),
        (segments((0, 4.5)) + segments((4.5, 19), end_is_written=False), "text without timestamps"),
        # whisper.cpp does not pass on where the second one begins.
        (segments((0, 4.5)) + segments((4.5, 19), start_is_written=False), None),
        (segments((0, 4.5), (4.4, 19)), "going back"),
        (segments((5, 4), (4, 19)), "going back"),
        (segments((0, 4.51), (4.51, 19)), "off the grid"),
        (segments((0, 4.5), (4.5, 20.12)), "behind the end of the recording"),
        (segments((0, 4.5), (4.5, 17.98)), "away from the end of speech"),
        (segments((0, 4.5), (4.5, 18)), None),
    ],
)
def test_what_is_wrong_with_timestamps(heard: list[Segment], expected: str | None) -> None:
    assert flaw(heard, WINDOW) == expected


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        (segments((0, 4.5), (4.5, 19.28)), [0, 0]),
        (segments((0, 3.9), (3.9, 18.5)), [0.1, 0.5]),
        (segments((0, 5.2), (5.2, 20.02)), [0.2, 0.02]),
        (segments((0, 20)), [4, 0]),
        ([], []),
    ],
)
def test_how_far_timestamps_are_from_the_pauses(heard: list[Segment], expected: list[float]) -> None:
    assert errors_s(heard, WINDOW) == pytest.approx(expected)


def exported(model: Path, folder: Path) -> Artifact:
    shutil.copytree(model, folder / "in" / "model")
    (folder / "out").mkdir()
    whisper_ggml.run(whisper_ggml.Spec(), {"model": [artifact(folder / "in")]}, Work(folder / "out", folder))
    return artifact(folder / "out")


@pytest.fixture(scope="module")
def ggml(whisper_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(whisper_base, tmp_path_factory.mktemp("ggml"))


@pytest.fixture(scope="module")
def random_ggml(tiny_whisper: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tiny_whisper, tmp_path_factory.mktemp("random-ggml"))


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Two real recordings, which share one window."""
    folder = tmp_path_factory.mktemp("dev")
    rows = [json.loads(line) for line in (AELITA / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    chosen = [row for row in rows if 4 < row["duration"] < 7][:2]
    for number, row in enumerate(chosen):
        samples, rate_hz = soundfile.read(AELITA / row["audio_filepath"], dtype="int16")
        soundfile.write(folder / f"{number}.wav", samples, rate_hz)
    write_manifests(
        folder,
        [
            Utterance(str(number), f"{number}.wav", "0" * 64, row["text"], row["duration"])
            for number, row in enumerate(chosen)
        ],
    )
    return artifact(folder)


def spec(kind: Any) -> Any:
    return kind.Spec(runtime=whispercpp.Spec(threads=1, device="cpu"), windows=3)


def test_real_weights_keep_their_timestamps(ggml: Artifact, dev: Artifact, work: Work) -> None:
    found = timestamps.run(spec(timestamps), {"export": [ggml], "dev": [dev]}, work)
    assert found["num_windows"] == 1
    assert found["timestamps_ok"] == 1.0
    assert 0 <= found["timestamp_error_ms"] < 500
    (row,) = read_jsonl(work.path / "probe.jsonl")
    assert row["flaw"] is None
    assert row["segments"][-1][1] == pytest.approx(row["pauses_s"][-1][0], abs=1)


def test_real_weights_need_no_fallback_on_clear_speech(ggml: Artifact, dev: Artifact, work: Work) -> None:
    found = fallback.run(spec(fallback), {"export": [ggml], "dev": [dev]}, work)
    assert found["fallback_rate"] == 0.0
    assert found["num_windows"] == 1
    (row,) = read_jsonl(work.path / "probe.jsonl")
    assert found["fallback_rtf"] == pytest.approx(row["wall_s"] / row["duration_s"])


def test_random_weights_have_neither(random_ggml: Artifact, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "0.wav", np.zeros(20_000), 16_000)
    write_manifests(tmp_path, [Utterance("0", "0.wav", "0" * 64, "да", 1.25)])
    found = {}
    for kind in (timestamps, fallback):
        out = tmp_path / kind.__name__
        out.mkdir()
        found |= kind.run(spec(kind), {"export": [random_ggml], "dev": [artifact(tmp_path)]}, Work(out, tmp_path))
    assert found["timestamps_ok"] == 0.0
    assert found["fallback_rate"] == 1.0


def test_the_probes_decode_with_timestamps(ggml: Artifact) -> None:
    for kind, inc in ((timestamps, 0.0), (fallback, 0.2)):
        loaded = recognisers.load(spec(kind), {"export": [ggml]}, timestamps=True, temperature_inc=inc)
        found = loaded.model.get_params()
        assert (found["no_timestamps"], found["temperature_inc"]) == (False, pytest.approx(inc))


def test_another_form_of_the_timings_is_told(random_ggml: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = recognisers.load(spec(fallback), {"export": [random_ggml]})
    monkeypatch.setattr(type(loaded.model), "print_timings", lambda _self: None)
    with pytest.raises(DataError, match=r"whisper\.cpp tells no fallbacks in its timings, but \[\]; use pywhispercpp"):
        loaded.num_fallbacks()
