"""One training on several devices of a machine: a process for each of them, told apart by rank.

The ranks find each other through a store that the process which started them holds, and end when it does.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from contextlib import closing
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]  # as its own pool sends errors
from typing import TYPE_CHECKING, Any, TypeVar

from harness.errors import MissingError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

T = TypeVar("T")
HOST = "127.0.0.1"
PATIENCE = timedelta(days=7)
"""How long a rank waits for the others: where one ends, its parent ends them all, and tables take what they take."""
END_S = 10
"""How long a rank that has told its outcome, or was asked to end, may take to do so."""
PARENT_DIED = 75
LIBUV = sys.platform != "win32"
"""What PyTorch's store is built on; its builds for Windows may lack it."""


def check(devices: int) -> None:
    """Raises MissingError if this machine has GPUs, but fewer than a training wants; on a CPU any number runs."""
    import torch

    found = torch.cuda.device_count()
    if found and devices > found:
        raise MissingError(
            f"devices is {devices}, but this machine has {found} GPU{'s' if found > 1 else ''}; set devices: {found}, "
            "with more gradient_accumulation_steps for the same step, or train on a machine that has them"
        )


def run_ranks(function: Callable[..., T], *arguments: Any, count: int) -> T:
    """What `function(*arguments)` returns in rank 0 of `count` processes that run it together.

    All of it must pickle. Raises the first error of any rank; the others are ended then.
    """
    import torch.distributed

    context = multiprocessing.get_context("spawn")
    store = torch.distributed.TCPStore(HOST, 0, is_master=True, wait_for_workers=False, use_libuv=LIBUV)
    processes: list[SpawnProcess] = []
    pending: dict[Any, int] = {}
    try:
        for rank in range(count):
            receiver, sender = context.Pipe(duplex=False)
            # Not a daemon: it may have processes of its own that prepare batches.
            about = {"rank": rank, "count": count, "port": store.port}
            process = context.Process(target=_run, args=(function, arguments, sender), kwargs=about)
            process.start()
            # Only the rank's own end stays open: its death is the end of the pipe.
            sender.close()
            processes.append(process)
            pending[receiver] = rank
        outcomes = _outcomes(pending, processes)
    except BaseException:
        _end(processes)
        raise
    for process in processes:
        process.join(END_S)
    _end(processes)
    result: T = outcomes[0]
    return result


def place() -> tuple[int, int]:
    """Rank of the process, and how many there are; 0 of 1 where it trains alone."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if _together() else (0, 1)


def is_first() -> bool:
    """Whether this process is the one that writes: rank 0, or the only one."""
    return place()[0] == 0


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns in rank 0, in every rank; it runs there alone, and the others wait for it."""
    import torch.distributed as dist

    if not _together():
        return make()
    box = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    made: T = box[0]  # type: ignore[assignment]
    return made


def gathered(value: T) -> list[T]:
    """The value of each rank, in their order, in every rank. It must pickle."""
    import torch.distributed as dist

    if not _together():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Wait until every rank is here."""
    from_first(lambda: None)


def _together() -> bool:
    import torch.distributed as dist

    return bool(dist.is_available() and dist.is_initialized())


def _outcomes(pending: Mapping[Any, int], processes: list[SpawnProcess]) -> dict[int, Any]:
    """What each rank sent, by rank. Raises what one of them raised."""
    outcomes: dict[int, Any] = {}
    waiting = dict(pending)
    while waiting:
        receiver: Any
        for receiver in connection.wait(list(waiting)):
            rank = waiting.pop(receiver)
            with closing(receiver):
                try:
                    outcome = receiver.recv()
                except EOFError:
                    processes[rank].join(END_S)
                    raise TrainingError(
                        f"the process of device {rank} (of {len(processes)}) ended with code "
                        f"{processes[rank].exitcode} before it was done; if this is -9, the system has run out of "
                        "memory: lower batch_size or devices. The next run goes on from the last checkpoint"
                    ) from None
            if isinstance(outcome, BaseException):
                raise outcome
            outcomes[rank] = outcome
    return outcomes


def _end(processes: list[SpawnProcess]) -> None:
    """Kill those that still run: one that waits for a rank which is gone hears nothing else."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join(END_S)


def _run(
    function: Callable[..., Any], arguments: tuple[Any, ...], sender: Connection, *, rank: int, count: int, port: int
) -> None:
    """A rank's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the engine, which decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _join(rank, count=count, port=port)
        result = function(*arguments)
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent raises it
        sender.send(ExceptionWithTraceback(error, error.__traceback__))
    else:
        sender.send(result if rank == 0 else None)
    sender.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is told: what native libraries do while they are torn down changes nothing.
    os._exit(0)


def _join(rank: int, *, count: int, port: int) -> None:
    """Make this process a rank, for PyTorch, accelerate and Lightning."""
    import torch
    import torch.distributed as dist

    if count == 1:
        return
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0}
    os.environ.update({name: str(value) for name, value in names.items()})
    os.environ.update(MASTER_ADDR=HOST, MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="harness")
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend="nccl" if on_gpus and dist.is_nccl_available() else "gloo",
        store=dist.TCPStore(HOST, port, is_master=False, use_libuv=LIBUV),
        rank=rank,
        world_size=count,
        timeout=PATIENCE,
    )


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(PARENT_DIED)
