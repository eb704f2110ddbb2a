"""What was promoted, installed and rolled back, when and why: a line each, never changed again."""

from __future__ import annotations

import getpass
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from harness.core.files import append_line, parse_json

if TYPE_CHECKING:
    from pathlib import Path

Entry = dict[str, Any]
"""`when`, `action` (promote, candidate, install, rollback), `row`, `bundle`, `reason` and more."""
PROMOTIONS_FILE = "promotions.jsonl"
NEEDED = ("when", "action", "bundle")


def now() -> str:
    """To the millisecond: what happened is told in its order."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def user() -> str:
    """Whose account it is; empty of one without a name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def append(path: Path, entry: Entry) -> None:
    """Add a line; on the disk before it returns."""
    append_line(path, json.dumps(entry, ensure_ascii=False))


def read(path: Path) -> list[Entry]:
    """All whole lines, oldest first."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = parse_json(line)
        except ValueError:
            continue  # half a line that a kill left
        if isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in NEEDED):
            entries.append(entry)
    return entries
