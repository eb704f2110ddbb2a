"""Archives with public links: fetched into a folder, resumed after a break, and checked against the published MD5."""

from __future__ import annotations

import errno
import hashlib
import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from harness.errors import DataError, MissingError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.core.artifact import Work
    from harness.data.published import Published

BLOCK = 1 << 20
TIMEOUT_S = 30
"""Of a connection, or of a read without data."""
PATIENCE = 5
"""Breaks in a row without a new byte after which an address is given up."""
PAUSE_S = 2.0
"""Before the second attempt; doubled before each further one."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIB = 1 << 20
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")

Tell = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes that the file has."""


class _BrokenError(Exception):
    """One attempt failed; another may not."""


class _RefusedError(Exception):
    """An address that will not serve the file, however often it is asked."""


def fetch_all(files: Sequence[Published], *, folder: Path, work: Work) -> None:
    """Have all files in `folder`, each as published; what is there already is checked too.

    Raises MissingError if a file cannot be fetched, DataError if one is not what was published or does not fit.
    """
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files, start=1):
        label = f"MiB of {file.name} ({number} of {len(files)})"

        def tell(done: int, total: int, *, label: str = label) -> None:
            work.progress(done // MIB, max(total // MIB, 1), label)

        # Two suites may want the same file at the same time.
        with FileLock(folder / f".{file.name}.lock"):
            if (folder / file.name).is_file():
                _check_own(file, path=folder / file.name, tell=tell)
            else:
                fetch(file, folder=folder, tell=tell)


def fetch(file: Published, *, folder: Path, tell: Tell = lambda _done, _total: None) -> None:
    """Fetch one file into `folder`; what an earlier attempt left in `NAME.part` is not fetched again.

    Raises MissingError if no address serves it, DataError if its MD5 differs or the disk is too small.
    """
    part = _Part(folder / f"{file.name}.part")
    tried = []
    for url in file.urls:
        try:
            _complete(part, url=url, tell=tell)
        except _RefusedError as error:
            tried.append(f"  {url}: {error}")
            continue
        if part.md5.hexdigest() != file.md5:
            part.path.unlink()
            raise DataError(
                f"{file.name}: its MD5 is {part.md5.hexdigest()}, published is {file.md5}; what came from {url} was "
                "removed; run the same command again, and if it happens again, fetch the file by hand"
            )
        part.path.replace(folder / file.name)
        return
    lines = [
        f"{file.name} ({file.gigabytes:g} GB) cannot be fetched; tried:",
        *tried,
        "Run the same command again, it goes on where it stopped; or put the file by hand into",
        f"  {folder}",
    ]
    raise MissingError("\n".join(lines))


class _Part:
    """The first bytes of a file, and their MD5: kept between attempts, so that none is read again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.md5 = _md5()

    def load(self, tell: Callable[[int], None]) -> None:
        """Hash what is there and has not been hashed."""
        if not self.path.is_file():
            self.reset()
        with self.path.open("rb") as file:
            file.seek(self.size)
            while block := file.read(BLOCK):
                self.md5.update(block)
                self.size += len(block)
                tell(self.size)

    def reset(self) -> None:
        self.path.write_bytes(b"")
        self.size, self.md5 = 0, _md5()


def _complete(part: _Part, *, url: str, tell: Tell) -> None:
    """Fetch the rest of `part`, in as many attempts as it takes. Raises _RefusedError to try the next address."""
    part.load(lambda done: tell(done, done))
    failures = 0
    while True:
        before = part.size
        try:
            _append(part, url=url, tell=tell)
        except _BrokenError as error:
            failures = 1 if part.size > before else failures + 1
            if failures == PATIENCE:
                raise _RefusedError(f"{error} ({PATIENCE} times in a row)") from error
            time.sleep(PAUSE_S * 2 ** (failures - 1))
        else:
            return


def _append(part: _Part, *, url: str, tell: Tell) -> None:
    """One attempt to fetch what `part` lacks."""
    answer = _open(url, start=part.size)
    if answer is None:
        return
    with closing(answer):
        start, total = _range(answer)
        if start != part.size:
            part.reset()
            if start:
                raise _BrokenError(f"the server began at byte {start}, not where it was asked to")
        _refuse_small_disk(part.path, wanted=total - part.size)
        with part.path.open("ab") as target:
            while block := _read(answer):
                _write(target, block)
                part.md5.update(block)
                part.size += len(block)
                tell(part.size, total)
    if part.size < total:
        raise _BrokenError(f"the connection broke off after {part.size} of {total} bytes")


def _open(url: str, *, start: int) -> http.client.HTTPResponse | None:
    """The file from `start` on; None if nothing follows there."""
    _refuse_unsafe(url)
    headers = {"User-Agent": "harness", **({"Range": f"bytes={start}-"} if start else {})}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  # refused above unless https
    try:
        answer: http.client.HTTPResponse = urllib.request.build_opener(_SafeRedirects).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return None if error.headers.get("Content-Range") == f"bytes */{start}" else _open(url, start=0)
        kind = _BrokenError if error.code >= 500 or error.code in {408, 429} else _RefusedError
        raise kind(f"the server says {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(_said(error)) from error
    return answer


def _range(answer: http.client.HTTPResponse) -> tuple[int, int]:
    """Where the answer begins, and how many bytes the whole file has, by the server's word."""
    if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
        given = CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if given:
            return int(given[1]), int(given[2])
    length = answer.headers.get("Content-Length", "")
    if answer.status != http.HTTPStatus.OK or not length.isdecimal():
        raise _RefusedError("the server does not say how long the file is")
    return 0, int(length)


def _read(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read(BLOCK)
    except http.client.IncompleteRead as error:
        return error.partial
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenError(_said(error)) from error


def _write(target: IO[bytes], block: bytes) -> None:
    try:
        target.write(block)
        target.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataError(f"{target.name}: the disk is full; make room and run again, it goes on from here") from error


def _refuse_small_disk(part: Path, *, wanted: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if wanted > free:
        raise DataError(
            f"{part.parent}: {wanted / 1e9:.1f} GB are to be fetched, but the disk has {free / 1e9:.1f} GB left; "
            "make room, or give a `path` on another disk"
        )


def _check_own(file: Published, *, path: Path, tell: Tell) -> None:
    """Refuse a file of that name which is another one; it is not ours to remove."""
    own, total = _Part(path), path.stat().st_size
    own.load(lambda done: tell(done, total))
    found = own.md5.hexdigest()
    if found != file.md5:
        raise DataError(
            f"{path}: its MD5 is {found}, published is {file.md5}; it is cut off or another file: "
            "remove it to have it fetched, or drop `download: true` to use it as it is"
        )


def _refuse_unsafe(url: str) -> None:
    if urlsplit(url).scheme != "https" and not _is_loopback(url):
        raise _RefusedError(f"{url} is not https")


def _is_loopback(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname in LOOPBACK


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:  # noqa: PLR0917  # the base class's signature
        _refuse_unsafe(newurl)
        if _is_loopback(newurl) and not _is_loopback(req.full_url):
            raise _RefusedError(f"{req.full_url} leads to {newurl}, on this machine")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)  # what the authors publish


def _said(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return f"{type(error).__name__}: {reason}"
