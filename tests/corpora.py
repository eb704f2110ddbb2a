"""Small corpora in the exact layouts of the public ones, cut out of the shipped recordings.

All builders take `damage`: number of a recording, in the order in which they are built → what is wrong with it; and
`start`: number of the shipped recording to begin with, so that two corpora share none, or some.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import soundfile
import soxr

AELITA = Path(__file__).parent.parent / "suites" / "data" / "aelita"
RATE_HZ = 16_000
MP3_RATE_HZ = 32_000
"""Of most clips of Common Voice."""
HTML = b"<!DOCTYPE html><html><body>503 Service Unavailable</body></html>\n"

Form = Literal["tar", "tar.gz", "folder"]
Damage = Literal[
    "html",
    "truncated",
    "silent",
    "clipped",
    "missing audio",
    "missing text",
    "empty text",
    "duplicate",
    "two texts",
    "wrong duration",
    "not UTF-8 name",
]
Files = dict[str, bytes]
"""Name → content, in the order in which an archive has them."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording of a corpus, and what the corpus says about it."""

    name: str
    """Of its file, without the suffix."""
    content: bytes | None
    """Of its file; None: it is not there."""
    text: str | None
    duration_s: float
    again: str | None = None
    """It is listed twice; the second time with this text."""


def build_golos(
    folder: Path,
    *,
    form: Form = "tar",
    audio: Literal["opus", "wav"] = "opus",
    tables: Literal["first", "last"] = "last",
    damage: Mapping[int, Damage] | None = None,
    start: int = 0,
) -> Path:
    """6 crowd and 4 farfield recordings to train on, 3 and 2 to test on.

    audio: "opus" is golos_opus.tar; "wav" is a folder with train_farfield.tar, train_crowd0.tar, train_crowd9.tar,
    which has the training lists, and test.tar. `10min.jsonl` lists the first crowd and the first farfield recording.
    Returns what a suite's `path` names.
    """
    made = iter(_clips(15, form=audio, damage=damage, start=start))
    suffix = "_opus" if audio == "opus" else ""
    shards: dict[str, Files] = {}
    trained: list[dict[str, object]] = []
    for archive, place, count in (
        ("train_crowd0", "crowd/0", 3),
        ("train_crowd9", "crowd/9", 3),
        ("train_farfield", "farfield", 4),
    ):
        files, lines = _golos_part(made, count=count, place=place, audio=audio)
        trained += lines
        shards[archive] = {f"train{suffix}/{name}": content for name, content in files.items()}
    lists = {"manifest": trained, "100hours": trained[2:8], "10min": [trained[0], trained[6]]}
    manifests = {f"train{suffix}/{name}.jsonl": _json_lines(lines) for name, lines in lists.items()}
    shards["train_crowd9"] = _ordered(shards["train_crowd9"], manifests, tables=tables)
    shards["test"] = {}
    for subset, count in (("crowd", 3), ("farfield", 2)):
        files, lines = _golos_part(made, count=count, place="files", audio=audio)
        manifest = {"manifest.jsonl": _json_lines(lines)}
        prefix = f"test{suffix}/{subset}"
        whole = _ordered(files, manifest, tables=tables)
        shards["test"] |= {f"{prefix}/{name}": content for name, content in whole.items()}
    if audio == "opus":
        whole = {name: content for files in shards.values() for name, content in files.items()}
        return write(folder, name="golos_opus", files=whole, form=form)
    for name, files in shards.items():
        write(folder, name=name, files=files, form=form)
    return folder


def build_common_voice(
    folder: Path,
    *,
    form: Form = "tar.gz",
    tables: Literal["first", "last"] = "first",
    durations: bool = True,
    damage: Mapping[int, Damage] | None = None,
    start: int = 0,
) -> Path:
    """16 recordings: 4 train, 3 dev, 3 test; 4 more validated, 1 other, 1 invalidated.

    Speakers: a and b in train, c in dev, d in test; of the four that are only validated, one each is of b, c, d and e.
    The second sentence has и + U+0306, the third stray quotes. Returns what a suite's `path` names.
    """
    made = _clips(16, form="mp3", damage=damage, start=start)
    speakers = "aabb" + "ccc" + "ddd" + "bcde" + "e" + "f"
    sentences = [_cased(clip.text, number=number) for number, clip in enumerate(made)]
    rows = [
        _common_voice_row(clip, speaker=speaker, sentence=sentence)
        for clip, speaker, sentence in zip(made, speakers, sentences, strict=True)
    ]
    again = [
        [_common_voice_row(clip, speaker=speaker, sentence=_cased(clip.again, number=9))] if clip.again else []
        for clip, speaker in zip(made, speakers, strict=True)
    ]
    whole = [[row, *more] for row, more in zip(rows, again, strict=True)]
    parts = {
        "train": whole[:4], "dev": whole[4:7], "test": whole[7:10],
        "validated": whole[:14], "other": whole[14:15], "invalidated": whole[15:],
    }  # fmt: skip
    header = "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender\taccents\t"
    lists = {
        f"{name}.tsv": _lines([f"{header}variant\tlocale\tsegment", *(row for part in items for row in part)])
        for name, items in parts.items()
    }
    if durations:
        timed = [f"{clip.name}.mp3\t{round(clip.duration_s * 1000)}" for clip in made]
        lists["clip_durations.tsv"] = _lines(["clip\tduration[ms]", *timed])
    lists["reported.tsv"] = _lines(["sentence_id\tsentence\tlocale\treason", "0\tЧто?\tru\tgrammar-or-spelling"])
    clips = {f"clips/{clip.name}.mp3": clip.content for clip in made if clip.content is not None}
    release = "cv-corpus-23.0-2025-09-05"
    files = {f"{release}/ru/{name}": content for name, content in _ordered(clips, lists, tables=tables).items()}
    return write(folder, name=f"{release}-ru", files=files, form=form)


