"""A finished suite without the hours: a store whose heavy steps are made up and whose scores are real."""

from __future__ import annotations

import json
import wave
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from harness.core.manifests import write_jsonl, write_manifests
from harness.core.records import Transcript, Utterance
from harness.engine.digests import Digests
from harness.engine.plan import Plan, plan
from harness.engine.store import ARTIFACT_FILE, Store
from harness.suite.load import load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from harness.core.artifact import Artifact, Work
    from harness.engine.plan import Step

SUITE = """\
suite: small
seed: 5
datasets:
  aelita: {kind: manifest, path: clips/manifest.jsonl, licence: by permission, split: {dev: 0.1, by: recording}}
train: {from: aelita/train}
heldout:
  dev: {from: aelita/dev, role: dev}
  test: {from: aelita/test, role: test}
models:
  base:
    kind: whisper
    base: openai/whisper-base
    train: {max_steps: 100}
    grid: {learning_rate: [1e-5, 3e-5]}
    export: [whisper_onnx, whisper_ggml]
score: {runtimes: [onnx, whispercpp], resamples: 200}
gate: {better_than: zero-shot, by_wer: 0.02, rtf: {max: 1.0}, size_mib: {max: 1}}
promote: {target: mimir}
"""
WORDS = ["за", "окном", "шумел", "холодный", "ветер", "и", "гнал", "по", "улице", "сухие", "листья"]
NUM_UTTERANCES = 24
NUM_WRONG = {"zero-shot": 12, "lr1e-5": 2, "lr3e-5": 6}
"""Variant → utterances in which it mishears one word."""

Heard = "Callable[[str, str, int, str], str | None]"
"""Row, held-out set, number and reference of an utterance → what the runtime heard; None if it failed."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A suite that has run."""

    path: Path
    """Of the suite."""
    plan: Plan
    store: Store


def reference(number: int) -> str:
    """Twelve words or fewer; no two utterances say the same."""
    return " ".join([*WORDS[: 5 + number % 7], f"номер {number}"])


def mishear(row: str, _heldout: str, number: int, text: str) -> str:
    """One word is wrong in the first utterances, in as many as NUM_WRONG says."""
    variant = row.split("_")[1]
    return text.replace("окном", "окнам") if number < NUM_WRONG[variant] else text


def finished(
    folder: Path, *, suite: str = SUITE, heard: Heard = mishear, but: Callable[[Step], bool] = lambda _: False
) -> Finished:
    """A suite in `folder` and the store `folder/results/store` with every step's artifact; none where `but` says so."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "small.yaml"
    path.write_text(suite, encoding="utf-8")
    store = Store(folder / "results" / "store")
    planned = plan(load(path), digest=Digests(store.root / "digests.json"))
    rows = {row.scored.inputs["transcripts"][0].key: row for row in planned.rows}
    for step in planned.steps:
        if not but(step) and all(store.find(need.folder, key=need.key) for need in step.needs):
            finish(step, store, row=rows.get(step.key), heard=heard)
    return Finished(path, planned, store)


def finish(step: Step, store: Store, *, row: Any = None, heard: Heard = mishear) -> Artifact:
    """Publish the artifact of one step."""
    inputs = {role: [_found(need, store) for need in needs] for role, needs in step.inputs.items()}
    work = store.open(step.folder)
    if step.stage == "score":
        meta = step.module.run(step.spec, inputs, work)
    elif step.stage == "transcribe":
        meta = _transcribe(work, row=row, heard=heard)
    else:
        meta = MAKE.get(step.stage, lambda _work, _step: {})(work, step)
    return store.publish(step.folder, key=step.key, stage=step.stage, meta=meta, about={"wall_s": 1.5})


def _found(step: Step, store: Store) -> Artifact:
    artifact = store.find(step.folder, key=step.key)
    assert artifact is not None
    return artifact


def _select(work: Work, _step: Step) -> dict[str, Any]:
    for number in range(NUM_UTTERANCES):
        with wave.open(str(work.path / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(bytes(2 * 2 * 16_000))
    write_manifests(
        work.path,
        (
            Utterance(
                id=f"u{number}", audio=f"{number}.wav", sha256=f"{number:064}", text=reference(number), duration_s=2
            )
            for number in range(NUM_UTTERANCES)
        ),
    )
    return {"num_utterances": NUM_UTTERANCES, "audio_s": 2.0 * NUM_UTTERANCES, "num_speakers": 0}


def _train(work: Work, _step: Step) -> dict[str, Any]:
    curves = [{"step": step, "loss": 1 / step, "learning_rate": 1e-5} for step in range(10, 101, 10)]
    write_jsonl(work.path / "curves.jsonl", [*curves, {"step": 100, "eval_wer": 0.1, "eval_loss": 0.2}])
    return {"best_dev_wer": 0.1}


def _export(work: Work, step: Step) -> dict[str, Any]:
    name = "ggml-model.bin" if step.name.endswith("ggml-f16") else "encoder_model.onnx"
    # Compressible and not: a zip that compresses would differ between versions of zlib.
    (work.path / name).write_bytes(step.key.encode() * 2000)
    (work.path / "config.json").write_text("{}", encoding="utf-8")
    return {}


def _transcribe(work: Work, *, row: Any, heard: Heard) -> dict[str, Any]:
    transcripts = []
    for number in range(NUM_UTTERANCES):
        text = heard(row.row, row.heldout, number, reference(number))
        error = None if text is not None else "RuntimeError: out of memory"
        transcripts.append(asdict(Transcript(f"u{number}", text, 0.2 + number / 100, error)))
    write_jsonl(work.path / "transcripts.jsonl", transcripts)
    return {
        "runtime": "runtime 1.0",
        "device": "a CPU, 2 threads",
        "decoding": {"strategy": "greedy", "language": "ru", "threads": 2},
        "load_s": 0.5,
        "peak_ram_mib": 321.5,
        "peak_vram_mib": None,
    }


MAKE: Mapping[str, Callable[[Work, Step], dict[str, Any]]] = {
    "base": lambda _work, _step: {"licence": "mit"},
    "select": _select,
    "leakage": lambda _work, _step: {"num_leaks": 0},
    "train": _train,
    "export": _export,
}


def record_anew(folder: Path) -> None:
    """Let an artifact's record say of its files what they are now, as if its step had left them so."""
    path = folder / ARTIFACT_FILE
    record = json.loads(path.read_text("utf-8"))
    sizes = {item.relative_to(folder).as_posix(): item.stat().st_size for item in folder.rglob("*") if item.is_file()}
    record["files"] = {
        name: {**record["files"][name], "size": sizes[name]} for name in record["files"] if name in sizes
    }
    path.write_text(json.dumps(record), encoding="utf-8")
