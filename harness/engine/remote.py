"""The store on shared ground: a bucket beside the local folder, which stays the working copy.

<url>/<stage>-<key>/<upload>/…       the files of one upload
<url>/<stage>-<key>/artifact.json    names the upload and its files: written last, by one request
<url>/.token-<…>                     is written and deleted at once, to see whether that works

A reader sees a whole artifact or none, whenever a writer dies. Of two writers the last wins, and both are whole.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, Field, ValidationError, field_validator

from harness.core.files import copy_hashed
from harness.errors import HarnessError, MissingError, SuiteError, first_line, refused_by_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

INDEX_FILE = "artifact.json"
MAX_INDEX_B = 256 << 20
"""Bytes that are read of an index: a million files take less."""
UPLOAD = re.compile(r"[a-z_]+-[0-9a-f]{16}/[0-9a-f]{32}(?=/|$)")
MAX_NAME = 500
"""Letters of a name that messages show."""
THREADS = 8
ABSENT_S = 30.0
"""For so long an artifact that was not there is not asked for again, nor a server that did not answer."""
CONNECT_S, REQUEST_S = 5.0, 60.0
ATTEMPTS = 8
"""Of a request of which the server or the network has lost track."""
OPTIONS = {
    "s3": {"endpoint_override", "scheme", "region"},
    "gs": {"endpoint_override", "scheme", "anonymous"},
    "file": set[str](),
    "memory": set[str](),
}
"""Scheme → what may stand behind the question mark."""
REMEDIES = {
    "s3": "the bucket must exist and be writable; credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
    "AWS_PROFILE; its region: AWS_DEFAULT_REGION; another server than AWS: AWS_ENDPOINT_URL",
    "gs": "the bucket must exist and be writable; credentials: GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth "
    "application-default login",
}

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class AwayError(HarnessError):
    """The server does not answer. What it has can be done again, or sent later."""


class Object(NamedTuple):
    """Whatever lies at a URL."""

    name: str
    """Below the URL."""
    size: int
    """Bytes."""
    modified_s: float
    """Since the epoch, by the server's clock."""


class Listed(BaseModel):
    """A file of an upload."""

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Index(BaseModel):
    """What an artifact consists of. It comes from outside: nothing in it is trusted."""

    schema_number: Literal[1] = Field(default=1, alias="schema")
    upload: str = Field(pattern=r"^[0-9a-f]{32}$")
    files: dict[str, Listed]
    folders: list[str]
    """Empty ones, which no file speaks for."""

    def part(self, wanted: Callable[[str], bool]) -> Index:
        """Of the files alone those whose names are wanted."""
        return self.model_copy(update={"files": {k: v for k, v in self.files.items() if wanted(k)}, "folders": []})

    @field_validator("files", "folders")
    @classmethod
    def _inside(cls, names: Any) -> Any:
        for name in names:
            if any(part in {"", ".", ".."} or set(part) & set("\\:\0") for part in name.split("/")):
                raise ValueError(f"{name[:MAX_NAME]!r} is a path that leaves the artifact, or is not written plainly")
        return names

    @field_validator("files")
    @classmethod
    def _recorded(cls, files: dict[str, Listed]) -> dict[str, Listed]:
        if INDEX_FILE not in files:
            raise ValueError(f"it names no {INDEX_FILE}, the record of what was done")
        return files


