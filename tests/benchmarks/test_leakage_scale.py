"""The leakage check at the size of the public corpora, and its precision and recall on every shipped recording."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from harness.core.artifact import Work
from harness.core.manifests import ManifestWriter, utterance_table
from harness.core.records import Utterance
from harness.data import leakage
from harness.data.fingerprint import NUM_DIMENSIONS, fingerprint, vectors
from tests.copies import COPIES, RATE_HZ, clips, cut, prepared, same_words

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
NUM_TRAIN = 1_000_000
NUM_HELDOUT = 30_000
MAX_WALL_S = 300
MAX_RSS_MIB = 1_536
BATCH = 10_000
NUM_LOOKALIKES = 3_000
"""Training rows whose fingerprints are near those of held-out rows, though their recordings are not."""
NUM_SPEAKERS = 20_000
NUM_OTHERS = 90
"""Recordings of all rows but copies."""
PLANTED = {"recording": 100, "near-duplicate": 180, "transcript": 400, "speaker": 50}

CHILD = """
import json, sys, time
from pathlib import Path
from harness.core.artifact import Artifact, Work
from harness.data import leakage
from harness.score.memory import peak_ram_mib

folder = Path(sys.argv[1])
artifact = lambda name: Artifact("0", "select", folder / name, {}, {"parts": {name: 0}})
for name in ("out", "scratch"):
    (folder / name).mkdir()
