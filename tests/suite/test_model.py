from __future__ import annotations

import pytest
from pydantic import ValidationError

from harness.core import targets
from harness.suite.model import ZERO_SHOT, TextPolicy, combinations, expand, trained_as, variant_name
from harness.train import whisper


def model(**fields: object) -> whisper.Spec:
    return whisper.Spec.model_validate({"base": "openai/whisper-base", "export": ["whisper_onnx"], **fields})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"learning_rate": 1e-5}, "lr1e-5"),
        ({"learning_rate": 1e-5, "warmup_steps": 500}, "lr1e-5-warmup500"),
        ({"warmup_steps": 500, "learning_rate": 1e-5}, "warmup500-lr1e-5"),
        ({"learning_rate": 1.5e-05}, "lr1.5e-5"),
        ({"learning_rate": 0.0003}, "lr3e-4"),
        ({"learning_rate": 0.001}, "lr1e-3"),
        ({"weight_decay": 0.0}, "weight_decay0"),
        ({"weight_decay": 0.05}, "weight_decay0.05"),
        ({"max_grad_norm": 2.5e6}, "max_grad_norm2.5e6"),
        ({"batch_size": 16, "max_steps": 4000}, "batch16-steps4000"),
        ({"gradient_checkpointing": True}, "gradient_checkpointingTrue"),
        ({"packing": None}, "packingNone"),
        # What no file system likes becomes an underscore.
        ({"freeze": "a/b: *"}, "freezea_b___"),
        ({"packing": {"window_s": 20}}, "packing__window_s___20_"),
    ],
)
def test_variant_names(fields: dict[str, object], expected: str) -> None:
    assert variant_name(fields) == expected


def test_grid_is_a_product_in_its_written_order() -> None:
    grid = {"warmup_steps": [4, 12], "learning_rate": [3e-5, 1e-5]}
    assert combinations(grid) == [
        {"warmup_steps": 4, "learning_rate": 3e-5},
        {"warmup_steps": 4, "learning_rate": 1e-5},
        {"warmup_steps": 12, "learning_rate": 3e-5},
        {"warmup_steps": 12, "learning_rate": 1e-5},
    ]
    assert combinations({}) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [ZERO_SHOT, "tuned"]),
        ({"zero_shot": False}, ["tuned"]),
        ({"zero_shot": "only"}, [ZERO_SHOT]),
        ({"grid": {"learning_rate": [3e-5, 1e-5]}}, [ZERO_SHOT, "lr3e-5", "lr1e-5"]),
        ({"variants": {"b": {"epochs": 2}, "a": {}}}, [ZERO_SHOT, "b", "a"]),
        (
            {"variants": {"b": {"epochs": 2}}, "grid": {"learning_rate": [3e-5, 1e-5], "epochs": [1]}},
            [ZERO_SHOT, "lr3e-5-epochs1", "lr1e-5-epochs1", "b"],
        ),
    ],
)
def test_expansion_order(fields: dict[str, object], expected: list[str]) -> None:
    assert [variant.name for variant in expand(model(**fields), seed=1)] == expected


def test_what_each_variant_trains_with() -> None:
    declared = model(
        train={"max_steps": 24, "packing": {"singles": 0.1}},
        grid={"learning_rate": [1e-5], "batch_size": [2, 4]},
        variants={"long": {"max_steps": 99}},
    )
    zero_shot, small, large, long = expand(declared, seed=1)
    assert zero_shot.training is None
    assert small.training == whisper.Training(seed=1, max_steps=24, batch_size=2, packing={"singles": 0.1})
    assert large.training == whisper.Training(seed=1, max_steps=24, batch_size=4, packing={"singles": 0.1})
    # Beside the grid: only its own fields differ from `train`.
    assert long.training == whisper.Training(seed=1, max_steps=99, packing={"singles": 0.1})


@pytest.mark.parametrize(
    ("train", "grid", "expected"),
    [
        ({}, {"epochs": [1, 2]}, [7, 7]),
        ({"seed": 3}, {"epochs": [1, 2]}, [3, 3]),
        ({"seed": 3}, {"seed": [4, 5]}, [4, 5]),
    ],
)
def test_the_nearest_seed_wins(train: dict[str, object], grid: dict[str, list[object]], expected: list[int]) -> None:
    variants = expand(model(train=train, grid=grid, zero_shot=False), seed=7)
    assert [variant.training.seed for variant in variants] == expected


def test_changes_are_validated() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        trained_as(model(), {}, {"learning_rate": 0})
    with pytest.raises(ValidationError, match="not permitted"):
        trained_as(model(), {}, {"learning_rat": 1e-5})


def test_a_policy_of_text_has_a_short_form() -> None:
    short, long = model(train={"text": "lower"}), model(train={"text": {"case": "lower"}})
    assert short.train.text == long.train.text == TextPolicy(case="lower", yo="keep", digits="keep")
    variants = expand(model(grid={"text": ["cased", {"case": "lower", "yo": "fold"}]}, zero_shot=False), seed=1)
    assert [variant.training.text for variant in variants] == [
        TextPolicy(case="cased"),
        TextPolicy(case="lower", yo="fold"),
    ]
    assert variants[0].name == "textcased"
    with pytest.raises(ValidationError, match="'as_is', 'lower' or 'cased'"):
        model(train={"text": "upper"})


def test_a_new_version_of_the_policies_is_another_training(monkeypatch: pytest.MonkeyPatch) -> None:
    before = whisper.Training().identity()
    monkeypatch.setattr(targets, "VERSION", targets.VERSION + 1)
    after = whisper.Training().identity()
    assert {name for name in before if before[name] != after[name]} == {"text"}


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"grid": {"learning_rate": [1e-5]}}, "grid"),
        ({"variants": {"a": {}}}, "variants"),
        ({"grid": {"learning_rate": [1e-5]}, "variants": {"a": {}}}, "grid and variants"),
    ],
)
def test_zero_shot_alone_takes_no_variants(fields: dict[str, object], asked: str) -> None:
    with pytest.raises(ValidationError, match=f"only trains nothing, but there is {asked}; write zero_shot: true, or"):
        model(zero_shot="only", **fields)
