"""Transcripts against references: the figures of one row of the leaderboard."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from harness.core import text
from harness.core.manifests import read_manifest, write_jsonl
from harness.core.wer import ErrorCounts, count_errors, pool
from harness.errors import DataError
from harness.score import speed
from harness.score.significance import RESAMPLES, rate_interval
from harness.score.transcribe import read_transcripts
from harness.suite import spec as base

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.core.artifact import Artifact, Inputs, Work
    from harness.core.records import Transcript, Utterance
    from harness.core.wer import Unit

VERSION = 1
HYPOTHESES_FILE = "hypotheses.jsonl"
SCORE_FILE = "score.json"
MIB = 2**20

Metric = Literal["wer", "cer", "rtf", "latency", "memory", "size"]


class Spec(base.Spec):
    """What is measured, and how both sides are normalised."""

    normalise: str = "ru"
    metrics: list[Metric] = Field(default=["wer", "cer", "rtf", "latency", "memory", "size"], min_length=1)
    resamples: int = Field(default=RESAMPLES, ge=1)
    seed: int

    @field_validator("normalise")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in text.PROFILES:
            raise ValueError(f"unknown normaliser '{value}' (known: {', '.join(text.PROFILES)})")
        return value

    def identity(self) -> dict[str, Any]:
        """With the normaliser's version: a changed one rescores, and transcribes nothing again."""
        return {**super().identity(), "normaliser": text.VERSION}


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Write `hypotheses.jsonl`, from which anyone can recompute the figures, and `score.json` with the figures.

    Takes one artifact each of `inputs["transcripts"]`, `["heldout"]` and `["export"]`.
    What was not measured or not asked for is None. Failed utterances count as all words deleted.
    Raises DataError if transcripts and held-out set do not list the same utterances.
    """
    (heard,), (heldout,), (export,) = inputs["transcripts"], inputs["heldout"], inputs["export"]
    utterances = read_manifest(heldout.path)
    transcripts = _align(read_transcripts(heard.path), utterances=utterances, name=str(heard.path))
    rows = [
        _hypothesis(utterance, transcript, profile=spec.normalise)
        for utterance, transcript in zip(utterances, transcripts, strict=True)
    ]
    write_jsonl(work.path / HYPOTHESES_FILE, rows)
    figures = {
        **_errors(rows, unit="word", spec=spec),
        **_errors(rows, unit="char", spec=spec),
        "num_utterances": len(rows),
        "num_failed": sum(item.error is not None for item in transcripts),
        "audio_s": round(math.fsum(item.duration_s for item in utterances), 3),
        **_speed(transcripts, utterances=utterances, metrics=spec.metrics),
        **_machine(heard, metrics=spec.metrics),
        "size_mib": _size_mib(export) if "size" in spec.metrics else None,
        "normalise": spec.normalise,
    }
    content = json.dumps(figures, ensure_ascii=False, indent=1, allow_nan=False)
    (work.path / SCORE_FILE).write_text(content, encoding="utf-8", newline="\n")
    work.progress(len(rows), len(rows))
    return figures


def _align(transcripts: Sequence[Transcript], *, utterances: Sequence[Utterance], name: str) -> list[Transcript]:
    """The transcripts in the order of the utterances."""
    by_id = {item.id: item for item in transcripts}
    missing = [item.id for item in utterances if item.id not in by_id]
    if missing or not len(utterances) == len(by_id) == len(transcripts):
        raise DataError(
            f"{name}: {len(transcripts)} transcripts of {len(by_id)} ids for {len(utterances)} utterances, "
            f"without {', '.join(missing[:5]) or 'none'}; transcribe this held-out set again"
        )
    return [by_id[item.id] for item in utterances]


def _hypothesis(utterance: Utterance, transcript: Transcript, *, profile: str) -> dict[str, Any]:
    hypothesis = transcript.text if transcript.error is None else None
    return {
        "id": utterance.id,
        "reference": utterance.text,
        "hypothesis": hypothesis,
        "reference_norm": text.normalise(utterance.text, profile=profile),
        # Empty, not null: whoever recomputes the rate from these gets the deletions of a failure by themselves.
        "hypothesis_norm": text.normalise(hypothesis or "", profile=profile),
        "duration_s": utterance.duration_s,
        "wall_s": transcript.wall_s,
        "error": transcript.error,
    }


def _errors(rows: Sequence[dict[str, Any]], *, unit: Unit, spec: Spec) -> dict[str, Any]:
    """The rate with its interval and its counts: `wer, wer_lo, wer_hi, word_counts` or `cer, …, char_counts`."""
    name: Metric = "wer" if unit == "word" else "cer"
    if name not in spec.metrics:
        return dict.fromkeys((name, f"{name}_lo", f"{name}_hi", f"{unit}_counts"))
    counts = count_errors([row["reference_norm"] for row in rows], [row["hypothesis_norm"] for row in rows], unit=unit)
    pooled: ErrorCounts = pool(counts)
    rate = pooled.rate
    lo, hi = rate_interval(
        [item.errors for item in counts],
        [item.num_reference for item in counts],
        seed=spec.seed,
        resamples=spec.resamples,
    )
    return {name: rate, f"{name}_lo": lo, f"{name}_hi": hi, f"{unit}_counts": asdict(pooled)}


def _speed(
    transcripts: Sequence[Transcript], *, utterances: Sequence[Utterance], metrics: Sequence[Metric]
) -> dict[str, float | None]:
    duration_s = {item.id: item.duration_s for item in utterances}
    latency = "latency" in metrics
    return {
        "rtf": speed.rtf(transcripts, duration_s=duration_s) if "rtf" in metrics else None,
        "latency_p50_ms": speed.latency_ms(transcripts, percentile=50) if latency else None,
        "latency_p95_ms": speed.latency_ms(transcripts, percentile=95) if latency else None,
    }


def _machine(heard: Artifact, *, metrics: Sequence[Metric]) -> dict[str, Any]:
    """What the runtime said of itself."""
    memory = "memory" in metrics
    return {
        "peak_vram_mib": heard.meta.get("peak_vram_mib") if memory else None,
        "peak_ram_mib": heard.meta.get("peak_ram_mib") if memory else None,
        **{name: heard.meta.get(name) for name in ("load_s", "device", "runtime", "decoding")},
    }


def _size_mib(export: Artifact) -> float:
    return sum((export.path / name).stat().st_size for name in export.files) / MIB
