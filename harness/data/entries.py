"""What a corpus says about its recordings, before anything is decoded; and what is wrong with it."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from harness.core.text import normalise
from harness.data.report import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

AUDIO = ("audio_filepath", "audio", "file_name")
"""NeMo's field, and Hugging Face's two."""
TEXT = ("text", "sentence", "transcription")
OWN = (*AUDIO, *TEXT, "duration", "id", "speaker", "split", "offset")
"""Fields with a meaning; other scalars become tags."""
MAX_NAME = 80
RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)", re.IGNORECASE)
"""Names that Windows does not give to files."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a corpus's manifest, checked as far as it can be without decoding."""

    line: int
    id: str
    """Empty until `name_entries` where the line gives none."""
    path: Path
    """Absolute, inside the corpus's folder."""
    relative: str
    """The same from the corpus's folder, with forward slashes."""
    text: str
    duration_s: float | None = None
    speaker: str | None = None
    split: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


def iterate_lines(manifest: Path) -> Iterator[tuple[int, bytes]]:
    """The lines with something on them, from 1, without a byte order mark."""
    with manifest.open("rb") as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
            if content:
                yield number, content


def parse_line(line: bytes, *, number: int, folder: Path) -> Entry:
    """Read a line of a NeMo or a Hugging Face manifest.

    folder: resolved; what `audio` is relative to, and may not leave.
    Raises RefusedError.
    """
    row = _read_object(line)
    path = _resolve(_audio_of(row), folder=folder)
    if not path.is_file():
        name = path.relative_to(folder).as_posix()
        raise RefusedError("missing file", f"there is no file {name} in {folder}; put it there or leave the line out")
    text = " ".join(unicodedata.normalize("NFC", _string(row, *TEXT)).split())
    if not normalise(text):
        raise RefusedError("empty transcript", f"the transcript of {path.name} has no words: {text!r}; leave it out")
    if row.get("offset"):
        raise RefusedError(
            "offset", f"it is a piece of {path.name} from {row['offset']!r} s on; cut it into a file of its own"
        )
    given = row.get("id")
    return Entry(
        line=number,
        id="" if given is None else _scalar(given, name="id"),
        path=path,
        relative=path.relative_to(folder).as_posix(),
        text=text,
        duration_s=_duration_of(row),
        speaker=None if row.get("speaker") is None else _scalar(row["speaker"], name="speaker"),
        split=None if row.get("split") is None else _scalar(row["split"], name="split"),
        tags={
            name: _scalar(value, name=name)
            for name, value in row.items()
            if name not in OWN and isinstance(value, str | int | float)
        },
    )


def named_files(manifest: Path) -> list[Path]:
    """The files that a manifest names, there or not, each once; lines that say nothing usable are passed over."""
    files: dict[Path, None] = {}
    for _, line in iterate_lines(manifest):
        with suppress(RefusedError):
            files[_resolve(_audio_of(_read_object(line)), folder=manifest.parent)] = None
    return list(files)


def _resolve(given: str, *, folder: Path) -> Path:
    """The file that an untrusted manifest names. Raises RefusedError if it lies outside `folder`, links followed."""
    try:
        # Backslashes: a manifest written on Windows must not hide its ".." on other systems.
        path = (folder / given.replace("\\", "/")).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise RefusedError("bad path", f"the path {given!r} cannot be followed: {error}") from error
    if not path.is_relative_to(folder):
        raise RefusedError(
            "outside the folder",
            f"{given!r} leads out of the manifest's folder {folder}; move the recording or the manifest",
        )
    return path


def name_entries(entries: Sequence[Entry]) -> tuple[dict[int, str], dict[int, RefusedError]]:
    """Give every entry an id: its own, else the stem of its file, else (where that is taken) its relative path.

    Returns the ids by line, and an error for each line whose id belongs to an earlier one.
    """
    owners: dict[str, set[str]] = {}
    for entry in entries:
        # A colon cannot start a relative path that is in use, so a given id never passes for a file.
        owner = f":{entry.id}" if entry.id else entry.relative
        owners.setdefault(entry.id or _stem(entry), set()).add(owner)
    ids: dict[int, str] = {}
    lines: dict[str, int] = {}
    errors = {}
    for entry in entries:
        name = entry.id or (_stem(entry) if len(owners[_stem(entry)]) == 1 else entry.relative)
        ids[entry.line] = name
        first = lines.setdefault(name, entry.line)
        # Without an id of its own, it is the same file again: that is settled by text once it is decoded.
        if first != entry.line and entry.id:
            message = f"the id {name!r} is taken by line {first}; give each line its own, or none"
            errors[entry.line] = RefusedError("duplicate id", message)
    return ids, errors


def _stem(entry: Entry) -> str:
    return PurePosixPath(entry.relative).stem


def file_names(ids: Iterable[str]) -> list[str]:
    """A file name for each id, in order, that every system takes and that no other has, whatever its case."""
    taken: set[str] = set()
    names = []
    for item in ids:
        name = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", item))[:MAX_NAME].strip(".")
        if not name or RESERVED.match(name):
            name = f"_{name}"
        stem, turn = name, 0
        while name.casefold() in taken:
            name = f"{stem}-{sha256(f'{item}/{turn}'.encode()).hexdigest()[:8]}"
            turn += 1
        taken.add(name.casefold())
        names.append(name)
    return names


def _read_object(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RefusedError("not UTF-8", f"byte {error.start} is not UTF-8; save the manifest as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise RefusedError("not JSON", f"it is not JSON ({error}); a manifest has one JSON object a line") from error
    if not isinstance(row, dict):
        raise RefusedError("not an object", f"it is a JSON {type(row).__name__}; a manifest has one JSON object a line")
    return row


def _audio_of(row: dict[str, Any]) -> str:
    audio = row.get("audio")
    if isinstance(audio, dict):
        row = {"audio": audio.get("path")}
    return _string(row, *AUDIO)


def _string(row: dict[str, Any], *names: str) -> str:
    for name in names:
        value = row.get(name)
        if isinstance(value, str):
            return value
        if value is not None:
            raise RefusedError("bad field", f"{name!r} is {_short(value)}; it must be a string")
    raise RefusedError("missing field", f"it has none of the fields {', '.join(names)}")


def _duration_of(row: dict[str, Any]) -> float | None:
    value = row.get("duration")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise RefusedError("bad field", f"'duration' is {_short(value)}; it must be a number of seconds over 0")
    return float(value)


def _scalar(value: Any, *, name: str) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int | float):
        return json.dumps(value)
    if isinstance(value, str) and name not in OWN:
        return value
    raise RefusedError("bad field", f"{name!r} is {_short(value)}; it must be a string that is not empty, or a number")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
