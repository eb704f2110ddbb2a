"""What became of every line of a corpus: nothing is left out without a line number and a reason."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

REPORT_FILE = "report.json"
NUM_SHOWN = 20


class RefusedError(DataError):
    """One line or recording that cannot be used; `reason` is a word or two for counting, such as "truncated"."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(slots=True)
class Report:
    """Collects what was refused, dropped and converted."""

    num_lines: int = 0
    refused: dict[int, RefusedError] = field(default_factory=dict)
    """By line; the first reason of each."""
    duplicates: dict[int, int] = field(default_factory=dict)
    """Line → the earlier line with the same recording and the same text, which stands for both."""
    notes: dict[str, list[int]] = field(default_factory=dict)
    """What was done or noticed → the lines, which were kept."""

    def note(self, what: str, *, line: int) -> None:
        self.notes.setdefault(what, []).append(line)

    @property
    def reasons(self) -> dict[str, int]:
        """Refused lines by reason, most frequent first."""
        return dict(Counter(error.reason for error in self.refused.values()).most_common())

    @property
    def counts(self) -> dict[str, Any]:
        """The report in numbers, for the artifact's meta."""
        return {
            "num_lines": self.num_lines,
            "num_refused": len(self.refused),
            "num_duplicates": len(self.duplicates),
            "refused": self.reasons,
            "noted": {what: len(lines) for what, lines in self.notes.items()},
        }

    def sentences(self) -> list[str]:
        """What a user should know of lines that did not come through as they were, one sentence a matter."""
        reasons = ", ".join(f"{reason}: {count}" for reason, count in self.reasons.items())
        told = [f"{len(self.refused)} of {self.num_lines} lines left out ({reasons})"] if self.refused else []
        if self.duplicates:
            told.append(f"{len(self.duplicates)} of {self.num_lines} lines are duplicates and were dropped")
        return told + [f"{what}: {len(lines)} of {self.num_lines} lines" for what, lines in self.notes.items()]

    def write(self, folder: Path) -> Path:
        """Write everything, by line, as `report.json`."""
        full = {
            **self.counts,
            "problems": [
                {"line": line, "reason": error.reason, "message": str(error)}
                for line, error in sorted(self.refused.items())
            ],
            "duplicates": [{"line": line, "of_line": first} for line, first in sorted(self.duplicates.items())],
            "notes": {what: sorted(lines) for what, lines in self.notes.items()},
        }
        path = folder / REPORT_FILE
        with path.open("w", encoding="utf-8", newline="\n") as file:
            json.dump(full, file, ensure_ascii=False, indent=1)
        return path

    def summary(self) -> str:
        """The first refused lines, one each."""
        problems = sorted(self.refused.items())
        shown = [f"  line {line}: {error.reason}: {error}" for line, error in problems[:NUM_SHOWN]]
        more = len(problems) - len(shown)
        return "\n".join([*shown, f"  … and {more} more"] if more else shown)