start = time.perf_counter()
inputs = {"train": [artifact("train")], "heldout": [artifact("dev"), artifact("test")]}
meta = leakage.run(leakage.Spec(allow="to see them all"), inputs, Work(folder / "out", folder / "scratch"))
took = {"wall_s": time.perf_counter() - start, "cpu_s": time.process_time()}
print(json.dumps({**took, "rss_mib": peak_ram_mib(), "meta": meta}))
"""


class Corpora:
    """Made-up utterances. Every row has a real recording to listen to, and a fingerprint like real ones.

    Fingerprints are drawn with the covariance of real ones, so that as many look alike by chance.
    """

    def __init__(self, folder: Path) -> None:
        self.rng = np.random.default_rng(11)
        real = vectors([item for item in map(fingerprint, self._cuts(2000)) if item])
        self.spread = np.linalg.cholesky(np.cov(real.T) + 1e-9 * np.eye(NUM_DIMENSIONS)).T.astype(np.float32)
        self.words = np.array(sorted({word for _, text in clips().values() for word in text.split()}))
        for name in ("train", "heldout"):
            (folder / f"{name}-audio").mkdir()
        self.copies = [self._copy(folder, number) for number in range(PLANTED["near-duplicate"])]
        # No clip is in both, so that what looks alike by chance is never the same.
        for number, clip in enumerate(sorted(clips())[: 2 * NUM_OTHERS]):
            name = ("train", "heldout")[number % 2]
            write(folder / f"{name}-audio" / f"other{number // 2}.wav", cut(clip, 0, 4))

    def rows(self, name: str, start: int, num: int) -> tuple[list[Utterance], list[bytes]]:
        """Utterances that share nothing with others, and their fingerprints."""
        numbers = range(start, start + num)
        utterances = [
            Utterance(
                id=f"{name}-{number:08}",
                audio=f"../{name}-audio/other{number % NUM_OTHERS}.wav",
                sha256=sha256(f"{name} {number}".encode()).hexdigest(),
                text=text,
                duration_s=len(text) / 14,
                speaker=f"{name} {number % NUM_SPEAKERS}" if name == "train" else f"{name} {number}",
                source="corpus",
            )
            for number, text in zip(numbers, self._texts(num), strict=True)
        ]
        return utterances, quantised(self.rng.standard_normal((num, NUM_DIMENSIONS), np.float32) @ self.spread)

    def plant(self, train: tuple[list[Utterance], list[bytes]], heldout: tuple[list[Utterance], list[bytes]]) -> None:
        """Make leaks of the first rows of both, and look-alikes of the next."""
        rows = iter(range(len(train[0])))
        for kind, num in PLANTED.items():
            for turn, row in zip(range(num), rows, strict=False):
                other = heldout[0][row]
                near = other.text.replace("о", "а", 1) if turn % 2 and len(other.text) > 40 else other.text
                shared = {
                    "recording": {"sha256": other.sha256},
                    "transcript": {"text": near, "duration_s": other.duration_s},
                    "speaker": {"speaker": other.speaker},
                    "near-duplicate": {"audio": f"../train-audio/{turn}.wav"},
                }[kind]
                train[0][row] = replace(train[0][row], **shared)
                if kind == "near-duplicate":
                    heldout[0][row] = replace(other, audio=f"../heldout-audio/{turn}.wav")
                    heldout[1][row], train[1][row] = self.copies[turn]
        for _, row in zip(range(NUM_LOOKALIKES), rows, strict=False):
            noise = self.rng.standard_normal(NUM_DIMENSIONS) / np.sqrt(NUM_DIMENSIONS)
            (train[1][row],) = quantised(vectors([heldout[1][row]]) + noise)

    def _texts(self, num: int) -> list[str]:
        """Sentences of five words or more; a tenth begins as commands to an assistant do."""
        drawn, lengths = self.words[self.rng.integers(len(self.words), size=(num, 12))], self.rng.integers(5, 12, num)
        starts = np.where(self.rng.random(num) < 0.1, "салют включи ", "")
        return [start + " ".join(row[:length]) for row, length, start in zip(drawn, lengths, starts, strict=True)]

    def _cuts(self, num: int) -> Iterator[np.ndarray]:
        for number, start in zip(self.rng.choice(sorted(clips()), num), self.rng.uniform(0, 1.5, num), strict=True):
            yield cut(int(number), start, start + self.rng.uniform(2, 2.8))

    def _copy(self, folder: Path, number: int) -> tuple[bytes, bytes]:
        """Write a piece of one clip, and a copy of it; their fingerprints."""
        start = self.rng.uniform(0, 1.5)
        samples = cut(sorted(clips())[number], start, start + self.rng.uniform(2, 2.8))
        copied = list(COPIES.values())[number % len(COPIES)](samples, self.rng)
        write(folder / "heldout-audio" / f"{number}.wav", samples)
        write(folder / "train-audio" / f"{number}.wav", copied)
        return fingerprint(samples) or b"", fingerprint(copied) or b""


def write(path: Path, samples: np.ndarray) -> None:
    soundfile.write(path, samples, RATE_HZ, subtype="PCM_16")


def quantised(rows: np.ndarray) -> list[bytes]:
    scaled = np.rint(rows * (127 / np.abs(rows).max(axis=1, keepdims=True))).astype(np.int8)
    return [row.tobytes() for row in scaled]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the sets `train`, `dev` and `test`."""
    corpora = Corpora(tmp_path)
    heldout = corpora.rows("heldout", 0, NUM_HELDOUT)
    for name in ("train", "dev", "test"):
        (tmp_path / name).mkdir()
    with ManifestWriter(tmp_path / "train") as writer:
        for start in range(0, NUM_TRAIN, BATCH):
            train = corpora.rows("train", start, BATCH)
            if not start:
                corpora.plant(train, heldout)
            writer.write(utterance_table(train[0], fingerprints=train[1]))
    for name, part in (("dev", slice(NUM_HELDOUT // 2)), ("test", slice(NUM_HELDOUT // 2, None))):
        with ManifestWriter(tmp_path / name) as writer:
            writer.write(utterance_table(heldout[0][part], fingerprints=heldout[1][part]))
    return tmp_path


@pytest.mark.timeout(3600)
def test_a_million_rows_against_thirty_thousand(benchmark: Any, folder: Path) -> None:
    results: list[dict[str, Any]] = []

    def run() -> None:
        child = [sys.executable, "-c", CHILD, str(folder)]
        ended = subprocess.run(child, cwd=ROOT, check=True, capture_output=True, text=True, encoding="utf-8")
        results.append(json.loads(ended.stdout))

    benchmark.pedantic(run, rounds=1)
    (found,) = results
    print(  # noqa: T201
        f"{NUM_TRAIN:,} x {NUM_HELDOUT:,} rows in {found['wall_s']:.0f} s ({found['cpu_s']:.0f} s of CPU), "
        f"peak {found['rss_mib']:.0f} MiB; {found['meta']}"
    )
    # Of copies of 2 s, one in a hundred may be missed.
    near = PLANTED["near-duplicate"]
    assert found["meta"]["leaks"] == {**PLANTED, "near-duplicate": pytest.approx(near, abs=near // 100)}
    assert found["meta"]["num_compared"] == found["meta"]["num_candidates"] > near + NUM_LOOKALIKES * 0.9
    assert found["wall_s"] < MAX_WALL_S
    assert found["rss_mib"] < MAX_RSS_MIB


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("length_s", [2, 5])
def test_every_way_of_copying_every_recording(benchmark: Any, tmp_path: Path, length_s: int) -> None:
    """Precision counts every other pair of recordings, and the same words by the same voice."""
    rng = np.random.default_rng(7)
    originals = {str(number): cut(number, 0.2, 0.2 + length_s) for number in clips()}
    heldout = [(name, f"a {name}", samples) for name, samples in originals.items()]
    train = [
        (f"{name}/{way}", f"b {name} {way}", copy(samples, rng))
        for name, samples in originals.items()
        for way, copy in COPIES.items()
    ]
    for word, cuts in same_words(margin_s=0.1).items():
        heldout += [(f"{number} {word}", f"c {number} {word}", samples) for number, samples in cuts[::2]]
        train += [(f"{number}/{word}", f"d {number} {word}", samples) for number, samples in cuts[1::2]]
    sets = {"train": [prepared(tmp_path / "train", train)], "heldout": [prepared(tmp_path / "dev", heldout)]}
    for name in ("out", "scratch"):
        (tmp_path / name).mkdir()
    work = Work(path=tmp_path / "out", scratch=tmp_path / "scratch")
    spec = leakage.Spec(allow="to see them all", ignore=["transcript"])
    meta = benchmark.pedantic(leakage.run, args=(spec, sets, work), rounds=1)
    lines = (work.path / "leaks.jsonl").read_text("utf-8").splitlines()
    found = [(*item["id"].split("/", 1), item["heldout_id"]) for item in map(json.loads, lines)]
    true = Counter(way for name, way, other in found if name == other)
    # A word and the sentence that it was cut from share what they share.
    num_false = sum(name != other.split()[0] for name, _, other in found)
    for way in COPIES:
        print(f"{length_s} s, {way}: {true[way]} of {len(originals)}")  # noqa: T201
    recall, precision = true.total() / (len(originals) * len(COPIES)), 1 - num_false / len(found)
    print(f"{length_s} s: recall {recall:.4f}, precision {precision:.4f}, {meta['num_candidates']} candidates")  # noqa: T201
    assert recall >= 0.99
    assert num_false == 0


def test_a_fingerprint_costs_little_of_a_preparation(benchmark: Any) -> None:
    samples = np.concatenate([cut(1, 0, 9)])
    benchmark.pedantic(fingerprint, args=(samples,), rounds=50, warmup_rounds=5)
    assert benchmark.stats.stats.median < 0.002
