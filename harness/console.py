"""The terminal that all commands write to."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console

from harness.errors import MissingError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable

WIDE = 200
"""Letters in a line of a file or a pipe, where nothing wraps."""
MAX_MESSAGE = 200
TOLD: set[str] = set()
"""Complaints, such as MLflow's; each is shown once."""

out = Console(soft_wrap=True, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE)
err = Console(stderr=True, soft_wrap=True)


def say(text: str, *, style: str = "") -> None:
    """A line as it is: nothing in it is markup."""
    out.print(text, style=style, markup=False, highlight=False)


def tell(text: str) -> None:
    """A warning beside the output, once."""
    if text not in TOLD:
        TOLD.add(text)
        err.print(text, style="yellow", markup=False, highlight=False)


def tolerant(call: Callable[[], Any]) -> Any:
    """A tracking server that is away costs its pages, never the results: `harness board --rebuild` brings them back."""
    try:
        return call()
    except MissingError:
        raise
    except Exception as error:  # noqa: BLE001  # MLflow raises whatever its backend raises
        message = f"MLflow: {first_line(error)}"[:MAX_MESSAGE]
        tell(f"{message}\n  the results are safe; later: harness board SUITE --rebuild")
        return None
