"""A step's process: begun, watched, and asked how it ended. Every executor runs steps through this."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from harness.core.artifact import PROGRESS_FILE
from harness.engine.store import Store
from harness.engine.worker import ERROR_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from harness.engine.walk import Job

GRACE_S = 10.0
"""How long a stopped worker may take to end by itself."""


class StepProcess:
    """`python -m harness.engine.worker` on one job. It ends when the process that made it does."""

    def __init__(self, job: Job, *, log: BinaryIO, environment: Mapping[str, str]) -> None:
        """log: takes all that the step prints; a real file."""
        self._partial = Store(Path(job["store"])).partial(job["folder"])
        (self._partial / "scratch").mkdir(parents=True, exist_ok=True)
        (self._partial / "scratch" / PROGRESS_FILE).unlink(missing_ok=True)
        (self._partial / ERROR_FILE).unlink(missing_ok=True)
        (self._partial / "job.json").write_text(json.dumps(job, ensure_ascii=False), encoding="utf-8")
        log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {job['name']}\n".encode())
        log.flush()
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.engine.worker", str(self._partial / "job.json")],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUTF8": "1", "TOKENIZERS_PARALLELISM": "false", **environment},
        )

    @property
    def wall_s(self) -> float:
        """Since it began."""
        return time.monotonic() - self._started

    def progress(self) -> dict[str, Any] | None:
        """`done`, `total` and `note` as the step last told them."""
        try:
            told: dict[str, Any] = json.loads((self._partial / "scratch" / PROGRESS_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None  # nothing told yet, or half a line: look again in a moment
        return told

    def ended(self) -> bool:
        if self._process.poll() is None:
            return False
        if self._process.stdin:
            self._process.stdin.close()
        return True

    def failure(self) -> dict[str, Any] | None:
        """`message` and `exit_code` of a step that has ended without an artifact; None if all is well."""
        code = self._process.returncode
        if code == 0:
            return None
        try:
            failure: dict[str, Any] = json.loads((self._partial / ERROR_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            # No word from the worker: it crashed or was killed from outside.
            by = f"signal {-code}" if code < 0 else f"exit code {code}"
            hint = " (out of memory?)" if code == -9 else ""
            failure = {"message": f"its process ended with {by}{hint}; run again to go on", "exit_code": 1}
        return failure


def stop(processes: Sequence[StepProcess]) -> None:
    """End them, and wait until they have. A KeyboardInterrupt meanwhile ends them at once."""
    workers = [item._process for item in processes]  # noqa: SLF001  # of this module
    deadline = time.monotonic() + GRACE_S
    try:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            with suppress(subprocess.TimeoutExpired):
                worker.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.wait()
