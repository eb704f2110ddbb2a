"""A bundle onto another machine, by the system's rsync or scp: cut-off copies go on, and what arrives is checked."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from harness.core.files import file_sha256
from harness.errors import HarnessError, MissingError, SuiteError

if TYPE_CHECKING:
    from pathlib import Path

SCHEME = "ssh://"
HOST = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*@)?[A-Za-z0-9][A-Za-z0-9.-]*")
PLACE = re.compile(r"[A-Za-z0-9._~/+@,-]+")
"""The other side's shell reads it, and rsyncs differ in how they quote."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A folder on another machine."""

    host: str
    """With the user, if one is named."""
    folder: str
    port: int | None = None

    def __str__(self) -> str:
        return f"{SCHEME}{self.host}{f':{self.port}' if self.port else ''}/{self.folder.lstrip('/')}"

    @property
    def ssh(self) -> list[str]:
        return ["ssh", *(["-p", str(self.port)] if self.port else [])]


def parse(url: str) -> Remote:
    """`ssh://[user@]host[:port]/path`; `/~/models` is below the home folder.

    Raises SuiteError for what could be taken for an option or for more than a path.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SuiteError(f"--to {url}: {error}; write it as ssh://host/path") from error
    host = parts.netloc.removesuffix(f":{port}") if port else parts.netloc
    if parts.scheme != "ssh" or not HOST.fullmatch(host) or parts.query or parts.fragment:
        raise SuiteError(f"--to {url}: names no machine; write it as ssh://[user@]host[:port]/path")
    folder = parts.path.removeprefix("/~/") if parts.path.startswith("/~/") else parts.path
    if not PLACE.fullmatch(folder) or folder.startswith("-"):
        raise SuiteError(
            f"--to {url}: the path may have letters of ASCII, digits and . _ ~ / + @ , - only; choose another"
        )
    return Remote(host, folder.rstrip("/") or "/", port)


def send(file: Path, *, to: Remote) -> None:
    """Copy a bundle's zip into a folder of another machine, which must exist.

    Raises MissingError without rsync and scp, HarnessError if the copy fails or differs.
    """
    if shutil.which("rsync"):
        _rsync(file, to)
    elif shutil.which("scp") and shutil.which("ssh"):
        _scp(file, to)
    else:
        raise MissingError(f"sending to {to} needs rsync, or scp and ssh, on this machine; or copy {file} by hand")


def _rsync(file: Path, to: Remote) -> None:
    """What a cut-off attempt left is kept on the other side, and the next one goes on from it."""
    place = f"{to.host}:{to.folder}/"
    options = ["--times", "--partial", "--rsh", " ".join(to.ssh)]
    _run(["rsync", *options, "--", str(file), place], to=to, what="rsync")
    # Compares the whole content by checksum, and tells what it would still have to send.
    check = ["rsync", *options, "--checksum", "--dry-run", "--out-format", "%n", "--", str(file), place]
    differing = _run(check, to=to, what="rsync").strip()
    if differing:
        raise HarnessError(f"{to}: {differing} has arrived with another content; send it again")


def _scp(file: Path, to: Remote) -> None:
    port = ["-P", str(to.port)] if to.port else []
    _run(["scp", "-q", *port, "--", str(file), f"{to.host}:{to.folder}/"], to=to, what="scp")
    # A Mac has shasum, Linux both.
    command = ["shasum", "-a", "256", f"{to.folder}/{file.name}"]
    found = _run([*to.ssh, "--", to.host, *command], to=to, what="ssh").partition(" ")[0]
    expected = file_sha256(file)
    if found != expected:
        raise HarnessError(
            f"{to}: sha256 of {file.name} is {found or 'not told'} there, {expected} here; send it again"
        )


def _run(command: list[str], *, to: Remote, what: str) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    if ended.returncode:
        told = (ended.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise HarnessError(
            f"{to}: {what} ended with {ended.returncode}: {told}; what has arrived is kept, the same command goes on"
        )
    return ended.stdout
