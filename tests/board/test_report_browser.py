"""The report as people meet it: in a browser, from disk."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from harness.board.leaderboard import lines
from harness.board.report import write_report
from harness.board.waterfall import waterfalls
from harness.core.manifests import read_manifest, write_manifests
from tests.board.test_report import keep_recordings, rewrite_hypotheses
from tests.boards import NUM_UTTERANCES, finished, record_anew
from tests.browsers import chromium, opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LAPTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
HOSTILE = (
    "<script>window.ran = 1</script>",
    "</script><script>window.ran = 2</script>",
    '"onmouseover="window.ran=3',
    "<img src=x onerror=window.ran=4>",
    "<!--<script>",
    "\u202eяинелварпан\u202c",
    "\u2028{{7*7}}",
)
"""Markup that would tell that it ran, and marks that turn the direction of writing."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


def heard(row: str, heldout: str, number: int, text: str) -> str | None:
    """The untrained model fails once, drops a word, hears another, adds two; the trained ones hear all."""
    if "zero-shot" not in row:
        return text
    if number == 2:
        return None
    words = text.split()
    changed = {0: words[1:], 1: [words[0], "окнам", *words[2:]], 3: [*words[:2], "да", "да", *words[2:]]}
    return " ".join(changed.get(number, words))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = finished(tmp_path_factory.mktemp("plain"), heard=heard)
    keep_recordings(done, number=4)
    falls = waterfalls(done.plan, done.store)
    board = lines(done.plan, done.store, run_ids={})
    return write_report(done.plan, done.store, board=board, folder=done.path.parent / "results" / "small", falls=falls)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = finished(tmp_path_factory.mktemp("hostile"), heard=heard)
    rows = tuple(
        replace(row, row=f"{row.row}{text}", variant=f"{row.variant}{HOSTILE[0]}", export=f"{row.export}{HOSTILE[3]}")
        for row, text in zip(done.plan.rows, HOSTILE * 3, strict=False)
    )
    for folder in done.store.root.glob("select-*"):
        write_manifests(
            folder,
            [
                replace(item, speaker=f"{HOSTILE[number % len(HOSTILE)]} speaker")
                for number, item in enumerate(read_manifest(folder))
            ],
        )
        record_anew(folder)

    def spoil(row: dict[str, Any]) -> dict[str, Any]:
        text = HOSTILE[int(row["id"][1:]) % len(HOSTILE)]
        fields = ("id", "reference", "hypothesis", "reference_norm", "hypothesis_norm", "error")
        return row | {name: f"{row[name]} {text}" for name in fields if row[name]}

    rewrite_hypotheses(done, spoil)
    plan = replace(done.plan, rows=rows)
    board = lines(plan, done.store, run_ids={})
    board = [{**line, "note": HOSTILE[0], "leakage": HOSTILE[2], "device": HOSTILE[1]} for line in board]
    promotion = {"row": board[0]["row"], "sentences": list(HOSTILE)}
    falls = waterfalls(plan, done.store)
    folder = done.path.parent / "results" / "small"
    return write_report(plan, done.store, board=board, folder=folder, falls=falls, promotion=promotion)


def go_to_utterances(page: Any) -> None:
    """Only what is near the screen is drawn."""
    page.locator("#list").scroll_into_view_if_needed()
    page.wait_for_selector(".utterance")


def shown(page: Any) -> list[str]:
    """Rows of the board on the screen, from the top."""
    found: list[str] = page.locator("#board tbody tr:visible td.name bdi").all_inner_texts()
    return found


