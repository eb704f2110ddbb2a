"""What a corpus says about its recordings, before anything is decoded; and what is wrong with it."""

from __future__ import annotations

import json
import posixpath
import re
import unicodedata
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from harness.core.alternatives import first_wording
from harness.core.text import normalise
from harness.data.index import Row
from harness.data.report import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

AUDIO = ("audio_filepath", "audio", "file_name")
"""NeMo's field, and Hugging Face's two."""
TEXT = ("text", "sentence", "transcription")
OWN = (*AUDIO, *TEXT, "duration", "id", "speaker", "split", "offset")
"""Fields with a meaning; other scalars become tags."""
MAX_NAME = 80
MAX_DURATION_S = 1e9
"""Thirty years; a whole number may be too large for any clock."""
RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$)", re.IGNORECASE)
"""Names that Windows does not give to files."""


def parse_line(line: bytes, *, number: int, folder: str, root: Path | None) -> Row:
    """Read a line of a NeMo or a Hugging Face manifest.

    folder: of the manifest inside the corpus, "" for the corpus's own; what `audio` is relative to.
    root: the corpus's folder, if it has one; absolute paths must lie in it.
    Raises RefusedError.
    """
    row = _read_object(line)
    audio = resolve(_audio_of(row), folder=folder, root=root)
    text = " ".join(unicodedata.normalize("NFC", _string(row, *TEXT)).split())
    if first_wording(text) is None:
        raise RefusedError(
            "wordings",
            f"the transcript of {audio} has braces that do not match, or hold nothing: {text!r}; write {{a|b}}",
        )
    if not normalise(text):
        raise RefusedError("empty transcript", f"the transcript of {audio} has no words: {text!r}; leave it out")
    if row.get("offset"):
        raise RefusedError(
            "offset", f"it is a piece of {audio} from {row['offset']!r} s on; cut it into a file of its own"
        )
    given = row.get("id")
    return Row(
        line=number,
        audio=audio,
        text=text,
        id="" if given is None else _scalar(given, name="id"),
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
    with manifest.open("rb") as file:
        for line in file:
            with suppress(RefusedError):
                audio = _audio_of(_read_object(line.removeprefix(b"\xef\xbb\xbf").strip()))
                files[manifest.parent / resolve(audio, folder="", root=manifest.parent)] = None
    return list(files)


def resolve(given: str, *, folder: str, root: Path | None) -> str:
    """The name inside the corpus of a file that an untrusted manifest in `folder` names.

    Raises RefusedError if it lies outside the corpus.
    """
    # Backslashes: a manifest written on Windows must not hide its ".." on other systems.
    slashed = given.replace("\\", "/")
    if "\0" in slashed:
        raise RefusedError("bad path", f"the path {given!r} has a zero byte; mend it")
    if posixpath.isabs(slashed) or re.match(r"[A-Za-z]:", slashed):
        start = f"{posixpath.normpath(root.as_posix())}/" if root else ""
        slashed = posixpath.normpath(slashed)
        inside = bool(start) and slashed.startswith(start)
        name = slashed.removeprefix(start) if inside else ".."
    else:
        name = posixpath.normpath(posixpath.join(folder, slashed))
    if name in ("..", ".") or name.startswith("../"):
        where = f"the corpus's folder {root}" if root else "the archive"
        raise RefusedError("outside the folder", f"{given!r} leads out of {where}; move the recording or the manifest")
    return name


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
        json.dumps(row, ensure_ascii=False).encode("utf-8")  # half a surrogate pair, escaped, is no text
    except UnicodeDecodeError as error:
        raise RefusedError("not UTF-8", f"byte {error.start} is not UTF-8; save the manifest as UTF-8") from error
    except UnicodeEncodeError as error:
        raise RefusedError("not UTF-8", f"it has a character that is none: {error.object[error.start]!r}") from error
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
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_DURATION_S:
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
