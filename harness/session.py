"""A suite with its plan and its store, as every command opens them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.console import tell
from harness.errors import HarnessError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from harness.board.waterfall import Waterfall
    from harness.engine.plan import Plan
    from harness.engine.store import Store


def open_suite(path: Path, results: Path, *, whole: bool = False) -> tuple[Plan, Store]:
    """The plan and its store.

    whole: with the variants that searches are known to have stopped: a run walks over them.
    Raises SuiteError with all mistakes of the suite.
    """
    from harness.engine.digests import Digests
    from harness.engine.plan import plan
    from harness.engine.search import surviving
    from harness.engine.store import Store
    from harness.suite.load import load

    suite = load(path)
    digests = Digests(results / "store" / "digests.json")
    planned = plan(suite, digest=digests)
    digests.save()
    store = Store(results / "store")
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

    board = lines(plan, store, run_ids=tracking.runs)
    readings = record(plan, board, folder=folder, command=command, suite=suite)
    if readings.num_damaged:
        tell(f"{folder / LEDGER_FILE}: damaged lines, which are not counted: {readings.num_damaged}")
    board = with_readings(board, readings)
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
