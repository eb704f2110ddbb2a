"""What an exported model takes of a machine's time, by one fixed protocol: latency, throughput, energy."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from harness.core.artifact import Resources
from harness.core.manifests import SAMPLE_RATE_HZ, read_manifest, write_jsonl
from harness.core.recordings import read_samples
from harness.errors import DataError
from harness.score.device import device_details, energy_j
from harness.score.memory import VramMeter, peak_ram_mib
from harness.score.probes import recognisers
from harness.score.processor import physical_cores
from harness.score.speed import bucket, buckets, figures, pooled_rtf, spread, sweep
from harness.score.transcribe import BatchRecogniser, Recogniser, clocked
from harness.suite.probe import PROBE_FILE, ProbeSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from harness.core.artifact import Artifact, Inputs, Work
    from harness.core.records import Transcript

    Passes = Sequence[Sequence[Transcript]]

VERSION = 1
"""Of the protocol, too."""
RESOURCES = Resources(whole_machine=True, gpu=True)
SEED = 17
"""Of the clips that are taken, and their order."""


class Spec(ProbeSpec):
    """Times dev utterances one by one, several times over, then in batches; in a process that does nothing else."""

    kind: Literal["speed"] = "speed"
    reads: ClassVar[Literal["dev", "languages"] | None] = "dev"
    columns: ClassVar[tuple[str, ...]] = (
        *("speed_rtf", "speed_rtf_spread", "latency_p99_ms"),
        *("throughput_x", "best_batch", "energy_j_per_audio_s"),
    )

    clips: int = Field(
        default=20, ge=1, description="At most so many of each duration: under 3 s, under 10 s, under 30 s, longer."
    )
    repeats: int = Field(default=3, ge=1, description="Passes over all clips.")
    max_batch: int = Field(default=64, ge=1, description="The largest batch that is tried.")


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording in memory."""

    id: str
    samples: np.ndarray
    """float32 [num_samples], 16 kHz mono."""

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SAMPLE_RATE_HZ


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Write protocol, device, buckets, batches and clips into `probe.jsonl`; return the figures and all but the clips.

    What the figures mean stands in `protocol`. Figures of energy and VRAM are None for a model on the CPU.
    Raises DataError if the dev sets have no clips, or every clip fails.
    """
    clips = chosen(inputs["dev"], count=spec.clips)
    with VramMeter() as meter:
        start = time.perf_counter()
        recogniser = recognisers.load(spec, inputs)
        load_s = time.perf_counter() - start
        _warm_up(recogniser, clips)
        before_j = energy_j()
        passes = _one_by_one(recogniser, clips, spec=spec, work=work)
        after_j = energy_j()
        heard = [(clip.duration_s, item) for each in passes for clip, item in zip(clips, each, strict=True)]
        single = _single(clips, passes)
        # Of batch 1: larger ones follow, and each says its own.
        memory = {"peak_ram_mib": peak_ram_mib(), "peak_vram_mib": meter.peak_mib, "idle_vram_mib": meter.idle_mib}
        batches = _batches(recogniser, clips, passes, spec=spec, meter=meter, single_x=1 / single["speed_rtf"])
    best = max((item for item in batches if "error" not in item), key=lambda item: item["throughput_x"])
    audio_s = math.fsum(duration_s for duration_s, item in heard if item.error is None)
    found = {
        **single,
        **{name: value for name, value in figures(heard).items() if name != "rtf"},
        "throughput_x": best["throughput_x"],
        "best_batch": best["batch"],
        # A model on the CPU leaves only the idle power of the GPUs to be counted.
        "energy_j_per_audio_s": _difference(before_j, after_j, per=audio_s) if memory["peak_vram_mib"] else None,
        "load_s": load_s,
        "num_clips": len(clips),
        "num_failed": sum(any(each[number].error for each in passes) for number in range(len(clips))),
        **memory,
        "protocol": protocol(spec),
        "device": recognisers.device(spec),
        "device_details": device_details(),
        "buckets": [{**item, "num_clips": item["num_clips"] // spec.repeats} for item in buckets(heard)],
        "batches": batches,
    }
    write_jsonl(work.path / PROBE_FILE, _rows(found, clips, passes))
    notes = _notes(batches, spec=spec, num_clips=len(clips))
    return {**found, "notes": notes} if notes else found


def protocol(spec: Spec) -> dict[str, Any]:
    """How the figures came about, beside which they stand."""
    return {
        "version": VERSION,
        "inside_the_clock": "features, encoder, decoder, detokenising",
        "outside_the_clock": "loading the model, reading the recordings",
        "process": "fresh, nothing beside it",
        "batch": 1,
        "warm_up": "one clip of each duration bucket, and the first batch of each size",
        "repeats": spec.repeats,
        "clips_per_bucket": spec.clips,
        "seed": SEED,
        "threads": getattr(spec.runtime, "threads", 0) or physical_cores(),
        "rtf": "median over the repeats; spread: highest less lowest, by the median",
        "latency": "percentiles over all clips of all repeats",
        "throughput": "clips sorted by duration, median over the repeats; batches double while they gain 5 %",
        "energy": "NVML's counters of all GPUs over the repeats of batch 1, idle power included",
    }


def chosen(sets: Sequence[Artifact], *, count: int) -> list[Clip]:
    """At most `count` utterances of each duration bucket, always the same, in an order that mixes the buckets.

    Raises DataError if the sets have no utterance with a sound in it.
    """
    found: dict[int, list[tuple[Path, str]]] = defaultdict(list)
    for item in sets:
        for utterance in read_manifest(item.path):
            if utterance.duration_s > 0:
                found[bucket(utterance.duration_s)].append((item.path / utterance.audio, utterance.id))
    if not found:
        raise DataError("probe speed: the dev sets have no utterances; it needs at least 1")
    order = random.Random(SEED)  # noqa: S311  # no secret
    taken = [one for key in sorted(found) for one in order.sample(found[key], min(count, len(found[key])))]
    order.shuffle(taken)
    return [Clip(name, read_samples(path)) for path, name in taken]


def _warm_up(recogniser: Recogniser, clips: Sequence[Clip]) -> None:
    """First calls allocate and compile, for each length anew; they say nothing about the ones that follow."""
    for clip in {bucket(clip.duration_s): clip for clip in clips}.values():
        clocked(recogniser, clip.samples, name=clip.id)


def _one_by_one(recogniser: Recogniser, clips: Sequence[Clip], *, spec: Spec, work: Work) -> Passes:
    passes: list[list[Transcript]] = []
    for number in range(spec.repeats):
        passes.append([])
        for done, clip in enumerate(clips):
            work.progress(number * len(clips) + done, spec.repeats * len(clips), clip.id)
            passes[-1].append(clocked(recogniser, clip.samples, name=clip.id))
    work.progress(spec.repeats * len(clips), spec.repeats * len(clips), "batches")
    return passes


def _single(clips: Sequence[Clip], passes: Passes) -> dict[str, Any]:
    """The real-time factor of the passes, and how far they are apart. Raises DataError if every clip failed."""
    each = [pooled_rtf([(clip.duration_s, item) for clip, item in zip(clips, one, strict=True)]) for one in passes]
    known = [value for value in each if value is not None]
    if not known:
        raise DataError(f"probe speed: all {len(clips)} clips failed, the first with: {passes[0][0].error}")
    return {"speed_rtf": statistics.median(known), "speed_rtf_spread": spread(known)}


def _batches(
    recogniser: Recogniser, clips: Sequence[Clip], passes: Passes, *, spec: Spec, meter: VramMeter, single_x: float
) -> list[dict[str, Any]]:
    """The sweep over batches of the clips that did not fail; of a library without batches, batch 1 alone."""
    if not isinstance(recogniser, BatchRecogniser):
        return [{"batch": 1, "throughput_x": single_x}]
    texts = {
        number: items[0].text
        for number, items in enumerate(zip(*passes, strict=True))
        if not any(item.error for item in items)
    }
    # The longest first: what does not fit fails at once, and little is padded.
    order = sorted(texts, key=lambda number: -len(clips[number].samples))
    samples, said = [clips[number].samples for number in order], [texts[number] for number in order]
    measure = partial(_batch, recogniser, samples, said, repeats=spec.repeats, meter=meter)
    return sweep(measure, single_x=single_x, largest=min(spec.max_batch, len(order)))


def _batch(
    recogniser: BatchRecogniser,
    samples: Sequence[np.ndarray],
    said: Sequence[str | None],
    size: int,
    *,
    repeats: int,
    meter: VramMeter,
) -> dict[str, Any]:
    parts = [samples[start : start + size] for start in range(0, len(samples), size)]
    recogniser.transcribe_batch(parts[0])
    walls_s = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        texts = [text for part in parts for text in recogniser.transcribe_batch(part)]
        walls_s.append(time.perf_counter() - start_s)
    return {
        "throughput_x": sum(map(len, samples)) / SAMPLE_RATE_HZ / statistics.median(walls_s),
        "spread": spread(walls_s),
        "num_changed_texts": sum(text != one for text, one in zip(texts, said, strict=True)),
        "peak_vram_mib": meter.peak_mib,
    }


def _difference(before: float | None, after: float | None, *, per: float) -> float | None:
    return None if before is None or after is None else (after - before) / per


def _rows(found: dict[str, Any], clips: Sequence[Clip], passes: Passes) -> list[dict[str, Any]]:
    measured = [
        {
            "what": "clip",
            "id": clip.id,
            "duration_s": clip.duration_s,
            "walls_s": [item.wall_s for item in items],
            "hypothesis": items[0].text,
            "error": next((item.error for item in items if item.error), None),
        }
        for clip, items in zip(clips, zip(*passes, strict=True), strict=True)
    ]
    return [
        {"what": "protocol", **found["protocol"]},
        {"what": "device", "device": found["device"], **found["device_details"]},
        *({"what": "bucket", **item} for item in found["buckets"]),
        *({"what": "batch", **item} for item in found["batches"]),
        *measured,
    ]


def _notes(batches: Sequence[dict[str, Any]], *, spec: Spec, num_clips: int) -> list[str]:
    last = batches[-1]
    if "error" in last:
        return [f"batch {last['batch']} failed, throughput is of smaller ones: {last['error']}"]
    gained = len(batches) > 1 and last["throughput_x"] == max(item["throughput_x"] for item in batches)
    if gained and 2 * last["batch"] > min(spec.max_batch, num_clips):
        return [f"batch {last['batch']} was the largest of {num_clips} clips and max_batch: {spec.max_batch}"]
    return []
