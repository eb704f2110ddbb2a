"""The process that reads the inputs; started by `campaign`, told its work as JSON. A line of JSON for each input."""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from harness.score.memory import peak_ram_mib
from tests.fuzz.campaign import MEMORY_BYTES, make
from tests.fuzz.guard import Guard

MAX_MESSAGE = 100_000
"""Letters of a message; one that quotes a whole file is none."""


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    # What libraries print is not what is told to the parent.
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # as the command line does
    logging.disable(logging.CRITICAL)
    targets = {target.name: target for target in importlib.import_module(job["targets"]).TARGETS}
    base = Path(job["base"])
    guard = Guard(base)

    def tell(**what: Any) -> None:
        print(json.dumps(what), file=told, flush=True)

    last = None
    for name, number in job["inputs"]:
        target = targets[name]
        if name != last:
            limit_memory(None)
            read_seeds(target, base / "inputs")
            limit_memory(MEMORY_BYTES)
            tell(ready=name)
        last = name
        data = make(target, number, seed=job["seed"])
        folder = base / "inputs" / str(number)
        folder.mkdir()
        tell(**read(target, data, folder, guard=guard), peak_rss_mib=peak_ram_mib())
        shutil.rmtree(folder, ignore_errors=True)
        gc.collect(0)


def read_seeds(target: Any, folder: Path) -> None:
    """Sound input is read; this also imports what reads it."""
    for number, seed in enumerate(target.seeds()):
        place = folder / f"seed-{number}"
        place.mkdir()
        try:
            target.attack(seed, place)
        except HarnessError:
            if number == 0 and not target.refuses_seeds:
                raise
        shutil.rmtree(place)


def read(target: Any, data: bytes, folder: Path, *, guard: Guard) -> dict[str, Any]:
    """Only success and a message for the user are sound; else `what` says what is not."""
    what = ""
    accepted = True
    start = time.process_time()
    with guard.around(folder) as tried:
        try:
            target.attack(data, folder)
        except HarnessError as error:
            accepted = False
            length = len(str(error))
            if not 0 < length <= MAX_MESSAGE:
                what = f"a message of {length} letters"
        except BaseException as error:  # noqa: BLE001  # whatever it is: that is what is looked for
            frames = traceback.extract_tb(error.__traceback__)
            own = [frame for frame in frames if f"{os.sep}harness{os.sep}" in frame.filename] or frames
            place = f"{Path(own[-1].filename).name}:{own[-1].name}"
            what = f"{type(error).__name__} in {place}: {str(error)[:200]}"
            if os.environ.get("FUZZ_TRACEBACK"):
                traceback.print_exc()
    if tried:
        what = f"tried: {'; '.join(tried)[:300]}"
    seconds = time.process_time() - start
    return {"accepted": accepted, "what": what.replace(str(folder.parent), ""), "seconds": seconds}


def limit_memory(more: int | None) -> None:
    """To what the process has by now and so much more; None for no limit."""
    try:
        import resource
    except ImportError:
        return  # Windows
    pages = Path("/proc/self/statm")
    if pages.is_file():
        used = int(pages.read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard if more is None else used + more, hard))


if __name__ == "__main__":
    main()