class Remote:
    """A folder of artifacts at a URL: s3://bucket/prefix, gs://bucket/prefix, or file:///folder."""

    def __init__(self, url: str) -> None:
        """Raises SuiteError for what is no URL of a store."""
        parts = urlsplit(url)
        if parts.scheme not in OPTIONS or not parts.netloc + parts.path.strip("/"):
            known = ", ".join(f"{scheme}://" for scheme in OPTIONS if scheme != "memory")
            raise SuiteError(f"--store {url}: is no place for a store; it begins with {known}, as s3://bucket/prefix")
        if "@" in parts.netloc:
            # The URL goes into logs and job files.
            raise SuiteError(
                f"--store: credentials do not belong into a URL; {REMEDIES.get(parts.scheme, 'leave out')}"
            )
        self.url = url
        self.place = url.partition("?")[0].rstrip("/")
        """As messages name it."""
        self.scheme = parts.scheme
        self.options = dict(parse_qsl(parts.query))
        unknown = self.options.keys() - OPTIONS[self.scheme]
        if unknown:
            known = ", ".join(sorted(OPTIONS[self.scheme])) or "none"
            raise SuiteError(f"--store {url}: unknown option '{min(unknown)}'; {self.scheme}:// has: {known}")
        self._path = (parts.path if self.scheme == "file" else parts.netloc + parts.path).rstrip("/")
        self._absent: dict[str, float] = {}
        self._away: tuple[float, str] = (-ABSENT_S, "")

    def check(self) -> float:
        """Write, read and delete a small object. Raises MissingError if that does not work, soon.

        Returns the time by the server's clock, in seconds since the epoch.
        """
        token = self._token()
        with self._usable() as files:
            self._write(files, token, token.encode())
            with files.open(token, "rb", seekable=False) as source:
                source.read()
            now_s: float = files.modified(token).timestamp()
            files.rm_file(token)
        return now_s

    def check_reading(self) -> None:
        """Ask for an object that is not there. Raises MissingError if that does not work, soon."""
        with self._usable() as files, suppress(FileNotFoundError):
            files.open(self._token(), "rb", seekable=False).close()

    @contextmanager
    def _usable(self) -> Iterator[Any]:
        """The file system, for a first try."""
        try:
            yield self._open(attempts=1)
        except (OSError, ImportError, ValueError) as error:
            told = " ".join(str(error).split()) or type(error).__name__
            remedy = REMEDIES.get(self.scheme, "the folder must be writable")
            raise MissingError(f"{self.url}: cannot be used as a store: {told}\n{remedy}") from error

    def _token(self) -> str:
        return f"{self._path}/.token-{secrets.token_hex(8)}"

    def has(self, folder: str) -> bool:
        """Whether the artifact is there; an answer No stands for half a minute."""
        if time.monotonic() - self._absent.get(folder, -ABSENT_S) < ABSENT_S:
            return False
        if self.index(folder) is None:
            self._absent[folder] = time.monotonic()
            return False
        return True

    def lacking(self, folders: Iterable[str]) -> list[str]:
        """Those of the artifacts that are not there."""
        wanted = list(folders)
        return [folder for folder, index in zip(wanted, each(self.index, wanted), strict=True) if index is None]

    def fetch(self, folder: str, *, into: Path) -> bool:
        """Download an artifact into a new folder, every file verified; False if it is not there.

        Raises HarnessError that names what is damaged, or what is no artifact at all.
        """
        index = self.index(folder)
        if index is not None:
            self.download(folder, index, into=into)
        return index is not None

    def download(self, folder: str, index: Index, *, into: Path) -> None:
        """What an index names, or what somebody has picked of it."""
        into.mkdir(parents=True)
        total, free = sum(item.size for item in index.files.values()), shutil.disk_usage(into).free
        if total > free:
            raise HarnessError(f"{self.place}/{folder}: has {total:,} bytes, and {free:,} are free at {into.parent}")
        for name in index.folders:
            with _laid_out(f"{self.place}/{folder}/{index.upload}/{name}"):
                (into / name).mkdir(parents=True, exist_ok=True)
        each(partial(self._download, f"{folder}/{index.upload}", into=into), index.files.items())

    def faults(self, folder: str) -> list[str]:
        """What is wrong with an artifact: every file is read. Raises AwayError."""
        try:
            index = self.index(folder)
            found = each(partial(self._fault, f"{folder}/{index.upload}"), index.files.items()) if index else []
        except AwayError:
            raise
        except HarnessError as error:
            return [str(error)]
        return [told for told in found if told]

    def objects(self) -> Iterator[Object]:
        """All that lies at the URL. Raises AwayError."""
        try:
            if self.scheme in {"s3", "gs"}:
                from pyarrow import fs

                # Not by fsspec's `find`: a listing of gs:// that is not recursive shows no folders.
                top = self._path
                listed = self._files.fs.get_file_info(fs.FileSelector(top, recursive=True, allow_not_found=True))
                found = [(item.path, item.size, item.mtime) for item in listed if item.is_file]
            else:
                files, top = self._files, self._files._strip_protocol(self._path)  # noqa: SLF001  # as it lists
                found = [(name, files.size(name), files.modified(name)) for name in files.find(top)]
        except OSError as error:
            raise AwayError(f"{self.place}: cannot be listed ({first_line(error)}); run again") from error
        for name, size, modified in found:
            yield Object(name[len(top) + 1 :], size, modified.timestamp())

    def delete(self, name: str) -> None:
        """An object, or a folder with all that lies in it. Raises AwayError."""
        path = f"{self._path}/{name}"
        try:
            with suppress(FileNotFoundError):
                if UPLOAD.fullmatch(name) is None:
                    self._files.rm_file(path)
                elif self.scheme == "s3":
                    self._files.fs.delete_dir(path)
                elif self.scheme == "gs":
                    self._files.fs.delete_dir_contents(path, missing_dir_ok=True)
                else:
                    self._files.rm(path, recursive=True)
        except OSError as error:
            raise AwayError(f"{self.place}/{name}: cannot be deleted ({first_line(error)}); run again") from error

    def send(self, folder: str, *, source: Path, hashes: Mapping[str, str]) -> None:
        """Upload an artifact. hashes: of its files, as far as they are known. Raises HarnessError."""
        upload = secrets.token_hex(16)
        items = sorted(source.rglob("*"))
        files = [item for item in items if item.is_file()]
        try:
            listed = each(partial(self._upload, f"{folder}/{upload}", source=source), files)
            names = {item.relative_to(source).as_posix(): found for item, found in zip(files, listed, strict=True)}
            for name, sha256 in hashes.items():
                if name not in names or names[name].sha256 != sha256:
                    raise HarnessError(
                        f"{source / name}: is not what was published, and is not sent; remove {source} and run again"
                    )
            empty = [item.relative_to(source).as_posix() for item in items if item.is_dir() and not any(item.iterdir())]
            index = Index(schema=1, upload=upload, files=names, folders=empty)
            content = index.model_dump_json(by_alias=True).encode()
            self._write(self._files, f"{self._path}/{folder}/{INDEX_FILE}", content)
        except OSError as error:
            raise AwayError(f"{self.place}/{folder}: cannot be written ({first_line(error)}); run again") from error
        self._absent.pop(folder, None)

    def index(self, folder: str, *, patient: bool = True) -> Index | None:
        """What an artifact consists of; None if it is not there. Raises HarnessError if that cannot be read."""
        where = f"{self.place}/{folder}/{INDEX_FILE}"
        since, told = self._away
        if time.monotonic() - since < ABSENT_S:
            raise AwayError(told)
        try:
            with self._files.open(f"{self._path}/{folder}/{INDEX_FILE}", "rb", seekable=False) as source:
                content = source.read(MAX_INDEX_B + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._away = time.monotonic(), f"{where}: cannot be read ({first_line(error)}); run again"
            raise AwayError(self._away[1]) from error
        if len(content) > MAX_INDEX_B:
            raise HarnessError(f"{where}: has more than {MAX_INDEX_B:,} bytes; {_again(self.place, folder)}")
        try:
            return Index.model_validate_json(content)
        except ValidationError as error:
            if patient:  # to read takes two requests, and a writer may have replaced it between them
                return self.index(folder, patient=False)
            found = error.errors()[0]
            raise HarnessError(f"{where}: cannot be used ({found['msg']}); {_again(self.place, folder)}") from error

    def _download(self, place: str, named: tuple[str, Listed], *, into: Path) -> None:
        with _laid_out(f"{self.place}/{place}/{named[0]}"):
            (into / named[0]).parent.mkdir(parents=True, exist_ok=True)
            file = (into / named[0]).open("xb")
        with file:
            self._copy(place, named, file)

    def _fault(self, place: str, named: tuple[str, Listed]) -> str | None:
        try:
            with Path(os.devnull).open("wb") as nowhere:
                self._copy(place, named, nowhere)
        except AwayError:
            raise
        except HarnessError as error:
            return str(error)
        return None

    def _copy(self, place: str, named: tuple[str, Listed], target: IO[bytes]) -> None:
        """Raises HarnessError that names what is damaged."""
        name, listed = named
        try:
            # Nothing is sought in it: a stream is one request, and servers answer that are lost with parts.
            with self._files.open(f"{self._path}/{place}/{name}", "rb", seekable=False) as source:
                size, sha256 = copy_hashed(source, target, limit=listed.size)
        except FileNotFoundError as error:
            raise HarnessError(
                f"{self.place}/{place}/{name}: is gone, and its index names it; "
                f"{_again(self.place, place.partition('/')[0])}"
            ) from error
        except OSError as error:
            raise AwayError(f"{self.place}/{place}/{name}: cannot be read ({first_line(error)}); run again") from error
        if (size, sha256) != (listed.size, listed.sha256):
            raise HarnessError(
                f"{self.place}/{place}/{name}: is damaged: its index says {listed.size} bytes with sha256 "
                f"{listed.sha256}, read were {size} with {sha256}; {_again(self.place, place.partition('/')[0])}"
            )

    def _upload(self, place: str, path: Path, *, source: Path) -> Listed:
        target = f"{self._path}/{place}/{path.relative_to(source).as_posix()}"
        with path.open("rb") as file, self._files.open(target, "wb") as out:
            size, sha256 = copy_hashed(file, out)
        return Listed(size=size, sha256=sha256)

    def _write(self, files: Any, path: str, content: bytes) -> None:
        """At once: by one request, or by one rename."""
        beside = f"{path}.{secrets.token_hex(8)}" if self.scheme == "file" else path
        with files.open(beside, "wb") as target:
            target.write(content)
        if beside != path:
            Path(beside).replace(path)

    @cached_property
    def _files(self) -> Any:
        return self._open(attempts=ATTEMPTS)

    def _open(self, *, attempts: int) -> Any:
        """As a file system of fsspec, whose paths begin with the bucket."""
        import fsspec

        if self.scheme == "file":
            return fsspec.filesystem("file", auto_mkdir=True)
        if self.scheme == "memory":
            return fsspec.filesystem("memory")
        from datetime import timedelta

        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow import fs

        # Not s3fs and gcsfs: what they are built on is pinned to versions that the rest of the project is past.
        if self.scheme == "gs":
            options: dict[str, Any] = {**self.options, "anonymous": self.options.get("anonymous") == "true"}
            return ArrowFSWrapper(fs.GcsFileSystem(**options, retry_time_limit=timedelta(seconds=CONNECT_S * attempts)))
        with suppress(KeyError):
            self.options.setdefault("endpoint_override", os.environ["AWS_ENDPOINT_URL"])
        return ArrowFSWrapper(
            fs.S3FileSystem(
                **self.options,
                connect_timeout=CONNECT_S,
                request_timeout=REQUEST_S if attempts > 1 else CONNECT_S,
                retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts),
                allow_delayed_open=True,  # a small object is one request
            )
        )


@contextmanager
def _laid_out(where: str) -> Iterator[None]:
    """Names come from outside: they may collide, or be too long for this system."""
    try:
        yield
    except OSError as error:
        told = f"{where[:MAX_NAME]}: cannot be written here ({error.strerror})"
        raise refused_by_disk(error) or HarnessError(told) from error


def each(call: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Side by side: most of the time is waiting."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(call, items))


def _again(url: str, folder: str) -> str:
    return f"delete {url}/{folder} and run again"
