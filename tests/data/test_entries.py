from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.entries import file_names, named_files, parse_line, resolve
from harness.data.index import Row
from harness.data.report import RefusedError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "corpus" / "clips").mkdir(parents=True)
    (tmp_path / "corpus" / "clips" / "a.wav").touch()
    (tmp_path / "outside.wav").touch()
    return (tmp_path / "corpus").resolve()


@pytest.mark.parametrize(
    "row",
    [
        {"audio_filepath": "clips/a.wav", "text": "мой дом", "duration": 1.5},
        {"audio": "clips/a.wav", "sentence": "мой дом", "duration": 1.5},
        {"audio": {"path": "clips/a.wav", "sampling_rate": 16000}, "transcription": "мой дом", "duration": 1.5},
        {"file_name": "clips\\a.wav", "text": " мои\u0306  дом ", "duration": 1.5},
    ],
)
def test_forms_of_manifests(folder: Path, row: dict) -> None:
    entry = parse_line(json.dumps(row).encode(), number=3, folder="", root=folder)
    assert entry == Row(line=3, audio="clips/a.wav", text="мой дом", duration_s=1.5)


def test_own_fields_and_tags(folder: Path) -> None:
    row = {"audio": str(folder / "clips" / "a.wav"), "text": "да", "id": 7, "speaker": "ann", "split": "dev"}
    more = {"gender": "f", "age": 30, "accent": "", "read": True, "votes": [1], "none": None, "offset": 0}
    entry = parse_line(json.dumps(row | more).encode(), number=1, folder="", root=folder)
    assert (entry.id, entry.speaker, entry.split, entry.duration_s) == ("7", "ann", "dev", None)
    assert entry.tags == {"gender": "f", "age": "30", "accent": "", "read": "true"}


GOOD = {"audio_filepath": "clips/a.wav", "text": "да"}
BAD = [
    (b'{"audio_filepath": ', "not JSON", "it is not JSON"),
    (b"[" * 100_000, "not JSON", "one JSON object a line"),
    (b"[1]", "not an object", "it is a JSON list"),
    ('{"text": "да"}'.encode("cp1251"), "not UTF-8", "save the manifest as UTF-8"),
    (b'{"audio_filepath": "a.wav", "text": "\\ud800 yes"}', "not UTF-8", "it has a character that is none"),
    ({"text": "да"}, "missing field", "none of the fields audio_filepath, audio, file_name"),
    ({"audio": {"bytes": "…"}, "text": "да"}, "missing field", "none of the fields"),
    ({"audio_filepath": "clips/a.wav"}, "missing field", "none of the fields text, sentence, transcription"),
    ({**GOOD, "text": 5}, "bad field", "'text' is 5; it must be a string"),
    ({**GOOD, "text": " "}, "empty transcript", "the transcript of clips/a.wav has no words: ''"),
    ({**GOOD, "text": "…!"}, "empty transcript", "has no words: '…!'"),
    ({**GOOD, "text": "{две тысячи|2000"}, "wordings", "has braces that do not match, or hold nothing: '{две"),
    ({**GOOD, "duration": -1}, "bad field", "'duration' is -1; it must be a number of seconds over 0"),
    ({**GOOD, "duration": float("nan")}, "bad field", "'duration' is nan"),
    ({**GOOD, "duration": "5"}, "bad field", "'duration' is '5'"),
    ({**GOOD, "id": " "}, "bad field", "'id' is ' '; it must be a string that is not empty"),
    ({**GOOD, "speaker": ["x"]}, "bad field", "'speaker' is"),
    ({**GOOD, "offset": 3.5}, "offset", "a piece of clips/a.wav from 3.5 s on"),
    ({**GOOD, "audio_filepath": "../outside.wav"}, "outside the folder", "leads out of the corpus's folder"),
    ({**GOOD, "audio_filepath": "clips\\..\\..\\outside.wav"}, "outside the folder", "leads out of"),
    ({**GOOD, "audio_filepath": "/etc/passwd"}, "outside the folder", "leads out of"),
    ({**GOOD, "audio_filepath": "a\0.wav"}, "bad path", "has a zero byte"),
]


@pytest.mark.parametrize(("line", "reason", "message"), BAD)
def test_refused(folder: Path, line: bytes | dict, reason: str, message: str) -> None:
    content = line if isinstance(line, bytes) else json.dumps(line).encode()
    with pytest.raises(RefusedError, match=message) as caught:
        parse_line(content, number=1, folder="", root=folder)
    assert caught.value.reason == reason


def test_named_files_are_the_usable_ones(folder: Path) -> None:
    rows = [line if isinstance(line, bytes) else json.dumps(line).encode() for line, _, _ in BAD]
    manifest = folder / "manifest.jsonl"
    manifest.write_bytes(b"\n".join(rows) + b"\n" + json.dumps(GOOD).encode())
    clips = folder / "clips"
    assert set(named_files(manifest)) == {clips / "a.wav"}


@pytest.mark.parametrize(
    ("given_path", "folder", "expected"),
    [
        ("a.wav", "", "a.wav"),
        ("./files/a.wav", "test/crowd", "test/crowd/files/a.wav"),
        ("../farfield/a.wav", "test/crowd", "test/farfield/a.wav"),
        ("..\\farfield\\a.wav", "test/crowd", "test/farfield/a.wav"),
    ],
)
def test_paths_inside_an_archive(given_path: str, folder: str, expected: str) -> None:
    assert resolve(given_path, folder=folder, root=None) == expected


@pytest.mark.parametrize("given_path", ["../../a.wav", "/a.wav", "C:/a.wav", "C:a.wav", ".."])
def test_no_path_leaves_an_archive(given_path: str) -> None:
    with pytest.raises(RefusedError, match="leads out of the archive"):
        resolve(given_path, folder="test", root=None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ru_0001", "ru_0001"),
        ("запись 5", "запись_5"),
        ("m/a.wav", "m_a.wav"),
        ("../../x", "_.._x"),
        ("con", "_con"),
        ("LPT1.txt", "_LPT1.txt"),
        ("...", "_"),
        ("a" * 300, "a" * 80),
    ],
)
def test_file_name(name: str, expected: str) -> None:
    assert file_names([name]) == [expected]


@given(ids=st.lists(st.text(alphabet="aAбБ./\\: йи\u0306", max_size=4), max_size=30))
def test_file_names_never_meet(ids: list[str]) -> None:
    names = file_names(ids)
    assert len({name.casefold() for name in names}) == len(ids)
    assert not any(set(name) & set('/\\: <>"|?*') or name.startswith(".") for name in names)
