"""The command line: the only module that prints and exits."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from harness.cli_mac import mac
from harness.cli_promote import RESULTS, Results, Shared, SuitePath, promotion
from harness.cli_run import running
from harness.cli_store import store as upkeep
from harness.console import err, out, tolerant
from harness.errors import HarnessError, MissingError, SuiteError, refused_by_disk
from harness.session import (
    board_lines,
    finder,
    log_devices,
    merge_devices,
    open_suite,
    publish_results,
    write_suite_report,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.board.slices import Sliced
    from harness.board.waterfall import Waterfall
    from harness.engine.estimates import Outlook
    from harness.engine.plan import Plan

app = typer.Typer(
    name="harness",
    help="Fine-tune Russian speech models, score the exported files, promote the best one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


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
    except (HarnessError, OSError) as caught:
        error = caught if isinstance(caught, HarnessError) else refused_by_disk(caught)
        if error is None:
            raise
        first, _, rest = str(error).partition("\n")
        err.print(f"error: {first}", style="bold red", markup=False, highlight=False)
        if rest:
            err.print(rest, markup=False, highlight=False)
        sys.exit(error.exit_code)


app.add_typer(running)
app.add_typer(promotion)
app.add_typer(mac)
app.add_typer(upkeep, name="store")


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
            out.print(f"{what:<8} {name:<18} {first}", markup=False, highlight=False)
    out.print(f"{'metric':<8} {', '.join(get_args(Metric))}", markup=False, highlight=False)


@app.command()
def plan(
    suite: SuitePath,
    cluster: Annotated[
        Path | None,
        typer.Option("--cluster", metavar="FILE", help="Simulate it on the cluster that FILE describes."),
    ] = None,
    shared: Shared = None,
    results: Results = RESULTS,
) -> None:
    """Dry run: every step, cached or to do, and what it will take: clips, hours, disk, time, VRAM."""
    from harness.engine.estimates import outlook
    from harness.engine.fit import check_fit
    from harness.engine.search import prospects, stopped
    from harness.terminal import plan_table, plan_totals

    planned, store = open_suite(suite, results, remote=shared, take="records")
    expected = outlook(planned, store)
    if cluster is not None:
        _show_schedule(planned, expected, cluster)
        return
    out.print(plan_table(planned, expected))
    there = next(folder for folder in (store.root.resolve(), *store.root.resolve().parents) if folder.is_dir())
    for line in plan_totals(planned, expected, free_b=shutil.disk_usage(there).free):
        out.print(line, highlight=False)
    for told in [*prospects(planned.suite), *stopped(planned, store)]:
        out.print(str(told), markup=False, highlight=False)
    check_fit(planned.steps, store, budget=planned.suite.budget)


def _show_schedule(planned: Plan, expected: Outlook, cluster: Path) -> None:
    from harness.engine.schedule import read_cluster, schedule
    from harness.schedule_tables import schedule_table, schedule_totals

    found = schedule(planned.steps, expected, read_cluster(cluster))
    out.print(schedule_table(found))
    for line in schedule_totals(found):
        out.print(line, highlight=False)


@app.command()
def board(
    suite: Annotated[Path | None, typer.Argument(metavar="SUITE", help="Without it: the newest board.")] = None,
    form: Annotated[Form, typer.Option("--format", help="How to print it.")] = Form.table,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Write everything into MLflow anew.")] = False,
    merge: Annotated[
        list[Path] | None, typer.Option("--merge", metavar="FILE", help="Take in what `harness bench` measured.")
    ] = None,
    slices: Annotated[bool, typer.Option("--slices", help="Rather: parts of the sets, and errors by cause.")] = False,
    shared: Shared = None,
    results: Results = RESULTS,
) -> None:
    """Print the leaderboard, best first."""
    from harness.board.mlflow import Projection
    from harness.board.slices import sliced
    from harness.board.waterfall import waterfalls
    from harness.engine.search import stopped
    from harness.engine.store import Store

    falls: list[Waterfall] = []
    ended: list[Text] = []
    if suite is None:
        if merge or slices:
            raise SuiteError("--merge and --slices need the suite: harness board SUITE --slices")
        lines = _newest_board(results, rebuild=rebuild)
    else:
        planned, store = open_suite(suite, results, remote=shared, take="figures")
        folder = results / planned.suite.suite
        tracking = Projection(
            planned.suite.suite,
            folder=Path("mlruns"),
            record=folder / "runs.json",
            find=finder(Store(store.root)),  # a model is not downloaded to be logged
            rebuild=rebuild,
        )
        lines = board_lines(planned, store, folder=folder, tracking=tracking, suite=suite, command="board")
        if not lines:
            raise HarnessError(f"no row of {suite} is scored yet; run it first: harness run {suite}")
        if merge:
            merge_devices(planned, store, folder=folder, files=merge)
        if rebuild or merge:
            lines = publish_results(planned, store, folder, tracking, suite=suite, command="board", succeeded=True)
        if merge:
            tolerant(lambda: log_devices(planned, store, lines, folder=folder, tracking=tracking))
        if slices:
            _show_slices(sliced(lines, planned, store), form=form)
            return
        # Forms for machines hold the board alone.
        falls = waterfalls(planned, store) if form in {Form.table, Form.md} else []
        ended = [Text(str(variant)) for variant in stopped(planned, store)]
    _show(lines, form=form, falls=falls, ended=ended)


def _show(lines: list[dict[str, Any]], *, form: Form, falls: Sequence[Waterfall], ended: Sequence[Text]) -> None:
    """The board; for people with what each export changes and, in a table, the variants that ended early."""
    from harness.board.leaderboard import render
    from harness.board.waterfall import render_waterfalls
    from harness.terminal import device_tables, leaderboard, waterfall_tables

    if form is Form.table:
        boards = leaderboard(lines, width=out.width)
        for table in [*boards, *device_tables(lines), *waterfall_tables(falls, width=out.width), *ended]:
            out.print(table)
    else:
        sys.stdout.write(render(lines, form=form.value))
        if form is Form.md:
            sys.stdout.write(render_waterfalls(falls))


def _show_slices(found: Sequence[Sliced], *, form: Form) -> None:
    from harness.board.slices import render_slices
    from harness.slice_tables import slice_tables

    if form is Form.table:
        for table in slice_tables(found):
            out.print(table)
    else:
        sys.stdout.write(render_slices(found, form=form.value))


@app.command()
def report(
    suite: SuitePath,
    audio: Annotated[
        bool,
        typer.Option("--audio", help="Put recordings into the file, to send it around. With --store, download them."),
    ] = False,
    shared: Shared = None,
    results: Results = RESULTS,
) -> None:
    """Write the report: verdict, leaderboard, charts, mistakes and every utterance, in one HTML file."""
    from harness.board.mlflow import Projection
    from harness.board.waterfall import waterfalls

    planned, store = open_suite(suite, results, remote=shared, take="figures")
    folder = results / planned.suite.suite
    tracking = Projection(planned.suite.suite, folder=Path("mlruns"), record=folder / "runs.json")
    lines = board_lines(planned, store, folder=folder, tracking=tracking, suite=suite, command="report")
    if not lines:
        raise HarnessError(f"no row of {suite} is scored yet; run it first: harness run {suite}")
    if audio and store.remote:
        for selected in {row.scored.inputs["heldout"][0].folder for row in planned.rows}:
            store.bring(selected)
    path = write_suite_report(planned, store, lines, falls=waterfalls(planned, store), folder=folder, audio=audio)
    out.print(f"report: {path}", markup=False, highlight=False)


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
    out.print("where it shows prompts and traces, choose 'Model training' at the top left", highlight=False)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    try:
        code = subprocess.run([*command, "--port", str(port), "--workers", "1"], check=False).returncode
    except KeyboardInterrupt:
        code = 0
    if code:
        raise MissingError(
            f"MLflow ended with exit code {code}; is port {port} taken? Try: harness ui --port {port + 1}"
        )


def _newest_board(results: Path, *, rebuild: bool) -> list[dict[str, Any]]:
    from harness.board.leaderboard import read_csv

    boards = sorted(results.glob("*/leaderboard.csv"), key=lambda path: path.stat().st_mtime)
    if rebuild:
        raise SuiteError("--rebuild needs the suite: harness board SUITE --rebuild")
    if not boards:
        raise HarnessError(f"no suite has a board in {results} yet; run one first: harness run suites/quickstart.yaml")
    err.print(boards[-1].as_posix(), style="dim", markup=False, highlight=False)
    return read_csv(boards[-1])
