"""MLflow's own pages on a projected suite, as people use them: columns, sorting, comparing, models.

The projection reaches the server over HTTP. HARNESS_SCREENSHOTS names a folder to keep the pictures in.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from harness.board.leaderboard import lines
from tests.board.test_mlflow import project
from tests.boards import SUITE, finished
from tests.browsers import chromium

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from harness.board.leaderboard import Line

START_S = 60
WAIT_MS = 15_000
QUIET = """
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
"""
"""A panel of MLflow opens itself over the page at the first visit."""
SHOWN = ("variant", "export", "wer", "wer_lo", "wer_hi", "rtf", "size_mib")
HIDDEN = ("Dataset", "Source", "Models")


@contextmanager
def served(database: Path) -> Iterator[str]:
    """The address of MLflow's server, started as `harness ui` starts it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", f"sqlite:///{database.as_posix()}"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (database.parent / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=database.parent, stdout=log, stderr=log)
    try:
        for _ in range(START_S * 5):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        family = [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]
        for process in family:
            process.terminate()
        psutil.wait_procs(family, timeout=10)
        server.wait(timeout=10)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[Line]]]:
    """A server that has a suite, and the suite's board."""
    folder = tmp_path_factory.mktemp("served")
    done = finished(folder / "suite", suite=SUITE.replace("[1e-5, 3e-5]", "[3e-5]"))
    with served(folder / "mlflow.db") as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", url)
        project(done, folder)
        yield url, lines(done.plan, done.store, run_ids={})


@pytest.fixture(scope="module")
def page(board: tuple[str, list[Line]]) -> Iterator[Any]:
    """The runs of the suite, in the browser."""
    with chromium() as browser, browser.new_context(viewport={"width": 1440, "height": 620}) as session:
        session.set_default_timeout(WAIT_MS)
        yield experiment(session, board[0], "small")


def experiment(session: Any, url: str, name: str) -> Any:
    """MLflow opens on its part for prompts and traces; the other one is a click away."""
    session.add_init_script(QUIET)
    opened = session.new_page()
    opened.goto(f"{url}/#/experiments")
    opened.get_by_text("Model training").first.click()
    opened.get_by_role("link", name=name, exact=True).first.click()
    opened.locator(".ag-row").first.wait_for()
    return opened


def choose_columns(page: Any) -> None:
    page.get_by_role("button", name="Columns").click()
    search = page.get_by_placeholder("Search columns")
    for name in (*SHOWN, *HIDDEN):
        search.fill(name)
        page.locator("[class*=tree-title]").filter(has_text=re.compile(f"^{name}$")).click()
    page.keyboard.press("Escape")


def show_set(page: Any, heldout: str) -> None:
    search = page.get_by_placeholder("metrics.rmse < 1")
    search.fill(f'tags.heldout = "{heldout}"')
    search.press("Enter")


def sort_by_wer(page: Any) -> None:
    """The first click puts the worst first."""
    for order in ("false", "true"):
        page.locator(".ag-header-cell[col-id='metrics.`wer`']").click()
        page.wait_for_url(re.compile(f"orderByKey=metrics.%60wer%60&orderByAsc={order}"))


def shown(page: Any) -> list[tuple[str, float]]:
    """Name and WER of the rows on the screen, from the top; what looks cut off is there as a whole."""
    found = page.evaluate(
        """() => {
            const rows = [...document.querySelectorAll('.ag-row[row-index]')];
            const cells = {};
            for (const row of rows) {
                const number = Number(row.getAttribute('row-index'));
                const name = row.querySelector('[col-id="attributes.`Run Name`"] a');
                const wer = row.querySelector('[col-id="metrics.`wer`"]');
                cells[number] ??= ['', ''];
                if (name) cells[number][0] = name.innerText;
                if (wer) cells[number][1] = wer.innerText;
            }
            return Object.keys(cells).map(Number).sort((a, b) => a - b).map((number) => cells[number]);
        }"""
    )
    return [(name, float(wer or "nan")) for name, wer in found]


def eventually(read: Callable[[], Any], expected: Any) -> Any:
    """What is read once it is as expected, or after WAIT_MS."""
    until = time.monotonic() + WAIT_MS / 1000
    while (found := read()) != expected and time.monotonic() < until:
        time.sleep(0.1)
    return found


