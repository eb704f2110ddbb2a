"""The commands that look after the store: list, verify, gc."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path  # noqa: TC003  # Typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal

from harness.cli_promote import RESULTS, Results
from harness.console import err, out, say
from harness.errors import HarnessError, SuiteError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from harness.engine.remote import Remote
    from harness.engine.remote_upkeep import Holdings
    from harness.engine.store import Store
    from harness.engine.upkeep import Stored

DAY_S = 24 * 3600
MIN_REMOTE_DAYS = 1.0
"""Of leftovers in a shared store: no single file takes longer to upload."""

Bucket = Annotated[
    str | None,
    # Not from HARNESS_STORE: what goes, goes where the command says.
    typer.Option("--store", metavar="URL", help="Look after this shared store, not after that of this machine."),
]

store = typer.Typer(help="Look after the store: list, verify, gc.", no_args_is_help=True)


@store.command("list")
def list_artifacts(shared: Bucket = None, results: Results = RESULTS) -> None:
    """List the artifacts: size, age, what was made of them, and who refers to them."""
    from rich.table import Table

    if shared:
        remote, there = _open_remote(shared)
        stored, leftovers, where = there.artifacts, there.leftovers, remote.place
    else:
        held, stored = _open(results)
        leftovers, where = [], str(held.root)
    kept = _kept(stored, results=results, suites=[], lenient=True)
    table = Table(box=None, pad_edge=False)
    for column in ("artifact", "step", "size", "age", "read by", "referred to by"):
        table.add_column(column, justify="right" if column in {"size", "age"} else "left", overflow="fold")
    for item in stored:
        readers = [other.name or other.folder for other in stored if item.folder in other.inputs]
        who = ", ".join(sorted(kept.get(item.folder, ()))) or "nobody"
        table.add_row(item.folder, item.name or "?", decimal(item.size), _age(item.modified_s), _some(readers), who)
    out.print(table)
    for left in leftovers:
        say(f"left:  {left.name}  {left.what}  {decimal(left.size)}  {_age(left.modified_s)}")
    say(f"{len(stored)} artifacts, {decimal(sum(item.size for item in stored))} in {where}")


@store.command()
def verify(shared: Bucket = None, results: Results = RESULTS) -> None:
    """Read every file of every artifact again, and name what is damaged, missing or too much."""
    from rich.progress import track

    from harness.engine.upkeep import faults

    if shared:
        remote, there = _open_remote(shared)
        stored, where, faults_of = there.artifacts, remote.place, remote.faults
        remedy = "delete these folders there and run the suite again: a machine that has what they held sends it anew"
    else:
        held, stored = _open(results)
        where, faults_of = str(held.root), lambda folder: faults(held.root / folder)
        remedy = "remove these folders and run the suite again: what they held is made anew, and the rest is kept"
    found = []
    for item in track(stored, description="verifying", console=err, transient=True):
        found += [(item, fault) for fault in faults_of(item.folder)]
    damaged = dict.fromkeys(item.folder for item, _ in found)
    if not found:
        say(f"{len(stored)} artifacts, {decimal(sum(item.size for item in stored))}: all as they were published")
        return
    lines = [f"  {item.folder}{f' ({item.name})' if item.name else ''}: {fault}" for item, fault in found]
    raise HarnessError("\n".join([f"{where}: {len(damaged)} of {len(stored)} artifacts damaged", *lines, remedy]))


@store.command()
def gc(
    suites: Annotated[list[Path] | None, typer.Argument(metavar="[SUITE]...", help="Keep what these need too.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Do it; without this, only say what would go.")] = False,
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, metavar="DAYS", help="Age of what killed processes have left.")
    ] = 7.0,
    shared: Bucket = None,
    unreferenced: Annotated[
        bool,
        typer.Option(
            "--unreferenced",
            help="With --store: also artifacts of that age that nothing on this machine refers to, nor a suite that is "
            "named. Other machines may need them.",
        ),
    ] = False,
    results: Results = RESULTS,
) -> None:
    """Free what no board, bundle or promotion refers to, nor a suite that is named, nor a process that runs.

    With --store: only what is left of uploads that came to nothing, for the boards of other machines are not here.
    """
    from harness.engine.upkeep import remove, wasted

    again = " ".join(["harness store gc", *map(str, suites or []), "--delete"])
    if shared:
        _gc_remote(
            shared, suites or [], delete=delete, older_than=older_than, unreferenced=unreferenced, results=results
        )
        return
    if unreferenced:
        raise SuiteError("--unreferenced is for --store URL; of the store of this machine that goes anyway")
    held, stored = _open(results)
    kept = _kept(stored, results=results, suites=suites or [])
    _refuse_all(stored, kept, results)
    found = wasted(held, stored, kept=kept, older_than_s=older_than * DAY_S)
    _free(found, partial(remove, held) if delete else None, again=again)


def _gc_remote(
    url: str, suites: Sequence[Path], *, delete: bool, older_than: float, unreferenced: bool, results: Path
) -> None:
    from harness.engine.remote_upkeep import removable, remove
    from harness.engine.store import Store
    from harness.engine.upkeep import inventory

    if older_than < MIN_REMOTE_DAYS:
        raise SuiteError(
            f"--older-than {older_than:g}: with --store at least {MIN_REMOTE_DAYS:g}: another machine may be uploading"
        )
    if suites and not unreferenced:
        raise SuiteError("suites say what --unreferenced keeps; without it no artifact goes from a shared store")
    remote, there = _open_remote(url)
    kept = None
    if unreferenced:
        # What a board needs may be there in part: what it was made of, this machine knows.
        kept = _kept([*inventory(Store(results / "store")), *there.artifacts], results=results, suites=suites)
        _refuse_all(there.artifacts, kept, results)
    found = removable(there, now_s=remote.check(), older_than_s=older_than * DAY_S, kept=kept)
    options = ["--older-than", f"{older_than:g}", "--store", url, *(["--unreferenced"] if unreferenced else [])]
    again = " ".join(["harness store gc", *map(str, suites), *options, "--delete"])
    _free(found, partial(remove, remote) if delete else None, again=again)


def _free(found: Sequence[Any], remove: Callable[[Any], bool] | None, *, again: str) -> None:
    """Remove what was found, one after the other, or say what would go. again: the line that does it."""
    freed = 0
    for item in found:
        if remove and not remove(item):
            say(f"in use:  {item.name}  {item.what}")
            continue
        freed += item.size
        say(f"{'freed' if remove else 'unused'}:  {item.name}  {item.what}  {decimal(item.size)}")
    if remove or not found:
        say(f"freed {decimal(freed)}" if found else "nothing to free")
    else:
        say(f"would free {decimal(freed)}; do it: {again}")


def _refuse_all(stored: Sequence[Stored], kept: Collection[str], results: Path) -> None:
    if stored and not any(item.folder in kept for item in stored):
        raise SuiteError(
            f"no board in {results} refers to any artifact, so all would go; name suites: harness store gc SUITE"
        )


def _open_remote(url: str) -> tuple[Remote, Holdings]:
    from harness.engine.remote import Remote
    from harness.engine.remote_upkeep import holdings

    remote = Remote(url)
    remote.check_reading()
    return remote, holdings(remote)


def _open(results: Path) -> tuple[Store, list[Stored]]:
    from harness.engine.store import Store
    from harness.engine.upkeep import inventory

    held = Store(results / "store")
    if not held.root.is_dir():
        raise HarnessError(f"{held.root}: there is no store; name its folder: --results DIR")
    return held, inventory(held)


def _kept(
    stored: Sequence[Stored], *, results: Path, suites: Sequence[Path], lenient: bool = False
) -> dict[str, set[str]]:
    """Artifact → who refers to it. Raises HarnessError for a board that does not say what it refers to."""
    from harness.board.devices import model_digest
    from harness.engine.upkeep import keepers, needed
    from harness.session import open_suite

    boards: dict[str, set[str]] = {}
    models: dict[str, set[str]] = {}
    for path in suites:
        planned, _ = open_suite(path, results, whole=True)
        boards[f"board {planned.suite.suite}"] = {step.folder for step in planned.steps}
    for folder in sorted(item for item in results.glob("*") if item.is_dir() and item.name != "store"):
        who, found = f"board {folder.name}", needed(folder)
        if found is None and who not in boards and (folder / "leaderboard.csv").is_file() and not lenient:
            raise SuiteError(
                f"{folder}: its board was written before boards noted which artifacts they refer to; run the suite "
                "again, or name it: harness store gc SUITE"
            )
        boards[who] = boards.get(who, set()) | (found or set())
        models[f"promotion {folder.name}"] = _promoted(folder)
    return keepers(stored, boards=boards, models=models, digest=model_digest)


def _promoted(folder: Path) -> set[str]:
    """Digests of the models that were promoted or bundled. folder: `results/<suite>`."""
    from harness.board.devices import model_digest
    from harness.promote.history import PROMOTIONS_FILE, read
    from harness.promote.parcel import opened

    found = {str(entry.get("model_sha256")) for entry in read(folder / PROMOTIONS_FILE)}
    for path in (folder / "bundles").glob("*"):
        if path.name[:1] != ".":
            with opened(path) as parcel:
                files = {name: parcel.manifest.files[name].sha256 for name in parcel.manifest.model}
            found.add(model_digest(files))
    return found


def _age(modified_s: float) -> str:
    return f"{max(0.0, time.time() - modified_s) / DAY_S:.0f} d"


def _some(names: Sequence[str]) -> str:
    """The first two, and how many more."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