OPENSTT = {"private_buriy_audiobooks_2": 5, "public_youtube700": 5, "public_youtube700_val": 4}
"""Folder → how many recordings it is built with."""


def build_openstt(
    folder: Path,
    *,
    form: Form = "tar.gz",
    subsets: Mapping[str, int] | None = None,
    manifests: Sequence[str] = ("public_youtube700",),
    columns: Literal[3, 4] = 3,
    damage: Mapping[int, Damage] | None = None,
    start: int = 0,
) -> Path:
    """A folder with an archive, or an unpacked folder, for each subset; WAV in `*_val`, Opus otherwise.

    manifests: subsets that have their CSV beside the archives; with 4 `columns`, the first is an index.
    Returns what a suite's `path` names.
    """
    wanted = OPENSTT if subsets is None else subsets
    folder.mkdir(parents=True, exist_ok=True)
    done = 0
    for subset, count in wanted.items():
        audio: Literal["wav", "opus"] = "wav" if subset.endswith("_val") else "opus"
        made = _clips(count, form=audio, damage=damage, start=start, done=done)
        done += count
        files: Files = {}
        lines = []
        for clip in made:
            digest = hashlib.sha1(clip.name.encode(errors="surrogateescape"), usedforsecurity=False).hexdigest()
            place = f"{subset}/{digest[0]}/{digest[1:3]}/{digest[3:15]}"
            if not clip.name.isascii():
                place += "\udcff"
            if clip.content is not None:
                files[f"{place}.{audio}"] = clip.content
            if clip.text is not None:
                files[f"{place}.txt"] = f"{clip.text}\n".replace("ё", "е").encode()
            index = [str(len(lines))] if columns == 4 else []
            lines.append(",".join([*index, f"{place}.wav", f"{place}.txt", str(clip.duration_s)]))
        write(folder, name=subset, files=files, form=form)
        if subset in manifests:
            (folder / f"{subset}.csv").write_bytes(_lines(lines))
    return folder


def write(folder: Path, *, name: str, files: Files, form: Form) -> Path:
    """Files in an archive `name`.tar or `name`.tar.gz in `folder`, or unpacked into `folder`. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    if form == "folder":
        for file, content in files.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder
    path = folder / f"{name}.{form}"
    mode: Literal["w", "w:gz"] = "w" if form == "tar" else "w:gz"
    # As the corpora are packed; a surrogate in a name becomes the byte that it stands for.
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
        for folder_name in sorted({str(above) for file in files for above in PurePosixPath(file).parents} - {"."}):
            header = tarfile.TarInfo(folder_name)
            header.type, header.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(header)
        for file, content in files.items():
            header = tarfile.TarInfo(file)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def cut_off(path: Path, *, fraction: float) -> None:
    """Leave only the beginning of a file, as a download does that broke off."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])


