from __future__ import annotations

import json
import math

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.suite.model import expand, segment_class
from harness.suite.schema import json_schema
from harness.suite.search import TRIALS, Range, Search, num_combinations, sampled
from harness.train import parakeet, whisper

RATES = {"from": 1e-6, "to": 1e-4, "scale": "log"}


def between(low: float, high: float, scale: str = "linear") -> Range:
    return Range.model_validate({"from": low, "to": high, "scale": scale})


def model(**fields: object) -> whisper.Spec:
    return whisper.Spec.model_validate({"base": "openai/whisper-base", "export": ["whisper_onnx"], **fields})


@pytest.mark.parametrize(
    ("search", "max_steps", "expected"),
    [
        ({"kind": "asha"}, [1000], [250, 500]),
        ({"kind": "asha"}, [1000, 400], [100, 200]),
        ({"kind": "asha", "keep": 0.9}, [10], [8, 9]),
        ({"kind": "asha", "keep": 0.1}, [10], [1]),
        ({"kind": "asha"}, [1], []),
        ({"kind": "asha", "rungs": [7, 9]}, [1000], [7, 9]),
    ],
)
def test_rungs(search: dict[str, object], max_steps: list[int], expected: list[int]) -> None:
    assert Search.model_validate(search).stops(max_steps) == expected


def test_short_forms() -> None:
    assert Search.model_validate("asha") == Search(kind="asha")
    assert model().search == Search(kind="grid")
    assert Search.model_validate(Search(kind="grid").model_dump()) == Search()


GRIDS = st.dictionaries(
    st.sampled_from(["a", "b", "c"]),
    st.lists(st.integers(0, 9), min_size=1, max_size=4)
    | st.tuples(st.integers(1, 50), st.integers(1, 50)).map(lambda pair: between(min(pair), max(pair) + 1)),
    min_size=1,
)


@settings(deadline=None, max_examples=40)
@given(grid=GRIDS, trials=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_a_sample_is_of_different_combinations_of_the_grid(grid: dict, trials: int, seed: int) -> None:
    wanted = int(min(trials, num_combinations(grid)))
    chosen = sampled(grid, trials=wanted, seed=seed)
    assert len({json.dumps(fields) for fields in chosen}) == len(chosen) == wanted
    for fields in chosen:
        assert list(fields) == list(grid)
        for name, values in grid.items():
            inside = values.low <= fields[name] <= values.high if isinstance(values, Range) else fields[name] in values
            assert inside
    assert sampled(grid, trials=wanted, seed=seed) == chosen
    # More trials keep what fewer have trained.
    assert sampled(grid, trials=max(1, wanted // 2), seed=seed) == chosen[: max(1, wanted // 2)]


def test_another_seed_is_another_sample() -> None:
    grid = {"learning_rate": between(1e-6, 1e-4, "log")}
    assert sampled(grid, trials=3, seed=1) != sampled(grid, trials=3, seed=2)


def test_values_of_a_range() -> None:
    rates = [fields["a"] for fields in sampled({"a": between(1e-6, 1e-2, "log")}, trials=400, seed=1)]
    # As many in each power of ten.
    counts = [sum(1e-6 * 10**power <= rate < 1e-5 * 10**power for rate in rates) for power in range(4)]
    assert min(counts) > 70
    assert all(float(f"{rate:.4g}") == rate for rate in rates)
    whole = [fields["a"] for fields in sampled({"a": between(10, 500)}, trials=20, seed=1)]
    assert all(type(value) is int for value in whole)
    # A range that is narrow beside its numbers still has many values.
    assert len(sampled({"a": between(1.0001, 1.0002)}, trials=200, seed=1)) == 200


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ({"a": [1, 2], "b": [1, 2, 2]}, 4),
        ({"a": [1, 2], "b": between(1, 5)}, 10),
        ({"a": [1, 2], "b": between(1, 5.5)}, math.inf),
        ({"a": [None, {"x": 1}, {"x": 2}]}, 3),
    ],
)
def test_number_of_combinations(grid: dict, expected: float) -> None:
    assert num_combinations(grid) == expected


def test_variants_of_a_random_search() -> None:
    grid = {"learning_rate": RATES, "warmup_steps": [10, 20], "packing": [None, {"singles": 0.5}]}
    named = {"guide": {"learning_rate": 1e-5}}
    searched = model(grid=grid, search={"kind": "random", "trials": 5}, variants=named)
    variants = expand(searched, seed=3)
    assert [variant.name for variant in variants][::6] == ["zero-shot", "guide"]
    drawn = [variant.training for variant in variants[1:-1]]
    assert len({item.learning_rate for item in drawn}) == 5
    assert all(1e-6 <= item.learning_rate <= 1e-4 for item in drawn)
    assert expand(searched, seed=3) == variants
    # Without a number: so many, or all that there are.
    assert len(expand(model(grid=grid, search="random"), seed=3)) == 1 + TRIALS
    small = {"warmup_steps": [1, 2, 3]}
    assert {item.name for item in expand(model(grid=small, search="random"), seed=3)} == {
        item.name for item in expand(model(grid=small), seed=3)
    }


def test_which_kinds_can_be_cut_at_a_rung() -> None:
    for module in (whisper, parakeet):
        training = module.Training(max_steps=100, seed=3)
        segment = segment_class(training)
        assert segment is module.Segment
        cut = segment.model_validate({**training.model_dump(exclude_unset=True), "until": 10})
        assert cut.identity() == {**training.identity(), "until": 10}


def test_a_suite_cannot_say_until() -> None:
    with pytest.raises(ValidationError, match="until"):
        model(train={"until": 10})


@pytest.mark.parametrize(
    "search", ["random", "asha", {"kind": "random", "trials": 4}, {"kind": "asha", "rungs": [5], "keep": 0.3}]
)
def test_the_schema_knows_searches_and_ranges(search: object) -> None:
    schema = json.loads(json.dumps(json_schema()))
    kind = schema["$defs"]["Search"]
    validator = jsonschema.validators.validator_for(schema)({**schema, **kind, "properties": {}})
    part = jsonschema.validators.validator_for(schema)({"$defs": schema["$defs"], "$ref": "#/$defs/Search"})
    assert validator is not None
    assert list(part.iter_errors(search)) == []
    assert not part.is_valid("best")
    ranged = jsonschema.validators.validator_for(schema)({"$defs": schema["$defs"], "$ref": "#/$defs/Range"})
    assert list(ranged.iter_errors(RATES)) == []
    assert not ranged.is_valid({"from": 1})
