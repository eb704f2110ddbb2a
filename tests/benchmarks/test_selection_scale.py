"""Splitting, filtering, mixing and writing a million clips, in a process of its own so that its memory can be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.core.manifests import UTTERANCES_FILE, utterance_schema
from tests.conftest import AELITA

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
NUM_CLIPS = 1_000_000
NUM_HELDOUT = 30_000
MAX_RSS_MIB = 1_536
MAX_CPU_S = 120
BATCH = 50_000
SOURCES = {"read": (600_000, None), "spoken": (400_000, 20_000)}
"""Dataset → its clips, and its speakers if it names them."""

CHILD = """
import json, sys, time
from pathlib import Path
from harness.core.artifact import Artifact, Work
from harness.data import select
from harness.score.memory import peak_ram_mib

spec, datasets, heldout, folder = json.loads(sys.argv[1])
artifact = lambda path: Artifact("0", "test", Path(path), {}, {})
for name in ("out", "scratch"):
    (Path(folder) / name).mkdir(parents=True)
start = time.perf_counter()
inputs = {"datasets": [artifact(path) for path in datasets], "heldout": [artifact(path) for path in heldout]}
meta = select.run(select.Spec.model_validate(spec), inputs, Work(Path(folder) / "out", Path(folder) / "scratch"))
took = {"wall_s": time.perf_counter() - start, "cpu_s": time.process_time()}
print(json.dumps({**took, "rss_mib": peak_ram_mib(), "meta": meta}))
"""


def corpus(name: str, *, num_clips: int, num_speakers: int | None) -> Iterator[pa.Table]:
    """Made-up clips: real words at random, 4 s on average; of those without speakers, 1 % say the same ten things."""
    rng = np.random.default_rng(len(name))
    lines = (AELITA / "manifest.jsonl").read_text("utf-8").splitlines()
    words = np.array(sorted({word for line in lines for word in json.loads(line)["text"].split()}))
    for start in range(0, num_clips, BATCH):
        drawn = words[rng.integers(len(words), size=(BATCH, 12))]
        lengths = rng.integers(3, 12, size=BATCH)
        texts = [" ".join(row[:length]) for row, length in zip(drawn, lengths, strict=True)]
        if not num_speakers:
            texts[::100] = [" ".join(words[number % 10 : number % 10 + 2]) for number in range(BATCH // 100)]
        votes = rng.integers(0, 6, size=(BATCH, 2))
        tags = (
            [[("up_votes", str(up)), ("down_votes", str(down))] for up, down in votes] if num_speakers else [[]] * BATCH
        )
        speakers = rng.integers(num_speakers, size=BATCH) if num_speakers else None
        numbers = range(start, start + BATCH)
        columns = {
            "id": [f"{name}-{number:08}" for number in numbers],
            "audio": [f"audio/{number // 1000:05}.tar@{number % 1000 * 64000}+64000" for number in numbers],
            "sha256": [number.to_bytes(8, "big") * 4 for number in rng.integers(2**62, size=BATCH).tolist()],
            "text": texts,
            "duration_s": lengths * 0.55 + rng.random(BATCH),
            "speaker": [None] * BATCH if speakers is None else [f"speaker {number}" for number in speakers],
            "split": [None] * BATCH,
            "source": [name] * BATCH,
            "tags": tags,
            "fingerprint": [bytes(128)] * BATCH,
        }
        yield pa.table(columns, schema=utterance_schema())


def select(folder: Path, spec: dict, datasets: list[Path], heldout: list[Path]) -> dict:
    """Run the step in a fresh process; its meta, wall time and peak memory."""
    job = json.dumps([spec, [str(path) for path in datasets], [str(path) for path in heldout], str(folder)])
    child = [sys.executable, "-c", CHILD, job]
    ended = subprocess.run(child, cwd=ROOT, check=True, capture_output=True, text=True, encoding="utf-8")
    return json.loads(ended.stdout)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, (num_clips, num_speakers) in SOURCES.items():
        folders[name] = tmp_path_factory.mktemp(f"prepare-{name}")
        with pq.ParquetWriter(folders[name] / UTTERANCES_FILE, utterance_schema(), compression="zstd") as writer:
            for table in corpus(name, num_clips=num_clips, num_speakers=num_speakers):
                writer.write_table(table, row_group_size=10_000)
    return folders


def test_a_million_clips_are_selected_in_little_memory(benchmark, prepared: dict[str, Path], tmp_path: Path) -> None:
    rule = {"dev": 0.015, "test": 0.015}
    read, spoken = ({"dataset": name, "rule": rule} for name in SOURCES)
    results: dict[str, dict] = {}

    def run() -> None:
        for split in ("dev", "test"):
            parts = [{**read, "split": split}, {**spoken, "split": split}]
            results[split] = select(tmp_path / split, {"parts": parts, "seed": 17}, list(prepared.values()), [])
        everywhere = {"duration_s": [0.5, 30], "chars_per_s": [1, 40], "alphabet": "ru"}
        voted = {"votes": {"min_up": 1}, "max_hours_per_speaker": 1.0}
        parts = [
            {**read, "split": "train", "criteria": [everywhere], "weight": 2.0},
            {**spoken, "split": "train", "criteria": [everywhere, voted], "hours": 200.0},
        ]
        spec = {"parts": parts, "seed": 17, "drop_heldout": ["transcript", "recording"]}
        heldout = [tmp_path / split / "out" for split in ("dev", "test")]
        results["train"] = select(tmp_path / "train", spec, list(prepared.values()), heldout)

    benchmark.pedantic(run, rounds=1)
    for name, found in results.items():
        left = {
            label: sum(int(item["num"]) for item in counts.values())
            for label, counts in found["meta"]["left_out"].items()
        }
        print(  # noqa: T201
            f"{name}: {found['meta']['num_utterances']:,} clips of {NUM_CLIPS:,} in {found['wall_s']:.0f} s "
            f"({found['cpu_s']:.0f} s of CPU), peak {found['rss_mib']:.0f} MiB; left out: {left}"
        )
    assert sum(num_clips for num_clips, _ in SOURCES.values()) == NUM_CLIPS
    assert sum(results[split]["meta"]["num_utterances"] for split in ("dev", "test")) == pytest.approx(
        NUM_HELDOUT, rel=0.3
    )
    assert max(found["rss_mib"] for found in results.values()) < MAX_RSS_MIB
    assert max(found["cpu_s"] for found in results.values()) < MAX_CPU_S
