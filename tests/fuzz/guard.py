"""What code that reads a hostile file may not do: write, delete, or read a secret, outside of its folder; start a
process; open a connection; unpickle."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

FORBIDDEN = (
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "pickle.find_class",
)
FIRST, SECOND, BOTH = slice(0, 1), slice(1, 2), slice(0, 2)
CHANGING = {
    "os.remove": FIRST, "os.rename": BOTH, "os.mkdir": FIRST, "os.rmdir": FIRST, "os.link": SECOND,
    "os.symlink": SECOND, "os.truncate": FIRST, "os.chmod": FIRST, "shutil.rmtree": FIRST, "shutil.move": BOTH,
    "sqlite3.connect": FIRST,
}  # fmt: skip
"""Event → which of its arguments are paths that it changes."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class TrespassError(OSError):
    """Raised in the place of what was tried, so that it does not happen."""


class Guard:
    """Watches this process by Python's audit events. One per process: a hook cannot be taken back."""

    def __init__(self, base: Path) -> None:
        """base: with `outside`, whose files nothing may read either, and `tmp`, where temporary files may be."""
        self.base = base.resolve()
        self.allowed: tuple[str, ...] = ()
        self.tried: list[str] = []
        self._armed = False
        sys.addaudithook(self._hook)

    @contextmanager
    def around(self, folder: Path) -> Iterator[list[str]]:
        """Only `folder` and the temporary files may be written. Gives what was tried all the same."""
        before = self._listing()
        self.allowed = tuple(f"{path}{os.sep}" for path in (folder.resolve(), self.base / "tmp"))
        self.tried = []
        self._armed = True
        try:
            yield self.tried
        finally:
            self._armed = False
            after = self._listing()
            self.tried += [f"changed {path}" for path in sorted({name for name, _ in before.items() ^ after.items()})]

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._armed:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = bool(flags & WRITING) if isinstance(flags, int) else any(letter in str(mode) for letter in "wax+")
            self._check(event, path, writes=writes)
        elif event in CHANGING:
            if not (
                event in {"os.remove", "os.rmdir"} and arguments[-1] != -1
            ):  # inside a folder that rmtree may empty
                for path in arguments[CHANGING[event]]:
                    self._check(event, path, writes=True)
        elif event in FORBIDDEN:
            self._refuse(f"{event} {str(arguments)[:200]}")

    def _check(self, event: str, path: Any, *, writes: bool) -> None:
        if isinstance(path, int) or path is None:
            return
        name = os.fsdecode(path)
        # Not resolved: a link is itself what is changed.
        place = "" if name.startswith((":memory:", "file:")) else os.path.abspath(name)  # noqa: PTH100
        if writes and place and place != os.devnull and not f"{place}{os.sep}".startswith(self.allowed):
            self._refuse(f"{event} {place}, outside of its folder")
        if place.startswith(f"{self.base / 'outside'}{os.sep}"):
            self._refuse(f"{event} {place}, a secret")

    def _refuse(self, what: str) -> None:
        self.tried.append(what)
        raise TrespassError(f"fuzzing: {what}")

    def _listing(self) -> dict[str, tuple[int, int]]:
        """What lies beside the folder, also what native code wrote; temporary files are to be gone again."""
        found = {}
        for name in ("outside", "home", "here", "tmp"):
            for folder, _, names in os.walk(self.base / name):
                for file in names:
                    path = Path(folder, file)
                    about = path.lstat()
                    found[path.relative_to(self.base).as_posix()] = (about.st_size, about.st_mtime_ns)
        return found