def test_sorting_and_filtering_the_leaderboard(browser: Any, report: Path) -> None:
    with opened(browser, report, **LAPTOP) as page:
        assert len(shown(page)) == 12
        page.locator("#board-set").select_option("test")
        page.locator("#board-filter").fill("ONNX zero")
        assert shown(page) == ["base_zero-shot_onnx-fp32"]
        assert page.locator("#board-count").inner_text() == "1 of 12"
        page.locator("#board-filter").fill("")
        wer = page.locator("#board th[data-column=wer]")
        wer.locator("button").click()
        assert "zero-shot" in shown(page)[-1]
        wer.locator("button").click()
        assert wer.get_attribute("aria-sort") == "descending"
        assert "zero-shot" in shown(page)[0]


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Three models on a GPU, the others on a CPU, ten times as slow; one was measured on a Mac besides."""
    done = finished(tmp_path_factory.mktemp("devices"))
    board = [
        {**line, "device": "a GPU" if "onnx" in line["row"] else "a CPU", "rtf/studio-metal": None}
        for line in lines(done.plan, done.store, run_ids={})
    ]
    for line in board:
        line["rtf"] = (0.01 if line["device"] == "a GPU" else 0.1) * (2 - line["wer"])
        if line["row"] == "base_lr3e-5_ggml-f16":
            line["rtf/studio-metal"] = 0.05
    return write_report(done.plan, done.store, board=board, folder=done.path.parent / "results" / "small"), board


def test_speed_is_compared_within_one_device(browser: Any, two_devices: tuple[Path, list[dict[str, Any]]]) -> None:
    path, board = two_devices
    with opened(browser, path, **LAPTOP) as page:
        page.locator("#cost").scroll_into_view_if_needed()
        page.wait_for_selector("#chart-rtf .main-svg")
        assert page.locator("#device option").all_inner_texts() == ["a CPU", "a GPU", "studio-metal"]
        for place in ("a GPU", "a CPU", "studio-metal"):
            page.locator("#device").select_option(place)
            front, *points = page.evaluate("document.getElementById('chart-rtf').data.map((trace) => trace.x)")
            column = "rtf" if place.startswith("a ") else f"rtf/{place}"
            own = [line for line in board if line["heldout"] == "test" and (column != "rtf" or line["device"] == place)]
            measured = sorted(line[column] for line in own if line[column] is not None)
            assert sorted(x for (x,) in points) == pytest.approx(measured)
            # The slower a model here, the fewer its errors: all are on the front of their own device.
            assert front == pytest.approx(measured)


def test_sorting_by_speed_keeps_devices_apart(browser: Any, two_devices: tuple[Path, list[dict[str, Any]]]) -> None:
    path, board = two_devices
    device = {line["row"]: line["device"] for line in board}
    with opened(browser, path, **LAPTOP) as page:
        page.locator("#board-set").select_option("test")
        by_rtf = page.locator("#board th[data-column=rtf] button")
        for _ in ("ascending", "descending"):
            by_rtf.click()
            assert [device[row] for row in shown(page)] == ["a CPU"] * 3 + ["a GPU"] * 3
        fastest = [line["row"] for line in sorted(board, key=lambda line: line["rtf"]) if line["heldout"] == "test"]
        assert shown(page)[::-1] == fastest
        page.locator("#board th[data-column=wer] button").click()
        assert [device[row] for row in shown(page)] == ["a CPU", "a GPU"] * 3, "accuracy is the same everywhere"


def test_filters_of_utterances_and_their_alignment(browser: Any, report: Path) -> None:
    with opened(browser, report, **LAPTOP) as page:
        go_to_utterances(page)
        count = page.locator("#count")
        assert count.inner_text() == f"{NUM_UTTERANCES} of {NUM_UTTERANCES} utterances"
        for kind, found in (
            ("failed", ["u2"]),
            ("wrong", ["u0", "u1", "u2", "u3"]),
            ("differ", ["u0", "u1", "u2", "u3"]),
        ):
            page.locator("#kind").select_option(kind)
            ids = page.locator(".utterance").evaluate_all("all => all.map((one) => one.dataset.id)")
            assert ids == found, kind
        utterance = {name: page.locator(f".utterance[data-id={name}]") for name in ids}
        assert utterance["u0"].locator("del").all_inner_texts() == ["за"]
        assert utterance["u1"].locator("mark").all_inner_texts() == ["окнам"]
        assert utterance["u3"].locator("ins").all_inner_texts() == ["да", "да"]
        assert "failed: RuntimeError: out of memory" in utterance["u2"].inner_text()
        page.locator("#search").fill("ОКНАМ")
        assert count.inner_text() == f"1 of {NUM_UTTERANCES} utterances"
        page.locator("#kind").select_option("all")
        page.locator("#search").fill("u23")
        assert page.locator(".utterance").count() == 1
        page.locator("#search").fill('"окном шумел"')
        assert count.inner_text() == f"{NUM_UTTERANCES} of {NUM_UTTERANCES} utterances"


def test_errors_on_the_page_are_those_of_the_score(browser: Any, report: Path) -> None:
    """Two programs align: the one that scored and the page."""
    with opened(browser, report, **LAPTOP) as page:
        go_to_utterances(page)
        page.locator("#kind").select_option("wrong")
        marked = page.locator(".utterance:not(:has(.failed))").evaluate_all(
            """all => all.map((one) => {
                const labels = [...one.querySelector("table").querySelectorAll("[data-errors]")];
                const counted = labels.reduce((sum, label) => sum + Number(label.dataset.errors), 0);
                return [one.querySelectorAll("mark, del, ins").length, counted];
            })"""
        )
        assert marked == [[1, 1], [1, 1], [2, 2]]


def test_a_mistake_leads_to_its_utterances(browser: Any, report: Path) -> None:
    with opened(browser, report, **LAPTOP) as page:
        page.locator("#mistakes-row").select_option("base_zero-shot_onnx-fp32")
        found = [column.locator("li").all_inner_texts() for column in page.locator(".mistakes ol").all()]
        assert [[item.split() for item in column] for column in found] == [
            [["окном", "→", "окнам", "1"]],
            [["за", "1"]],
            [["да", "2"]],
        ]
        page.locator(".mistakes button", has_text="окном → окнам").click()
        assert page.locator("#search").input_value() == "окнам"
        assert page.locator(".utterance").count() == 1


def test_a_clip_plays(browser: Any, report: Path) -> None:
    with opened(browser, report, **LAPTOP) as page:
        go_to_utterances(page)
        buttons = page.locator(".about button")
        assert buttons.count() == 4
        buttons.first.click()
        page.wait_for_selector(".about button.playing")
        page.wait_for_selector(".about button.playing", state="detached", timeout=5000)  # two seconds later, at its end
        assert buttons.first.inner_text() == "▶ play"  # not: not found


def colours(page: Any) -> tuple[int, int]:
    """Brightness of paper and ink, from 0 to 765."""
    found = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    paper, ink = (sum(map(int, colour[4:-1].split(","))) for colour in found)
    return paper, ink


@pytest.mark.parametrize("size", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_it_fits_the_screen_in_light_and_dark(browser: Any, report: Path, size: dict[str, Any]) -> None:
    with opened(browser, report, color_scheme="light", **size) as page:
        for section in ("cost", "learning", "exports", "slices", "mistakes", "utterances"):
            page.locator(f"#{section}").scroll_into_view_if_needed()
        page.wait_for_selector("#chart-size .main-svg")
        page.wait_for_selector("#chart-dev_wer .main-svg")
        assert page.evaluate("document.documentElement.scrollWidth") == size["viewport"]["width"]
        paper, ink = colours(page)
        assert paper > ink
        grid = page.locator("#chart-size .xgrid").first
        light = grid.evaluate("line => getComputedStyle(line).stroke")
        page.emulate_media(color_scheme="dark")
        paper, ink = colours(page)
        assert paper < ink
        page.wait_for_function(
            "light => getComputedStyle(document.querySelector('#chart-size .xgrid')).stroke !== light", arg=light
        )


def test_nothing_in_the_data_runs(browser: Any, hostile: Path) -> None:
    with opened(browser, hostile, **LAPTOP) as page:
        for box in page.locator("#picks input").all():
            box.check()
        for section in ("cost", "learning", "exports", "slices", "mistakes", "utterances"):
            page.locator(f"#{section}").scroll_into_view_if_needed()
        page.wait_for_selector("#chart-size .main-svg")
        go_to_utterances(page)
        page.locator("#order").select_option("errors")
        page.locator("#raw").check()
        page.locator("#raw").uncheck()
        text = page.locator("body").inner_text()
        for line in HOSTILE[:5]:
            assert line in text
        page.mouse.move(300, 300)
        assert page.evaluate("window.ran") is None
        assert page.locator("main img, main script").count() == 0
