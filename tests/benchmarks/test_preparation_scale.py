"""Preparation against the usual script, and as corpora grow. `make bench` runs it; ratios are of one run."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

AELITA = Path(__file__).parents[2] / "suites" / "data" / "aelita"
RATE_HZ = 16_000
NUM_SCRIPTED = 40
"""Clips that the slow way is timed on."""
COPIES = 8
"""So many times the Aelita clips, so that starting processes does not weigh; copies are dropped at the end."""

PREPARE = """
import json, sys, time
from pathlib import Path
from harness.core.artifact import Work
from harness.data import manifest

if __name__ == "__main__":
    path, folder, storage = sys.argv[1:]
    work = Work(path=Path(folder) / "out", scratch=Path(folder) / "scratch")
    work.path.mkdir(parents=True)
    work.scratch.mkdir()
    spec = manifest.Spec(path=path, storage=storage, on_bad="skip")
    started = time.perf_counter()
    meta = manifest.run(spec, {}, work)
    wall_s = time.perf_counter() - started
    import psutil
    memory = psutil.Process().memory_info()
    peak = getattr(memory, "peak_wset", 0)
    if not peak:
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"wall_s": wall_s, "peak_bytes": peak, "num_lines": meta["num_lines"]}))
"""


def prepare(path: Path, folder: Path, *, storage: str, before: str = "") -> dict[str, Any]:
    """Preparation in a process of its own, with its wall time and the peak memory of the process that leads it."""
    script = folder.with_suffix(".py")
    script.write_text(before + PREPARE, encoding="utf-8")
    command = [sys.executable, str(script), str(path), str(folder), storage]
    done = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8")
    shutil.rmtree(folder)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.fixture(scope="module")
def opus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar of Opus clips: Aelita, `COPIES` times."""
    path = tmp_path_factory.mktemp("opus") / "corpus.tar"
    rows = [json.loads(line) for line in (AELITA / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = []
    with tarfile.open(path, "w") as tar:
        for row in rows:
            for copy in range(COPIES):
                name = f"{copy}_{Path(row['audio_filepath']).name}"
                add(tar, name, (AELITA / row["audio_filepath"]).read_bytes())
                lines.append(json.dumps({**row, "audio_filepath": name}))
        add(tar, "manifest.jsonl", "\n".join(lines).encode())
    return path


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="the usual script needs ffmpeg and ffprobe")
def test_against_a_process_per_clip(benchmark: Any, opus: Path, tmp_path: Path) -> None:
    """At least 18 times the clips per second of one ffprobe and one ffmpeg process per clip."""
    clips = sorted((AELITA / "clips").glob("*.opus"))[:NUM_SCRIPTED]
    probe = ["ffprobe", "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0"]
    started = time.perf_counter()
    for clip in clips:
        subprocess.run([*probe, str(clip)], check=True, capture_output=True)
        target = str(tmp_path / f"{clip.stem}.wav")
        convert = ["ffmpeg", "-v", "error", "-y", "-i", str(clip), "-ar", "16000", "-ac", "1", target]
        subprocess.run(convert, check=True, capture_output=True)
    scripted = len(clips) / (time.perf_counter() - started)

    told = benchmark.pedantic(lambda: prepare(opus, tmp_path / "work", storage="wav"), rounds=1)
    ours = told["num_lines"] / told["wall_s"]
    print(  # noqa: T201  # the figures are what a benchmark is for
        f"\nthe usual script {scripted:.1f} clips/s, preparation {ours:.0f} clips/s: {ours / scripted:.1f} times"
    )
    assert told["num_lines"] == 190 * COPIES
    assert ours >= 18 * scripted


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Number of clips → a tar of so many noises of 0.1 s."""
    folder = tmp_path_factory.mktemp("noises")
    made = {}
    for count in (4_000, 40_000):
        with tarfile.open(folder / f"{count}.tar", "w") as tar:
            lines = []
            rng = np.random.default_rng(count)
            for number in range(count):
                buffer = io.BytesIO()
                soundfile.write(buffer, rng.uniform(-0.3, 0.3, RATE_HZ // 10), RATE_HZ, format="WAV")
                add(tar, f"{number}.wav", buffer.getvalue())
                lines.append(json.dumps({"audio_filepath": f"{number}.wav", "text": f"номер {number}"}))
            add(tar, "manifest.jsonl", "\n".join(lines).encode())
        made[count] = folder / f"{count}.tar"
    return made


@pytest.mark.timeout(1800)
def test_ten_times_the_clips(benchmark: Any, noises: dict[int, Path], tmp_path: Path) -> None:
    """At most 11 times as long."""
    few, many = noises
    small = prepare(noises[few], tmp_path / "small", storage="shards")
    large = benchmark.pedantic(lambda: prepare(noises[many], tmp_path / "large", storage="shards"), rounds=1)
    times = large["wall_s"] / small["wall_s"]
    print(  # noqa: T201
        f"\n{few} clips in {small['wall_s']:.1f} s, {many} in {large['wall_s']:.1f} s: {times:.1f} times"
    )
    assert times <= 11


UNDECODED = """
import harness.data.preparation as preparation
import harness.data.decoding as decoding
from harness.core.manifests import utterance_table
from harness.core.records import Utterance

def written(part):
    import hashlib
    import pyarrow as pa
    import pyarrow.parquet as pq

    utterances = [
        Utterance(id=row.id, audio=f"audio/{part.number:05}.tar/{row.line}.flac@0+1",
                  sha256=hashlib.sha256(row.audio.encode()).hexdigest(), text=row.text, duration_s=4.0,
                  speaker=str(row.line % 1000), split=None, tags={})
        for row, _, _ in part.rows
    ]
    table = utterance_table(utterances, fingerprints=[bytes(256)] * len(utterances))
    more = {"line": [row.line for row, _, _ in part.rows]}
    for field in list(decoding.decoded_schema())[len(table.schema):]:
        values = more.get(field.name, [[] if field.name == "notes" else None] * len(utterances))
        table = table.append_column(field, pa.array(values, field.type))
    pq.write_table(table, decoding.rows_path(part.scratch, number=part.number))
    return len(part.rows)

preparation.decode_part = written
preparation.FEW = 10**9
preparation.assemble.__globals__["write_card"] = lambda *_, **__: None
"""
"""Stands in for decoding, in the leading process itself, so that a million rows take minutes."""


@pytest.mark.timeout(1800)
def test_memory_of_the_leading_process(benchmark: Any, tmp_path: Path) -> None:
    """At most 200 bytes more for each clip; recordings are not decoded, all else is done."""
    told = {}
    for count in (100_000, 1_000_000):
        manifest = tmp_path / f"{count}.jsonl"
        with manifest.open("w", encoding="utf-8") as file:
            file.writelines(
                json.dumps({"audio_filepath": f"clips/{number:08}.opus", "text": f"запись номер {number}"}) + "\n"
                for number in range(count)
            )
        told[count] = prepare(manifest, tmp_path / "work", storage="shards", before=UNDECODED)
    benchmark.pedantic(lambda: None, rounds=1)
    (few, small), (many, large) = told.items()
    growth = (large["peak_bytes"] - small["peak_bytes"]) / (many - few)
    print(  # noqa: T201
        f"\n{few} clips: {small['peak_bytes'] / 2**20:.0f} MiB in {small['wall_s']:.0f} s; "
        f"{many}: {large['peak_bytes'] / 2**20:.0f} MiB in {large['wall_s']:.0f} s; {growth:.0f} bytes a clip"
    )
    assert growth <= 200
