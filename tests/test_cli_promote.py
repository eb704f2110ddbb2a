"""promote, history, install, rollback, status, bench, board --merge: as somebody types them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from harness.board.devices import DEVICES_FILE
from harness.engine.store import Store
from harness.promote.history import append
from harness.promote.runtime import Loaded
from tests.boards import SUITE, Finished, finished
from tests.conftest import Harness
from tests.ggmls import bundle, said, write_ggml

if TYPE_CHECKING:
    from harness.promote.manifest import Manifest

ROOT = Path(__file__).parent.parent
NAME = "whisper-russian-ggml.bin"
BEST, SECOND, ZERO_SHOT = "base_lr1e-5_ggml-f16", "base_lr3e-5_ggml-f16", "base_zero-shot_ggml-f16"
HEAVY = (
    *("torch", "transformers", "mlflow", "pandas", "pyarrow", "nemo", "datasets", "jiwer", "scipy", "num2words"),
    *("onnx", "safetensors", "huggingface_hub", "threadpoolctl", "rapidfuzz"),
)
"""What the light core does without."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return finished(tmp_path_factory.mktemp("template"))


class Echo:
    """A model that says what its bundle says that it said."""

    def __init__(self, text: str) -> None:
        self.text = text

    def transcribe(self, _samples: np.ndarray, /) -> str:
        return self.text


