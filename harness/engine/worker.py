"""One step in a process of its own: `python -m harness.engine.worker JOB.json`.

A clean peak-memory figure, and a crash or an out-of-memory takes down one step, not the run. The parent holds the
other end of standard input: when it dies, however it dies, the worker ends too.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.engine.relay import relayed
from harness.engine.remote import Remote
from harness.engine.store import ARTIFACT_FILE, Store
from harness.errors import HarnessError, refused_by_disk
from harness.score.memory import peak_ram_mib

if TYPE_CHECKING:
    from harness.core.artifact import Artifact
    from harness.suite.spec import Spec

ERROR_FILE = "error.json"
PARENT_DIED = 75


def main(path: Path) -> int:
    """0: published. 1: the step failed in a way that it explained. 2: a bug."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        job = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        # Another run has just published the step, and cleared the folder that it works in.
        if (path.parents[2] / path.parent.name / ARTIFACT_FILE).is_file():
            return 0
        raise
    error_file = path.parent / ERROR_FILE
    error_file.unlink(missing_ok=True)
    try:
        run(job)
    except HarnessError as error:
        failure, code = {"message": str(error), "exit_code": error.exit_code}, 1
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent must be told
        if told := refused_by_disk(error):
            _make_room(job)
            failure, code = {"message": str(told), "exit_code": told.exit_code}, 1
        else:
            traceback.print_exc()
            failure, code = {"message": f"{type(error).__name__}: {error}", "exit_code": 1, "bug": True}, 2
    else:
        return 0
    if code == 1:
        _tell(str(failure["message"]))
    error_file.parent.mkdir(parents=True, exist_ok=True)
    error_file.write_text(json.dumps(failure, ensure_ascii=False), encoding="utf-8")
    return code


def run(job: dict[str, Any]) -> Artifact:
    """Do the step of `job` and publish it; if somebody else has just published it, take theirs."""
    remote = Remote(job["remote"]) if job["remote"] else None
    store, folder, key = Store(Path(job["store"]), remote=remote), job["folder"], job["key"]
    spec, module = _spec(job)
    with store.lock(folder):
        found = store.find(folder, key=key)
        if found is not None:
            return found
        inputs = {role: [store.bring(Path(item).name) for item in paths] for role, paths in job["inputs"].items()}
        work = store.open(folder)
        with relayed(store, work, stage=job["stage"], key=key, name=job["name"], tell=_tell):
            started = time.monotonic()
            meta = module.run(spec, inputs, work)
            about = {
                "name": job["name"],
                "spec": job["spec"],
                "inputs": {role: [Path(item).name for item in paths] for role, paths in job["inputs"].items()},
                "wall_s": round(time.monotonic() - started, 3),
                "peak_ram_mib": round(peak_ram_mib(), 1),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "harness": __version__,
            }
            return store.publish(folder, key=key, stage=job["stage"], meta=meta, about=about)


def _tell(message: str) -> None:
    """Into the step's log."""
    print(message, file=sys.stderr, flush=True)  # noqa: T201


def _make_room(job: dict[str, Any]) -> None:
    """Drop what a step has half written, which the next attempt would: a full disk takes the message then."""
    store = Store(Path(job["store"]))
    with suppress(OSError), store.lock(job["folder"]):
        store.open(job["folder"])


def _spec(job: dict[str, Any]) -> tuple[Spec, Any]:
    name, _, class_name = job["spec_class"].partition(":")
    if name.split(".")[0] != "harness":
        raise HarnessError(f"{name}: not a module of harness")
    module = importlib.import_module(name)
    return getattr(module, class_name).model_validate(job["spec"]), module


def _end_with_parent() -> None:
    # Not sys.stdin: its buffer's lock, held by a thread at exit, aborts the interpreter.
    while os.read(0, 1):
        pass
    os._exit(PARENT_DIED)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
    ended_with = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    # What is published is done: a native library that crashes while the interpreter is torn down changes nothing.
    os._exit(ended_with)
