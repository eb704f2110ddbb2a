"""The commands that look after the store: list, verify, gc."""

from __future__ import annotations

import time
from pathlib import Path  # noqa: TC003  # Typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from harness.cli_promote import RESULTS, Results
from harness.console import err, out, say
from harness.errors import HarnessError, SuiteError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.engine.store import Store
    from harness.engine.upkeep import Stored

DAY_S = 24 * 3600

store = typer.Typer(help="Look after the store: list, verify, gc.", no_args_is_help=True)


@store.command("list")
def list_artifacts(results: Results = RESULTS) -> None:
    """List the artifacts: size, age, what was made of them, and who refers to them."""
    from rich.table import Table

    held, stored = _open(results)
    kept = _kept(held, stored, results=results, suites=[], lenient=True)
    table = Table(box=None, pad_edge=False)
    for column in ("artifact", "step", "size", "age", "read by", "referred to by"):
        table.add_column(column, justify="right" if column in {"size", "age"} else "left", overflow="fold")
    now = time.time()
    for item in stored:
        readers = [other.name or other.folder for other in stored if item.folder in other.inputs]
        who = ", ".join(sorted(kept.get(item.folder, ()))) or "nobody"
        age = f"{max(0.0, now - item.modified_s) / DAY_S:.0f} d"
        table.add_row(item.folder, item.name or "?", decimal(item.size), age, _some(readers), who)
    out.print(table)
    say(f"{len(stored)} artifacts, {decimal(sum(item.size for item in stored))} in {held.root}")


@store.command()
def verify(results: Results = RESULTS) -> None:
    """Read every file of every artifact again, and name what is damaged, missing or too much."""
    from rich.progress import track

    from harness.engine.upkeep import faults

    held, stored = _open(results)
    found = []
    for item in track(stored, description="verifying", console=err, transient=True):
        found += [(item, fault) for fault in faults(held.root / item.folder)]
    damaged = dict.fromkeys(item.folder for item, _ in found)
    if not found:
        say(f"{len(stored)} artifacts, {decimal(sum(item.size for item in stored))}: all as they were published")
        return
    lines = [f"  {item.folder}{f' ({item.name})' if item.name else ''}: {fault}" for item, fault in found]
    remedy = "remove these folders and run the suite again: what they held is made anew, and the rest is kept"
    raise HarnessError("\n".join([f"{held.root}: {len(damaged)} of {len(stored)} artifacts damaged", *lines, remedy]))


@store.command()
def gc(
    suites: Annotated[list[Path] | None, typer.Argument(metavar="[SUITE]...", help="Keep what these need too.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Do it; without this, only say what would go.")] = False,
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, metavar="DAYS", help="Age of leftovers of killed processes.")
    ] = 7.0,
    results: Results = RESULTS,
) -> None:
    """Free what no board, bundle or promotion refers to, nor a suite that is named, nor a process that runs."""
    from harness.engine.upkeep import remove, wasted

    held, stored = _open(results)
    kept = _kept(held, stored, results=results, suites=suites or [])
    if stored and not kept:
        raise SuiteError(
            f"no board in {results} refers to any artifact, so all would go; name suites: harness store gc SUITE"
        )
    freed = 0
    for item in wasted(held, stored, kept=kept, older_than_s=older_than * DAY_S):
        if delete and not remove(held, item):
            say(f"in use:  {item.path.name}  {item.what}")
            continue
        freed += item.size
        say(f"{'freed' if delete else 'unused'}:  {item.path.name}  {item.what}  {decimal(item.size)}")
    if delete or not freed:
        say(f"freed {decimal(freed)}" if freed else "nothing to free")
    else:
        say(f"would free {decimal(freed)}; do it: harness store gc {' '.join([*map(str, suites or []), '--delete'])}")


def _open(results: Path) -> tuple[Store, list[Stored]]:
    from harness.engine.store import Store
    from harness.engine.upkeep import inventory

    held = Store(results / "store")
    if not held.root.is_dir():
        raise HarnessError(f"{held.root}: there is no store; name its folder: --results DIR")
    return held, inventory(held)


def _kept(
    held: Store, stored: Sequence[Stored], *, results: Path, suites: Sequence[Path], lenient: bool = False
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
    for folder in sorted(item for item in results.iterdir() if item.is_dir() and item.name != held.root.name):
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


def _some(names: Sequence[str]) -> str:
    """The first two, and how many more."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
