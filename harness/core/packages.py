"""Which packages are installed."""

from __future__ import annotations

from importlib import metadata


def installed(name: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