def select(page: Any, *rows: int) -> None:
    for row in rows:
        page.locator(f".ag-row[row-index='{row}'] .ag-selection-checkbox").click()


def keep(page: Any, name: str, folder: Path) -> None:
    place = Path(os.environ.get("HARNESS_SCREENSHOTS") or folder)
    page.mouse.move(700, 5)
    page.screenshot(path=place / f"{name}.png")
    assert (place / f"{name}.png").stat().st_size > 10_000


def values_beside(name: Any) -> Any:
    """The box of values whose names are in another one."""
    return name.evaluate_handle(
        """link => {
            const top = (box) => box.getBoundingClientRect().top;
            const own = link.closest('.ReactVirtualized__Grid');
            const grids = [...document.querySelectorAll('.ReactVirtualized__Grid')];
            return grids.find((grid) => grid !== own && Math.abs(top(grid) - top(own)) < 2);
        }"""
    )


def compare(page: Any) -> None:
    """Of the runs that are selected; ends at the metrics."""
    page.get_by_role("button", name="Compare").click()
    page.wait_for_url(re.compile("compare-runs"))
    first = page.get_by_role("link", name="audio_s", exact=True)
    first.scroll_into_view_if_needed()
    # Names and values lie in two boxes, which scroll together only by hand.
    box = first.bounding_box()
    page.mouse.move(box["x"] + 600, box["y"])
    page.mouse.wheel(0, 3000)
    page.wait_for_function("grid => grid.scrollTop > 0", arg=values_beside(first))
    first.evaluate(
        "link => { const grid = link.closest('.ReactVirtualized__Grid'); grid.scrollTop = grid.scrollHeight }"
    )
    page.get_by_role("link", name="wer", exact=True).wait_for()


def beside(page: Any, metric: str) -> list[str]:
    """The values of a metric: the table is of cells at places, without rows."""
    found: list[str] = page.get_by_role("link", name=metric, exact=True).evaluate(
        """link => {
            const cells = [...document.querySelectorAll('.ReactVirtualized__Grid__innerScrollContainer > *')];
            const own = cells.find((cell) => cell.contains(link));
            const isBeside = (cell) => Math.abs(cell.getBoundingClientRect().top - own.getBoundingClientRect().top) < 2;
            return cells.filter((cell) => cell !== own && isBeside(cell)).map((cell) => cell.innerText.trim());
        }"""
    )
    return found


def test_runs_are_sorted_and_compared(page: Any, board: tuple[str, list[Line]], tmp_path: Path) -> None:
    """One walk through the pages: each loads for seconds."""
    _, lines_ = board
    show_set(page, "test")
    choose_columns(page)
    sort_by_wer(page)
    expected = [(f"{line['row']} test", line["wer"]) for line in lines_ if line["heldout"] == "test"]
    assert eventually(lambda: shown(page), expected) == expected
    select(page, 0, 2)
    keep(page, "mlflow-runs", tmp_path)

    compare(page)
    values = [f"{round(expected[place][1], 3):g}" for place in (0, 2)]
    assert eventually(lambda: beside(page, "wer"), values) == values
    keep(page, "mlflow-compare", tmp_path)


def test_models_are_shown_with_figures_and_versions(page: Any, board: tuple[str, list[Line]], tmp_path: Path) -> None:
    url, lines_ = board
    names = {line["row"] for line in lines_}
    page.goto(f"{url}/#/experiments/1/models")
    page.locator(".ag-row").first.wait_for()
    listed = page.locator(".ag-pinned-left-cols-container .ag-row").all_inner_texts()
    assert {name for name in names if any(name in text for text in listed)} == names
    assert len(listed) == len(names)
    sets = page.locator(".ag-header-group-cell").all_inner_texts()
    assert any("Dataset:\ndev" in text for text in sets)
    keep(page, "mlflow-models", tmp_path)

    page.goto(f"{url}/#/models/small")
    versions = page.get_by_role("row").filter(has_text=re.compile(r"^Version \d"))
    versions.nth(len(names) - 1).wait_for()
    assert versions.count() == len(names)
    (best,) = [text for text in versions.all_inner_texts() if "best" in text.split()]
    assert next(line["row"] for line in lines_ if line["heldout"] == "dev") in best
