from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from harness.board import report
from harness.board.leaderboard import lines, publish, read_csv
from harness.board.report import write_report
from harness.board.waterfall import waterfalls
from harness.core.manifests import read_manifest, write_manifests
from harness.engine.store import Store
from harness.errors import DataError, MissingError
from tests.boards import NUM_UTTERANCES, Finished, finished, record_anew

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.board.leaderboard import Line

KEPT = 8


class Page(HTMLParser):
    """What a browser reads: attributes of every element, and the text of scripts and tables."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, text: str) -> None:
        if self.elements:
            self.texts.append((*self.elements[-1], text))

    def script(self, name: str) -> str:
        return "".join(text for tag, found, text in self.texts if tag == "script" and found.get("id") == name)

    def data(self) -> Any:
        return json.loads(self.script("data"))

    def unpacked(self, name: str) -> Any:
        return json.loads(gzip.decompress(base64.b64decode(self.script(name))))

    def ids(self) -> set[str | None]:
        return {found.get("id") for _, found in self.elements}

    def words(self) -> str:
        return " ".join(text for tag, _, text in self.texts if tag not in {"script", "style"})


def rewrite_hypotheses(done: Finished, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """As if models had heard, and people had written, something else."""
    for path in done.store.root.glob("score-*/hypotheses.jsonl"):
        rows = [change(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        record_anew(path.parent)


def keep_recordings(done: Finished, *, number: int) -> None:
    """Only those of the first utterances of every set are still there."""
    for folder in done.store.root.glob("select-*"):
        for index in range(number, NUM_UTTERANCES):
            (folder / f"{index}.wav").unlink()
        record_anew(folder)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished(tmp_path_factory.mktemp("template"))


@pytest.fixture
def done(template: Finished, tmp_path: Path) -> Finished:
    shutil.copytree(template.path.parent, tmp_path, dirs_exist_ok=True)
    return Finished(tmp_path / template.path.name, template.plan, Store(tmp_path / "results" / "store"))


def board_of(done: Finished) -> list[Line]:
    return lines(done.plan, done.store, run_ids={row.scored.key: "a run" for row in done.plan.rows})


def folder_of(done: Finished) -> Path:
    return done.path.parent / "results" / "small"


def page_of(done: Finished, *, board: list[Line] | None = None, **more: Any) -> Page:
    path = write_report(done.plan, done.store, board=board or board_of(done), folder=folder_of(done), **more)
    assert path == folder_of(done) / "report.html"
    return Page(path)


def test_figures_are_those_of_the_leaderboard(done: Finished) -> None:
    board = board_of(done)
    publish(board, done.plan, done.store, folder=folder_of(done))
    page = page_of(done, board=board)
    published = read_csv(folder_of(done) / "leaderboard.csv")
    assert page.data()["board"] == published
    cells = [found for tag, found in page.elements if tag == "td" and "data-value" in found]
    shown = {found["data-column"] for found in cells}
    assert {"rank", "row", "wer", "cer", "rtf", "size_mib", "num_failed"} <= shown
    for name in shown:
        values = [found["data-value"] for found in cells if found["data-column"] == name]
        assert values == ["" if line[name] is None else str(line[name]) for line in published], name


def test_only_columns_that_hold_something_are_shown(done: Finished) -> None:
    board = [{**line, "silence_wpm": 1.25 if line["rank"] == 2 else None} for line in board_of(done)]
    shown = {found.get("data-column") for tag, found in page_of(done, board=board).elements if tag == "th"}
    assert "silence_wpm" in shown
    assert "peak_vram_mib" not in shown  # nothing was measured


def test_transcripts_are_packed_with_their_errors(done: Finished) -> None:
    columns = page_of(done).unpacked("set-0")
    assert columns["rows"] == [row.row for row in done.plan.rows if row.heldout == "test"]
    row = columns["rows"].index("base_zero-shot_onnx-fp32")
    assert sum(columns["texts"][at][3 * number + 2] for at, number in enumerate(columns["heard"][row])) == 12
    # As written, as compared (0: as the reference), errors.
    right, wrong = "за окном шумел холодный ветер номер ", "за окнам шумел холодный ветер номер "
    assert columns["texts"][0] == [f"{wrong}0", f"{wrong}ноль", 1]
    assert columns["texts"][7] == [f"{wrong}7", f"{wrong}семь", 1, f"{right}7", 0, 0]
    assert columns["references"][7] == f"{right}7"


def test_a_failed_utterance(tmp_path: Path) -> None:
    def heard(row: str, heldout: str, number: int, text: str) -> str | None:
        return None if number == 3 and heldout == "test" and "ggml" in row else text

    page = page_of(finished(tmp_path, heard=heard))
    number = page.data()["sets"].index("test")
    columns = page.unpacked(f"set-{number}")
    row = columns["rows"].index("base_zero-shot_ggml-f16")
    assert (columns["heard"][row][3], columns["reasons"][row]) == (-1, {"3": "RuntimeError: out of memory"})
    assert "base_zero-shot_ggml-f16 failed on 1 of 24 utterances of test; all their words count as deleted" in (
        page.words()
    )


def test_sections_without_data_do_not_appear(done: Finished) -> None:
    assert {"learning", "mistakes", "utterances"} <= page_of(done).ids()
    assert "exports" not in page_of(done).ids()
    assert "exports" in page_of(done, falls=waterfalls(done.plan, done.store)).ids()
    assert "learning" not in page_of(replace(done, plan=replace(done.plan, rows=untrained(done)))).ids()


def untrained(done: Finished) -> tuple[Any, ...]:
    return tuple(replace(row, trained=None) for row in done.plan.rows)


def test_curves_and_what_was_no_number(done: Finished) -> None:
    (path, *_) = sorted(done.store.root.glob("train-*/curves.jsonl"))
    entries = [{"step": step, "loss": float("nan") if step > 500 else 1 / step} for step in range(1, 1001)]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    record_anew(path.parent)
    series = sorted((item["series"] for item in page_of(done).data()["curves"]), key=len)
    assert list(series[1]) == ["loss", "learning_rate", "dev_loss", "dev_wer"]
    assert series[1]["dev_wer"] == [[100, 0.1]]
    assert len(series[0]["loss"]) == 250
    assert series[0]["loss"][1] == [3, 1 / 3]


def test_a_figure_that_is_no_number_is_told(done: Finished) -> None:
    board = board_of(done)
    board[1]["latency_p95_ms"] = float("nan")
    page = page_of(done, board=board)
    assert page.data()["board"][1]["latency_p95_ms"] is None
    assert f"{board[1]['row']} on test: latency_p95_ms is nan; measure it again" in page.words()


def test_marks_stand_on_the_page(done: Finished) -> None:
    board = [{**line, "leakage": "the reader is known", "note": "it cannot write ё"} for line in board_of(done)]
    promotion = {"row": board[0]["row"], "sentences": ["It would be promoted."]}
    words = page_of(done, board=board, promotion=promotion).words()
    for said in ("Leakage allowed, the figures may be too good: the reader is known", "it cannot write ё"):
        assert said in words
    assert words.count("promoted") > words.count("It would be promoted.") == 1


def test_nothing_comes_from_elsewhere_and_only_known_scripts_run(done: Finished) -> None:
    page = page_of(done)
    references = [found[name] for _, found in page.elements for name in ("src", "href", "action") if name in found]
    assert {str(value)[0] for value in references} == {"#"}
    assert not [found for _, found in page.elements if any(name.startswith("on") for name in found)]
    policy = next(found["content"] for _, found in page.elements if found.get("http-equiv"))
    assert policy is not None
    allowed = set(re.findall(r"'(sha256-[^']+)'", policy))
    inline = [text for tag, found, text in page.texts if tag == "script" and not found and text.strip()]
    charts = gzip.decompress(base64.b64decode(page.script("plotly"))).decode()
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (*inline, charts)]
    assert allowed == {f"sha256-{value}" for value in hashes}
    assert "default-src 'none'" in policy


@pytest.mark.parametrize(
    "text", ["</script><script>alert(1)</script>", "<!--<script>", "a\u2028b", '"onload="x', "&lt;"]
)
def test_names_come_back_as_they_were(done: Finished, text: str) -> None:
    rows = tuple(replace(row, row=f"{row.row}{text}") for row in done.plan.rows)
    strange = replace(done, plan=replace(done.plan, rows=rows))
    clean = page_of(done)
    page = page_of(strange)
    assert [line["row"] for line in page.data()["board"]] == [line["row"] + text for line in clean.data()["board"]]
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in clean.elements]


def test_recordings_are_linked_from_the_store_and_from_nowhere_else(done: Finished, tmp_path: Path) -> None:
    keep_recordings(done, number=KEPT)
    (tmp_path / "secret.wav").write_bytes(b"RIFF")
    for folder in done.store.root.glob("select-*"):
        utterances = read_manifest(folder)
        (folder / "two words #1?.wav").write_bytes((folder / "1.wav").read_bytes())
        utterances[0] = replace(utterances[0], audio="../../../secret.wav")
        utterances[1] = replace(utterances[1], audio="two words #1?.wav", speaker="anna")
        write_manifests(folder, utterances)
        record_anew(folder)
    page = page_of(done)
    columns = page.unpacked("set-0")
    (selected,) = next(row for row in done.plan.rows if row.heldout == "test").scored.inputs["heldout"]
    assert columns["audio"][:3] == [
        None,
        f"../store/{selected.folder}/two%20words%20%231%3F.wav",
        f"../store/{selected.folder}/2.wav",
    ]
    assert columns["speakers"][:2] == [None, "anna"]
    num_gone = NUM_UTTERANCES - KEPT + 1
    told = f"test: {num_gone} of {NUM_UTTERANCES} recordings are not in the store of this machine"
    assert told in page.words()


def test_recordings_in_shards_are_told_and_can_be_embedded(done: Finished) -> None:
    for folder in done.store.root.glob("select-*"):
        content = (folder / "0.wav").read_bytes()
        (folder / "00000.tar").write_bytes(b"\0" * 512 + content)
        utterances = [
            replace(item, audio=f"00000.tar/{item.id}.wav@512+{len(content)}") for item in read_manifest(folder)
        ]
        write_manifests(folder, utterances)
        record_anew(folder)
    assert "dev: 24 recordings lie in shards, which a page cannot play; embed them: harness report SUITE --audio" in (
        page_of(done).words()
    )
    clips = page_of(done, audio=True).unpacked("clips-0")
    assert [base64.b64decode(clip)[:4] for clip in clips] == [b"OggS"] * NUM_UTTERANCES


def test_embedded_recordings_end_at_the_limit_with_most_errors_first(
    done: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(page_of(done, audio=True).unpacked("clips-0")[0])
    monkeypatch.setattr(report, "MAX_AUDIO_B", int(2.5 * size))
    page = page_of(done, audio=True)
    assert page.data()["sets"][0] == "test"
    # Only the first two are misheard by all three variants.
    assert [at for at, clip in enumerate(page.unpacked("clips-0")) if clip] == [0, 1]
    assert "test: 2 of 24 recordings are in this page: most errors first" in page.words()
    assert "dev: 0 of 24 recordings are in this page: most errors first" in page.words()


def test_rows_of_different_utterances_are_an_error(done: Finished) -> None:
    (path, *_) = sorted(done.store.root.glob("score-*/hypotheses.jsonl"))
    rows = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(rows[1:]), encoding="utf-8")
    record_anew(path.parent)
    with pytest.raises(DataError, match=r"lists 2[34] utterances, not the 2[34] of .*run again"):
        write_report(done.plan, done.store, board=[], folder=folder_of(done))


def test_without_plotly(done: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.board.page.find_spec", lambda _name: None)
    with pytest.raises(MissingError, match="the report draws its charts with plotly, which is not installed"):
        write_report(done.plan, done.store, board=board_of(done), folder=folder_of(done))
