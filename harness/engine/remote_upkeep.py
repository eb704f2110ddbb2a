"""What a remote store holds: its artifacts, what is left of uploads that came to nothing, and what of it can go.

Several machines share it, and the boards of most of them are elsewhere: what nobody here refers to, others may need.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from harness.engine.relay import RELAYED, STAGE
from harness.engine.remote import INDEX_FILE, UPLOAD, AwayError, each
from harness.engine.store import Store
from harness.engine.upkeep import inventory
from harness.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from harness.engine.remote import Remote
    from harness.engine.upkeep import Stored

INDEX = re.compile(rf"(?P<folder>[a-z_]+-[0-9a-f]{{16}})/{re.escape(INDEX_FILE)}")
LOOSE = re.compile(rf"\.token-[0-9a-f]{{16}}(\.[0-9a-f]{{16}})?|{INDEX.pattern}\.[0-9a-f]{{16}}")
"""What is written and at once deleted or renamed."""


@dataclass(frozen=True, slots=True)
class Removable:
    """What can go, once it is old enough."""

    name: str
    """Below the URL: an artifact, one upload of it, or an object."""
    what: str
    size: int
    """Bytes."""
    modified_s: float
    """When it was last written to, or when another took its place; since the epoch, by the server's clock."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """All that is the project's at a URL."""

    artifacts: list[Stored]
    leftovers: list[Removable]
    """What no index names, and checkpoints that nobody needs any more."""


def holdings(remote: Remote) -> Holdings:
    """List everything, and read the records of the artifacts. Raises AwayError."""
    indexes: dict[str, float] = {}
    uploads: dict[str, Removable] = {}
    loose: list[Removable] = []
    for name, size, modified_s in remote.objects():
        if upload := UPLOAD.match(name):
            known = uploads.get(upload[0], Removable(upload[0], "upload that was never finished", 0, 0.0))
            newest_s = max(known.modified_s, modified_s)
            uploads[upload[0]] = replace(known, size=known.size + size, modified_s=newest_s)
        elif index := INDEX.fullmatch(name):
            indexes[index["folder"]] = modified_s
        elif LOOSE.fullmatch(name):
            loose.append(Removable(name, "left by a killed process", size, modified_s))
    with TemporaryDirectory() as records:
        named = dict(zip(indexes, each(partial(_record, remote, into=Path(records)), indexes), strict=True))
        found = inventory(Store(Path(records)))
    artifacts = []
    for item in found:
        own = [upload for upload in uploads.values() if upload.name.startswith(f"{item.folder}/{named[item.folder]}")]
        held_b = sum(upload.size for upload in own)
        artifacts.append(replace(item, size=held_b, modified_s=indexes[item.folder]))
    return Holdings(artifacts, [*_orphans(uploads, indexes, named), *_passed(artifacts), *loose])


def removable(
    held: Holdings, *, now_s: float, older_than_s: float, kept: Collection[str] | None = None
) -> list[Removable]:
    """Leftovers of that age; with `kept`, the artifacts of that age that are not in it, too.

    An upload that goes on is never older than its newest object. now_s: by the server's clock.
    """
    found = list(held.leftovers)
    if kept is not None:
        leftovers = {item.name for item in found}
        unreferenced = [item for item in held.artifacts if item.folder not in {*kept, *leftovers}]
        found += [Removable(item.folder, item.name or item.folder, item.size, item.modified_s) for item in unreferenced]
    return [item for item in found if now_s - item.modified_s > older_than_s]


def remove(remote: Remote, item: Removable) -> bool:
    """Delete it, unless its index has come to name it; whether it is gone. Raises AwayError."""
    folder, _, upload = item.name.partition("/")
    if LOOSE.fullmatch(item.name):
        remote.delete(item.name)
        return True
    named = _named(remote, folder)
    if upload and named in {upload, ""}:
        return False
    if not upload:
        # First, so that a reader sees a whole artifact or none.
        remote.delete(f"{folder}/{INDEX_FILE}")
        upload = named or ""
    if upload:
        remote.delete(f"{folder}/{upload}")
    return True


def _named(remote: Remote, folder: str) -> str | None:
    """The upload that an index names; empty if nobody can tell, None if there is no index."""
    try:
        index = remote.index(folder)
    except AwayError:
        raise
    except HarnessError:
        return ""
    return index.upload if index else None


def _record(remote: Remote, folder: str, *, into: Path) -> str | None:
    """Download the record alone into a folder of its own, which stays empty if it is damaged. Returns as `_named`."""
    index = None
    try:
        index = remote.index(folder)
        if index is None:
            return None
        remote.download(folder, index.part(lambda name: name == INDEX_FILE), into=into / folder)
    except AwayError:
        raise
    except HarnessError:
        shutil.rmtree(into / folder, ignore_errors=True)
        (into / folder).mkdir()
    return index.upload if index else ""


def _passed(artifacts: Sequence[Stored]) -> Iterator[Removable]:
    """Checkpoints of steps that have been finished."""
    finished = {item.folder for item in artifacts}
    for item in artifacts:
        stage, _, key = item.folder.partition("-")
        if stage == STAGE and any(f"{of}-{key}" in finished for of in RELAYED):
            yield Removable(item.folder, "checkpoint of a finished step", item.size, item.modified_s)


def _orphans(
    uploads: Mapping[str, Removable], indexes: Mapping[str, float], named: Mapping[str, str | None]
) -> Iterator[Removable]:
    """Uploads that no index names. What an unreadable index names, nobody knows: all of that folder stay."""
    for name, upload in uploads.items():
        folder, _, own = name.partition("/")
        if folder not in indexes:
            yield upload
        elif named[folder] not in {own, "", None}:
            since_s = max(upload.modified_s, indexes[folder])
            yield replace(upload, what="upload in whose place another came", modified_s=since_s)
