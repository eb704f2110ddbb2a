"""Readers that do what none may, to see that it is found."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from pathlib import Path

SEED = b"sound"


class Thing:
    """Has a class, which unpickling looks for."""


def quiet(data: bytes, folder: Path) -> None:
    (folder / "own").write_bytes(data)
    shutil.rmtree(folder)
    folder.mkdir()


def refuse(data: bytes, folder: Path) -> None:
    if data != SEED:
        raise HarnessError("no")


def fail(data: bytes, folder: Path) -> None:
    if data != SEED:
        {}["key"]


def die(data: bytes, folder: Path) -> None:
    if data != SEED:
        os._exit(3)


def hang(data: bytes, folder: Path) -> None:
    while data != SEED:
        pass


def eat(data: bytes, folder: Path) -> None:
    if data != SEED:
        bytearray(3 << 30)


def write(data: bytes, folder: Path) -> None:
    if data != SEED:
        (folder.parent.parent / "outside" / "new").write_bytes(data)


def peek(data: bytes, folder: Path) -> None:
    if data != SEED:
        (folder.parent.parent / "outside" / "secret").read_bytes()


def litter(data: bytes, folder: Path) -> None:
    if data != SEED:
        (folder.parent.parent / "tmp" / "left").write_bytes(data)


def start(data: bytes, folder: Path) -> None:
    if data != SEED:
        subprocess.run([sys.executable, "-c", ""], check=True)


def unpickle(data: bytes, folder: Path) -> None:
    if data != SEED:
        pickle.loads(pickle.dumps(Thing()))  # noqa: S301  # that it is found is what is tested


EXPECTED = {
    "fail": "KeyError in traitors.py:fail: 'key'",
    "die": "the process dies with 3",
    "hang": "hangs: over 1 s",
    "eat": "MemoryError in traitors.py:eat",
    "write": "outside of its folder",
    "peek": "a secret",
    "litter": "changed tmp/left",
    "start": "tried: subprocess.Popen",
    "unpickle": "tried: pickle.find_class",
}
"""Name of a target → a part of what is found."""
TARGETS = tuple(
    Target(attack.__name__, lambda: [SEED], attack)
    for attack in (quiet, refuse, fail, die, hang, eat, write, peek, litter, start, unpickle)
)
