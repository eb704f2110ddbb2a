"""Two processes, with gloo, against one with twice the batch: the same training, whatever ends one of them."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from harness.core.manifests import read_jsonl
from harness.errors import DataError, MissingError, TrainingError
from harness.train import ranks, vram, whisper
from harness.train.packing import Packing
from tests.conftest import artifact
from tests.trainings import kill_at_step, settings, short_clips, weights_of, work_in

if TYPE_CHECKING:
    from pathlib import Path

    from harness.core.artifact import Artifact, Work

pytestmark = pytest.mark.timeout(600)
TEN = {"max_steps": 10, "eval_steps": 5, "packing": Packing(), "average_checkpoints": 2, "eval_batch_size": 1}
TWO = settings(**TEN, batch_size=1, devices=2)


class Trained(NamedTuple):
    meta: dict[str, Any]
    folder: Path
    rows: list[dict[str, Any]]
    """Of the curves."""

    def curve(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]


@pytest.fixture(scope="module")
def sets(tiny_whisper: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Artifact, ...]]:
    """Clips for windows that differ in length, and an odd number of others for dev."""
    folder = tmp_path_factory.mktemp("sets")
    shutil.copytree(tiny_whisper, folder / "base" / "model")
    return {
        "base": (artifact(folder / "base"),),
        "train": (short_clips(folder / "train", num=24, skip=3),),
        "dev": (short_clips(folder / "dev", num=3),),
    }


def trained(spec: whisper.Training, sets: Any, work: Work) -> Trained:
    meta = whisper.run(spec, sets, work)
    return Trained(meta, work.path, list(read_jsonl(work.path / "curves.jsonl")))


@pytest.fixture(scope="module")
def two(sets: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(TWO, sets, work_in(tmp_path_factory.mktemp("two") / "work"))


def test_two_devices_learn_what_one_does_with_twice_the_batch(sets: Any, two: Trained, tmp_path: Path) -> None:
    one = trained(settings(**TEN, batch_size=2), sets, work_in(tmp_path / "one"))
    assert len(one.curve("loss")) == 10
    assert two.curve("loss") == pytest.approx(one.curve("loss"), abs=1e-4)
    assert two.curve("grad_norm") == pytest.approx(one.curve("grad_norm"), rel=1e-3)
    assert two.curve("eval_wer") == one.curve("eval_wer")
    assert two.curve("eval_loss") == pytest.approx(one.curve("eval_loss"), abs=1e-3)
    expected, found = weights_of(one.folder), weights_of(two.folder)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, atol=1e-5, rtol=0, err_msg=name)
    assert {**two.meta, "averaged": None} == {**one.meta, "averaged": None, "micro_batch": 1}


def test_killed_it_leaves_no_process_and_resumed_it_ends_as_unbroken(sets: Any, two: Trained, tmp_path: Path) -> None:
    work = work_in(tmp_path / "work")
    assert len(kill_at_step(7, whisper.run, TWO, sets, work)) >= 2
    assert (work.scratch / "checkpoints" / "checkpoint-5").is_dir()
    resumed = trained(TWO, sets, work)
    expected, found = weights_of(two.folder), weights_of(resumed.folder)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    assert resumed.curve("loss") == two.curve("loss")


def test_a_clip_that_breaks_one_rank_ends_both_and_is_named(sets: Any, tmp_path: Path) -> None:
    train = short_clips(tmp_path / "train", num=4, is_float=True)
    bad = sorted((train.path / "audio").iterdir())[1]
    samples, rate_hz = soundfile.read(bad, dtype="float32")
    soundfile.write(bad, np.full_like(samples, np.inf), rate_hz, subtype="FLOAT")
    spec = settings(devices=2, batch_size=1, max_steps=2)
    with pytest.raises(TrainingError, match=r"step [12] of 2: the loss became nan") as caught:
        whisper.run(spec, {**sets, "train": (train,)}, work_in(tmp_path / "work"))
    assert f"The clips of the step: audio/{bad.name}. If it breaks" in str(caught.value)
    assert not multiprocessing.active_children()


def _fail(how: str) -> None:
    import torch.distributed as dist

    if dist.get_rank() == 1:
        if how == "die":
            os._exit(3)
        raise DataError("no clip is left") if how == "refuse" else ZeroDivisionError("a bug")
    ranks.wait()


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("refuse", DataError, "no clip is left"),
        ("stumble", ZeroDivisionError, "a bug"),
        ("die", TrainingError, r"the process of device 1 \(of 2\) ended with code 3 before it was done"),
    ],
)
def test_what_ends_one_rank_ends_the_other(how: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        ranks.run_ranks(_fail, how, count=2)
    if how == "stumble":
        assert "in _fail" in str(caught.value.__cause__)
    assert not multiprocessing.active_children()


def test_more_devices_than_gpus(monkeypatch: pytest.MonkeyPatch, sets: Any, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(MissingError, match=r"devices is 4, but this machine has 2 GPUs; set devices: 2, with more"):
        whisper.run(settings(devices=4), sets, work_in(tmp_path / "work"))


def test_a_step_is_shared_by_the_devices() -> None:
    assert settings(devices=2, batch_size=4, gradient_accumulation_steps=3).per_step == 24
    assert settings(devices=2, batch_size="auto", effective_batch_size=6).per_step == 6
    with pytest.raises(ValidationError, match=r"batch_size 4 × gradient_accumulation_steps 1 × devices 2 is 8; remove"):
        settings(devices=2, effective_batch_size=16)
    with pytest.raises(ValidationError, match="effective_batch_size is 16, which 3 devices cannot share evenly; make"):
        settings(devices=3, batch_size="auto")


def test_a_gpu_of_several_keeps_a_copy_of_the_gradients() -> None:
    shape = vram.KNOWN["openai/whisper-base"]
    alone, shared = (vram.predict(shape, settings(devices=count), micro_batch=4).parts for count in (1, 2))
    assert shared["gradients"] == 2 * alone["gradients"]
    assert shared["activations"] == alone["activations"]
    changes = list(vram.lighter(settings(devices=2, batch_size=4)))
    assert {"batch_size": 2, "gradient_accumulation_steps": 2} in changes
