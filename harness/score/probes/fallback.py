"""How often whisper.cpp gives up on a window and decodes it again, hotter, and what that costs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from harness.core.artifact import Resources
from harness.core.manifests import SAMPLE_RATE_HZ, write_jsonl
from harness.score.probes import recognisers
from harness.score.probes.windows import windows
from harness.suite.probe import PROBE_FILE, ProbeSpec

if TYPE_CHECKING:
    from harness.core.artifact import Inputs, Work

VERSION = 1
RESOURCES = Resources(whole_machine=True, gpu=True)


class Spec(ProbeSpec):
    """Decodes dev utterances end to end in windows as whisper.cpp does by default: with timestamps and fallback."""

    kind: Literal["fallback"] = "fallback"
    accepts: ClassVar[tuple[str, ...] | None] = ("whisper_ggml",)
    reads: ClassVar[Literal["dev", "languages"] | None] = "dev"
    columns: ClassVar[tuple[str, ...]] = ("fallback_rate", "fallback_rtf")
    ratios: ClassVar[Mapping[str, str]] = {"fallback_slowdown": "fallback_rtf"}

    windows: int = Field(default=20, ge=1, description="At most so many windows of 30 s, out of all dev sets.")
    temperature_inc: float = Field(default=0.2, gt=0, le=1, description="How much hotter each further decoding is.")


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Write each window's fallbacks and time into `probe.jsonl`; return the share of windows with one, and the RTF."""
    import numpy as np

    recogniser = recognisers.load(spec, inputs, timestamps=True, temperature_inc=spec.temperature_inc)
    # The first call allocates; it says nothing about the ones that follow.
    recogniser.transcribe(np.zeros(SAMPLE_RATE_HZ, np.float32))
    rows = []
    found = list(windows(inputs["dev"], count=spec.windows))
    before = recogniser.num_fallbacks()
    for done, window in enumerate(found):
        work.progress(done, len(found))
        start = time.perf_counter()
        text = recogniser.transcribe(window.samples)
        wall_s = time.perf_counter() - start
        after = recogniser.num_fallbacks()
        rows.append(
            {"duration_s": window.duration_s, "wall_s": wall_s, "num_fallbacks": after - before, "hypothesis": text}
        )
        before = after
    write_jsonl(work.path / PROBE_FILE, rows)
    work.progress(len(rows), len(rows))
    return {
        "fallback_rate": sum(row["num_fallbacks"] > 0 for row in rows) / len(rows),
        "fallback_rtf": math.fsum(row["wall_s"] for row in rows) / math.fsum(row["duration_s"] for row in rows),
        "num_windows": len(rows),
    }
