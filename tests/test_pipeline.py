"""The main job on real clips with a tiny random Whisper: unbroken, killed in every stage, interrupted, repeated."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jiwer
import psutil
import pytest

from harness.core.recordings import read_samples
from harness.promote.parcel import opened
from harness.promote.runtime import load
from tests.pipelines import board_of, comparable, harness, model_hashes, partial, start, until, write_suite

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.promote.manifest import Manifest


@pytest.fixture(scope="module")
def suite(tiny_whisper: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_suite(tmp_path_factory.mktemp("suite"), base=tiny_whisper)


@pytest.fixture(scope="module")
def finished(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unbroken run."""
    cwd = tmp_path_factory.mktemp("unbroken")
    result = harness("run", str(suite), cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "note: prepare clips: resampled" in result.stdout
    return cwd


def test_board_has_a_row_for_every_variant_export_and_heldout_set(finished: Path) -> None:
    lines = board_of(finished)
    wanted = {
        (f"tiny_{variant}_{export}", heldout)
        for variant in ("zero-shot", "lr1e-3-warmup2")
        for export in ("onnx-fp32", "ggml-f16")
        for heldout in ("dev", "test")
    }
    assert {(line["row"], line["heldout"]) for line in lines} == wanted
    assert all(line["run_id"] for line in lines)
    assert all(line["peak_vram_mib"] == "" for line in lines if "NVIDIA" not in line["device"])
    assert all(float(line["rtf"]) > 0 and float(line["peak_ram_mib"]) > 0 for line in lines)


def test_board_is_what_jiwer_computes_from_the_published_hypotheses(finished: Path) -> None:
    for line in board_of(finished):
        path = finished / "results" / "tiny" / "hypotheses" / f"{line['row']}__{line['heldout']}.jsonl"
        rows = [json.loads(text) for text in path.read_text("utf-8").splitlines()]
        references, hypotheses = ([row[name] for row in rows] for name in ("reference_norm", "hypothesis_norm"))
        assert float(line["wer"]) == pytest.approx(jiwer.wer(references, hypotheses), abs=1e-12)
        assert float(line["cer"]) == pytest.approx(jiwer.cer(references, hypotheses), abs=1e-12)
        assert int(line["num_utterances"]) == len(rows) > 0


def test_a_second_run_recomputes_nothing(finished: Path, suite: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (finished / "results" / "store").iterdir()}
    result = harness("run", str(suite), cwd=finished)
    assert result.returncode == 0
    assert "start" not in result.stdout
    after = {path.name: path.stat().st_mtime_ns for path in (finished / "results" / "store").iterdir()}
    assert after == before


def test_training_curves_are_in_mlflow_under_the_parent_run(finished: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{(finished / 'mlruns' / 'mlflow.db').as_posix()}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (variant,) = [run for run in runs if run.data.tags.get("stage") == "train"]
    steps = [metric.step for metric in client.get_metric_history(variant.info.run_id, "dev_wer")]
    assert steps == [2, 4, 6]
    assert variant.data.params["learning_rate"] == "0.001"
    assert variant.info.status == "FINISHED"
    parents = {run.data.tags["mlflow.parentRunId"] for run in runs if "mlflow.parentRunId" in run.data.tags}
    assert len(parents) == 1
    assert len(runs) == 1 + 1 + 8


def test_plan_shows_everything_cached(finished: Path, suite: Path) -> None:
    result = harness("plan", str(suite), cwd=finished)
    assert "0 to do" in result.stdout


def test_the_gate_refuses_with_a_table_and_writes_nothing(finished: Path, suite: Path, tmp_path: Path) -> None:
    strict = suite.with_name("strict.yaml")
    strict.write_text(suite.read_text("utf-8") + "gate: {size_mib: {max: 0.5}}\n", encoding="utf-8")
    result = harness("promote", str(strict), "--to", str(tmp_path / "models"), cwd=finished)
    assert result.returncode == 4
    assert "size_mib" in result.stdout
    assert "not met" in result.stdout
    assert not (tmp_path / "models").exists()


def test_a_model_is_not_better_than_itself(finished: Path, suite: Path, tmp_path: Path) -> None:
    result = harness("promote", str(suite), "--model", "tiny_zero-shot_ggml-f16", "--to", str(tmp_path), cwd=finished)
    assert result.returncode == 4
    assert "WER gain over zero-shot" in result.stdout
    assert not list(tmp_path.iterdir())


def checkpoint(cwd: Path) -> bool:
    pattern = "train-*/scratch/checkpoints/checkpoint-2/trainer_state.json"
    return any((cwd / "results" / "store" / ".partial").glob(pattern))


def kill_when(reached: Callable[[Path], bool], *, suite: Path, cwd: Path) -> None:
    """Run, SIGKILL the run once `reached`, and see that its workers end too."""
    process = start("run", str(suite), cwd=cwd)
    until(reached, process, cwd=cwd)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_killed_in_every_stage_ends_with_the_same_leaderboard_and_models(
    finished: Path, suite: Path, tmp_path: Path
) -> None:
    for stage in ("prepare", "select"):
        kill_when(partial(stage), suite=suite, cwd=tmp_path)
    kill_when(checkpoint, suite=suite, cwd=tmp_path)
    for stage in ("export", "transcribe", "score"):
        kill_when(partial(stage), suite=suite, cwd=tmp_path)
    result = harness("run", str(suite), cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert comparable(tmp_path) == comparable(finished)
    assert model_hashes(tmp_path) == model_hashes(finished)
    assert not list((tmp_path / "results" / "store" / ".partial").glob("*/out"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(suite: Path, tmp_path: Path) -> None:
    process = start("run", str(suite), cwd=tmp_path)
    until(partial("export"), process, cwd=tmp_path)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "go on with: harness run" in err
    assert "Traceback" not in err


def test_a_failing_step_names_its_log_and_the_others_go_on(suite: Path, tmp_path: Path) -> None:
    broken = tmp_path / "suite"
    shutil.copytree(suite.parent, broken)
    victim = next((broken / "clips" / "clips").iterdir())
    victim.write_bytes(victim.read_bytes()[:100])
    result = harness("run", str(broken / "tiny.yaml"), "--only", "train", cwd=tmp_path)
    assert result.returncode == 1
    assert victim.stem in result.stderr
    assert "log: " in result.stderr
    log = Path(result.stderr.split("log: ")[1].splitlines()[0])
    assert victim.stem in (tmp_path / log).read_text("utf-8")
    assert "done    base" in result.stdout
    assert "skipped train" in result.stdout
    assert "Traceback" not in result.stderr


def hears(model: Path, *, manifest: Manifest, clip: Path) -> str:
    return load(model, manifest=manifest).recogniser.transcribe(read_samples(clip))


def test_promoted_zipped_installed_on_a_mac_and_rolled_back(finished: Path, suite: Path, tmp_path: Path) -> None:
    """The last of the tests: it promotes."""
    first_row, second_row = "tiny_zero-shot_ggml-f16", "tiny_lr1e-3-warmup2_ggml-f16"
    forced = ("--force", "a random model hears nothing right")
    mac, name = tmp_path / "Application Support" / "mimir" / "models", "whisper-russian-ggml.bin"

    def succeed(*arguments: str, cwd: Path) -> str:
        result = harness(*arguments, cwd=cwd)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    succeed("promote", str(suite), "--candidate", "--model", first_row, cwd=finished)
    (made,) = (finished / "results" / "tiny" / "bundles").glob(f"{first_row}-*.zip")
    shutil.copyfile(made, tmp_path / "parcel.zip")
    told = succeed("install", "parcel.zip", "--to", str(mac), cwd=tmp_path)
    with opened(tmp_path / "parcel.zip") as parcel:
        manifest = parcel.manifest
        (tmp_path / "smoke.wav").write_bytes(parcel.read("smoke.wav"))
    assert f'heard:     "{manifest.smoke.text}"' in told
    assert hears(mac / name, manifest=manifest, clip=tmp_path / "smoke.wav") == manifest.smoke.text
    before = (mac / name).read_bytes()
    told = succeed("promote", str(suite), "--to", str(mac), "--model", second_row, *forced, cwd=finished)
    assert f"previous:  {made.stem}" in told
    assert (mac / name).read_bytes() != before
    succeed("rollback", "--to", str(mac), "--reason", "worse", cwd=tmp_path)
    assert (mac / name).read_bytes() == before
    assert "its files are as they were installed" in succeed("status", "--to", str(mac), cwd=tmp_path)
    told = succeed("history", str(suite), cwd=finished)
    actions = [line.split()[1] for line in told.splitlines() if line.startswith("20")]
    assert actions == ["candidate", "promote", "rollback"]
