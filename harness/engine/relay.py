"""Checkpoints of a step under way, in the remote store: where its machine dies, another one goes on.

<url>/checkpoint-<key>/     an artifact like any other: sent with each checkpoint, removed when the step is published
<partial>/outbox/<step>/    a checkpoint that waits to be sent; a newer one takes its place
<partial>/outbox/sending/   one that is on its way
"""

from __future__ import annotations

import json
import secrets
import shutil
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.core.artifact import CHECKPOINT_FILE
from harness.core.files import replace_text
from harness.engine.remote import INDEX_FILE, AwayError
from harness.engine.store import SCHEMA, folder_name, read_artifact
from harness.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness.core.artifact import Work
    from harness.engine.remote import Index, Remote
    from harness.engine.store import Store

RELAYED = frozenset({"train"})
"""Stages that leave checkpoints."""
STAGE = "checkpoint"
OUTBOX = "outbox"
POLL_S = 0.5


@contextmanager
def relayed(
    store: Store, work: Work, *, stage: str, key: str, name: str, tell: Callable[[str], None]
) -> Iterator[None]:
    """Go on from the newest checkpoint that any machine has left; send each new one while the step runs.

    The step is published inside. Without a remote store nothing of this happens.
    tell: writes into the step's log, also while a library's warnings are off.
    Raises AwayError if nobody can tell whether there is a checkpoint.
    """
    remote, folder, place = store.remote, folder_name(stage, key), folder_name(STAGE, key)
    if remote is None or stage not in RELAYED:
        yield
        return
    _take_up(store, work, remote, place=place, key=key, tell=tell)
    work.outbox = store.partial(folder) / OUTBOX
    shutil.rmtree(work.outbox, ignore_errors=True)
    work.outbox.mkdir(parents=True)
    done = threading.Event()
    record = {"schema": SCHEMA, "key": key, "stage": STAGE, "files": {}, "name": f"checkpoint of {name}"}
    send = partial(_send, remote, place, record=record)
    sender = threading.Thread(target=_send_all, args=(send, work.outbox, done, tell), daemon=True)
    sender.start()
    try:
        yield
    finally:
        done.set()
        sender.join()
    with suppress(HarnessError):
        if remote.index(folder) is not None:
            _remove(remote, place)


def _take_up(store: Store, work: Work, remote: Remote, *, place: str, key: str, tell: Callable[[str], None]) -> None:
    """Fetch a checkpoint that is newer than the one here."""
    coming = store.partial(f"{place}.in-{secrets.token_hex(8)}")
    try:
        index = remote.index(place)
        if index is None:
            return
        step = _step(remote, place, index, into=coming, key=key)
        if step <= _own_step(work):
            return
        remote.download(place, index.part(lambda name: name != INDEX_FILE), into=coming / "files")
        for path in (coming / "files").iterdir():
            here = work.scratch / path.name
            shutil.rmtree(here, ignore_errors=True) if here.is_dir() else here.unlink(missing_ok=True)
            path.rename(here)
        # Last: a kill before this line fetches all of it again.
        replace_text(work.scratch / CHECKPOINT_FILE, str(step))
        tell(f"goes on from step {step}, which another process has left at {remote.place}/{place}")
    except AwayError:
        raise
    except HarnessError as error:
        # What can be done without it must not wait for somebody who deletes it.
        tell(f"{error}\nits checkpoint is not used")
    finally:
        shutil.rmtree(coming, ignore_errors=True)


def _step(remote: Remote, place: str, index: Index, *, into: Path, key: str) -> int:
    """How far a checkpoint is, by its record."""
    remote.download(place, index.part(lambda name: name == INDEX_FILE), into=into)
    record = read_artifact(into)
    step = record.meta.get("step")
    if (record.key, record.stage) != (key, STAGE) or type(step) is not int:
        raise HarnessError(f"{remote.place}/{place}: is no checkpoint of this step")
    return step


def _own_step(work: Work) -> int:
    try:
        return int((work.scratch / CHECKPOINT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return -1


def _send_all(
    send: Callable[[Path, int], None], outbox: Path, done: threading.Event, tell: Callable[[str], None]
) -> None:
    """What waits, one after the other, until the step has ended."""
    ended, sending = False, outbox / "sending"
    while not ended:
        ended = done.wait(POLL_S)
        for path in outbox.glob("[0-9]*"):
            try:
                path.rename(sending)
                send(sending, int(path.name))
            except (HarnessError, OSError) as error:
                if outbox.is_dir():  # or the step has been published meanwhile
                    tell(f"the newest checkpoint stays on this machine: {error}")
            shutil.rmtree(sending, ignore_errors=True)


def _send(remote: Remote, place: str, path: Path, step: int, *, record: dict[str, Any]) -> None:
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = json.dumps({**record, "meta": {"step": step}, "created": created}, ensure_ascii=False)
    (path / INDEX_FILE).write_text(text, encoding="utf-8")
    before = remote.index(place)
    remote.send(place, source=path, hashes={})
    if before is not None:
        remote.delete(f"{place}/{before.upload}")


def _remove(remote: Remote, place: str) -> None:
    """Of a finished step; the index first, so that a reader sees a whole checkpoint or none."""
    index = remote.index(place)
    if index is not None:
        remote.delete(f"{place}/{INDEX_FILE}")
        remote.delete(f"{place}/{index.upload}")
