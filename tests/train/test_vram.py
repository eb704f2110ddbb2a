"""The prediction against what PyTorch keeps: real models on tensors without memory, so that large-v3 fits anywhere."""

from __future__ import annotations

import contextlib
import json
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from harness.train import lora, micro_batch
from harness.train.vram import CONTEXT_B, GIB, KNOWN, STATE_B, WASTE, Count, Shape, lighter, memory, predict, shape_of
from harness.train.whisper import Training

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NARROW = Shape(128, 3, 2, 2, 2, 512, 512, 80, 51_865)
"""Other proportions than OpenAI's: few heads, fewer decoder layers, wide vocabulary."""
ALONE = Shape(256, 2, 5, 8, 8, 768, 640, 128, 2_000, 700, 100)
SHAPES = {"narrow": NARROW, "alone": ALONE}
LARGE = KNOWN["openai/whisper-large-v3"]


def build(shape: Shape, spec: Training) -> Any:
    """The model that such a training has, on no device: shapes without numbers."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {name: getattr(shape, name) for name in Shape.__slots__}
    special = {"pad_token_id": 1, "eos_token_id": 1, "bos_token_id": 1, "decoder_start_token_id": 2}
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(WhisperConfig(**sizes, **special, use_cache=False))
    model.train()
    # As `from_pretrained` leaves them.
    model.model.encoder.embed_positions.requires_grad_(requires_grad=True)
    if spec.freeze == "encoder":
        model.model.encoder.requires_grad_(requires_grad=False)
    if spec.lora:
        lora.attach(model, spec.lora, decoder_only=spec.freeze == "encoder")
    if spec.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    return model


def on_a_device(model: Any) -> None:
    """Give all tensors of a model a device, inside FakeTensorMode."""
    import torch

    made: dict[int, Any] = {}
    for module in model.modules():
        for name, tensor in list(module._parameters.items()):
            if tensor is not None:
                kept = torch.nn.Parameter(torch.empty(tensor.shape), requires_grad=tensor.requires_grad)
                # The tensor stays in the dictionary, so that no other gets its id.
                module._parameters[name] = made.setdefault(id(tensor), (tensor, kept))[1]
        for name, tensor in list(module._buffers.items()):
            if tensor is not None:
                module._buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype)


@contextlib.contextmanager
def kept_tensors(model: Any) -> Iterator[list[Any]]:
    """Filled with what the graph holds for the backward pass when the block ends, without the model's own tensors."""
    import torch

    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    seen: list[Any] = []
    found: list[Any] = []

    def pack(tensor: Any) -> Any:
        seen.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found
    alive = {tensor.untyped_storage()._cdata: tensor for reference in seen if (tensor := reference()) is not None}
    found += [tensor for key, tensor in alive.items() if key not in own]


