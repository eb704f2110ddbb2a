from __future__ import annotations

import hashlib
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from harness.core.artifact import Work
from harness.data import download, golos
from harness.data.download import fetch, fetch_all
from harness.data.published import Published
from harness.errors import DataError, MissingError
from tests.corpora import build_golos

CONTENT = np.random.default_rng(3).bytes(3 * download.BLOCK + 4321)
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


@dataclass
class Server:
    """Serves a file at `/corpus.tar` and remembers what it was asked for."""

    url: str = ""
    content: bytes = CONTENT
    cuts: list[int] = field(default_factory=list)
    """How many bytes to send before the connection breaks, for each of the first answers."""
    resumes: bool = True
    statuses: dict[str, list[int]] = field(default_factory=dict)
    """By path: the errors to answer with, one after the other, before the file is served."""
    redirects: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    """Instead of the right ones."""
    asked: list[str] = field(default_factory=list)
    """The `Range` of each request, `all` without one."""


class Handler(BaseHTTPRequestHandler):
    told: Server

    def do_GET(self) -> None:
        given = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self.told.asked.append(given[1] if given else "all")
        if self.path in self.told.redirects:
            self.reply(302, {"Location": self.told.redirects[self.path], "Content-Length": "0"})
        elif self.told.statuses.get(self.path):
            self.reply(self.told.statuses[self.path].pop(0), {"Content-Length": "0"})
        elif given and self.told.resumes:
            self.send_from(int(given[1]))
        else:
            self.reply(200, {"Content-Length": str(len(self.told.content))})
            self.send_bytes(self.told.content)

    def send_from(self, start: int) -> None:
        if start >= len(self.told.content):
            self.reply(416, {"Content-Range": f"bytes */{len(self.told.content)}", "Content-Length": "0"})
            return
        rest = self.told.content[start:]
        place = f"bytes {start}-{len(self.told.content) - 1}/{len(self.told.content)}"
        self.reply(206, {"Content-Range": place, "Content-Length": str(len(rest))})
        self.send_bytes(rest)

    def reply(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, **self.told.headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def send_bytes(self, content: bytes) -> None:
        self.wfile.write(content[: self.told.cuts.pop(0)] if self.told.cuts else content)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    told = Server()
    listening = ThreadingHTTPServer(("127.0.0.1", 0), type("Told", (Handler,), {"told": told}))
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    told.url = f"http://127.0.0.1:{listening.server_port}/corpus.tar"
    yield told
    listening.shutdown()
    listening.server_close()
    thread.join()


def published(*urls: str, md5: str = MD5) -> Published:
    return Published("corpus.tar", urls, md5, gigabytes=0.003)


def test_a_file_is_fetched_once(server: Server, tmp_path: Path, work: Work) -> None:
    folder = tmp_path / "corpora" / "golos"
    fetch_all([published(server.url)], folder=folder, work=work)
    fetch_all([published(server.url)], folder=folder, work=work)
    assert (folder / "corpus.tar").read_bytes() == CONTENT
    assert server.asked == ["all"]
    assert not (folder / "corpus.tar.part").exists()


def test_breaks_are_resumed_where_they_happened(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 7, 0, 500_000]
    told: list[tuple[int, int]] = []
    fetch(published(server.url), folder=tmp_path, tell=lambda *state: told.append(state))
    assert (tmp_path / "corpus.tar").read_bytes() == CONTENT
    assert server.asked == ["all", "1000000", "1000007", "1000007", "1500007"]
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (len(CONTENT), len(CONTENT))


def test_a_killed_run_is_resumed_by_the_next(server: Server, tmp_path: Path) -> None:
    (tmp_path / "corpus.tar.part").write_bytes(CONTENT[:2_000_000])
    fetch(published(server.url), folder=tmp_path)
    assert (tmp_path / "corpus.tar").read_bytes() == CONTENT
    assert server.asked == ["2000000"]


def test_a_part_that_was_complete_is_only_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "corpus.tar.part").write_bytes(CONTENT)
    fetch(published(server.url), folder=tmp_path)
    assert (tmp_path / "corpus.tar").read_bytes() == CONTENT
    assert server.asked == [str(len(CONTENT))]


def test_a_part_longer_than_the_file_begins_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "corpus.tar.part").write_bytes(CONTENT + b"more")
    fetch(published(server.url), folder=tmp_path)
    assert (tmp_path / "corpus.tar").read_bytes() == CONTENT
    assert server.asked == [str(len(CONTENT) + 4), "all"]


def test_a_server_that_does_not_resume_begins_anew(server: Server, tmp_path: Path) -> None:
    server.resumes, server.cuts = False, [1_500_000]
    fetch(published(server.url), folder=tmp_path)
    assert (tmp_path / "corpus.tar").read_bytes() == CONTENT
    assert server.asked == ["all", "1500000"]


def test_a_wrong_checksum_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    message = (
        rf"corpus.tar: its MD5 is {MD5}, published is {'0' * 32}; what came from {server.url} was removed; run the same"
    )
    with pytest.raises(DataError, match=message):
        fetch(published(server.url, md5="0" * 32), folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_own_file_of_that_name_is_refused_but_kept(server: Server, tmp_path: Path, work: Work) -> None:
    own = tmp_path / "corpus.tar"
    own.write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=f"published is {MD5}; it is cut off or another file: remove it to have it"):
        fetch_all([published(server.url)], folder=tmp_path, work=work)
    assert own.read_bytes() == CONTENT[:-1]
    assert server.asked == []


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.statuses = {"/corpus.tar": [503, 429, 500]}
    fetch(published(server.url), folder=tmp_path)
    assert (tmp_path / "corpus.tar").read_bytes() == CONTENT


