from __future__ import annotations

import gzip
import io
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.data import archives
from harness.data.archives import CutOffError, Forward, HostileArchiveError, members

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONTENTS = {"ru/train.tsv": b"path\n" * 300, "ru/clips/a.mp3": b"a" * 700, "ru/clips/b.mp3": b"", "ru/c.mp3": b"c" * 9}


def pack(path: Path, *more: tarfile.TarInfo) -> Path:
    """An archive of CONTENTS, then of `more`, each with as many zeros as it says."""
    mode = "w" if path.name.endswith(".tar") else "w:gz"
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in CONTENTS.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in more:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return path


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_members_and_where_they_lie(tmp_path: Path, name: str) -> None:
    folder = tarfile.TarInfo("ru/empty")
    folder.type = tarfile.DIRTYPE
    archive = pack(tmp_path / name, folder)
    found = [(member, file.read() if file else b"") for member, file in members(archive)]
    assert {member.name: content for member, content in found} == CONTENTS
    whole = archive.read_bytes() if name.endswith(".tar") else gzip.decompress(archive.read_bytes())
    for member, content in found:
        assert whole[member.offset : member.offset + member.size] == content


def test_reading_forward(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.tar.gz")
    places = [member for member, _ in members(archive)]
    stream = Forward(archive)
    for member in places[1:]:
        for _ in range(2):  # a recording may be listed twice
            assert stream.read(member.offset, size=member.size) == CONTENTS[member.name]
    assert stream.read(10**9, size=5) == b""
    stream.close()


def kind(name: str, kind_of: bytes, *, link: str = "") -> Callable[[], tarfile.TarInfo]:
    def make() -> tarfile.TarInfo:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind_of, link
        return member

    return make


@pytest.mark.parametrize("archive", ["a.tar", "a.tar.gz"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (kind("../up.wav", tarfile.REGTYPE), "leads out of the archive"),
        (kind("ru/../../up.wav", tarfile.REGTYPE), "leads out of the archive"),
        (kind("ru\\..\\..\\up.wav", tarfile.REGTYPE), "leads out of the archive"),
        (kind("/etc/passwd", tarfile.REGTYPE), "has an absolute path"),
        (kind("C:\\a.wav", tarfile.REGTYPE), "has an absolute path"),
        (kind("ru/link.wav", tarfile.SYMTYPE, link="/etc/passwd"), "is a link to '/etc/passwd'"),
        (kind("ru/hard.wav", tarfile.LNKTYPE, link="ru/c.mp3"), "is a link to 'ru/c.mp3'"),
        (kind("ru/device", tarfile.CHRTYPE), "is neither a file nor a folder"),
        (kind("ru/pipe", tarfile.FIFOTYPE), "is neither a file nor a folder"),
    ],
)
def test_a_hostile_archive_is_refused(
    tmp_path: Path, archive: str, make: Callable[[], tarfile.TarInfo], message: str
) -> None:
    path = pack(tmp_path / archive, make())
    with pytest.raises(HostileArchiveError, match=message):
        list(members(path))


def test_a_header_that_would_fill_the_memory(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2 << 20
    with pytest.raises(HostileArchiveError, match="a member has a header of 2097152 bytes"):
        list(members(pack(tmp_path / "a.tar.gz", header)))


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", encoding="cp1251", format=tarfile.GNU_FORMAT) as tar:
        for name in ("запись.wav", "b.wav"):
            tar.addfile(tarfile.TarInfo(name))
    assert [member.name for member, _ in members(tmp_path / "a.tar")] == ["", "b.wav"]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
@pytest.mark.parametrize("blocks", [3, 3.5, 4, 5])
def test_an_archive_that_was_cut_off_gives_what_it_has(
    tmp_path: Path, name: str, blocks: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a header, of a content, and between two members, where tarfile takes it for the end."""
    monkeypatch.setattr(archives, "BLOCK", 512)
    path = pack(tmp_path / name)
    whole = path.read_bytes() if name == "a.tar" else gzip.decompress(path.read_bytes())
    start = 512 + 1536  # behind the first member
    cut = whole[: start + int(512 * (blocks - 3))]
    path.write_bytes(cut if name == "a.tar" else gzip.compress(cut)[:-8])
    found: list[str] = []
    with pytest.raises(CutOffError, match=rf"{name}: it ends too early or is damaged \(.+\); fetch it again"):
        found.extend(member.name for member, _ in members(path))
    assert found[:1] == ["ru/train.tsv"]
    assert "ru/c.mp3" not in found


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_archive_never_surprises(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever bytes are changed, it is read, cut off or refused: no other error, no endless loop."""
    name = data.draw(st.sampled_from(["a.tar", "a.tar.gz"]))
    content = bytearray(pack(tmp_path / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / name).write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        for member, file in members(tmp_path / name):
            assert ".." not in member.name.split("/")
            assert not member.name.startswith("/")
            if file is not None:
                file.read()
    except (CutOffError, HostileArchiveError):
        pass


def test_what_is_an_archive(tmp_path: Path) -> None:
    for name in ("a.tar", "b.TAR.GZ", "c.zip"):
        (tmp_path / name).touch()
    (tmp_path / "folder.tar").mkdir()
    assert sorted(item.name for item in tmp_path.iterdir() if archives.is_archive(item)) == ["a.tar", "b.TAR.GZ"]
