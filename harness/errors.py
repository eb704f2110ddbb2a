"""What can go wrong, and the exit code it ends with. Every message names the thing, both values and the next act."""

from __future__ import annotations

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


def first_line(error: Exception) -> str:
    """Kind and first line of an error that a library raised, to be told inside one of ours."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".rstrip(": ")
