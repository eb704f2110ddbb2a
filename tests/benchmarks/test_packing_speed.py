"""What packing is for, on real clips of 3–6 s: more speech trained in the same time, and a trainer that never waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from harness.core.artifact import Artifact, Work
from harness.train import weights, whisper
from harness.train.packing import Packing, windows
from harness.train.whisper import Training
from tests.conftest import artifact
from tests.pieces import Piece, short_pieces, write_pieces

ROOT = Path(__file__).parent.parent.parent
PACKED = Packing(window_s=30.0, timestamps=0.5, singles=0.0)
WALL_S = float(os.environ.get("PACKING_WALL_S", "150"))
"""Seconds of training that each recipe gets, without its evaluation."""
TRIAL_STEPS = 3
DEV_EVERY = 6
"""Each so many recordings, one is for dev."""
NUM_DEV = 32
BATCH_SIZE = 4
NUM_CLIPS = 1_000_000
NUM_EPOCHS = 3
MAX_RSS_MIB = 500

CHILD = """
import json, sys, time
from pathlib import Path
from datasets import Dataset
from harness.score.memory import peak_ram_mib
from harness.train.examples import Clips, training_table, windows_per_epoch
from harness.train.packing import Packing

table, epochs, packing = json.loads(sys.argv[1])
clips = Clips(Dataset.from_file(table), Path("."), Path(table).parent, 448, 0, 0, 0)
packing = Packing.model_validate(packing)
start = time.perf_counter()
count = epochs * windows_per_epoch(clips, packing=packing)
windows = training_table(clips, renderer=None, packing=packing, count=count, seed=17)
print(json.dumps({"wall_s": time.perf_counter() - start, "rss_mib": peak_ram_mib(), "windows": len(windows)}))
"""


@dataclass(slots=True)
class Watched(Work):
    """Knows when each step of a training ended."""

    ended_s: list[float] = field(default_factory=list)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """What a training tells after each step, before it evaluates."""
        # Searches for the largest batch tell of their trials, too.
        if done == len(self.ended_s) + 1:
            self.ended_s.append(time.perf_counter())


@dataclass
class Trained:
    """A training and its clock."""

    ended_s: list[float]
    """Of each step; the first one warms up, and is not counted."""
    wer: float

    @property
    def num_steps(self) -> int:
        return len(self.ended_s) - 1

    @property
    def wall_s(self) -> float:
        return self.ended_s[-1] - self.ended_s[0]

    @property
    def step_s(self) -> float:
        return median(after - before for before, after in pairwise(self.ended_s))


@pytest.fixture(scope="module")
def pieces() -> tuple[list[Piece], list[Piece]]:
    """To train on, and for dev: of other recordings."""
    found = short_pieces()
    assert all(2.9 <= piece.duration_s <= 6.1 for piece in found)
    names = sorted({piece.recording for piece in found})
    held = set(names[::DEV_EVERY])
    train = [piece for piece in found if piece.recording not in held]
    return train, [piece for piece in found if piece.recording in held][:NUM_DEV]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    work = Work(tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("base-scratch"))
    weights.run(weights.Spec(base="openai/whisper-base"), {}, work)
    return artifact(work.path)


def fine_tune(folder: Path, base: Artifact, sets: tuple[list[Piece], list[Piece]], **fields: Any) -> Trained:
    """The step of `kind: whisper` on Whisper base, evaluated once, at its end."""
    work = Watched(path=folder / "out", scratch=folder / "scratch")
    for path in (work.path, work.scratch):
        path.mkdir(parents=True)
    train, dev = (
        artifact(write_pieces(folder / name, part)) for name, part in zip(("train", "dev"), sets, strict=True)
    )
    spec = Training(batch_size=BATCH_SIZE, eval_steps=fields["max_steps"], warmup_steps=2, **fields)
    meta = whisper.run(spec, {"base": [base], "train": [train], "dev": [dev]}, work)
    assert len(work.ended_s) == spec.max_steps
    return Trained(work.ended_s, meta["best_dev_wer"])


def heard_s(pieces: list[Piece], trained: Trained, *, packing: Packing | None, base: Artifact) -> float:
    """Seconds of speech in the steps that were timed."""
    from transformers import WhisperTokenizer

    tokenizer = WhisperTokenizer.from_pretrained(base.path / "model")
    tokens = tokenizer([f" {piece.text}" for piece in pieces], add_special_tokens=False)["input_ids"]
    endless = windows([piece.duration_s for piece in pieces], [len(ids) for ids in tokens], packing=packing, seed=17)
    rows = islice(endless, BATCH_SIZE, BATCH_SIZE * (trained.num_steps + 1))
    return sum(pieces[index].duration_s for window in rows for index in window.clips)


@pytest.mark.timeout(1800)
def test_packed_training_hears_five_times_as_much_in_the_same_time(
    benchmark: Any, pieces: tuple[list[Piece], list[Piece]], base: Artifact, tmp_path: Path
) -> None:
    recipes: dict[str, Packing | None] = {"packed": PACKED, "one clip a window": None}
    found: dict[str, Trained] = {}

    def race() -> None:
        for name, packing in recipes.items():
            trial = fine_tune(
                tmp_path / f"{name} trial", base, (pieces[0], pieces[1][:1]), packing=packing, max_steps=TRIAL_STEPS + 1
            )
            max_steps = round(WALL_S / trial.step_s) + 1
            found[name] = fine_tune(tmp_path / name, base, pieces, packing=packing, max_steps=max_steps)

    benchmark.pedantic(race, rounds=1)
    rates = {}
    for name, packing in recipes.items():
        trained = found[name]
        rates[name] = heard_s(pieces[0], trained, packing=packing, base=base) / trained.wall_s
        print(  # noqa: T201
            f"{name}: {trained.num_steps} steps in {trained.wall_s:.0f} s, {rates[name]:.2f} s of speech a second, "
            f"dev WER {trained.wer:.3f}"
        )
    packed, single = found.values()
    assert packed.wall_s <= 1.15 * single.wall_s, "the machine was not quiet: the two did not train equally long"
    assert rates["packed"] >= 5 * rates["one clip a window"]
    assert packed.wer <= single.wer


def test_the_trainer_waits_for_less_than_a_twentieth_of_a_step(
    benchmark: Any,
    pieces: tuple[list[Piece], list[Piece]],
    base: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With two workers, and a training that gives them little time: its encoder is frozen."""
    from torch.utils.data.dataloader import _BaseDataLoaderIter

    waits: list[tuple[float, float]] = []
    plain = _BaseDataLoaderIter.__next__

    def timed(self: Any) -> Any:
        begin_s = time.perf_counter()
        # The end of the data is no wait for a batch: workers are shut down there, once a training.
        batch = plain(self)
        waits.append((begin_s, time.perf_counter()))
        return batch

    monkeypatch.setattr(_BaseDataLoaderIter, "__next__", timed)
    fields = {"packing": PACKED, "freeze": "encoder", "num_workers": 2, "max_steps": 12}
    trained: list[Trained] = []

    def train() -> None:
        trained.append(fine_tune(tmp_path, base, (pieces[0], pieces[1][:1]), **fields))

    benchmark.pedantic(train, rounds=1)
    first_s, last_s = trained[0].ended_s[0], trained[0].ended_s[-1]
    waited = [end - begin for begin, end in waits if first_s <= begin and end <= last_s]
    assert len(waited) == trained[0].num_steps - 1, "each step's batch but the last's is asked for while one is timed"
    waited_s = sum(waited)
    print(f"waited {waited_s:.2f} s of {last_s - first_s:.1f} s, {trained[0].num_steps} steps")  # noqa: T201
    assert waited_s < 0.05 * (last_s - first_s)


