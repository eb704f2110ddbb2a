"""Where artifacts live. A reader sees a whole artifact or none; a writer works beside and publishes by one rename.

<root>/<stage>-<key>/artifact.json …     finished, never changed again
<root>/.partial/<stage>-<key>/out/       becomes the artifact
<root>/.partial/<stage>-<key>/scratch/   survives a kill: checkpoints
<root>/.partial/<stage>-<key>.lock       held by the one process that works on it
<root>/.partial/<stage>-<key>.in-<…>/    is on its way here from a remote store
<root>/.partial/<stage>-<key>.of-<…>/    parts of an artifact that stays in the remote store: its record, a recording
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from harness.core.artifact import ADOPTED_FOLDER, Artifact, Work
from harness.core.files import file_sha256, parse_json_file
from harness.core.manifests import SHARDED, UTTERANCES_FILE, iterate_utterances
from harness.engine.remote import AwayError
from harness.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from pathlib import Path

    from harness.engine.remote import Remote

ARTIFACT_FILE = "artifact.json"
BULKY = frozenset({"base", "list", "decode", "prepare", "train", "export"})
"""Stages that leave models and recordings."""
READ = frozenset({ARTIFACT_FILE, "card.json", "config.json", "curves.jsonl"})
"""What plans, boards and reports read of theirs."""
ELSEWHERE = re.compile(r"\.\./(?P<folder>[a-z_]+-[0-9a-f]{16})/(?P<file>.+)")
"""A recording that lies in another artifact, as manifests name it."""
SCHEMA = 1
"""Of `artifact.json`. Older numbers stay readable."""
RENAME_ATTEMPTS = 20


class Store:
    """A folder of artifacts by key; beside it, maybe, a remote one that several machines share."""

    def __init__(self, root: Path, *, remote: Remote | None = None, brief: Collection[str] = ()) -> None:
        """brief: stages of which little is downloaded: the record, and what plans, boards and reports read.

        Those must not show less because a server is away: then it is an AwayError.
        """
        self.root = root
        self.remote = remote
        self.brief = brief
        self._excerpts: dict[str, Path | None] = {}

    def has(self, folder: str, *, key: str) -> bool:
        """Whether a step has been done; nothing is downloaded."""
        if (self.root / folder / ARTIFACT_FILE).is_file() or self.remote is None:
            return self.find(folder, key=key) is not None
        with self._tolerant():
            return self.remote.has(folder)
        return False

    def find(self, folder: str, *, key: str) -> Artifact | None:
        """The finished artifact of a step, or None. What the remote store has is downloaded."""
        path = self.root / folder
        if not (path / ARTIFACT_FILE).is_file():
            with self._tolerant():
                if folder.rpartition("-")[0] in self.brief:
                    path = self._read_of(folder) or path
                elif not self.brief or self.remote is None or self.remote.has(folder):
                    self._fetch(folder)
        if not (path / ARTIFACT_FILE).is_file():
            return None
        artifact = read_artifact(path, sizes=path.name == folder)
        if artifact.key != key:
            raise HarnessError(f"{path}: holds key {artifact.key}, wanted {key}; remove this folder and run again")
        return artifact

    def bring(self, folder: str) -> Artifact:
        """An artifact that a step reads, with those that its recordings lie in."""
        path = self.root / folder
        if not (path / ARTIFACT_FILE).is_file() and not self._fetch(folder):
            raise self._gone(path)
        if self.remote is not None:
            for other in recordings_of(path):
                if not (self.root / other / ARTIFACT_FILE).is_file():
                    self._fetch(other)
        return read_artifact(path, sizes=True)

    def recording(self, held: Artifact, audio: str) -> Path:
        """A recording of a set, to be read: of a corpus that only the remote store has, its file or shard comes alone.

        audio: as the manifest of the set names it. Raises HarnessError if it is gone.
        """
        sharded = SHARDED.match(audio)
        name = sharded["shard"] if sharded else audio
        if (held.path / name).is_file():
            return held.path / audio
        outside = ELSEWHERE.fullmatch(name)
        place = self._excerpt(outside["folder"], lambda other: other == outside["file"]) if outside else None
        if place is None or outside is None or not (place / outside["file"]).is_file():
            raise self._gone(held.path / name)
        return place / audio.removeprefix(f"../{outside['folder']}/")

    def share(self, folders: Iterable[str]) -> None:
        """Upload those of the artifacts that are here and not in the remote store. Raises HarnessError."""
        if self.remote is not None:
            here = [folder for folder in folders if (self.root / folder / ARTIFACT_FILE).is_file()]
            for folder in self.remote.lacking(here):
                path = self.root / folder
                self.remote.send(folder, source=path, hashes=read_artifact(path).files)

    def _fetch(self, folder: str) -> bool:
        """Download an artifact, verify it, make it visible by one rename. False if the remote store has none."""
        if self.remote is None:
            return False
        final, coming = self.root / folder, self.partial(f"{folder}.in-{secrets.token_hex(8)}")
        try:
            if not self.remote.fetch(folder, into=coming):
                return False
            artifact = read_artifact(coming)
            if folder_name(artifact.stage, artifact.key) != folder:
                raise HarnessError(
                    f"{self.remote.place}/{folder}: holds '{artifact.stage}' with key {artifact.key}; "
                    f"delete {self.remote.place}/{folder} and run again"
                )
            _move(coming, final)
        finally:
            shutil.rmtree(coming, ignore_errors=True)
        return True

    def _gone(self, path: Path) -> HarnessError:
        return HarnessError(f"{path}: is gone{', from the remote store too' if self.remote else ''}; run again")

    def _read_of(self, folder: str) -> Path | None:
        if folder not in self._excerpts:
            self._excerpts[folder] = self._excerpt(folder, lambda name: name.rpartition("/")[2] in READ)
        return self._excerpts[folder]

    def _excerpt(self, folder: str, wanted: Callable[[str], bool]) -> Path | None:
        """A folder with some files of an artifact that stays in the remote store; None if that has none."""
        if self.remote is None or (index := self.remote.index(folder)) is None:
            return None
        place, coming = self.partial(f"{folder}.of-{index.upload}"), self.partial(f"{folder}.in-{secrets.token_hex(8)}")
        lacking = index.part(lambda name: wanted(name) and not (place / name).is_file())
        try:
            if lacking.files:
                self.remote.download(folder, lacking, into=coming)
            for name in lacking.files:
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (coming / name).replace(place / name)
        finally:
            shutil.rmtree(coming, ignore_errors=True)
        return place

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        """A remote store that is away for a while costs time, not a run: the step is done again, or sent at the end."""
        try:
            yield
        except AwayError as error:
            if self.brief:
                raise
            logging.getLogger(__name__).warning("%s", error)

    def partial(self, folder: str) -> Path:
        return self.root / ".partial" / folder

    def lock(self, folder: str) -> FileLock:
        """Released by the system when its holder dies, however it dies."""
        path = self.partial(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path.with_name(f"{path.name}.lock"))

    def open(self, folder: str) -> Work:
        """An empty `out` and whatever `scratch` an earlier, killed attempt left. Call it under the lock."""
        partial = self.partial(folder)
        out, scratch = partial / "out", partial / "scratch"
        for name in _adopted(scratch):
            if (out / name).is_dir() and not (scratch / name).exists():
                _rename(out / name, scratch / name)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        scratch.mkdir(exist_ok=True)
        return Work(path=out, scratch=scratch)

    def publish(self, folder: str, *, key: str, stage: str, meta: dict[str, Any], about: dict[str, Any]) -> Artifact:
        """Hash every file of `out` outside adopted folders, write `artifact.json`, make all visible by one rename."""
        out, final = self.partial(folder) / "out", self.root / folder
        adopted = _adopted(self.partial(folder) / "scratch")
        names = sorted(
            item.relative_to(out).as_posix()
            for top in out.iterdir()
            if top.name not in adopted
            for item in ([top] if top.is_file() else top.rglob("*"))
            if item.is_file()
        )
        files = {name: {"sha256": file_sha256(out / name), "size": (out / name).stat().st_size} for name in names}
        about = {**about, "adopted": {name: weigh(out / name) for name in adopted}}
        record = {"schema": SCHEMA, "key": key, "stage": stage, "files": files, "meta": meta, **about}
        text = json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False)
        with (out / ARTIFACT_FILE).open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _move(out, final)
        shutil.rmtree(self.partial(folder), ignore_errors=True)
        with self._tolerant():
            self.share([folder])
        return read_artifact(final)


def read_artifact(path: Path, *, sizes: bool = False) -> Artifact:
    """Raises HarnessError if its record is damaged or of a newer schema.

    sizes: or if a file is missing or of another size; what keeps its size is found by `harness store verify`.
    """
    try:
        record = read_record(path)
        if record["schema"] > SCHEMA:
            raise HarnessError(f"{path}: schema {record['schema']} is newer than {SCHEMA}; update harness")
        files = {name: entry["sha256"] for name, entry in record["files"].items()}
        if not isinstance(record["meta"], dict):
            raise TypeError("its meta is no object")  # noqa: TRY301  # one place says what damage means
        if not (isinstance(record["key"], str) and isinstance(record["stage"], str)):
            raise TypeError("its key or its stage is no text")  # noqa: TRY301
        if sizes:
            _check_sizes(path, record["files"])
        return Artifact(record["key"], record["stage"], path, files, record["meta"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HarnessError(
            f"{path / ARTIFACT_FILE}: cannot be read ({error}); remove the folder and run again"
        ) from error


def read_record(path: Path) -> dict[str, Any]:
    """All that `artifact.json` of a folder says. Raises OSError and ValueError."""
    record: dict[str, Any] = parse_json_file(path / ARTIFACT_FILE)
    return record


def _check_sizes(path: Path, files: Mapping[str, Any]) -> None:
    for name, entry in files.items():
        # By os.path, for which a name that no file system takes is no error.
        size = (path / name).stat().st_size if os.path.isfile(path / name) else None  # noqa: PTH113
        if size != entry["size"]:
            found = "is missing" if size is None else f"has {size} bytes, recorded are {entry['size']}"
            raise HarnessError(f"{path / name}: {found}; remove {path} and run again, or see: harness store verify")


def folder_name(stage: str, key: str) -> str:
    """In the store. 64 bits of the key are enough to tell steps apart; the whole is in the artifact."""
    return f"{stage}-{key[:16]}"


def recordings_of(path: Path) -> set[str]:
    """The artifacts in which the recordings of a set lie; of what is no set, none."""
    if not (path / UTTERANCES_FILE).is_file():
        return set()
    import pyarrow.compute as pc

    found: set[str] = set()
    for batch in iterate_utterances(path, columns=["audio"]):
        places = pc.extract_regex(batch.column("audio"), r"^\.\./(?P<folder>[a-z_]+-[0-9a-f]{16})/")
        found.update(pc.struct_field(places, "folder").drop_null().unique().to_pylist())
    return found


def _adopted(scratch: Path) -> list[str]:
    marks = scratch / ADOPTED_FOLDER
    return sorted(item.name for item in marks.iterdir()) if marks.is_dir() else []


def weigh(folder: Path) -> dict[str, int]:
    sizes = [item.stat().st_size for item in folder.rglob("*") if item.is_file()]
    return {"num_files": len(sizes), "size": sum(sizes)}


def _move(source: Path, final: Path) -> None:
    """Make an artifact visible, unless another process has just done so."""
    if final.is_dir() and not (final / ARTIFACT_FILE).is_file():
        shutil.rmtree(final)  # the rest of an artifact that somebody deleted in part
    try:
        _rename(source, final)
    except OSError:
        if not (final / ARTIFACT_FILE).is_file():
            raise


def _rename(source: Path, target: Path) -> None:
    for attempt in range(RENAME_ATTEMPTS):
        try:
            source.rename(target)
        except PermissionError:
            # Windows refuses while a virus scanner or an indexer still has a file open.
            if attempt == RENAME_ATTEMPTS - 1:
                raise
            time.sleep(0.1)
        else:
            return
