"""The loop of all runtimes, with a recogniser that does what the test says."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from harness.core.manifests import read_jsonl, write_manifests
from harness.core.recordings import read_samples
from harness.core.records import Utterance
from harness.errors import DataError
from harness.score.transcribe import clocked, in_pieces, read_transcripts, transcribe_set
from tests.conftest import artifact

if TYPE_CHECKING:
    from pathlib import Path

    from harness.core.artifact import Artifact

RATE = 16_000
FACTS = {"runtime": "fake 1.0", "device": "abacus, 1 thread", "decoding": {"strategy": "greedy"}}


class Fake:
    """Tells how long an utterance is; fails at 13 s, and dies at 9 s."""

    def __init__(self) -> None:
        self.heard: list[float] = []

    def transcribe(self, samples: np.ndarray, /) -> str:
        assert samples.dtype == np.float32
        assert samples.ndim == 1
        self.heard.append(len(samples) / RATE)
        if len(samples) == 13 * RATE:
            raise ValueError("unlucky")
        if len(samples) == 9 * RATE:
            raise KeyboardInterrupt
        return f"{len(samples) / RATE:g} секунд"


def heldout(folder: Path, *seconds: float) -> Artifact:
    """A held-out set whose recordings lie in a sibling folder, as in the store."""
    (folder / "audio").mkdir()
    (folder / "set").mkdir()
    utterances = []
    for number, duration_s in enumerate(seconds):
        samples = np.zeros(int(duration_s * RATE), np.int16)
        soundfile.write(folder / "audio" / f"{number}.wav", samples, RATE)
        sha256 = hashlib.sha256(samples.tobytes()).hexdigest()
        utterances.append(Utterance(f"u{number}", f"../audio/{number}.wav", sha256, "секунд", duration_s))
    write_manifests(folder / "set", utterances)
    return artifact(folder / "set")


def test_all_utterances_are_heard_and_one_failure_stops_nothing(tmp_path, work):
    fake = Fake()
    meta = transcribe_set(heldout(tmp_path, 1, 13, 65), load=lambda: fake, work=work, **FACTS)
    assert fake.heard == [1, 1, 13, 65]  # the first one twice: the warm-up does not count
    rows = list(read_jsonl(work.path / "transcripts.jsonl"))
    assert [(row["id"], row["text"], row["error"], row["duration_s"]) for row in rows] == [
        ("u0", "1 секунд", None, 1),
        ("u1", None, "ValueError: unlucky", 13),
        ("u2", "65 секунд", None, 65),
    ]
    assert all(row["wall_s"] > 0 for row in rows)
    assert [item.text for item in read_transcripts(work.path)] == ["1 секунд", None, "65 секунд"]
    assert FACTS.items() <= meta.items()
    assert meta["load_s"] >= 0
    assert meta["warm_up_s"] > 0
    assert meta["peak_ram_mib"] > 1
    assert meta["device_details"]["cpu"]["model"]


def test_a_set_that_fails_altogether_is_still_a_result(tmp_path, work):
    transcribe_set(heldout(tmp_path, 13, 13), load=Fake, work=work, **FACTS)
    assert all(item.error and item.text is None for item in read_transcripts(work.path))


def test_an_unreadable_recording_fails_alone(tmp_path, work):
    source = heldout(tmp_path, 1, 2, 3)
    (tmp_path / "audio" / "0.wav").write_bytes(b"RIFF")
    (tmp_path / "audio" / "1.wav").unlink()
    transcribe_set(source, load=Fake, work=work, **FACTS)
    bad, missing, good = read_transcripts(work.path)
    assert bad.error
    assert missing.error
    assert bad.wall_s == missing.wall_s == 0
    assert good.text == "3 секунд"


def test_a_killed_step_goes_on_where_it_was(tmp_path, work):
    source = heldout(tmp_path, 1, 13, 9, 4)
    with pytest.raises(KeyboardInterrupt):
        transcribe_set(source, load=Fake, work=work, **FACTS)
    with (work.scratch / "transcripts.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "u2", "te')
    soundfile.write(tmp_path / "audio" / "2.wav", np.zeros(2 * RATE, np.int16), RATE)
    fake = Fake()
    transcribe_set(source, load=lambda: fake, work=work, **FACTS)
    assert fake.heard == [1, 13, 2, 4]  # warm-up, the failure once more, what was not heard yet
    assert [item.text for item in read_transcripts(work.path)] == ["1 секунд", None, "2 секунд", "4 секунд"]


def test_an_empty_set_is_refused(tmp_path, work):
    with pytest.raises(DataError, match="the held-out set has no utterances; it needs at least 1"):
        transcribe_set(heldout(tmp_path), load=Fake, work=work, **FACTS)


@pytest.mark.parametrize(("shape", "rate_hz", "found"), [((80,), 8_000, "8000 Hz with 1"), ((80, 2), RATE, "with 2")])
def test_only_16_khz_mono_is_read(tmp_path, shape, rate_hz, found):
    soundfile.write(tmp_path / "a.wav", np.zeros(shape, np.int16), rate_hz)
    with pytest.raises(DataError, match=f"{found} channels, not 16000 Hz mono") as caught:
        read_samples(tmp_path / "a.wav")
    assert "a.wav" in str(caught.value)


def test_what_a_runtime_raises_is_clocked_too():
    done, failed = (clocked(Fake(), np.zeros(seconds * RATE, np.float32), name="a") for seconds in (2, 13))
    assert (done.id, done.text, done.error) == ("a", "2 секунд", None)
    assert (failed.id, failed.text, failed.error) == ("a", None, "ValueError: unlucky")
    assert min(done.wall_s, failed.wall_s) > 0


def test_texts_of_a_batch_go_back_to_their_recordings():
    batches = []

    def transcribe(pieces):
        batches.append(len(pieces))
        return [f" {len(piece) / RATE:g} " if len(piece) > RATE else " " for piece in pieces]

    recordings = [np.ones(int(seconds * RATE), np.float32) for seconds in (2, 65, 0.5, 3)]
    texts = in_pieces(recordings, max_s=30, transcribe=transcribe)
    assert batches == [6], "all pieces at once"
    assert [texts[0], *texts[2:]] == ["2", "", "3"]
    assert sum(map(float, texts[1].split())) == pytest.approx(65)
    assert len(texts[1].split()) == 3
