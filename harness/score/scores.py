"""Transcripts against references: the figures of one row of the leaderboard."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from harness.core import text
from harness.core.alternatives import normalised_pair
from harness.core.manifests import read_manifest, write_jsonl
from harness.core.wer import count_errors, pool
from harness.errors import DataError
from harness.score import speed
from harness.score.error_classes import count_classes
from harness.score.significance import RESAMPLES, interval_over, rate_interval
from harness.score.slices import slice_rates, unknown_tags
from harness.score.transcribe import read_transcripts
from harness.suite import spec as base

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from harness.core.artifact import Artifact, Inputs, Work
    from harness.core.records import Transcript, Utterance
    from harness.core.wer import ErrorCounts, Unit

VERSION = 2
HYPOTHESES_FILE = "hypotheses.jsonl"
SCORE_FILE = "score.json"
SLICES_FILE = "slices.json"
MIB = 2**20
MAX_NAMED = 5
"""Utterances that a note names."""

Metric = Literal["wer", "cer", "rtf", "latency", "memory", "size"]
METRIC_OF: Mapping[Unit, Metric] = {"word": "wer", "char": "cer"}
BESIDE = ("wer", "wer_lo", "wer_hi", "cer", "num_utterances")
"""Figures by a profile that stands beside the main one, as `wer@ru-strict`."""


class Spec(base.Spec):
    """What is measured, and how both sides are normalised."""

    normalise: str = "ru"
    also: list[str] = Field(default=[])
    """Profiles that the same transcripts are scored by besides."""
    metrics: list[Metric] = Field(default=["wer", "cer", "rtf", "latency", "memory", "size"], min_length=1)
    slices: list[str] | None = None
    """None: by duration, and whatever has a few values."""
    resamples: int = Field(default=RESAMPLES, ge=1)
    seed: int

    @field_validator("normalise", "also")
    @classmethod
    def _are_known(cls, value: Any) -> Any:
        for name in [value] if isinstance(value, str) else value:
            if name not in text.PROFILES:
                raise ValueError(f"unknown normaliser '{name}' (known: {', '.join(text.PROFILES)})")
        if isinstance(value, str) and value in text.PARTIAL:
            raise ValueError(f"normaliser '{value}' leaves utterances out; name it under also, beside ru")
        return value

    def identity(self) -> dict[str, Any]:
        """With the normaliser's version: a changed one rescores, and transcribes nothing again."""
        return {**super().identity(), "normaliser": text.VERSION}


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Write `hypotheses.jsonl`, from which anyone can recompute the figures, `score.json` with them, `slices.json`.

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
    words = _count(rows, unit="word", metrics=spec.metrics)
    speakers = [item.speaker for item in utterances]
    figures = {
        **_rates(words, unit="word", speakers=speakers, spec=spec),
        **_rates(_count(rows, unit="char", metrics=spec.metrics), unit="char", speakers=speakers, spec=spec),
        "interval_over": interval_over(speakers) if len(rows) > 1 else None,
        "num_utterances": len(rows),
        "num_failed": sum(item.error is not None for item in transcripts),
        "audio_s": round(math.fsum(item.duration_s for item in utterances), 3),
        **_speed(transcripts, utterances=utterances, metrics=spec.metrics),
        **_machine(heard, metrics=spec.metrics),
        "size_mib": _size_mib(export) if "size" in spec.metrics else None,
        "normalise": spec.normalise,
        **_beside(rows, speakers=speakers, spec=spec),
        "error_classes": count_classes(
            [row["reference"] for row in rows],
            [row["hypothesis"] for row in rows],
            names=[row["id"] for row in rows],
        ),
    }
    slices = slice_rates(utterances, words, by=spec.slices, seed=spec.seed, resamples=spec.resamples)
    _write(work.path / SCORE_FILE, figures)
    _write(work.path / SLICES_FILE, slices)
    work.progress(len(rows), len(rows))
    notes = list(_notes(rows, utterances=utterances, spec=spec))
    return {**figures, "notes": notes} if notes else figures


def _write(path: Path, content: Any) -> None:
    told = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
    path.write_text(told, encoding="utf-8", newline="\n")


