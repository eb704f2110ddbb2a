from __future__ import annotations

import hashlib
import subprocess
from typing import TYPE_CHECKING

import pytest

from harness.errors import HarnessError, MissingError, SuiteError
from harness.promote import transport
from harness.promote.transport import Remote, parse, send

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ssh://mac/srv/models", Remote("mac", "/srv/models")),
        ("ssh://me@mac.local:2222/srv/models/", Remote("me@mac.local", "/srv/models", 2222)),
        ("ssh://mac/~/models", Remote("mac", "models")),
        ("ssh://mac/", Remote("mac", "/")),
    ],
)
def test_parse(url: str, expected: Remote) -> None:
    assert parse(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "ssh://-oProxyCommand=evil/x",
        "ssh://me@-evil/x",
        "ssh:///x",
        "ssh://mac:port/x",
        "ssh://mac:99999/x",
        "ssh://mac/a b",
        "ssh://mac/$(evil)",
        "ssh://mac/a;b",
        "ssh://mac/`evil`",
        "ssh://mac/~/-rf",
        "ssh://mac/x?y",
        "ssh://mac",
    ],
)
def test_what_could_be_more_than_a_place_is_refused(url: str) -> None:
    with pytest.raises(SuiteError, match=r"--to ssh://"):
        parse(url)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "b.zip").write_bytes(b"a bundle")
    return tmp_path / "b.zip"


def with_programs(monkeypatch: pytest.MonkeyPatch, *names: str, out: str = "", code: int = 0) -> list[list[str]]:
    """Only these are on the PATH; returns what is run."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, code, out, "first\nno route to host\n" if code else "")

    monkeypatch.setattr(transport.shutil, "which", lambda name: name if name in names else None)
    monkeypatch.setattr(transport.subprocess, "run", run)
    return commands


def test_scp_where_there_is_no_rsync(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(b"a bundle").hexdigest()
    commands = with_programs(monkeypatch, "scp", "ssh", out=f"{digest}  /srv/b.zip\n")
    send(file, to=Remote("me@mac", "/srv", 2222))
    assert commands == [
        ["scp", "-q", "-P", "2222", "--", str(file), "me@mac:/srv/"],
        ["ssh", "-p", "2222", "--", "me@mac", "shasum", "-a", "256", "/srv/b.zip"],
    ]


def test_scp_that_brought_something_else(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_programs(monkeypatch, "scp", "ssh", out="0000  /srv/b.zip\n")
    with pytest.raises(HarnessError, match=r"sha256 of b\.zip is 0000 there, [0-9a-f]{64} here; send it again"):
        send(file, to=Remote("mac", "/srv"))


def test_no_way_there(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_programs(monkeypatch)
    with pytest.raises(MissingError, match="sending to ssh://mac/srv needs rsync, or scp and ssh, on this machine"):
        send(file, to=Remote("mac", "/srv"))


def test_the_last_line_of_an_error_is_told(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_programs(monkeypatch, "rsync", code=255)
    with pytest.raises(HarnessError, match="rsync ended with 255: no route to host; what has arrived is kept"):
        send(file, to=Remote("mac", "/srv"))
