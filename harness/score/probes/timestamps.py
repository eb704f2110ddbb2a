"""Whether a model still says when: the share of windows with sound timestamps, and how far they are off."""

from __future__ import annotations

import statistics
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from harness.core.artifact import Resources
from harness.core.manifests import write_jsonl
from harness.score.probes import recognisers
from harness.score.probes.windows import windows
from harness.suite.probe import PROBE_FILE, ProbeSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.core.artifact import Inputs, Work
    from harness.score.probes.windows import Window
    from harness.score.whispercpp import Segment

VERSION = 1
RESOURCES = Resources(whole_machine=True, gpu=True)
GRID_S = 0.02
"""Of Whisper's timestamp tokens."""
ROUNDING = 1e-6
"""7.18 / 0.02 is not quite 359."""
OVERHANG_S = 0.1
"""By which the last timestamp may be behind the end of the recording: five steps of the grid."""
END_TOLERANCE_S = 1.0
"""Between the last timestamp and the end of speech."""


class Spec(ProbeSpec):
    """Decodes dev utterances end to end in windows, with timestamps and without fallback."""

    kind: Literal["timestamps"] = "timestamps"
    accepts: ClassVar[tuple[str, ...] | None] = ("whisper_ggml",)
    reads: ClassVar[Literal["dev", "languages"] | None] = "dev"
    columns: ClassVar[tuple[str, ...]] = ("timestamps_ok", "timestamp_error_ms")

    windows: int = Field(default=20, ge=1, description="At most so many windows of 30 s, out of all dev sets.")


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Write the segments of each window into `probe.jsonl`; return both figures.

    `timestamp_error_ms` is the median over the pauses between utterances of how far the nearest timestamp is from
    the pause; in it is zero.
    """
    recogniser = recognisers.load(spec, inputs, timestamps=True, temperature_inc=0.0)
    rows: list[dict[str, Any]] = []
    errors: list[float] = []
    found = list(windows(inputs["dev"], count=spec.windows))
    for done, window in enumerate(found):
        work.progress(done, len(found))
        segments = recogniser.segments(window.samples)
        fault = flaw(segments, window)
        errors += errors_s(segments, window)
        rows.append({
            "duration_s": window.duration_s, "pauses_s": window.pauses_s, "flaw": fault,
            "segments": [[item.start_s, item.end_s, item.text] for item in segments],
        })  # fmt: skip
    write_jsonl(work.path / PROBE_FILE, rows)
    work.progress(len(rows), len(rows))
    return {
        "timestamps_ok": sum(row["flaw"] is None for row in rows) / len(rows),
        "timestamp_error_ms": 1000 * statistics.median(errors) if errors else None,
        "num_windows": len(rows),
    }


def flaw(segments: Sequence[Segment], window: Window) -> str | None:
    """The first thing that is wrong with the timestamps of a window; None if nothing is."""
    if not segments:
        return "no segment"
    times = _times(segments)
    faults = {
        "text without timestamps": not (segments[0].start_is_written and all(item.end_is_written for item in segments)),
        "going back": any(after < before for before, after in pairwise(times)),
        "off the grid": any(abs(time / GRID_S - round(time / GRID_S)) > ROUNDING for time in times),
        "behind the end of the recording": times[-1] > window.duration_s + OVERHANG_S,
        "away from the end of speech": abs(times[-1] - window.speech_end_s) > END_TOLERANCE_S,
    }
    return next((name for name, found in faults.items() if found), None)


def errors_s(segments: Sequence[Segment], window: Window) -> list[float]:
    """For each pause of a window, the distance in seconds of the nearest timestamp; none without timestamps."""
    times = _times(segments)
    return [min(max(begin - time, time - end, 0.0) for time in times) for begin, end in window.pauses_s if times]


def _times(segments: Sequence[Segment]) -> list[float]:
    return [time_s for item in segments for time_s in (item.start_s, item.end_s)]