def encode(samples: np.ndarray, *, form: Literal["wav", "opus", "mp3"]) -> bytes:
    """float32 [num_samples] at 16 kHz as a file."""
    buffer = io.BytesIO()
    if form == "mp3":
        resampled = soxr.resample(samples, RATE_HZ, MP3_RATE_HZ)
        soundfile.write(buffer, resampled, MP3_RATE_HZ, format="MP3", subtype="MPEG_LAYER_III")
    elif form == "opus":
        soundfile.write(buffer, samples, RATE_HZ, format="OGG", subtype="OPUS")
    else:
        soundfile.write(buffer, samples, RATE_HZ, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def speech(number: int) -> tuple[np.ndarray, str]:
    """About two seconds of one of the shipped recordings, float32 at 16 kHz, and the first words of its text."""
    row = _listed()[number]
    samples, _ = soundfile.read(AELITA / row["audio_filepath"], dtype="float32")
    length = RATE_HZ * 2 + 137 * (number % 50)
    return samples[4_000 : 4_000 + length], " ".join(row["text"].split()[:5])


class MemoryCorpus:
    """A corpus in memory, for what the kinds make of tables and names."""

    folder = None

    def __init__(self, tables: Mapping[str, Sequence[bytes]], *, recordings: Sequence[str] = ()) -> None:
        """tables: name → its lines, without line ends."""
        self._tables = tables
        self._recordings = recordings

    def tables(self, pattern: str) -> list[str]:
        return sorted(fnmatch.filter(self._tables, pattern))

    def lines(self, name: str) -> Iterator[tuple[int, bytes]]:
        return ((number, line) for number, line in enumerate(self._tables[name], start=1) if line.strip())

    def recordings(self) -> Iterator[str]:
        return iter(self._recordings)


@cache
def _listed() -> list[dict[str, str]]:
    """Shipped recordings that are long enough, and begin with words that no other begins with."""
    lines = (AELITA / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    beginnings = {" ".join(row["text"].split()[:5]): row for row in reversed(rows) if row["duration"] > 4}
    return list(reversed(beginnings.values()))


def _clips(
    count: int, *, form: Literal["wav", "opus", "mp3"], damage: Mapping[int, Damage] | None, start: int, done: int = 0
) -> list[Clip]:
    """The next `count` recordings of a corpus that has `done` so far."""
    numbers = range(done, done + count)
    return [_clip(start + number, form=form, damage=(damage or {}).get(number)) for number in numbers]


@cache
def _clip(number: int, *, form: Literal["wav", "opus", "mp3"], damage: Damage | None) -> Clip:
    samples, text = speech(number)
    if damage == "silent":
        samples = np.zeros_like(samples)
    if damage == "clipped":
        samples = np.clip(samples * 60, -1, 1)
    content = encode(samples, form=form)
    name = f"common_voice_ru_{18_849_003 + number}" if form == "mp3" else _hex(number)
    duration_s = num_frames(content) * 0.036 if form == "mp3" else len(samples) / RATE_HZ
    clip = Clip(name, content, text, duration_s)
    changes: dict[Damage, dict[str, object]] = {
        "html": {"content": HTML},
        "truncated": {"content": content[: len(content) // 2]},
        "missing audio": {"content": None},
        "missing text": {"text": None},
        "empty text": {"text": ""},
        "duplicate": {"again": text},
        "two texts": {"again": f"{text} не то"},
        "wrong duration": {"duration_s": duration_s * 2},
        "not UTF-8 name": {"name": f"{name}\udcff"},
    }
    return replace(clip, **changes.get(damage, {})) if damage else clip  # type: ignore[arg-type]


def num_frames(mp3: bytes) -> int:
    """Frames of an MP3 by its own header, which does not count the frame that it stands in itself."""
    place = max(mp3.find(b"Info"), mp3.find(b"Xing"))
    return int.from_bytes(mp3[place + 8 : place + 12], "big") + 1


def _hex(number: int) -> str:
    return hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()


def _golos_part(made: Iterator[Clip], *, count: int, place: str, audio: str) -> tuple[Files, list[dict[str, object]]]:
    files: Files = {}
    lines: list[dict[str, object]] = []
    for clip in islice(made, count):
        file = f"{place}/{clip.name}.{audio}"
        if clip.content is not None:
            files[file] = clip.content
        line = {"id": clip.name, "audio_filepath": file, "text": clip.text, "duration": clip.duration_s}
        if clip.text is None:
            del line["text"]
        lines.append(line)
        if clip.again is not None:
            lines.append({**line, "text": clip.again})
    return files, lines


def _common_voice_row(clip: Clip, *, speaker: str, sentence: str) -> str:
    client = hashlib.sha512(speaker.encode()).hexdigest()
    return "\t".join(
        [client, f"{clip.name}.mp3", _hex(len(sentence)), sentence, "", "3", "1", "twenties", "", "", "", "ru", ""]
    )


def _cased(text: str | None, *, number: int) -> str:
    if not text:
        return ""
    sentence = f"{text.capitalize()}."
    if number == 1:
        return f"{sentence} Чей?".replace("й", "и\u0306")
    return f'"{sentence}' if number == 2 else sentence


def _ordered(files: Files, lists: Files, *, tables: Literal["first", "last"]) -> Files:
    return {**lists, **files} if tables == "first" else {**files, **lists}


def _json_lines(rows: Iterable[Mapping[str, object]]) -> bytes:
    return _lines([json.dumps(row, ensure_ascii=False) for row in rows])


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
