"""Utterances end to end, with what is known of where speech begins and ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from harness.core.artifact import Artifact
from harness.core.manifests import write_manifests
from harness.core.records import Utterance
from harness.errors import DataError
from harness.score.probes.windows import WINDOW_S, joined, speech_span, windows
from tests.conftest import artifact

RATE = 16_000


def utterance(before_s: float, speech_s: float, after_s: float) -> np.ndarray:
    """A tone between stretches of room noise 60 dB below it."""
    parts = [round(length_s * RATE) for length_s in (before_s, speech_s, after_s)]
    samples = np.random.default_rng(0).standard_normal(sum(parts)).astype(np.float32) * 1e-4
    samples[parts[0] : parts[0] + parts[1]] += 0.2 * np.sin(np.arange(parts[1], dtype=np.float32) / 5)
    return samples


LENGTH_S = st.integers(0, 40).map(lambda frames: frames * 0.02)


@given(st.lists(st.tuples(LENGTH_S, LENGTH_S.map(lambda length_s: length_s + 0.1), LENGTH_S), min_size=1, max_size=5))
def test_pauses_lie_between_the_speech(parts: list[tuple[float, float, float]]) -> None:
    window = joined([utterance(*part) for part in parts])
    assert window.duration_s == pytest.approx(sum(map(sum, parts)))
    ends, at_s = [], 0.0
    for before_s, speech_s, after_s in parts:
        ends.append((at_s + before_s, at_s + before_s + speech_s))
        at_s += before_s + speech_s + after_s
    assert window.speech_end_s == pytest.approx(ends[-1][1], abs=0.021)
    following = [begin for begin, _ in ends[1:]] + [at_s]
    for (begin, end), (_, speech_end), next_begin in zip(window.pauses_s, ends, following, strict=True):
        assert begin == pytest.approx(speech_end, abs=0.021)
        assert end == pytest.approx(next_begin, abs=0.021)


@pytest.mark.parametrize("length", [0, 100, 320, 5000])
def test_silence_is_all_taken_for_speech(length: int) -> None:
    begin, end = speech_span(np.zeros(length, np.float32))
    assert (begin, end) == (0.0, pytest.approx(length / RATE, abs=0.02))


def heldout(folder: Path, *lengths_s: float, first: int = 1) -> Artifact:
    folder.mkdir(exist_ok=True)
    utterances = []
    for number, length_s in enumerate(lengths_s, start=first):
        soundfile.write(folder / f"{number}.wav", np.full(round(length_s * RATE), number / 100), RATE)
        utterances.append(Utterance(str(number), f"{number}.wav", "0" * 64, "да", length_s))
    write_manifests(folder, utterances)
    return artifact(folder)


def clips(samples: np.ndarray) -> list[int]:
    """The numbers of the utterances in a window, from 1."""
    levels = np.round(samples * 100).astype(int)
    return levels[np.flatnonzero(np.diff(levels, prepend=0))].tolist()


def test_each_utterance_is_in_one_window_at_most(tmp_path: Path) -> None:
    sets = [heldout(tmp_path / "a", 12, 9, 8, 31, 20, 3), heldout(tmp_path / "b", 5, first=7)]
    found = list(windows(sets, count=9))
    numbers = [number for window in found for number in clips(window.samples)]
    # The one of 31 s fits no window.
    assert sorted(numbers) == [1, 2, 3, 5, 6, 7]
    assert all(window.duration_s <= WINDOW_S for window in found)
    assert [len(window.pauses_s) for window in found] == [len(clips(window.samples)) for window in found]
    again = list(windows(sets, count=9))
    assert [window.samples.tobytes() for window in again] == [window.samples.tobytes() for window in found]
    assert [window.pauses_s for window in windows(sets, count=2)] == [window.pauses_s for window in found[:2]]


def test_no_utterance_that_fits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no utterance of at most 29\.5 s; a probe needs at least 1"):
        list(windows([heldout(tmp_path / "a", 30)], count=1))
