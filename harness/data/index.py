"""What a corpus consists of, in a database in the step's scratch folder: flat memory for any number of recordings.

It joins what the corpus's tables say with where the recordings lie, which an archive gives in any order.
"""

from __future__ import annotations

import json
import sqlite3
from bisect import bisect_left
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import accumulate, islice, pairwise
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from harness.data.archives import Member

INSERTED = 10_000
MIN_PART, MAX_PART = 16, 2048
NUM_PARTS = 64
"""Parts that a small corpus is divided into, so that every core has something to do."""
MAX_PART_BYTES = 64 << 20
GUESSED_BYTES_PER_S = {".opus": 5_000, ".ogg": 5_000, ".mp3": 8_000, ".flac": 20_000, ".wav": 32_000}
SPARE = 1.5
"""Where durations are guessed, so many times the wanted hours are decoded; true durations then cut off the surplus."""

SCHEMA = """
CREATE TABLE member (name TEXT PRIMARY KEY, place INT, offset INT, size INT) WITHOUT ROWID;
CREATE TABLE small (name TEXT PRIMARY KEY, content BLOB) WITHOUT ROWID;
CREATE TABLE row (line INTEGER PRIMARY KEY, audio TEXT, text TEXT, text_file TEXT, given TEXT, name TEXT,
                  duration_s REAL, speaker TEXT, split TEXT, tags TEXT);
CREATE TABLE note (sentence TEXT);
CREATE TABLE refused (line INT, name TEXT, reason TEXT, message TEXT);
CREATE TABLE work (number INTEGER PRIMARY KEY, line INT, place INT, offset INT, size INT, part INT);
CREATE VIEW trained AS SELECT duration_s, audio, size, stable(name) AS place_in_order
    FROM work JOIN row USING (line) WHERE split IS NULL OR split = 'train';
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What a corpus says about one recording."""

    line: int
    """Where it says so; unique within the corpus."""
    audio: str
    """Name of the recording inside the corpus, with forward slashes."""
    text: str | None = None
    """None: it stands in the file `text_file`."""
    text_file: str = ""
    id: str = ""
    """Empty: the stem of the file's name, or its whole name where the stem is not unique."""
    duration_s: float | None = None
    """As the corpus tells it."""
    speaker: str | None = None
    split: str | None = None
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A line, or a recording, that cannot be used."""

    line: int
    name: str
    reason: str
    """A word or two, for counting."""
    message: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where the content of a row lies."""

    number: int | None
    """Of the archive; None: in a folder."""
    offset: int
    size: int


