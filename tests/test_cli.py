from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli, cli_run
from harness.board.leaderboard import COLUMNS
from harness.engine.store import Store
from tests.boards import SUITE, Finished, finished
from tests.conftest import Harness

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "suites" / "quickstart.yaml"
SLOW = ("torch", "transformers", "mlflow", "pandas", "numpy", "onnxruntime", "onnx_asr", "jiwer", "nemo", "datasets")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished(tmp_path_factory.mktemp("template"))


@pytest.fixture
def done(template: Finished, tmp_path: Path) -> Finished:
    """A finished suite in the folder where commands run."""
    shutil.copytree(template.path.parent, tmp_path, dirs_exist_ok=True)
    return Finished(tmp_path / template.path.name, template.plan, Store(tmp_path / "results" / "store"))


@pytest.mark.parametrize("arguments", [["--help"], ["check", str(QUICKSTART)], ["list"], ["schema"]])
def test_quick_commands_import_nothing_slow(arguments: list[str]) -> None:
    script = (
        "import sys\n"
        "from harness.cli import main\n"
        f"sys.argv = ['harness', *{arguments!r}]\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as ended:\n"
        "    assert not ended.code, ended.code\n"
        f"loaded = [name for name in {SLOW!r} if name in sys.modules]\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout


def test_check_of_a_sound_suite(harness: Harness, done: Finished) -> None:
    assert harness("check", done.path) == (0, f"{done.path} is sound (base: 3 variants x 2 exports)\n", "")


def test_check_tells_all_mistakes_and_ends_with_2(harness: Harness, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(SUITE.replace("seed: 5", "seed: five").replace("promote:", "promot:"), encoding="utf-8")
    ended = harness("check", path)
    assert (ended.code, ended.out) == (2, "")
    first, second, third = ended.err.splitlines()
    assert first == f"error: {path}: 2 mistakes in this suite"
    assert second == f"  {path}:2: seed: expected a whole number, found 'five' (text)"
    assert third.startswith(f"  {path}:18: promot: unknown key 'promot'; did you mean 'promote'?")


def test_markup_in_messages_is_shown_as_it_is(harness: Harness, tmp_path: Path) -> None:
    path = tmp_path / "[red]wrong.yaml"
    path.write_text(SUITE.replace("seed: 5", "seed: '[bold]'"), encoding="utf-8")
    ended = harness("check", path)
    assert "[red]wrong.yaml:2: seed: expected a whole number, found '[bold]' (text)" in ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "none.yaml"], "error: none.yaml: no such suite file"),
        (["check"], "Missing argument 'SUITE'"),
        (["chek"], "No such command 'chek'"),
        (["board", "--format", "xml"], "Invalid value for '--format'"),
        (["run", "small.yaml", "--jobs", "0"], "Invalid value for '--jobs'"),
        (
            ["run", "small.yaml", "--only", "trian"],
            "unknown stage 'trian'; this suite has: prepare, select, leakage, base",
        ),
        (["board", "--rebuild"], "error: --rebuild needs the suite: harness board SUITE --rebuild"),
        (["promote", "small.yaml", "--model", "x", "--to", "m"], "error: row 'x' does not exist or does not fit"),
    ],
)
@pytest.mark.usefixtures("done")
def test_wrong_arguments_end_with_2(harness: Harness, arguments: list[str], message: str) -> None:
    ended = harness(*arguments)
    assert ended.code == 2
    assert message in " ".join(ended.err.replace("│", " ").split())


def test_schema_and_list(harness: Harness) -> None:
    assert json.loads(harness("schema").out)["title"] == "Suite"
    kinds = [line.split()[:2] for line in harness("list").out.splitlines()]
    assert ["dataset", "manifest"] in kinds
    assert ["model", "whisper"] in kinds
    assert ["export", "whisper_ggml"] in kinds
    assert ["runtime", "onnx"] in kinds
    assert kinds[-1] == ["metric", "wer,"]


def test_plan_before_and_after(harness: Harness, tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SUITE, encoding="utf-8")
    before = harness("plan", path)
    assert before.code == 0
    assert "small: 38 steps" in before.out
    totals, vram, missing = before.out.splitlines()[-3:]
    assert totals == "38 to do, 0 cached; 2 trainings, 6 models on the board, on 2 held-out sets"
    assert vram == "VRAM: predicted, not measured on a card"
    assert missing == f"missing: {(tmp_path / 'clips' / 'manifest.jsonl').resolve()} (dataset aelita)"
    finished(tmp_path, but=lambda step: "lr3e-5" in step.name)
    after = harness("plan", path)
    rows = [" ".join(line.split()) for line in after.out.splitlines()]
    assert "11 to do, 27 cached; 2 trainings, 6 models on the board, on 2 held-out sets" in rows
    assert any(re.fullmatch(r"train base lr1e-5 cached [\d.]+ k?B 1.5 s", row) for row in rows)
    assert any(re.fullmatch(r"train base lr3e-5 to do ~[\d.]+ GiB", row) for row in rows)
    assert not any(row.startswith("missing") for row in rows)