@pytest.fixture
def done(template: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Finished:
    """A finished suite in the folder where commands run; its models, which are none, are taken for sound."""

    def load(_payload: Path, *, manifest: Manifest, **_: Any) -> Loaded:
        return Loaded(Echo(manifest.smoke.text), "runtime 1.0", "a CPU")

    monkeypatch.setattr("harness.promote.smoke.load", load)
    monkeypatch.setattr("harness.promote.fitness.check", lambda *_, **__: None)
    monkeypatch.setattr("harness.promote.runtime.load", load)
    shutil.copytree(template.path.parent, tmp_path, dirs_exist_ok=True)
    return Finished(tmp_path / template.path.name, template.plan, Store(tmp_path / "results" / "store"))


def changed(done: Finished, old: str, new: str) -> None:
    text = done.path.read_text("utf-8")
    assert old in text
    done.path.write_text(text.replace(old, new), encoding="utf-8")


def test_promote_twice_and_back(harness: Harness, done: Finished, tmp_path: Path) -> None:
    models = tmp_path / "my models"
    ended = harness("promote", done.path, "--to", models, "--model", SECOND)
    assert (ended.code, ended.err) == (0, "")
    assert f"Gate: {SECOND}" in ended.out
    assert f"installed: {models / NAME}: {SECOND}-" in ended.out
    assert "restart Mimir to use it" in ended.out
    assert "previous" not in ended.out
    ended = harness("promote", done.path, "--to", models)
    assert f"previous:  {SECOND}-" in ended.out
    (made,) = (tmp_path / "results" / "small" / "bundles").glob(f"{BEST}-*.zip")
    ended = harness("status", "--to", models)
    assert ended.code == 0
    assert f"{models / NAME}\n  {made.stem}\n  since 20" in ended.out
    assert "authority: the gate let it pass" in ended.out
    assert "its files are as they were installed" in ended.out
    assert f"previous: {SECOND}-" in ended.out
    ended = harness("rollback", "--to", models, "--reason", "users complain")
    assert f"installed: {models / NAME}: {SECOND}-" in ended.out
    ended = harness("history", done.path)
    actions = [line.split()[1] for line in ended.out.splitlines() if line.startswith("20")]
    assert actions == ["promote", "promote", "rollback"]
    assert "    users complain\n" in ended.out
    assert f"    before: {SECOND}\n" in ended.out
    assert harness("install", made, "--to", models).code == 0
    assert "unchanged: " in harness("install", made, "--to", models).out


def test_the_gate_says_no_unless_forced(harness: Harness, done: Finished, tmp_path: Path) -> None:
    ended = harness("promote", done.path, "--to", tmp_path / "m", "--model", ZERO_SHOT)
    assert ended.code == 4
    assert not (tmp_path / "m").exists()
    assert [path.name for path in (tmp_path / "results" / "small").glob("[!.]*")] == ["ledger.jsonl"]
    ended = harness("promote", done.path, "--to", "m", "--force", " ")
    assert ended.err == ("error: --force needs a reason, which stands wherever the model is shown: --force 'why'\n")
    ended = harness("promote", done.path, "--to", tmp_path / "m", "--model", ZERO_SHOT, "--force", "a demo tomorrow")
    assert ended.code == 0
    assert "authority: FORCED past the gate: a demo tomorrow" in harness("status", "--to", tmp_path / "m").out
    assert "FORCED: a demo tomorrow (not met: WER gain over zero-shot)" in harness("history", done.path).out
    (made,) = (tmp_path / "results" / "small" / "bundles").glob("*.zip")
    assert "FORCED past the gate: a demo tomorrow" in harness("install", made, "--to", tmp_path / "other").out


@pytest.mark.usefixtures("untracked")
def test_what_was_forced_is_told_wherever_the_model_is_shown(harness: Harness, done: Finished, tmp_path: Path) -> None:
    told = "FORCED past the gate: a demo\ntomorrow"
    forced = ["promote", done.path, "--model", ZERO_SHOT, "--force", "a demo\ntomorrow"]
    assert "FORCED: a demo\ntomorrow (not met: WER gain over zero-shot)" in harness(*forced, "--candidate").out
    assert told in harness(*forced, "--to", "m").out
    (made,) = (tmp_path / "results" / "small" / "bundles").glob("*.zip")
    assert told in harness("bench", made, "--host", "studio").out
    assert told in harness("promote", done.path, "--to", "m").out, "it is what a rollback would bring back"
    ended = harness("status", "--to", "m")
    assert "authority: the gate let it pass" in ended.out
    assert told in ended.out
    assert told in harness("rollback", "--to", "m").out
    on_board = re.compile(rf"{ZERO_SHOT}, promoted 20\S+ by \S+: FORCED: a demo tomorrow \(not met: WER gain over zero")
    for shown in (["board", done.path], ["board", done.path, "--format", "md"], ["board", done.path, "--rebuild"]):
        assert on_board.search(harness(*shown).out), shown
    for name in ("leaderboard.csv", "report.html"):
        assert on_board.search((tmp_path / "results" / "small" / name).read_text("utf-8")), name
    noted = json.loads(harness("board", done.path, "--format", "json").out)
    assert {line["row"] for line in noted if line["note"]} == {ZERO_SHOT}
    # Only as long as the gate has not let it pass.
    changed(done, "by_wer: 0.02", "non_inferior_by: 0.01")
    assert harness("promote", done.path, "--model", ZERO_SHOT, "--to", "m").code == 0
    assert "FORCED" not in harness("board", done.path).out


def test_a_reason_that_was_not_needed_is_not_held_against_it(harness: Harness, done: Finished, tmp_path: Path) -> None:
    assert harness("promote", done.path, "--to", "m", "--force", "to be sure").code == 0
    assert "authority: the gate let it pass" in harness("status", "--to", "m").out


def test_champion_challenge(harness: Harness, done: Finished, tmp_path: Path) -> None:
    changed(done, "better_than: zero-shot, by_wer: 0.02", "better_than: champion")
    ended = harness("promote", done.path, "--to", "m", "--model", SECOND)
    assert "WER gain over zero-shot (no champion yet)" in ended.out
    ended = harness("promote", done.path, "--to", "m")
    assert f"WER gain over champion {SECOND}" in ended.out
    ended = harness("promote", done.path, "--to", "m")
    assert ended.code == 1
    assert f"error: {BEST} is the champion already, promoted 20" in ended.err
    assert harness("promote", done.path, "--to", "m", "--model", SECOND).code == 4
    # After a rollback the one before is the champion again, and may be challenged again.
    harness("rollback", "--to", "m")
    ended = harness("promote", done.path, "--to", "m")
    assert f"WER gain over champion {SECOND}" in ended.out
    assert ended.code == 0
    changed(done, "[1e-5, 3e-5]", "[3e-5]")
    shutil.rmtree(tmp_path / "results" / "small" / "bundles")
    ended = harness("promote", done.path, "--to", "m", "--dry-run")
    assert ended.code == 2
    assert f"the champion '{BEST}', promoted 20" in ended.err
    assert "is no row of this suite any more, and its bundle" in ended.err


def test_a_champion_that_left_the_suite_is_heard_again(harness: Harness, done: Finished, tmp_path: Path) -> None:
    changed(done, "better_than: zero-shot, by_wer: 0.02", "better_than: champion")
    model = write_ggml(tmp_path / "model.bin").read_bytes()
    made = bundle(tmp_path / "results" / "small" / "bundles", model, name="base_old_ggml-f16")
    entry = {"when": "2026-01-02", "action": "promote", "row": "base_old_ggml-f16", "bundle": made.name}
    append(tmp_path / "results" / "small" / "promotions.jsonl", entry)
    ended = harness("promote", done.path, "--dry-run")
    assert ended.code == 0
    assert f"done    transcribe {made.name} test" in ended.out
    (gain,) = (line for line in ended.out.splitlines() if line.startswith(f"WER gain over champion {made.name}"))
    assert gain.split()[-1] == "met"
    assert "transcribe" not in harness("promote", done.path, "--dry-run").out


def test_readings_of_sealed_sets_are_counted(harness: Harness, done: Finished) -> None:
    ended = harness("promote", done.path, "--to", "m", "--dry-run")
    assert "test is sealed and was read once" in ended.out
    changed(done, "by_wer: 0.02", "by_wer: 0.02, max_sealed_readings: 1")
    assert harness("promote", done.path, "--to", "m", "--dry-run").code == 0
    changed(done, "[1e-5, 3e-5]", "[1e-5]")
    ended = harness("promote", done.path, "--to", "m", "--dry-run")
    assert ended.code == 4
    (condition,) = (line for line in ended.out.splitlines() if line.startswith("readings of the sealed set"))
    assert condition.split()[-5:] == ["2", "≤", "1", "not", "met"]
    assert "test is sealed, but was read 2 times with changing rows or selections" in ended.out


def test_measured_where_it_shall_run(harness: Harness, done: Finished, tmp_path: Path) -> None:
    changed(done, "by_wer: 0.02", "by_wer: 0.02, measured: {host: studio, rtf: {max: 100}, load_s: {max: 60}}")
    ended = harness("promote", done.path, "--to", "m")
    assert ended.code == 4
    assert "rtf on studio" in ended.out
    assert "not measured" in ended.out
    assert "harness board SUITE --merge FILE" in ended.err
    ended = harness("promote", done.path, "--candidate")
    assert ended.code == 0
    assert "candidate: measure it where it shall run: harness bench base_lr1e-5_ggml-f16-" in ended.out
    (made,) = (tmp_path / "results" / "small" / "bundles").glob("*.zip")
    ended = harness("bench", made, "--host", "studio", "--out", tmp_path)
    assert ended.code == 0
    assert f"{BEST} on studio (a CPU, runtime 1.0), 1 clips:" in ended.out
    ended = harness("board", done.path, "--merge", "bench-studio.json")
    assert ended.code == 0
    assert "On studio\n" in ended.out
    header, first, *_ = (tmp_path / "results" / "small" / "leaderboard.csv").read_text("utf-8").splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=False))
    assert float(row["rtf/studio"]) >= 0
    assert harness("install", made, "--to", "early").code == 0
    assert "authority: a candidate that the gate did not let pass (not met: " in harness("status", "--to", "early").out
    assert harness("promote", done.path, "--to", "m").code == 0
    assert "to be measured; the gate says no yet: " in harness("history", done.path).out
    assert [line.split()[1] for line in harness("history", done.path).out.splitlines() if line.startswith("20")] == [
        "candidate",
        "promote",
    ]


