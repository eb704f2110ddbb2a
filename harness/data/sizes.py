"""How much a manifest lists, without a look at the recordings."""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING

from harness.core.estimates import Size
from harness.core.files import parse_json

if TYPE_CHECKING:
    from pathlib import Path

MAX_LINES = 20_000
"""A longer manifest is judged by its beginning."""


def manifest_size(path: Path) -> Size | None:
    """By the lines' `duration`; None if there is no such file, or too few of its lines give one."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        lines = list(islice(file, MAX_LINES))
        seen, whole = file.tell(), path.stat().st_size
    seconds: dict[str, list[float]] = {}
    for line in lines:
        try:
            row = parse_json(line)
            split, duration_s = str(row.get("split") or ""), float(row["duration"])
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            continue  # the step itself says what is wrong with it
        if 0 < duration_s < math.inf:
            seconds.setdefault(split, []).append(duration_s)
    num_known = sum(map(len, seconds.values()))
    if 2 * num_known < len(lines) or not num_known:
        return None
    share = whole / seen * len(lines) / num_known
    splits = {name: Size(len(values), sum(values)).scaled(share) for name, values in seconds.items()}
    total = sum(splits.values(), Size(0, 0.0))
    return Size(total.num_clips, total.audio_s, splits)
