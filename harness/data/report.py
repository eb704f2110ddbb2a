"""What became of every line of a corpus: nothing is left out without a line number and a reason."""

from __future__ import annotations

import json
from collections import Counter
from typing import IO, TYPE_CHECKING, Any, Self

from harness.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from harness.data.index import Refusal

REPORT_FILE, LINES_FILE = "report.json", "report.jsonl"
NUM_SHOWN = 20


class RefusedError(DataError):
    """One line or recording that cannot be used; `reason` is a word or two for counting, such as "truncated"."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Report:
    """Writes `report.jsonl`, an object for every line that did not come through as it was, and counts.

    A context manager. Its memory does not grow with the corpus.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_lines = 0
        self.num_duplicates = 0
        self.refused: Counter[str] = Counter()
        """By reason."""
        self.noted: Counter[str] = Counter()
        """Lines that were kept, by what was done or noticed."""
        self._first: list[str] = []

    def __enter__(self) -> Self:
        self._file: IO[str] = (self.folder / LINES_FILE).open("w", encoding="utf-8", newline="\n")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        summary = json.dumps(self.counts, ensure_ascii=False, indent=1)
        (self.folder / REPORT_FILE).write_text(summary, encoding="utf-8", newline="\n")

    @property
    def num_refused(self) -> int:
        return self.refused.total()

    @property
    def counts(self) -> dict[str, Any]:
        """The report in numbers, for the artifact's meta."""
        return {
            "num_lines": self.num_lines,
            "num_refused": self.num_refused,
            "num_duplicates": self.num_duplicates,
            "refused": dict(self.refused.most_common()),
            "noted": dict(self.noted.most_common()),
        }

    def refuse(self, item: Refusal) -> None:
        self.refused[item.reason] += 1
        if len(self._first) < NUM_SHOWN:
            self._first.append(f"  line {item.line}: {item.reason}: {item.message}")
        self._write(line=item.line, what="refused", name=item.name, reason=item.reason, message=item.message)

    def drop(self, line: int, *, of_line: int) -> None:
        """The same recording with the same text as an earlier line, which stands for both."""
        self.num_duplicates += 1
        self._write(line=line, what="duplicate", of_line=of_line)

    def note(self, line: int, *, what: str) -> None:
        self.noted[what] += 1
        self._write(line=line, what="noted", note=what)

    def sentences(self) -> list[str]:
        """What a user should know of lines that did not come through as they were, one sentence a matter."""
        reasons = ", ".join(f"{reason}: {count}" for reason, count in self.refused.most_common())
        told = [f"{self.num_refused} of {self.num_lines} lines left out ({reasons})"] if self.refused else []
        if self.num_duplicates:
            told.append(f"{self.num_duplicates} of {self.num_lines} lines are duplicates and were dropped")
        return told + [f"{what}: {count} of {self.num_lines} lines" for what, count in self.noted.most_common()]

    def summary(self) -> str:
        """The first refused lines, one each."""
        more = self.num_refused - len(self._first)
        return "\n".join([*self._first, f"  … and {more} more"] if more else self._first)

    def _write(self, **fields: Any) -> None:
        self._file.write(json.dumps(fields, ensure_ascii=False) + "\n")