@pytest.mark.usefixtures("untracked")
def test_figures_of_another_model_are_not_merged(harness: Harness, done: Finished, tmp_path: Path) -> None:
    other = bundle(tmp_path / "b", b"another model")
    assert harness("bench", other, "--host", "studio").code == 0
    ended = harness("board", done.path, "--merge", "bench-studio.json")
    assert ended.code == 1
    assert "whose files are those of no row of this suite; merge it where it came from" in ended.err
    assert not (tmp_path / "results" / "small" / DEVICES_FILE).exists()
    ended = harness("board", "--merge", "bench-studio.json")
    assert (ended.code, ended.err) == (
        2,
        "error: --merge and --slices need the suite: harness board SUITE --slices\n",
    )


def test_promotions_are_in_mlflows_registry(harness: Harness, done: Finished, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    assert harness("board", done.path, "--rebuild").code == 0
    harness("promote", done.path, "--candidate", "--model", SECOND)
    uri = f"sqlite:///{(tmp_path / 'mlruns' / 'mlflow.db').as_posix()}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def aliases() -> dict[str, str]:
        named = client.get_registered_model("small").aliases
        assert client.get_model_version("small", named.pop("best")).tags["row"] == BEST
        return {name: client.get_model_version("small", version).tags["row"] for name, version in named.items()}

    assert aliases() == {"candidate": SECOND}
    assert harness("promote", done.path, "--to", "m", "--model", SECOND).err == ""
    assert aliases() == {"champion": SECOND}
    harness("promote", done.path, "--to", "m")
    assert aliases() == {"champion": BEST, "previous": SECOND}
    harness("rollback", "--to", "m")
    harness("history", done.path)
    assert aliases() == {"champion": SECOND, "previous": BEST}
    version = client.get_model_version_by_alias("small", "champion")
    assert version.description == "the gate let it pass"
    assert (
        version.run_id in json.loads((tmp_path / "results" / "small" / "runs.json").read_text("utf-8"))["runs"].values()
    )


def test_a_server_that_is_away_does_not_stop_a_promotion(
    harness: Harness, done: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_uri: str) -> None:
        raise ConnectionError("no MLflow here\nand much more about it")

    assert harness("board", done.path, "--rebuild").code == 0
    monkeypatch.setattr("harness.promote.registry._client", refuse)
    ended = harness("promote", done.path, "--to", "m")
    assert ended.code == 0
    assert ended.err.startswith("MLflow: ConnectionError: no MLflow here\n")
    assert (tmp_path / "m" / NAME).is_file()


FAKE_RSYNC = """\
#!{python}
import json, pathlib, shutil, sys
log = pathlib.Path({log!r})
with log.open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
*_, source, place = sys.argv
assert place.startswith("me@mac:/srv/models/")
target = pathlib.Path({there!r}, pathlib.Path(source).name)
if "--dry-run" in sys.argv:
    same = target.read_bytes() == pathlib.Path(source).read_bytes()
    print("" if same else target.name)
elif {code}:
    sys.exit("connection lost")
else:
    shutil.copyfile(source, target)
    if {spoil}:
        target.write_bytes(b"x")
"""


def fake_rsync(folder: Path, monkeypatch: pytest.MonkeyPatch, *, code: int = 0, spoil: bool = False) -> Path:
    (folder / "bin").mkdir()
    (folder / "there").mkdir()
    values = {"python": sys.executable, "log": str(folder / "log"), "there": str(folder / "there")}
    program = folder / "bin" / "rsync"
    program.write_text(FAKE_RSYNC.format(**values, code=code, spoil=spoil), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return folder / "there"


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for rsync is a script")
def test_sent_to_another_machine(
    harness: Harness, done: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = fake_rsync(tmp_path, monkeypatch)
    ended = harness("promote", done.path, "--to", "ssh://me@mac:2222/srv/models")
    assert (ended.code, ended.err) == (0, "")
    assert "sent to:   ssh://me@mac:2222/srv/models\nthere:     harness install base_lr1e-5_ggml-f16-" in ended.out
    (sent,) = there.iterdir()
    assert sent.read_bytes() == (tmp_path / "results" / "small" / "bundles" / sent.name).read_bytes()
    first, check = [json.loads(line) for line in (tmp_path / "log").read_text("utf-8").splitlines()]
    assert first[:4] == ["--times", "--partial", "--rsh", "ssh -p 2222"]
    assert first[-3] == "--"
    assert {"--checksum", "--dry-run"} <= set(check)
    assert "in: ssh://me@mac:2222/srv/models" in harness("history", done.path).out


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for rsync is a script")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"code": 1}, "rsync ended with 1: connection lost; what has arrived is kept, the same command goes on"),
        ({"spoil": True}, "has arrived with another content; send it again"),
    ],
)
def test_sending_that_fails(
    harness: Harness, done: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any, message: str
) -> None:
    fake_rsync(tmp_path, monkeypatch, **how)
    ended = harness("promote", done.path, "--to", "ssh://me@mac/srv/models")
    assert ended.code == 1
    assert message in ended.err
    assert not (tmp_path / "results" / "small" / "promotions.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["install", "none.zip", "--to", "m"], 1, "none.zip: there is no such bundle"),
        (["install", "none.zip", "--target", "mimer"], 2, "unknown target 'mimer'; known: mimir, handy"),
        (["rollback", "--to", "m"], 1, "m: there is no previous model to go back to"),
        (["promote", "small.yaml", "--to", "ssh://-oProxyCommand=x/y"], 2, "names no machine; write it as ssh://"),
        (["promote", "small.yaml", "--to", "ssh://mac/a b"], 2, "the path may have letters of ASCII, digits and"),
        (["history", "small.yaml"], 1, "nothing has been promoted from small.yaml yet: harness promote small.yaml"),
        (["bench", "none.zip"], 1, "none.zip: there is no such bundle"),
        (
            ["board", "small.yaml", "--merge", "none.json"],
            1,
            "none.json: there is no such file; `harness bench BUNDLE`",
        ),
    ],
)
@pytest.mark.usefixtures("done")
def test_wrong_arguments(harness: Harness, arguments: list[str], code: int, message: str) -> None:
    ended = harness(*arguments)
    assert (ended.code, message in ended.err) == (code, True), ended.err