def test_a_million_clips_are_packed_in_little_memory(benchmark: Any, tmp_path: Path) -> None:
    """In a process of its own, so that its memory can be read."""
    import numpy as np
    import pyarrow as pa

    rng = np.random.default_rng(0)
    schema = pa.schema(
        {"audio": pa.string(), "duration_s": pa.float64(), "text": pa.string(), "tokens": pa.list_(pa.int32())}
    )
    some = NUM_CLIPS // 20
    path = tmp_path / "clips.arrow"
    with pa.ipc.new_stream(str(path), schema) as writer:
        for _ in range(20):
            durations_s = rng.uniform(1.0, 7.0, some)
            tokens = [np.arange(length, dtype=np.int32) for length in (durations_s * 5).astype(int)]
            columns = [["audio/00000/clip.flac"] * some, durations_s, ["сорок букв текста, как обычно"] * some, tokens]
            arrays = [pa.array(column, kind.type) for column, kind in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    job = json.dumps([str(path), NUM_EPOCHS, {"window_s": 30, "timestamps": True, "prompts": 0.1}])
    found: dict[str, float] = {}

    def run() -> None:
        child = [sys.executable, "-c", CHILD, job]
        ended = subprocess.run(child, cwd=ROOT, check=True, capture_output=True, text=True, encoding="utf-8")
        found.update(json.loads(ended.stdout))

    benchmark.pedantic(run, rounds=1)
    print(  # noqa: T201
        f"{NUM_CLIPS:,} clips × {NUM_EPOCHS} epochs: {found['windows']:,} windows in {found['wall_s']:.0f} s, "
        f"peak {found['rss_mib']:.0f} MiB"
    )
    assert found["windows"] > NUM_EPOCHS * NUM_CLIPS / 10
    assert found["rss_mib"] < MAX_RSS_MIB


def test_whisper_cpp_gets_sound_timestamps_from_the_packed_model(benchmark: Any) -> None:
    """Of the finished packing suite: the fine-tuned ggml, windows of held-out recordings end to end."""
    from harness.score.probes import timestamps
    from harness.score.probes.windows import windows as joined_windows
    from harness.score.whispercpp import Spec, load

    board = ROOT / "results" / "packing" / "leaderboard.csv"
    if not board.is_file():
        pytest.skip("needs a finished run: harness run suites/packing.yaml")
    store = ROOT / "results" / "store"
    rows = [row for row in planned(ROOT / "suites" / "packing.yaml") if row.export.startswith("ggml")]
    heldout = {store / row.scored.inputs["heldout"][0].folder for row in rows}
    models = {row.variant: store / row.exported.folder / "ggml-model.bin" for row in rows}
    sound: dict[str, float] = {}

    def listen() -> None:
        for variant, model in models.items():
            recogniser = load(model, spec=Spec(timestamps=True), threads=os.cpu_count() or 1)
            sets = [artifact(folder) for folder in sorted(heldout)]
            heard = [(recogniser.segments(window.samples), window) for window in joined_windows(sets, count=20)]
            flaws = [timestamps.flaw(*pair) for pair in heard]
            errors = [error for pair in heard for error in timestamps.errors_s(*pair)]
            sound[variant] = flaws.count(None) / len(flaws)
            print(  # noqa: T201
                f"{variant}: {sound[variant]:.2f} of {len(flaws)} windows are sound, median error "
                f"{1000 * median(errors):.0f} ms, {[flaw for flaw in flaws if flaw]}"
            )

    benchmark.pedantic(listen, rounds=1)
    assert sound["packed"] >= max(0.75, sound["one-clip"])


def planned(suite: Path) -> tuple[Any, ...]:
    from harness.engine.digests import Digests
    from harness.engine.plan import plan
    from harness.suite.load import load

    return plan(load(suite), digest=Digests(ROOT / "results" / "store" / "digests.json")).rows
