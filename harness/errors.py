"""What can go wrong, and the exit code it ends with. Every message names the thing, both values and the next act."""

from __future__ import annotations

import errno
from dataclasses import dataclass


class HarnessError(Exception):
    """A failure that the user can act on: shown as one message, never as a traceback."""

    exit_code = 1


class DataError(HarnessError):
    """Recordings or manifests that cannot be used as they are."""


class LeakageError(DataError):
    """A training set shares a recording or a transcript with a held-out set."""


class TrainingError(HarnessError):
    """A training that cannot go on as it is."""


class ExportError(HarnessError):
    """A checkpoint that cannot be written in the asked form."""


class MissingError(HarnessError):
    """Something is not on this machine: a package, weights, a device."""

    exit_code = 3


class GateRefusedError(HarnessError):
    """The promotion gate said no."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake of a suite, at its place."""

    file: str
    line: int
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.where}: {self.message}"


class SuiteError(HarnessError):
    """All mistakes of a suite, or of the arguments."""

    exit_code = 2

    def __init__(self, message: str, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__("\n".join([message, *(f"  {problem}" for problem in problems)]))
        self.problems = problems


REMEDIES = {
    "ENOSPC": "free some space",
    "EDQUOT": "free some of your quota",
    "EROFS": "make it writable, or choose another place with --results",
    "EACCES": "make it writable, or choose another place with --results",
    "EIO": "check the disk",
}
"""What a disk refuses → what to do; not every system knows all of them."""


def refused_by_disk(error: BaseException) -> HarnessError | None:
    """The message for an error that the user's disk is the cause of; None for any other."""
    name = errno.errorcode.get(error.errno or 0, "") if isinstance(error, OSError) else ""
    if not name and "No space left on device" in str(error):
        name = "ENOSPC"  # of a library that is not written in Python
    if name not in REMEDIES:
        return None
    where = getattr(error, "filename", None) or "a file of the store"
    what = (getattr(error, "strerror", None) or "no space left on device").lower()
    return HarnessError(f"{where}: {what}; {REMEDIES[name]} and run again: what is finished is kept")


def first_line(error: Exception) -> str:
    """Kind and first line of an error that a library raised, to be told inside one of ours."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".rstrip(": ")