def _align(transcripts: Sequence[Transcript], *, utterances: Sequence[Utterance], name: str) -> list[Transcript]:
    """The transcripts in the order of the utterances."""
    by_id = {item.id: item for item in transcripts}
    missing = [item.id for item in utterances if item.id not in by_id]
    if missing or not len(utterances) == len(by_id) == len(transcripts):
        raise DataError(
            f"{name}: {len(transcripts)} transcripts of {len(by_id)} ids for {len(utterances)} utterances, "
            f"without {', '.join(missing[:5]) or 'none'}; transcribe this held-out set again"
        )
    unclocked = [item.id for item in transcripts if not math.isfinite(item.wall_s)]
    if unclocked:
        raise DataError(
            f"{name}: the time of {unclocked[0]} is {by_id[unclocked[0]].wall_s} s ({len(unclocked)} of "
            f"{len(transcripts)} are no numbers); transcribe this held-out set again"
        )
    return [by_id[item.id] for item in utterances]


def _hypothesis(utterance: Utterance, transcript: Transcript, *, profile: str) -> dict[str, Any]:
    hypothesis = transcript.text if transcript.error is None else None
    said, heard = normalised_pair(utterance.text, hypothesis, profile=profile, name=utterance.id)
    return {
        "id": utterance.id,
        "reference": utterance.text,
        "hypothesis": hypothesis,
        "reference_norm": said,
        # Empty, not null: whoever recomputes the rate from these gets the deletions of a failure by themselves.
        "hypothesis_norm": heard,
        "duration_s": utterance.duration_s,
        "wall_s": transcript.wall_s,
        "error": transcript.error,
        "speaker": utterance.speaker,
    }


def _count(rows: Sequence[dict[str, Any]], *, unit: Unit, metrics: Sequence[Metric]) -> list[ErrorCounts] | None:
    """The counts of each utterance; None if they are not asked for."""
    if METRIC_OF[unit] not in metrics:
        return None
    return count_errors([row["reference_norm"] for row in rows], [row["hypothesis_norm"] for row in rows], unit=unit)


def _rates(
    counts: Sequence[ErrorCounts] | None, *, unit: Unit, speakers: Sequence[str | None], spec: Spec
) -> dict[str, Any]:
    """The rate with its interval and its counts: `wer, wer_lo, wer_hi, word_counts` or `cer, …, char_counts`."""
    name = METRIC_OF[unit]
    if counts is None:
        return dict.fromkeys((name, f"{name}_lo", f"{name}_hi", f"{unit}_counts"))
    pooled = pool(counts)
    rate = pooled.rate
    lo, hi = rate_interval(
        [item.errors for item in counts],
        [item.num_reference for item in counts],
        speakers=speakers,
        seed=spec.seed,
        resamples=spec.resamples,
    )
    return {name: rate, f"{name}_lo": lo, f"{name}_hi": hi, f"{unit}_counts": asdict(pooled)}


def _beside(rows: Sequence[dict[str, Any]], *, speakers: Sequence[str | None], spec: Spec) -> dict[str, Any]:
    """The figures by each profile of `also`: `wer@ru-strict, wer_lo@…, wer_hi@…, cer@…, num_utterances@…`."""
    figures: dict[str, Any] = {}
    for profile in spec.also:
        kept = [number for number, row in enumerate(rows) if text.is_counted(row["reference"], profile=profile)]
        pairs = [_renormalised(rows[number], profile=profile) for number in kept]
        rates: dict[str, Any] = dict.fromkeys(BESIDE)
        # Where every reference has digits, nothing is left, and nothing is known.
        if any(pair["reference_norm"] for pair in pairs):
            words, chars = (_count(pairs, unit=unit, metrics=spec.metrics) for unit in ("word", "char"))
            own = [speakers[number] for number in kept]
            rates |= _rates(words, unit="word", speakers=own, spec=spec)
            rates["cer"] = pool(chars).rate if chars else None
        rates["num_utterances"] = len(pairs)
        figures |= {f"{name}@{profile}": rates[name] for name in BESIDE}
    return figures


def _renormalised(row: dict[str, Any], *, profile: str) -> dict[str, str]:
    said, heard = normalised_pair(row["reference"], row["hypothesis"], profile=profile, name=row["id"])
    return {"reference_norm": said, "hypothesis_norm": heard}


def _notes(rows: Sequence[dict[str, Any]], *, utterances: Sequence[Utterance], spec: Spec) -> Iterator[str]:
    empty = [row["id"] for row in rows if not row["reference_norm"]]
    if empty:
        named = ", ".join(empty[:MAX_NAMED]) + (", …" if len(empty) > MAX_NAMED else "")
        yield (
            f"{len(empty)} of {len(rows)} references are empty after the normaliser {spec.normalise} ({named}): "
            "every word heard there counts as inserted"
        )
    for name in unknown_tags(utterances, by=spec.slices):
        tags = ", ".join(dict.fromkeys(tag for item in utterances for tag in item.tags)) or "none"
        yield f"no utterance has the tag '{name}' that score.slices asks for; tags of this set: {tags}"


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
