"""A suite with its plan and its store, as every command opens them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from harness.console import err, out, tell, tolerant
from harness.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from harness.board.waterfall import Waterfall
    from harness.core.artifact import Artifact
    from harness.engine.plan import Plan, Step
    from harness.engine.store import Store


def open_suite(
    path: Path,
    results: Path,
    *,
    whole: bool = False,
    remote: str | None = None,
    take: Literal["all", "figures", "records"] = "all",
) -> tuple[Plan, Store]:
    """The plan and its store.

    whole: with the variants that searches are known to have stopped: a run walks over them.
    remote: URL of the store that machines share. take: what the store downloads of what is only there: no models and
    recordings for figures, next to nothing for records.
    Raises SuiteError with all mistakes of the suite; MissingError if the remote store cannot be used.
    """
    from harness.engine.digests import Digests
    from harness.engine.plan import plan
    from harness.engine.remote import Remote
    from harness.engine.search import surviving
    from harness.engine.store import BULKY, Store
    from harness.suite.load import load

    suite = load(path)
    digests = Digests(results / "store" / "digests.json")
    planned = plan(suite, digest=digests)
    digests.save()
    brief = {"all": frozenset[str](), "figures": BULKY, "records": {step.stage for step in planned.steps}}[take]
    store = Store(results / "store", remote=Remote(remote) if remote else None, brief=brief)
    if store.remote:
        store.remote.check() if take == "all" else store.remote.check_reading()
    return planned if whole else surviving(planned, store), store


def board_lines(
    plan: Plan, store: Store, *, folder: Path, tracking: Any, suite: Path, command: str
) -> list[dict[str, Any]]:
    """The board, with what was measured elsewhere and merged; who asks for it has read the sealed sets.

    folder: `results/<suite>`. suite: its file. command: what shows the board.
    """
    from harness.board.devices import measurements_by_row, merged, with_columns
    from harness.board.leaderboard import lines
    from harness.board.ledger import LEDGER_FILE, record, with_readings
    from harness.promote.promotion import with_forced

    board = lines(plan, store, run_ids=tracking.runs)
    readings = record(plan, board, folder=folder, command=command, suite=suite)
    if readings.num_damaged:
        tell(f"{folder / LEDGER_FILE}: damaged lines, which are not counted: {readings.num_damaged}")
    board = with_readings(board, readings)
    if command != "promote":  # a bundle is the same bytes however often it is promoted
        board = with_forced(board, plan, store, folder=folder)
    measurements = merged(folder)
    return with_columns(board, measurements_by_row(plan, store, measurements)) if measurements else board


def merge_devices(plan: Plan, store: Store, *, folder: Path, files: Sequence[Path]) -> None:
    """Take in what `harness bench` measured. Raises HarnessError for a file that is of no row of this suite."""
    from harness.board.devices import DEVICES_FILE, measurements_by_row, read, write

    for path in files:
        found = read(path)
        if not measurements_by_row(plan, store, found):
            names = ", ".join(dict.fromkeys(item.bundle for item in found)) or "nothing"
            raise HarnessError(
                f"{path}: measured {names}, whose files are those of no row of this suite; merge it where it came "
                "from, or measure a bundle of this suite: harness promote SUITE --candidate"
            )
        write(folder / DEVICES_FILE, found)


def log_devices(plan: Plan, store: Store, board: Sequence[dict[str, Any]], *, folder: Path, tracking: Any) -> None:
    """The same into MLflow. Raises what MLflow raises."""
    from harness.board.devices import log_to_mlflow, measurements_by_row, merged

    log_to_mlflow(measurements_by_row(plan, store, merged(folder)), board, uri=tracking.uri)


def write_suite_report(
    plan: Plan,
    store: Store,
    board: list[dict[str, Any]],
    *,
    falls: Sequence[Waterfall],
    folder: Path,
    audio: bool = False,
) -> Path:
    """`report.html` of a board that is not empty, and of what its exports change.

    folder: `results/<suite>`. audio: with recordings in it.
    """
    from harness.board.report import write_report
    from harness.promote.outlook import outlook

    promotion = outlook(plan, board, store, folder=folder)
    return write_report(plan, store, board=board, folder=folder, falls=falls, promotion=promotion, audio=audio)


def finder(store: Store) -> Callable[[Step], Artifact | None]:
    return lambda step: store.find(step.folder, key=step.key)


def publish_results(
    plan: Plan, store: Store, folder: Path, tracking: Any, *, suite: Path, command: str, succeeded: bool
) -> list[dict[str, Any]]:
    """Project what is new into MLflow, then write the board's files."""
    from harness.board.leaderboard import publish
    from harness.board.slices import publish_slices, sliced
    from harness.board.waterfall import publish_waterfalls, waterfalls
    from harness.engine.search import stopped
    from harness.engine.upkeep import write_needed

    ended = stopped(plan, store)
    keyed = [step for row in plan.rows for step in (row.scored, row.trained) if step]
    keyed += [variant.trial for variant in ended]
    found = {step.key: store.find(step.folder, key=step.key) for step in keyed}
    artifacts = {key: artifact for key, artifact in found.items() if artifact}
    lines = board_lines(plan, store, folder=folder, tracking=tracking, suite=suite, command=command)
    write_needed(plan.steps, folder=folder)
    tolerant(lambda: tracking.project(plan, lines, artifacts=artifacts, stopped=ended))
    lines = [{**line, "run_id": tracking.runs.get(_key(plan, line), "")} for line in lines]
    publish(lines, plan, store, folder=folder)
    falls = waterfalls(plan, store)
    publish_waterfalls(falls, folder=folder)
    publish_slices(sliced(lines, plan, store), folder=folder)
    attach = [suite, folder / "leaderboard.csv"]
    attach += _attached_report(plan, store, lines, falls=falls, folder=folder) if lines else []
    status: Literal["FINISHED", "FAILED"] = "FINISHED" if succeeded else "FAILED"
    tolerant(lambda: tracking.close(attach=attach, status=status))
    return lines


def _attached_report(
    plan: Plan, store: Store, lines: list[dict[str, Any]], *, falls: Sequence[Waterfall], folder: Path
) -> list[Path]:
    """The results are there without it. Returns it, if it was written."""
    try:
        path = write_suite_report(plan, store, lines, falls=falls, folder=folder)
    except HarnessError as error:
        err.print(f"no report: {error}", style="yellow", markup=False)
        return []
    out.print(f"report: {path}", markup=False, highlight=False)
    return [path]


def _key(plan: Plan, line: dict[str, Any]) -> str:
    return next(row.scored.key for row in plan.rows if (row.row, row.heldout) == (line["row"], line["heldout"]))