def test_mimirs_folder_is_missing(harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bundle(tmp_path / "b", b"a model")
    monkeypatch.setattr("harness.promote.targets.sys.platform", "darwin")
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for command in (["install", made], ["status"], ["rollback"]):
        ended = harness(*command)
        assert ended.code == 3
        assert "mimir does not exist; start Mimir once, or give another folder: --to DIR" in ended.err
    assert not (tmp_path / "home").exists()


def test_status_of_a_damaged_model_ends_with_1(harness: Harness, tmp_path: Path) -> None:
    model = write_ggml(tmp_path / "model.bin").read_bytes()
    assert harness("install", bundle(tmp_path / "b", model), "--to", "m").code == 0
    assert harness("status", "--to", "m").code == 0
    (tmp_path / "m" / NAME).write_bytes(model[:-1])
    ended = harness("status", "--to", "m")
    assert ended.code == 1
    assert f"DAMAGED: {NAME} has changed" in ended.out
    assert "install its bundle again, or go back: harness rollback" in ended.err
    assert "no model is installed for Mimir" in harness("status", "--to", "nowhere").out


def test_install_hears_the_clip_in_whisper_cpp(harness: Harness, tmp_path: Path) -> None:
    made = bundle(tmp_path / "b", write_ggml(tmp_path / "model.bin").read_bytes(), licences={"it": "CC BY-NC"})
    ended = harness("install", f"{made}.zip", "--target", "voiceink", "--to", "models for VoiceInk")
    assert ended.code == 0
    assert f'heard:     "{said(1000)}"' in ended.out
    assert "restart VoiceInk to use it" in ended.out
    assert "not for commercial use: it" in ended.out


def test_the_mac_side_loads_nothing_heavy(tmp_path: Path) -> None:
    """A whole installation with whisper.cpp, a rollback, a status, a measurement."""
    first = bundle(tmp_path / "1", write_ggml(tmp_path / "model.bin").read_bytes(), name="one")
    second = bundle(tmp_path / "2", write_ggml(tmp_path / "model.bin").read_bytes() + b"\0", name="two")
    commands = [
        ["--help"],
        ["install", "--help"],
        ["status", "--to", "m"],
        ["install", str(first), "--to", "m"],
        ["install", f"{second}.zip", "--to", "m"],
        ["rollback", "--to", "m"],
        ["status", "--to", "m"],
        ["bench", str(first), "--out", str(tmp_path)],
    ]
    script = (
        "import sys\n"
        f"heavy = set({HEAVY!r})\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in heavy:\n"
        "            raise ImportError(f'{name} is not part of the light core')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from harness.cli import main\n"
        f"for arguments in {commands!r}:\n"
        "    sys.argv = ['harness', *arguments]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as ended:\n"
        "        assert not ended.code, (arguments, ended.code)\n"
        "loaded = [name for name in heavy if name in sys.modules]\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "m" / NAME).is_file()


@pytest.mark.parametrize("command", ["install", "status", "rollback"])
def test_the_mac_side_starts_without_numpy_and_onnxruntime(command: str) -> None:
    script = (
        "import sys\nfrom harness.cli import main\n"
        f"sys.argv = ['harness', {command!r}, '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('numpy', 'onnxruntime', 'soundfile', 'pywhispercpp') if name in sys.modules])\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_a_suite_without_a_promotion(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SUITE.replace("promote: {target: mimir}\n", ""), encoding="utf-8")
    ended = harness("promote", "small.yaml", "--to", "m")
    assert (ended.code, ended.err) == (
        2, "error: small.yaml declares no promotion; add: promote: {target: mimir}\n",
    )  # fmt: skip
