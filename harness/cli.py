"""The command line: the only module that prints and exits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from harness.errors import GateRefusedError, HarnessError, MissingError, SuiteError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from harness.core.artifact import Artifact
    from harness.engine.local import Outcome
    from harness.engine.plan import Plan, Step
    from harness.engine.store import Store
    from harness.suite.schema import Suite

MAX_MESSAGE = 200
TOLD: set[str] = set()
"""What MLflow had to complain about; each complaint is shown once."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, by the shell's convention."""

app = typer.Typer(
    name="harness",
    help="Fine-tune Russian speech models, score the exported files, promote the best one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
WIDE = 200
"""Letters in a line of a file or a pipe, where nothing wraps."""
out = Console(soft_wrap=True, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE)
err = Console(stderr=True, soft_wrap=True)

SuitePath = Annotated[Path, typer.Argument(metavar="SUITE", help="The suite's YAML file.")]
Results = Annotated[Path, typer.Option("--results", envvar="HARNESS_RESULTS", help="Folder of results and the store.")]
RESULTS = Path("results")


class Form(StrEnum):
    """Forms of the leaderboard."""

    table = "table"
    csv = "csv"
    json = "json"
    md = "md"


def main() -> None:
    """Entry point: errors become one message and an exit code; bugs keep their traceback."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    try:
        app()
    except HarnessError as error:
        first, _, rest = str(error).partition("\n")
        err.print(f"error: {first}", style="bold red", markup=False, highlight=False)
        if rest:
            err.print(rest, markup=False, highlight=False)
        sys.exit(error.exit_code)


@app.command()
def check(suite: SuitePath) -> None:
    """Validate a suite: all mistakes at once, each with file and line."""
    from harness.suite.load import load
    from harness.suite.model import expand

    loaded = load(suite)
    counts = [
        f"{name}: {len(expand(model, seed=loaded.seed))} variants x {len(model.runnable)} exports"
        for name, model in loaded.models.items()
    ]
    out.print(f"{suite} is sound ({'; '.join(counts)})", markup=False, highlight=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a suite, for editors."""
    from harness.suite.schema import json_schema

    sys.stdout.write(json.dumps(json_schema(), ensure_ascii=False, indent=1) + "\n")


@app.command("list")
def list_kinds() -> None:
    """List the kinds that a suite may name."""
    from typing import get_args

    from harness.suite.kinds import FOLDERS, kinds
    from harness.suite.schema import Metric

    for what in FOLDERS:
        for name, module in kinds(what).items():
            first = (module.__doc__ or "").strip().splitlines()[0]
            out.print(f"{what:<8} {name:<14} {first}", markup=False, highlight=False)
    out.print(f"{'metric':<8} {', '.join(get_args(Metric))}", markup=False, highlight=False)


@app.command()
def plan(suite: SuitePath, results: Results = RESULTS) -> None:
    """Dry run: every step, cached or to do, and what it will take: clips, hours, disk, time."""
    from harness.engine.estimates import outlook
    from harness.terminal import plan_table, plan_totals

    planned, store = _plan(suite, results)
    expected = outlook(planned, store)
    out.print(plan_table(planned, expected))
    there = next(folder for folder in (store.root.resolve(), *store.root.resolve().parents) if folder.is_dir())
    for line in plan_totals(planned, expected, free_b=shutil.disk_usage(there).free):
        out.print(line, highlight=False)


@app.command()
def run(
    suite: SuitePath,
    only: Annotated[str | None, typer.Option("--only", metavar="STAGE", help="Up to this stage only.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Light steps that run side by side.")] = 2,
    results: Results = RESULTS,
) -> None:
    """Prepare, train, export, transcribe, score, and publish the board. Goes on where it stopped."""
    from harness.board.cards import publish_cards
    from harness.board.mlflow import Projection
    from harness.engine.local import run_steps
    from harness.terminal import Watch, summary

    planned, store = _plan(suite, results)
    steps = _up_to(planned, only)
    folder = results / planned.suite.suite
    tracking = Projection(planned.suite.suite, folder=Path("mlruns"), record=folder / "runs.json", find=_finder(store))

    def environment(step: Step) -> dict[str, str]:
        return _tolerant(lambda: tracking.training_environment(step)) or {} if step.stage == "train" else {}

    def on_end(step: Step, outcome: Outcome) -> None:
        if step.stage == "train" and outcome.state in ("done", "failed"):
            _tolerant(lambda: tracking.training_ended(step, succeeded=outcome.state == "done"))

    try:
        with Watch(out, total=len(steps), on_end=on_end) as watch:
            outcomes = run_steps(
                steps, store=store, logs=folder / "logs", listener=watch, jobs=jobs, environment=environment
            )
    except KeyboardInterrupt:
        _tolerant(lambda: tracking.close(attach=[], status="KILLED"))
        err.print(f"\nStopped. Finished steps are kept; go on with: harness run {suite}", markup=False)
        sys.exit(INTERRUPTED)
    failed = [(step, outcomes[step.key]) for step in steps if outcomes[step.key].state == "failed"]
    if any(outcome.state != "cached" for outcome in outcomes.values()):
        out.print(summary(steps, outcomes))
        _tell([step for step in steps if outcomes[step.key].state == "done"], store)
    cards = publish_cards(planned, store, folder=folder)
    if cards and any(outcomes[step.key].state == "done" for step in steps if step.stage == "prepare"):
        out.print(f"dataset cards: {folder / 'cards'}", markup=False, highlight=False)
    _publish(planned, store, folder, tracking, succeeded=not failed)
    for step, outcome in failed:
        err.print(f"failed: {step.name}: {outcome.error}\n  log: {outcome.log}", style="red", markup=False)
    if failed:
        sys.exit(max(outcome.exit_code for _, outcome in failed))


@app.command()
def board(
    suite: Annotated[Path | None, typer.Argument(metavar="SUITE", help="Without it: the newest board.")] = None,
    form: Annotated[Form, typer.Option("--format", help="How to print it.")] = Form.table,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Write everything into MLflow anew.")] = False,
    results: Results = RESULTS,
) -> None:
    """Print the leaderboard, best first."""
    from harness.board.leaderboard import render
    from harness.board.mlflow import Projection
    from harness.terminal import leaderboard

    if suite is None:
        lines = _newest_board(results, rebuild=rebuild)
    else:
        planned, store = _plan(suite, results)
        folder = results / planned.suite.suite
        tracking = Projection(
            planned.suite.suite,
            folder=Path("mlruns"),
            record=folder / "runs.json",
            find=_finder(store),
            rebuild=rebuild,
        )
        lines = _lines(planned, store, tracking)
        if not lines:
            raise HarnessError(f"no row of {suite} is scored yet; run it first: harness run {suite}")
        if rebuild:
            lines = _publish(planned, store, folder, tracking, succeeded=True)
    if form is Form.table:
        for table in leaderboard(lines, width=out.width):
            out.print(table)
    else:
        sys.stdout.write(render(lines, form=form.value))


@app.command()
def ui(port: Annotated[int, typer.Option(help="Port on loopback.")] = 5000) -> None:
    """Open MLflow's web pages on the project's store, on loopback only."""
    from importlib.util import find_spec

    from harness.board.mlflow import default_uri

    if find_spec("mlflow") is None:
        raise MissingError("MLflow is not installed; run: pip install '.[train]'")
    uri = default_uri(Path("mlruns"))
    if uri.startswith("http"):
        out.print(f"MLFLOW_TRACKING_URI names a server, which has pages of its own: {uri}", markup=False)
        return
    Path("mlruns").mkdir(exist_ok=True)
    out.print(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)", markup=False, highlight=False)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    try:
        code = subprocess.run([*command, "--port", str(port), "--workers", "1"], check=False).returncode
    except KeyboardInterrupt:
        code = 0
    if code:
        raise MissingError(
            f"MLflow ended with exit code {code}; is port {port} taken? Try: harness ui --port {port + 1}"
        )


@app.command()
def promote(
    suite: SuitePath,
    model: Annotated[str | None, typer.Option("--model", metavar="ROW", help="Promote this row of the board.")] = None,
    to: Annotated[Path | None, typer.Option("--to", metavar="DIR", help="Install into this folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge only; write nothing.")] = False,
    results: Results = RESULTS,
) -> None:
    """Judge the best model by the gate, bundle it, install it."""
    from harness.board.mlflow import Projection
    from harness.promote import mimir
    from harness.promote.bundle import write_bundle
    from harness.promote.gate import candidate, judge
    from harness.promote.provenance import content_of
    from harness.terminal import gate_table

    planned, store = _plan(suite, results)
    folder = results / planned.suite.suite
    if planned.suite.promote is None:
        raise SuiteError(f"{suite} declares no promotion; add: promote: {{target: mimir}}")
    target = to or (None if dry_run else mimir.default_folder())
    lines = _lines(planned, store, Projection(planned.suite.suite, folder=Path("mlruns"), record=folder / "runs.json"))
    chosen = candidate(planned, lines, exports=tuple(mimir.EXPORTS), row=model)
    conditions = judge(planned.suite.gate, chosen=chosen, plan=planned, board=lines)
    out.print(gate_table(chosen.row, conditions))
    if not all(condition.met for condition in conditions):
        raise GateRefusedError(f"the gate refuses {chosen.row}; the table says which condition it does not meet")
    if dry_run or target is None:
        return
    bundle = write_bundle(content_of(chosen, planned, lines, store, suite=suite), folder=folder / "bundles")
    installed = mimir.install(bundle, export_kind=chosen.export_kind, folder=target)
    out.print(f"bundle:    {bundle} (and .zip)\ninstalled: {installed.path}", markup=False, highlight=False)
    if installed.previous:
        out.print(f"previous:  {installed.previous}", markup=False, highlight=False)


def _tell(steps: Sequence[Step], store: Store) -> None:
    """What finished steps have to say."""
    for step in steps:
        artifact = store.find(step.folder, key=step.key)
        for note in artifact.meta.get("notes", []) if artifact else []:
            out.print(f"note: {step.name}: {note}", markup=False, highlight=False)


def _newest_board(results: Path, *, rebuild: bool) -> list[dict[str, Any]]:
    from harness.board.leaderboard import read_csv

    boards = sorted(results.glob("*/leaderboard.csv"), key=lambda path: path.stat().st_mtime)
    if rebuild:
        raise SuiteError("--rebuild needs the suite: harness board SUITE --rebuild")
    if not boards:
        raise HarnessError(f"no suite has a board in {results} yet; run one first: harness run suites/quickstart.yaml")
    err.print(boards[-1].as_posix(), style="dim", markup=False, highlight=False)
    return read_csv(boards[-1])


def _plan(path: Path, results: Path) -> tuple[Plan, Store]:
    from harness.engine.digests import Digests
    from harness.engine.plan import plan as make_plan
    from harness.engine.store import Store
    from harness.suite.load import load

    suite: Suite = load(path)
    digests = Digests(results / "store" / "digests.json")
    planned = make_plan(suite, digest=digests)
    digests.save()
    return planned, Store(results / "store")


def _finder(store: Store) -> Callable[[Step], Artifact | None]:
    return lambda step: store.find(step.folder, key=step.key)


def _up_to(planned: Plan, only: str | None) -> list[Step]:
    """All steps, or those of one stage with everything that they need."""
    if only is None:
        return list(planned.steps)
    stages = list(dict.fromkeys(step.stage for step in planned.steps))
    if only not in stages:
        raise typer.BadParameter(f"unknown stage '{only}'; this suite has: {', '.join(stages)}", param_hint="--only")
    wanted: set[str] = set()
    pending = [step for step in planned.steps if step.stage == only]
    while pending:
        step = pending.pop()
        if step.key not in wanted:
            wanted.add(step.key)
            pending += step.needs
    return [step for step in planned.steps if step.key in wanted]


def _lines(planned: Plan, store: Store, tracking: Any) -> list[dict[str, Any]]:
    from harness.board.leaderboard import lines

    return lines(planned, store, run_ids=tracking.runs)


def _publish(planned: Plan, store: Store, folder: Path, tracking: Any, *, succeeded: bool) -> list[dict[str, Any]]:
    """Project what is new into MLflow, then write the board's files."""
    from harness.board.leaderboard import publish

    keyed = [step for row in planned.rows for step in (row.scored, row.trained) if step]
    found = {step.key: store.find(step.folder, key=step.key) for step in keyed}
    artifacts = {key: artifact for key, artifact in found.items() if artifact}
    board_lines = _lines(planned, store, tracking)
    _tolerant(lambda: tracking.project(planned, board_lines, artifacts=artifacts))
    board_lines = [{**line, "run_id": tracking.runs.get(_key(planned, line), "")} for line in board_lines]
    publish(board_lines, planned, store, folder=folder)
    status: Literal["FINISHED", "FAILED"] = "FINISHED" if succeeded else "FAILED"
    _tolerant(lambda: tracking.close(attach=[folder / "leaderboard.csv"], status=status))
    return board_lines


def _key(planned: Plan, line: dict[str, Any]) -> str:
    return next(row.scored.key for row in planned.rows if (row.row, row.heldout) == (line["row"], line["heldout"]))


def _tolerant(call: Any) -> Any:
    """A tracking server that is away costs its pages, never the results: `harness board --rebuild` brings them back."""
    try:
        return call()
    except MissingError:
        raise
    except Exception as error:  # noqa: BLE001  # MLflow raises whatever its backend raises
        message = f"MLflow: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if message not in TOLD:
            TOLD.add(message)
            err.print(f"{message[:MAX_MESSAGE]}", style="yellow", markup=False, highlight=False)
            err.print("  the results are safe; later: harness board SUITE --rebuild", style="yellow", markup=False)
        return None