def test_plan_estimates_what_has_not_run(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SUITE, encoding="utf-8")
    (tmp_path / "clips").mkdir()
    lines = "".join(f'{{"audio_filepath": "{number}.wav", "text": "да", "duration": 36}}\n' for number in range(1000))
    (tmp_path / "clips" / "manifest.jsonl").write_text(lines, encoding="utf-8")
    rows = [" ".join(line.split()) for line in harness("plan", tmp_path / "small.yaml").out.splitlines()]
    assert any(re.fullmatch(r"prepare aelita missing ~1,000 ~10.0 ~1.2 GB ~\d+ (s|min)", row) for row in rows)
    assert any(re.fullmatch(r"train to do ~700 ~7.00 ~[\d.]+ MB ~\d+ s", row) for row in rows)
    assert any(re.fullmatch(r"disk: ~1.2 GB for datasets and sets, .+ free(: too little)?", row) for row in rows)
    assert any(
        re.fullmatch(r"time: ~.+, and what is not known yet: base, export, transcribe, score, train", row)
        for row in rows
    )
    assert rows[-1].endswith("0.wav and 999 more files (dataset aelita)")


def test_what_does_not_fit_the_card_is_shown_and_refused(harness: Harness, tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(f"{SUITE}budget: {{vram_gib: 1.5}}\n", encoding="utf-8")
    shown, run = harness("plan", path), harness("run", path)
    assert (shown.code, run.code) == (2, 2)
    assert "small: 38 steps" in shown.out
    assert "VRAM: predicted, not measured on a card; budget.vram_gib is 1.5" in shown.out
    first, *variants = shown.err.splitlines()
    assert first == ("error: 2 trainings do not fit into budget.vram_gib 1.5 (predicted, not measured on a card)")
    assert [line.split(": ")[0] for line in variants] == ["  base lr1e-5", "  base lr3e-5"]
    assert (run.out, run.err) == ("", shown.err)
    assert not (tmp_path / "results" / "small").exists()


def test_board_before_any_run_says_what_to_do(harness: Harness, tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SUITE, encoding="utf-8")
    assert harness("board", path) == (
        1, "", f"error: no row of {path} is scored yet; run it first: harness run {path}\n",
    )  # fmt: skip
    assert harness("board") == (
        1, "", "error: no suite has a board in results yet; run one first: harness run suites/quickstart.yaml\n",
    )  # fmt: skip


def test_board(harness: Harness, done: Finished) -> None:
    ended = harness("board", done.path)
    assert ended.code == 0
    assert ended.out.index("test (test set): 24 utterances") < ended.out.index("dev (dev set): 24 utterances")
    assert harness("board", done.path, "--format", "csv").out.splitlines()[0] == ",".join(COLUMNS)
    assert len(json.loads(harness("board", done.path, "--format", "json").out)) == 12


@pytest.mark.usefixtures("untracked")
def test_a_board_without_a_suite_is_the_newest(harness: Harness, done: Finished) -> None:
    harness("board", done.path, "--rebuild")
    ended = harness("board", "--format", "json")
    assert ended.err == "results/small/leaderboard.csv\n"
    assert json.loads(ended.out) == json.loads(
        harness("board", done.path, "--format", "json").out.replace('""', "null")
    )
    assert "test (test set): 24 utterances" in harness("board").out


@pytest.mark.usefixtures("untracked")
def test_a_run_with_nothing_to_do_publishes_without_mlflow(harness: Harness, done: Finished, tmp_path: Path) -> None:
    ended = harness("run", done.path)
    assert ended.code == 0
    assert ended.err == (
        "MLflow: ConnectionError: no MLflow here\n  the results are safe; later: harness board SUITE --rebuild\n"
    )
    assert (tmp_path / "results" / "small" / "leaderboard.csv").read_text("utf-8").count("\n") == 13
    assert len(list((tmp_path / "results" / "small" / "hypotheses").iterdir())) == 12


@pytest.mark.usefixtures("untracked")
def test_each_reading_of_a_sealed_set_is_recorded(harness: Harness, done: Finished, tmp_path: Path) -> None:
    ledger = tmp_path / "results" / "small" / "ledger.jsonl"
    for command in (("run", done.path), ("board", done.path), ("report", done.path), ("board", done.path, "--rebuild")):
        assert harness(*command).code == 0
        assert [json.loads(line)["command"] for line in ledger.read_text("utf-8").splitlines()] == ["run"]
    done.path.write_text(SUITE.replace("[1e-5, 3e-5]", "[3e-5]"), encoding="utf-8")
    ended = harness("board", done.path)
    told = "test is sealed, but was read 2 times with changing rows or selections"
    assert told in " ".join(ended.out.split())
    with ledger.open("a", encoding="utf-8") as file:
        file.write('{"schema": 1, "hel')
    ended = harness("board", done.path, "--format", "md")
    place = Path("results") / "small" / "ledger.jsonl"
    assert ended.err == f"{place}: damaged lines, which are not counted: 1\n"
    assert f"\n**{told}" in ended.out


@pytest.mark.usefixtures("untracked")
def test_a_run_that_scores_nothing_reads_no_sealed_set(harness: Harness, tmp_path: Path) -> None:
    done = finished(tmp_path, but=lambda step: step.stage == "transcribe")
    assert harness("run", done.path, "--only", "train").code == 0
    assert not (tmp_path / "results" / "small" / "ledger.jsonl").exists()


@pytest.mark.usefixtures("untracked")
def test_a_failed_step_ends_with_1_and_names_its_log(harness: Harness, tmp_path: Path) -> None:
    """The recordings are not there: the one step that looks for them fails, what needs it is skipped."""
    done = finished(tmp_path, but=lambda step: step.stage != "base")
    ended = harness("run", done.path, "--only", "select")
    assert ended.code == 1
    assert "failed: prepare aelita: " in ended.err
    assert "there is no such manifest" in ended.err
    log = Path(next(line for line in ended.err.splitlines() if line.startswith("  log: ")).removeprefix("  log: "))
    assert "there is no such manifest" in log.read_text(encoding="utf-8")
    rows = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert "select 3" in rows, "three skipped"
    assert not any("train" in row for row in rows if row.startswith("train")), "--only goes no further"


def test_only_takes_what_a_stage_needs(done: Finished) -> None:
    def stages(only: str | None) -> set[str]:
        return {step.stage for step in cli_run._up_to(done.plan, only)}

    assert stages("prepare") == {"prepare"}
    assert stages("leakage") == {"prepare", "select", "leakage"}
    assert stages("train") == {"prepare", "select", "leakage", "base", "train"}
    assert stages(None) == {step.stage for step in done.plan.steps}


def test_the_gate_says_no_and_nothing_is_written(harness: Harness, done: Finished, tmp_path: Path) -> None:
    ended = harness("promote", done.path, "--to", tmp_path / "models", "--model", "base_zero-shot_ggml-f16")
    assert ended.code == 4
    assert ended.err == (
        "error: the gate refuses base_zero-shot_ggml-f16; the table says which condition it does not meet\n"
    )
    assert "not met" in ended.out
    assert not (tmp_path / "models").exists()
    # Somebody has seen figures of a sealed set all the same.
    assert [path.name for path in (tmp_path / "results" / "small").glob("[!.]*")] == ["ledger.jsonl"]


def test_a_dry_run_judges_and_writes_only_that_it_has_read(harness: Harness, done: Finished, tmp_path: Path) -> None:
    ended = harness("promote", done.path, "--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert "WER gain over zero-shot" in ended.out
    assert [path.name for path in (tmp_path / "results" / "small").glob("[!.]*")] == ["ledger.jsonl"]


def test_promote_elsewhere_than_on_a_mac_needs_a_folder(
    harness: Harness, done: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    ended = harness("promote", done.path)
    assert ended == (
        2, "", "error: Mimir's folder is known on a Mac only; give the folder to install into: --to DIR\n",
    )  # fmt: skip


def test_promote_before_any_run(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SUITE, encoding="utf-8")
    ended = harness("promote", "small.yaml", "--to", "models")
    assert (ended.code, ended.err) == (
        1, "error: no fine-tuned row has a WER on dev yet; run the suite first: harness run SUITE\n",
    )  # fmt: skip


def test_a_damaged_store_is_one_message(harness: Harness, done: Finished) -> None:
    step = done.plan.steps[0]
    (done.store.root / step.folder / "artifact.json").write_text("{", encoding="utf-8")
    ended = harness("plan", done.path)
    assert ended.code == 1
    assert "artifact.json: cannot be read" in ended.err


def test_bugs_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("harness.suite.load.load", fail)
    monkeypatch.setattr(sys, "argv", ["harness", "check", "x.yaml"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_ui_serves_on_loopback_only(harness: Harness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0 if "5000" in command else 1)

    monkeypatch.setattr(cli.subprocess, "run", run)
    assert harness("ui").code == 0
    (command,) = commands
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert (
        command[command.index("--backend-store-uri") + 1]
        == f"sqlite:///{(tmp_path / 'mlruns' / 'mlflow.db').as_posix()}"
    )
    ended = harness("ui", "--port", "5001")
    assert (ended.code, ended.err) == (
        3, "error: MLflow ended with exit code 1; is port 5001 taken? Try: harness ui --port 5002\n",
    )  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "names a server" in harness("ui").out
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert harness("ui").err == "error: MLflow is not installed; run: pip install '.[train]'\n"