class Index:
    """The database. `complete` once `finish` has run: a killed run does not ask the corpus again."""

    def __init__(self, path: Path, *, published: bool = False) -> None:
        """published: it is complete, and stays as it is."""
        self.complete = published or _is_complete(path)
        if not self.complete:
            path.unlink(missing_ok=True)
        self._db = _connect(path, published=published)
        if not self.complete:
            self._db.executescript(SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add_members(self, items: Iterable[Member], *, place: int) -> None:
        """Where members of an archive lie; of two with one name, the first counts."""
        rows = ((item.name, place, item.offset, item.size) for item in items)
        self._insert("INSERT OR IGNORE INTO member VALUES (?, ?, ?, ?)", rows)

    def add_small(self, name: str, content: bytes) -> None:
        """Keep a small file of a compressed archive, which cannot be read again without all before it."""
        self._db.execute("INSERT OR IGNORE INTO small VALUES (?, ?)", (name, content))

    def add_rows(self, items: Iterable[Row | Refusal]) -> None:
        def rows() -> Iterator[tuple[Any, ...]]:
            for item in items:
                if isinstance(item, Refusal):
                    self.refuse(item)
                    continue
                name = item.id or PurePosixPath(item.audio).stem
                tags = json.dumps(item.tags, ensure_ascii=False) if item.tags else ""
                yield (
                    *(item.line, item.audio, item.text, item.text_file, item.id, name),
                    *(item.duration_s, item.speaker, item.split, tags),
                )

        self._insert("INSERT INTO row VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows())

    def refuse(self, item: Refusal) -> None:
        self._db.execute("INSERT INTO refused VALUES (?, ?, ?, ?)", (item.line, item.name, item.reason, item.message))

    def refuse_decoded(self, item: Refusal) -> None:
        """Remember, until this run ends, what decoding found; it stands in the parts' tables."""
        self._db.execute(
            "INSERT INTO temp.found VALUES (?, ?, ?, ?)", (item.line, item.name, item.reason, item.message)
        )

    def note(self, sentence: str) -> None:
        """Something about the corpus as a whole that its user should know."""
        self._db.execute("INSERT INTO note VALUES (?)", (sentence,))

    def small(self, name: str) -> bytes | None:
        found = self._db.execute("SELECT content FROM small WHERE name = ?", (name,)).fetchone()
        return None if found is None else bytes(found[0])

    def place(self, name: str) -> Place | None:
        found = self._db.execute("SELECT place, offset, size FROM member WHERE name = ?", (name,)).fetchone()
        return None if found is None else Place(*found)

    def names(self, pattern: str) -> list[str]:
        """Names of members that match a glob, sorted."""
        found = self._db.execute("SELECT name FROM member WHERE name GLOB ? ORDER BY name", (pattern,))
        return [name for (name,) in found]

    def members(self) -> Iterator[str]:
        """Names of all members, in the order of the archives."""
        with closing(self._db.cursor()) as cursor:
            yield from (name for (name,) in cursor.execute("SELECT name FROM member ORDER BY place, offset"))

    def finish(self, *, in_folder: bool, max_hours: float | None, size_of: Callable[[str], int]) -> None:
        """Name the rows, refuse those without a recording, take the sample, and divide the rest into parts.

        in_folder: what no archive has may lie in a folder; who opens it will see.
        size_of: bytes of a recording there.
        """
        self._name_rows()
        if not in_folder:
            self._refuse_missing()
        self._db.execute(
            "INSERT INTO work (line, place, offset, size) "
            "SELECT row.line, member.place, member.offset, member.size "
            "FROM row LEFT JOIN member ON member.name = row.audio "
            "WHERE row.line NOT IN (SELECT line FROM refused) "
            "ORDER BY member.place, member.offset, row.line"
        )
        if max_hours is not None:
            self._sample(max_hours, size_of=size_of)
        self._divide()
        self._db.execute("PRAGMA user_version = 1")
        self.complete = True

    @property
    def num_lines(self) -> int:
        """Rows and refused lines."""
        unread = "SELECT COUNT(DISTINCT line) FROM refused WHERE line NOT IN (SELECT line FROM row)"
        return self._count("SELECT COUNT(*) FROM row") + self._count(unread)

    @property
    def num_rows(self) -> int:
        """Rows to be decoded."""
        return self._count("SELECT COUNT(*) FROM work")

    def shares(self, of: int) -> list[range]:
        """All parts, in as many ranges of about equal work: by seconds, bytes or rows, the first that all have."""
        found = self._db.execute(
            "SELECT COUNT(*), SUM(duration_s), COUNT(duration_s), SUM(work.size), COUNT(work.size) "
            "FROM work JOIN row USING (line) GROUP BY part ORDER BY part"
        ).fetchall()
        with_seconds, with_bytes = (all(item[0] == item[known] for item in found) for known in (2, 4))
        weights = [item[1] if with_seconds else item[3] if with_bytes else item[0] for item in found]
        # A part belongs to the share that its middle lies in.
        middles = [end - weight / 2 for end, weight in zip(accumulate(weights), weights, strict=True)]
        ends = [bisect_left(middles, sum(weights) * number / of) for number in range(of)]
        return [range(*pair) for pair in pairwise([*ends, len(weights)])]

    def num_rows_of(self, parts: range) -> int:
        """Rows of some parts. parts: one after the other."""
        return self._count("SELECT COUNT(*) FROM work WHERE part >= ? AND part < ?", parts.start, parts.stop)

    @property
    def num_parts(self) -> int:
        return self._count("SELECT COALESCE(MAX(part) + 1, 0) FROM work")

    @property
    def notes(self) -> list[str]:
        return [sentence for (sentence,) in self._db.execute("SELECT sentence FROM note")]

    def refusals(self) -> Iterator[Refusal]:
        """Of the corpus's tables and of decoding, by line."""
        query = "SELECT * FROM refused UNION ALL SELECT * FROM temp.found ORDER BY 1"
        with closing(self._db.cursor()) as cursor:
            yield from (Refusal(*found) for found in cursor.execute(query))

    def part(self, number: int) -> list[tuple[Row, Place]]:
        """The rows of a part, named, in the order in which their recordings lie."""
        found = self._db.execute(
            "SELECT row.line, row.audio, row.text, row.text_file, row.name, row.duration_s, row.speaker, row.split, "
            "row.tags, work.place, work.offset, work.size FROM work JOIN row USING (line) "
            "WHERE work.part = ? ORDER BY work.number",
            (number,),
        )
        return [
            (Row(*told, tags=json.loads(tags) if tags else {}), Place(place, offset, size))  # type: ignore[misc]
            for *told, tags, place, offset, size in found
        ]

    def _name_rows(self) -> None:
        self._db.execute("CREATE INDEX row_name ON row (name)")
        self._db.execute(
            "UPDATE row SET name = audio WHERE given = '' AND name IN (SELECT name FROM row GROUP BY name "
            "HAVING COUNT(DISTINCT CASE given WHEN '' THEN audio ELSE ':' || given END) > 1)"
        )
        # Without an id of its own, it is the same file again: that is settled by text once it is decoded.
        self._db.execute(
            "INSERT INTO refused SELECT line, audio, 'duplicate id', 'the id ''' || name || ''' is taken by line ' "
            "|| first || '; give each line its own, or none' FROM row JOIN (SELECT name, MIN(line) AS first FROM row "
            "GROUP BY name HAVING COUNT(*) > 1) USING (name) WHERE given != '' AND line != first"
        )

    def _refuse_missing(self) -> None:
        self._db.execute(
            "INSERT INTO refused SELECT line, audio, 'missing file', 'no archive has the file ' || audio || "
            "'; leave the line out, or fetch the archive again' "
            "FROM row WHERE NOT EXISTS (SELECT 1 FROM member WHERE member.name = row.audio)"
        )

    def _sample(self, max_hours: float, *, size_of: Callable[[str], int]) -> None:
        """Keep what the hours have room for, in a stable order; held-out splits stay whole."""
        unknown = self._count("SELECT COUNT(*) FROM trained WHERE duration_s IS NULL")
        room_s = max_hours * 3600 * (SPARE if unknown else 1.0)
        used_s = 0.0
        last = None
        with closing(self._db.cursor()) as cursor:
            for duration_s, audio, size, place in cursor.execute("SELECT * FROM trained ORDER BY place_in_order"):
                if used_s >= room_s:
                    break
                used_s += duration_s or _guessed_s(audio, size or size_of(audio))
                last = place
            else:
                return
        self._db.execute(
            "DELETE FROM work WHERE line IN (SELECT line FROM row WHERE (split IS NULL OR split = 'train') "
            "AND stable(name) > ?)",
            (last,),
        )

    def _divide(self) -> None:
        """Parts of equal number, smaller where recordings are large; none reaches over two archives."""
        limit = min(max(self.num_rows // NUM_PARTS, MIN_PART), MAX_PART)
        part, count, total, last = 0, 0, 0, None
        updates = []
        with closing(self._db.cursor()) as cursor:
            for number, place, size in cursor.execute("SELECT number, place, size FROM work ORDER BY number"):
                if count and (count == limit or total + (size or 0) > MAX_PART_BYTES or place != last):
                    part, count, total = part + 1, 0, 0
                count, total, last = count + 1, total + (size or 0), place
                updates.append((part, number))
                if len(updates) == INSERTED:
                    yieldable, updates = updates, []
                    self._insert("UPDATE work SET part = ? WHERE number = ?", yieldable)
        self._insert("UPDATE work SET part = ? WHERE number = ?", updates)
        self._db.execute("CREATE INDEX work_part ON work (part)")

    def _insert(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        rest = iter(rows)
        while batch := list(islice(rest, INSERTED)):
            self._db.execute("BEGIN")
            self._db.executemany(statement, batch)
            self._db.execute("COMMIT")

    def _count(self, query: str, *values: int) -> int:
        return int(self._db.execute(query, values).fetchone()[0])


def _connect(path: Path, *, published: bool = False) -> sqlite3.Connection:
    # Without locks, which some network folders do not have.
    place = f"{path.resolve().as_uri()}?immutable=1" if published else str(path)
    connection = sqlite3.connect(place, isolation_level=None, uri=published)
    connection.execute("PRAGMA journal_mode=OFF")  # what a kill leaves half-written is never read: see `complete`
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA cache_size=-4096")
    connection.execute("CREATE TEMP TABLE found (line INT, name TEXT, reason TEXT, message TEXT)")
    connection.create_function("stable", 1, stable_order, deterministic=True)
    return connection


def _is_complete(path: Path) -> bool:
    try:
        with closing(_connect(path)) as connection:
            return bool(connection.execute("PRAGMA user_version").fetchone()[0] == 1)
    except sqlite3.DatabaseError:
        return False  # half of one, as a kill leaves it


def stable_order(name: str) -> int:
    """A place in an order that no other recording's coming or going changes."""
    return int.from_bytes(sha256(name.encode()).digest()[:8], "big") >> 1


def _guessed_s(audio: str, size: int) -> float:
    return size / GUESSED_BYTES_PER_S.get(PurePosixPath(audio).suffix.lower(), 32_000)
