"""The commands that decide: promote, history."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli_mac import tell_installed
from harness.console import out, say, tolerant
from harness.errors import HarnessError, SuiteError
from harness.session import board_lines, open_suite

if TYPE_CHECKING:
    from harness.engine.plan import Plan
    from harness.promote.promotion import Promoted
    from harness.promote.targets import Target
    from harness.promote.transport import Remote

promotion = typer.Typer()

SuitePath = Annotated[Path, typer.Argument(metavar="SUITE", help="The suite's YAML file.")]
Results = Annotated[Path, typer.Option("--results", envvar="HARNESS_RESULTS", help="Folder of results and the store.")]
RESULTS = Path("results")
Shared = Annotated[
    str | None,
    typer.Option("--store", envvar="HARNESS_STORE", metavar="URL", help="Shared store: s3://bucket/prefix or gs://…"),
]


@promotion.command()
def promote(
    suite: SuitePath,
    model: Annotated[str | None, typer.Option("--model", metavar="ROW", help="Promote this row of the board.")] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="DIR|ssh://…", help="Install into this folder, or send it there.")
    ] = None,
    candidate: Annotated[
        bool,
        typer.Option("--candidate", help="Write the bundle only, to be measured elsewhere; judge, but refuse not."),
    ] = False,
    force: Annotated[
        str | None, typer.Option("--force", metavar="REASON", help="Past the gate; stands wherever the model is shown.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge only; bundle and install nothing.")] = False,
    shared: Shared = None,
    results: Results = RESULTS,
) -> None:
    """Judge the best model by the gate, bundle it, install it."""
    from harness.board.ledger import told_of_readings
    from harness.board.mlflow import Projection
    from harness.promote import promotion as promoting
    from harness.promote import targets
    from harness.terminal import Watch, gate_table

    if force is not None and not force.strip():
        raise SuiteError("--force needs a reason, which stands wherever the model is shown: --force 'why'")
    planned, store = open_suite(suite, results, remote=shared, take="figures")
    folder = results / planned.suite.suite
    if planned.suite.promote is None:
        raise SuiteError(f"{suite} declares no promotion; add: promote: {{target: mimir}}")
    target = targets.target(planned.suite.promote.target)
    place = None if dry_run or candidate else _place(to, target)
    tracking = Projection(planned.suite.suite, folder=Path("mlruns"), record=folder / "runs.json")
    lines = board_lines(planned, store, folder=folder, tracking=tracking, suite=suite, command="promote")
    decision = promoting.decide(
        planned, lines, store, folder=folder, target=target, row=model, watch=lambda total: Watch(out, total=total)
    )
    out.print(gate_table(decision.chosen.row, decision.conditions, told=told_of_readings(lines)))
    if not candidate:
        promoting.check_gate(decision, force=force)
    if dry_run:
        return
    store.bring(decision.chosen.exported.folder)
    done = promoting.promote(
        decision, planned, lines, store, suite=suite, folder=folder, target=target, to=place, force=force
    )
    tolerant(lambda: _register(planned, done, tracking))
    _tell(done, place, target=target)


@promotion.command()
def history(suite: SuitePath, results: Results = RESULTS) -> None:
    """List promotions and rollbacks of a suite, with their reasons."""
    from harness.board.mlflow import default_uri
    from harness.promote.promotion import history as entries_of
    from harness.promote.registry import follow_rollback
    from harness.suite.load import load

    name = load(suite).suite
    entries = entries_of(results / name)
    if not entries:
        raise HarnessError(f"nothing has been promoted from {suite} yet: harness promote {suite}")
    for entry in entries:
        style = "bold yellow" if entry.get("forced") else ""
        say(f"{entry['when'][:19]}  {entry['action']:<9} {entry['bundle']}  by {entry.get('by') or '?'}", style=style)
        if entry.get("reason"):
            say(f"    {entry['reason']}", style=style)
        if entry.get("previous"):
            say(f"    before: {entry['previous']}")
        if entry.get("to"):
            say(f"    in: {entry['to']}")
    if entries[-1]["action"] == "rollback":
        tolerant(lambda: follow_rollback(name, entries=entries, uri=default_uri(Path("mlruns"))))


def _place(to: str | None, target: Target) -> Path | Remote:
    from harness.promote.transport import SCHEME, parse

    if to is None:
        return target.default_folder()
    return parse(to) if to.startswith(SCHEME) else Path(to).expanduser()


def _register(planned: Plan, done: Promoted, tracking: Any) -> None:
    """Add a version to MLflow's registry, if the row has a run there."""
    from harness.promote.registry import register

    keys = [row.scored.key for row in planned.rows if row.row == done.entry["row"]]
    run_id = next((tracking.runs[key] for key in keys if key in tracking.runs), "")
    if run_id:
        register(planned.suite.suite, entry=done.entry, bundle=done.bundle, run_id=run_id, uri=tracking.uri)


def _tell(done: Promoted, place: Path | Remote | None, *, target: Target) -> None:
    say(f"bundle:    {done.bundle} (and .zip)")
    if done.entry["forced"] and done.installed is None:
        say(done.entry["reason"], style="bold yellow")
    if done.installed is not None:
        tell_installed(done.installed, application=target.title)
    elif place is not None:
        say(f"sent to:   {place}\nthere:     harness install {done.bundle.name}.zip --target {target.name}")
    else:
        say(f"candidate: measure it where it shall run: harness bench {done.bundle.name}.zip --audio DIR")