def counted_b(shape: Shape, spec: Training, *, computed: bool = False) -> int:
    """Bytes that autograd keeps for one window with a full text context. computed: with numbers, too."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = build(shape, spec)
    half = torch.autocast("cpu", torch.bfloat16) if spec.precision == "bf16" else contextlib.nullcontext()
    with contextlib.nullcontext() if computed else FakeTensorMode():
        on_a_device(model)
        features = torch.zeros(1, shape.num_mel_bins, 2 * shape.max_source_positions)
        labels = torch.zeros(1, shape.max_target_positions, dtype=torch.long)
        with kept_tensors(model) as found, half:
            outputs = model(input_features=features, labels=labels)
        total = sum(tensor.untyped_storage().nbytes() for tensor in found)
        del outputs
    return total


def predicted_b(shape: Shape, spec: Training) -> int:
    """The same by arithmetic."""
    count = Count(shape, spec)
    copies = count.weight_copies_b()
    if spec.gradient_checkpointing and copies:
        # Those of layers go with them; the output layer's stays, and the convolutions'.
        learnt = 0 if spec.lora or spec.freeze == "encoder" else count.convolutions
        copies = 2 * (shape.d_model * shape.vocab_size + learnt)
    return count.outer_b() + count.layers_b() + copies


LORA = {"r": 8, "dropout": 0.0}
RECIPES = [
    {},
    {"freeze": "encoder"},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "freeze": "encoder"},
    {"lora": LORA},
    {"lora": {**LORA, "targets": ["k_proj", "out_proj", "fc1", "fc2"]}},
    {"lora": LORA, "freeze": "encoder"},
    {"lora": LORA, "gradient_checkpointing": True},
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_activations_are_what_autograd_keeps(shape: str, recipe: dict[str, Any], precision: str) -> None:
    spec = Training.model_validate({**recipe, "precision": precision})
    assert predicted_b(SHAPES[shape], spec) == pytest.approx(counted_b(SHAPES[shape], spec), rel=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_tensors_without_numbers_are_kept_like_others(precision: str) -> None:
    spec = Training(precision=precision)
    assert counted_b(ALONE, spec) == pytest.approx(counted_b(ALONE, spec, computed=True), rel=0.02)


@pytest.mark.parametrize("recipe", [{}, {"freeze": "encoder"}, {"gradient_checkpointing": True}], ids=str)
def test_activations_of_large_v3(recipe: dict[str, Any]) -> None:
    spec = Training.model_validate({**recipe, "precision": "bf16"})
    assert predicted_b(LARGE, spec) == pytest.approx(counted_b(LARGE, spec), rel=0.1)


@pytest.mark.parametrize("recipe", [{}, {"freeze": "encoder"}, {"lora": LORA}, {"lora": LORA, "freeze": "encoder"}])
@pytest.mark.parametrize("shape", [*SHAPES.values(), LARGE, KNOWN["openai/whisper-large-v3-turbo"]])
def test_parameters_are_those_of_the_model(shape: Shape, recipe: dict[str, Any]) -> None:
    spec = Training.model_validate(recipe)
    model, count = build(shape, spec), Count(shape, spec)
    assert count.num_trainable == sum(item.numel() for item in model.parameters() if item.requires_grad)
    adapters = count.adapters if spec.lora else 0
    assert count.num_parameters + adapters == sum(item.numel() for item in model.parameters())


def test_adamw_on_all_of_large_v3_needs_what_is_known() -> None:
    parts = predict(LARGE, Training(), micro_batch=1).parts
    known_gb = 24.7
    assert (parts["weights"] + parts["gradients"] + parts["optimizer"]) / 1e9 == pytest.approx(known_gb, rel=0.005)


def test_the_total_has_the_context_and_the_waste() -> None:
    found = predict(LARGE, Training(), micro_batch=1)
    others = sum(value for name, value in found.parts.items() if name != "context")
    assert found.total_b == others + CONTEXT_B + round(WASTE * others)


@pytest.mark.parametrize(
    "change",
    [
        {"gradient_checkpointing": True},
        {"optimizer": "adamw_8bit"},
        {"freeze": "encoder"},
        {"lora": LORA},
        {"precision": "bf16"},
    ],
    ids=str,
)
@pytest.mark.parametrize("base", ["openai/whisper-small", "openai/whisper-large-v3"])
def test_what_saves_memory_saves_memory(base: str, change: dict[str, Any]) -> None:
    plain = Training(precision="fp32", batch_size=8)
    less = Training.model_validate({**plain.model_dump(exclude_unset=True), **change})
    assert predict(KNOWN[base], less, micro_batch=8).total_b < predict(KNOWN[base], plain, micro_batch=8).total_b


def test_an_evaluation_may_be_the_peak() -> None:
    tuned = Training(lora=lora.Lora(), gradient_checkpointing=True)
    few, many = (
        predict(LARGE, tuned.model_copy(update={"eval_batch_size": size}), micro_batch=1).total_b for size in (1, 64)
    )
    assert many > few


def test_more_windows_take_more() -> None:
    totals = [predict(LARGE, Training(), micro_batch=size).total_b for size in (1, 2, 4)]
    assert totals[1] - totals[0] == pytest.approx((totals[2] - totals[1]) / 2, rel=1e-6)
    assert totals[1] > totals[0]


@pytest.mark.parametrize(("budget_gib", "expected"), [(24, 8), (80, 16), (1, 1), (None, 1)])
def test_auto_is_the_largest_that_fits(budget_gib: float | None, expected: int) -> None:
    spec = Training(batch_size="auto", optimizer="adamw_8bit", gradient_checkpointing=True)
    budget_b = None if budget_gib is None else budget_gib * GIB
    found = memory(spec, "openai/whisper-large-v3", folder=None, budget_b=budget_b)
    assert found is not None
    assert found.micro_batch == expected
    fixed = predict(LARGE, spec, micro_batch=expected)
    assert found.parts == fixed.parts
    larger = predict(LARGE, spec, micro_batch=2 * expected)
    assert expected in {1, 16} or fixed.total_b <= budget_b < larger.total_b


def test_the_size_is_read_from_the_config(tmp_path: Path) -> None:
    assert shape_of("openai/whisper-medium", folder=None) == KNOWN["openai/whisper-medium"]
    assert shape_of("somebody/whisper-russian", folder=None) is None
    assert memory(Training(), "somebody/whisper-russian", folder=None, budget_b=None) is None
    config = {name: getattr(NARROW, name) for name in Shape.__slots__}
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "whisper"}), encoding="utf-8")
    assert shape_of("somebody/whisper-russian", folder=tmp_path) == NARROW
    for broken in ("{", "[]", "{}", json.dumps({**config, "d_model": "wide"}), json.dumps({**config, "vocab_size": 0})):
        (tmp_path / "config.json").write_text(broken, encoding="utf-8")
        assert shape_of("somebody/whisper-russian", folder=tmp_path) is None


def test_lighter_trainings_have_the_same_step_and_the_gentlest_come_first() -> None:
    spec = Training(batch_size=8, gradient_accumulation_steps=2)
    changes = list(lighter(spec))
    changed = [spec.model_copy(update=change) for change in changes]
    assert {item.per_step for item in changed} == {16}
    assert changes[1:3] == [{"eval_batch_size": 1}, {"gradient_checkpointing": True}]
    assert changes[4] == {"batch_size": 4, "gradient_accumulation_steps": 4}
    last = changed[-1]
    assert (last.lora, last.batch_size, last.gradient_checkpointing) == (lora.Lora(), 1, True)
    auto = Training(batch_size="auto", gradient_checkpointing=True)
    assert all("batch_size" not in change for change in lighter(auto))


def test_the_8_bit_state_has_its_scales() -> None:
    assert STATE_B["adamw"] == 2 * 4
    assert STATE_B["adamw_8bit"] == 2 * (1 + 4 / 256)
    assert micro_batch.candidates(16) == [16, 8, 4, 2, 1]
