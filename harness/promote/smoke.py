"""One clip that every model must get right where it is installed, as it did where it was scored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from harness.core.recordings import read_samples
from harness.core.text import words_only
from harness.errors import HarnessError, first_line
from harness.promote.runtime import can_load, load

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.promote.manifest import Manifest

MAX_WER = 0.2
"""Words that may differ from what the same model heard when it was scored. On the same processor none do; a GPU rounds
otherwise, and may turn one word of a sentence. A model that does not work gets nearly all of them wrong."""


class Listen(Protocol):
    """Loads a model and says what it hears in a clip; None if it cannot be tried out."""

    def __call__(self, payload: Path, /, *, manifest: Manifest, clip: Path) -> str | None: ...


def listen(payload: Path, /, *, manifest: Manifest, clip: Path) -> str | None:
    """What the model hears in its smoke clip; None if only NeMo could tell.

    Raises HarnessError if the runtime cannot load it.
    """
    if not can_load(manifest):
        return None
    loaded = load(payload, manifest=manifest)
    try:
        return loaded.recogniser.transcribe(read_samples(clip))
    except HarnessError:
        raise
    except Exception as error:
        # Whatever a runtime raises for a model that it could load.
        raise HarnessError(
            f"{manifest.name}: {loaded.runtime} cannot run it on its smoke clip ({first_line(error)}); nothing was "
            "installed: copy the bundle again, or promote again"
        ) from error


def check(heard: str | None, *, manifest: Manifest) -> None:
    """Raises HarnessError for a model that does not hear what it should."""
    if heard is None:
        return
    expected, found = (words_only(text.lower()).split() for text in (manifest.smoke.text, heard))
    errors = distance(expected, found)
    if errors > MAX_WER * len(expected):
        raise HarnessError(
            f"{manifest.name}: in its smoke clip it hears {heard!r}, but when it was scored it heard "
            f"{manifest.smoke.text!r}: {errors} of {len(expected)} words differ, at most {MAX_WER:.0%} may; "
            "nothing was installed: compare the runtimes' versions, the manifest has that of the scores"
        )


def distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Words to insert, delete or change: Levenshtein's distance."""
    previous = list(range(len(hypothesis) + 1))
    for row, wanted in enumerate(reference, start=1):
        current = [row]
        for column, found in enumerate(hypothesis, start=1):
            change = previous[column - 1] + (wanted != found)
            current.append(min(change, previous[column] + 1, current[-1] + 1))
        previous = current
    return previous[-1]
