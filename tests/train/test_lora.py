"""Adapters: merged without a trace, resumed after a kill, alone or with what else saves memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from harness.core.artifact import Work
from harness.errors import SuiteError
from harness.train import lora, whisper
from harness.train.lora import Lora
from harness.train.vram import Count, shape_of
from tests.trainings import inputs, settings, weights_of, work_in

if TYPE_CHECKING:
    from pathlib import Path

    from harness.core.artifact import Inputs

SMALL = {"r": 4, "alpha": 8}


@pytest.fixture(scope="module")
def sets(tiny_whisper: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return inputs(tmp_path_factory.mktemp("sets"), tiny_whisper)


def model(base: Path, **changes: Any) -> Any:
    return whisper._model(base, settings(**{"lora": SMALL, **changes}))


def trainable(model: Any) -> dict[str, Any]:
    return {name: item for name, item in model.named_parameters() if item.requires_grad}


def logits(model: Any) -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, model.config.num_mel_bins, 3000, generator=generator)
    with torch.no_grad():
        return model.eval()(input_features=features, decoder_input_ids=torch.arange(10).repeat(2, 1)).logits


def test_only_adapters_of_the_targets_learn(tiny_whisper: Path) -> None:
    learnt = trainable(model(tiny_whisper, lora={**SMALL, "targets": ["k_proj", "fc1"]}))
    assert all(".lora_" in name for name in learnt)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in learnt} == {"k_proj", "fc1"}
    # Two encoder and two decoder layers, which have two attentions each; an adapter is two matrices.
    assert len(learnt) == 2 * ((2 + 2) + (4 + 2))


def test_beside_a_frozen_encoder_only_the_decoder_has_adapters(tiny_whisper: Path) -> None:
    learnt = trainable(model(tiny_whisper, freeze="encoder"))
    assert {name.split(".")[1] for name in learnt} == {"decoder"}
    assert len(learnt) == 2 * 4 * 2


def test_merged_adapters_say_the_same(tiny_whisper: Path, tmp_path: Path) -> None:
    import torch
    from transformers import WhisperForConditionalGeneration

    tuned = model(tiny_whisper)
    torch.manual_seed(1)
    for name, item in trainable(tuned).items():
        if "lora_B" in name:
            torch.nn.init.normal_(item, std=0.1)
    before, plain = logits(tuned), logits(whisper._model(tiny_whisper, settings()))
    assert (before - plain).abs().max() > 1e-3, "the adapters change something"
    merged = lora.merge(tuned)
    merged.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(merged), before, atol=1e-5, rtol=0)
    loaded = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), before, atol=1e-5, rtol=0)
    assert dict(merged.named_modules()).keys() == dict(loaded.named_modules()).keys()


def test_a_model_without_adapters_is_merged_into_itself(tiny_whisper: Path) -> None:
    plain = whisper._model(tiny_whisper, settings())
    names = [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in lora.merge(plain).named_parameters()] == names


def test_every_adapter_gets_a_gradient_and_recomputing_changes_none(tiny_whisper: Path) -> None:
    import torch

    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        tuned = model(tiny_whisper, lora={**SMALL, "dropout": 0.0}, gradient_checkpointing=checkpointing).train()
        for name, item in trainable(tuned).items():
            if "lora_B" in name:
                torch.nn.init.normal_(item, std=0.1)
        if checkpointing:
            tuned.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        features = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0))
        tuned(input_features=features, labels=torch.arange(20)[None]).loss.backward()
        found.append({name: item.grad for name, item in trainable(tuned).items()})
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[1][name], gradient)


def test_a_target_that_no_layer_has(tiny_whisper: Path) -> None:
    plain = whisper._model(tiny_whisper, settings())
    wrong = Lora.model_construct(targets=["q_proj", "qkv"])
    with pytest.raises(SuiteError) as caught:
        lora.attach(plain, wrong, decoder_only=False)
    assert str(caught.value) == (
        "lora.targets: 'qkv' matches no layer of this model, which has: fc1, fc2, k_proj, out_proj, q_proj, v_proj"
    )
    with pytest.raises(ValidationError, match="'q_proj', 'k_proj', 'v_proj', 'out_proj', 'fc1' or 'fc2'"):
        Lora(targets=["qkv"])


class Killed(BaseException):
    """No error that anything catches."""


class Mortal(Work):
    """Breaks off in the second step; the checkpoint of the first is whole by then."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        if done == 2:
            raise Killed


def state_b(work: Work) -> int:
    """Bytes of the optimizer's moments in the last checkpoint."""
    import torch

    def tensors(item: Any) -> list[Any]:
        if isinstance(item, dict):
            return [tensor for value in item.values() for tensor in tensors(value)]
        return [item] if isinstance(item, torch.Tensor) else []

    state = torch.load(work.scratch / "checkpoints" / "checkpoint-2" / "optimizer.pt", weights_only=True)["state"]
    return sum(tensor.nbytes for tensor in tensors(state))


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": {**SMALL, "dropout": 0.1}, "freeze": "encoder", "gradient_checkpointing": True},
        {"optimizer": "adamw_8bit", "gradient_checkpointing": True},
    ],
    ids=["lora", "8bit"],
)
def test_killed_and_resumed_ends_with_the_same_weights(sets: Inputs, tmp_path: Path, changes: dict[str, Any]) -> None:
    import torch

    spec = settings(batch_size=2, **changes)
    unbroken, resumed = work_in(tmp_path / "unbroken"), work_in(tmp_path / "resumed")
    meta = whisper.run(spec, sets, unbroken)
    with pytest.raises(Killed):
        whisper.run(spec, sets, Mortal(resumed.path, resumed.scratch))
    assert (resumed.scratch / "checkpoints" / "checkpoint-1" / "trainer_state.json").is_file()
    assert whisper.run(spec, sets, resumed)["best_step"] == meta["best_step"]
    expected, found = weights_of(unbroken.path), weights_of(resumed.path)
    assert found.keys() == expected.keys()
    assert not [name for name in found if "lora" in name or "base_layer" in name]
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    config = json.loads((unbroken.path / "model" / "config.json").read_text("utf-8"))
    assert "peft" not in json.dumps(config)
    assert not list((unbroken.path / "model").glob("adapter*"))
    shape = shape_of("", folder=sets["base"][0].path / "model")
    assert shape is not None
    count = Count(shape, spec)
    assert meta["num_trainable"] == count.num_trainable
    assert state_b(unbroken) == pytest.approx(count.optimizer_b(), rel=0.05)
