from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from harness.train.averaging import average_folders, last_folders, lighten, mean_weights, told


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 6), seed=st.integers(0, 1000))
def test_the_mean_is_the_mean(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    states = [
        {"a": torch.randn(5, 3, generator=generator), "b": torch.randn(2, generator=generator)} for _ in range(count)
    ]
    mean = mean_weights(state.items() for state in states)
    for name in ("a", "b"):
        expected = torch.stack([state[name].double() for state in states]).mean(0)
        torch.testing.assert_close(mean[name].double(), expected, atol=1e-6, rtol=1e-5)


def test_counts_are_the_last_checkpoint_s_and_halves_are_summed_up_whole() -> None:
    states = [
        {"n": torch.tensor(step), "h": torch.tensor([1 + step / 2048], dtype=torch.float16)} for step in (1, 2, 4)
    ]
    mean = mean_weights(state.items() for state in states)
    assert mean["h"].dtype == torch.float16
    assert mean["h"].item() == torch.tensor(1 + 7 / 3 / 2048).half().item()
    assert mean["n"].item() == 4


def test_the_tensors_of_a_checkpoint_are_left_as_they_were() -> None:
    states = [{"a": torch.ones(2)}, {"a": torch.zeros(2)}]
    mean_weights(state.items() for state in states)
    assert states[0]["a"].tolist() == [1, 1]


def test_folders_are_averaged_with_what_else_a_model_has(tmp_path: Path) -> None:
    for step, value in ((10, 1.0), (20, 2.0), (30, 6.0)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"w": torch.full((3,), value)}, folder / "model.safetensors")
        (folder / "config.json").write_text(f'{{"step": {step}}}', encoding="utf-8")
    average_folders([tmp_path / f"checkpoint-{step}" for step in (10, 20, 30)], target=tmp_path / "mean")
    assert load_file(tmp_path / "mean" / "model.safetensors")["w"].tolist() == [3, 3, 3]
    assert (tmp_path / "mean" / "config.json").read_text(encoding="utf-8") == '{"step": 30}'


@pytest.mark.parametrize(
    ("count", "until", "steps"), [(2, 400, [300, 400]), (3, 300, [100, 200, 300]), (9, 400, [100, 200, 300, 400])]
)
def test_the_last_checkpoints_are_chosen_by_their_step(
    tmp_path: Path, count: int, until: int, steps: list[int]
) -> None:
    for folder, made in (("now", (400, 300)), ("before", (100, 200))):
        for step in made:
            (tmp_path / folder / f"checkpoint-{step}").mkdir(parents=True)
            (tmp_path / folder / f"checkpoint-{step}" / "model.safetensors").touch()
    (tmp_path / "now" / "checkpoint-350").mkdir()
    found = last_folders([tmp_path / "now", tmp_path / "before"], count=count, until=until)
    assert [int(path.name.removeprefix("checkpoint-")) for path in found] == steps


def test_older_checkpoints_keep_their_weights_alone(tmp_path: Path) -> None:
    for step in (20, 100, 9, 30):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
            (tmp_path / f"checkpoint-{step}" / name).touch()
        os.utime(tmp_path / f"checkpoint-{step}", ns=(step, step))
    lighten(tmp_path)
    assert [(tmp_path / f"checkpoint-{step}").stat().st_mtime_ns for step in (9, 20)] == [9, 20]
    whole = {path.parent.name for path in tmp_path.glob("*/optimizer.pt")}
    assert whole == {"checkpoint-30", "checkpoint-100"}
    assert len(list(tmp_path.glob("*/model.safetensors"))) == len(list(tmp_path.glob("*/trainer_state.json"))) == 4


def test_what_was_taken_is_told() -> None:
    mean, single = (told([30, 40], wer=wer, best_wer=0.15, best_step=30) for wer in (0.15, 0.16))
    name = "the mean of the last 2 checkpoints (steps 30, 40)"
    assert mean == f"{name} was taken: dev WER 0.1500, the best single one 0.1500 (step 30)"
    assert single == f"the best checkpoint (step 30, dev WER 0.1500) was taken: {name} has 0.1600"