def test_the_mirror_goes_on_where_the_first_address_stopped(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000]
    server.statuses = {"/gone.tar": [404]}
    gone = server.url.replace("corpus", "gone")
    (tmp_path / "corpus.tar.part").write_bytes(CONTENT[:10])
    fetch(published(gone, server.url), folder=tmp_path)
    assert (tmp_path / "corpus.tar").read_bytes() == CONTENT
    assert server.asked == ["10", "10", "1000010"]


def test_what_to_do_without_a_network(server: Server, tmp_path: Path) -> None:
    server.statuses = {"/corpus.tar": [403]}
    nobody = "http://127.0.0.1:9/corpus.tar"  # the port of "discard", where nobody listens
    with pytest.raises(MissingError) as raised:
        fetch(published(nobody, server.url), folder=tmp_path)
    first, broken, refused, advice, place = str(raised.value).splitlines()
    assert first == "corpus.tar (0.003 GB) cannot be fetched; tried:"
    assert broken.startswith(f"  {nobody}: ")
    assert broken.endswith("(5 times in a row)")
    assert refused == f"  {server.url}: the server says 403 Forbidden"
    assert advice == "Run the same command again, it goes on where it stopped; or put the file by hand into"
    assert place == f"  {tmp_path}"


UNSAFE = {
    "http://example.org/corpus.tar": "http://example.org/corpus.tar is not https",
    "ftp://127.0.0.1/corpus.tar": "ftp://127.0.0.1/corpus.tar is not https",
    "file:///etc/passwd": "file:///etc/passwd is not https",
}


@pytest.mark.parametrize(("url", "message"), UNSAFE.items())
def test_only_https(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=re.escape(message)):
        fetch(published(url), folder=tmp_path)


@pytest.mark.parametrize(("url", "message"), UNSAFE.items())
def test_only_https_after_a_redirect(url: str, message: str, server: Server, tmp_path: Path) -> None:
    server.redirects = {"/corpus.tar": url}
    with pytest.raises(
        MissingError, match=f"{re.escape(message)}|Redirection to url 'file:///etc/passwd' is not allowed"
    ):
        fetch(published(server.url), folder=tmp_path)
    assert server.asked == ["all"]


def test_a_redirect_keeps_the_range(server: Server, tmp_path: Path) -> None:
    server.redirects = {"/old.tar": server.url}
    (tmp_path / "corpus.tar.part").write_bytes(CONTENT[:99])
    fetch(published(server.url.replace("corpus", "old")), folder=tmp_path)
    assert (tmp_path / "corpus.tar").read_bytes() == CONTENT
    assert server.asked == ["99", "99"]


def test_a_server_that_gives_no_length_is_refused(server: Server, tmp_path: Path) -> None:
    server.headers = {"Content-Length": "many"}
    with pytest.raises(MissingError, match="the server does not say how long the file is"):
        fetch(published(server.url), folder=tmp_path)


def test_a_server_that_never_gets_on_is_given_up(server: Server, tmp_path: Path) -> None:
    server.cuts = [5, 0, 0, 0, 0, 0, 0, 0]
    message = rf"the connection broke off after 5 of {len(CONTENT)} bytes \(5 times in a row\)"
    with pytest.raises(MissingError, match=message):
        fetch(published(server.url), folder=tmp_path)
    assert (tmp_path / "corpus.tar.part").read_bytes() == CONTENT[:5]


def test_a_server_that_sends_another_part_is_not_believed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "corpus.tar.part").write_bytes(CONTENT[:100])
    server.headers = {"Content-Range": f"bytes 50-{len(CONTENT) - 1}/{len(CONTENT)}"}
    fetch(published(server.url), folder=tmp_path)
    assert (tmp_path / "corpus.tar").read_bytes() == CONTENT
    assert server.asked == ["100", "all"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_disk_that_fills_up() -> None:
    with (
        pytest.raises(DataError, match="/dev/full: the disk is full; make room and run again, it goes on from here"),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        download._write(full, CONTENT)


def test_a_suite_that_downloads_golos(
    server: Server, tmp_path: Path, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = build_golos(tmp_path / "theirs").read_bytes()
    server.cuts = [70_000]
    md5 = hashlib.md5(server.content, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(golos, "GOLOS_OPUS", Published("golos_opus.tar", (server.url,), md5, gigabytes=20.5))
    meta = golos.run(golos.Spec(path=str(tmp_path / "mine"), download=True), {}, work)
    assert meta["num_utterances"] == 15
    assert server.asked == ["all", "70000"]
    assert (tmp_path / "mine" / "golos_opus.tar").read_bytes() == server.content


def test_a_disk_that_is_too_small(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=len(CONTENT) - 1))
    with pytest.raises(DataError, match=r"0\.0 GB are to be fetched, but the disk has 0\.0 GB left; make room"):
        fetch(published(server.url), folder=tmp_path)


def test_progress_in_mebibytes(server: Server, tmp_path: Path, work: Work) -> None:
    fetch_all([published(server.url)], folder=tmp_path, work=work)
    assert '"done": 3, "total": 3, "note": "MiB of corpus.tar (1 of 1)"' in (work.scratch / "progress.json").read_text(
        encoding="utf-8"
    )
