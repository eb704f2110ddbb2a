"""Every field of every step's declaration counts for its key, unless the class says why it does not."""

from __future__ import annotations

import importlib
import pkgutil
from itertools import chain
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from annotated_types import Ge
from pydantic import ValidationError

from harness.engine.plan import Builder
from harness.suite.kinds import FOLDERS, kinds
from harness.suite.model import TrainingSpec
from harness.suite.spec import Spec
from harness.train import whisper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo


def step_specs() -> Iterator[type[Spec]]:
    """What `run` takes, of every module of a stage folder that has one."""
    for folder in FOLDERS.values():
        package = importlib.import_module(f"harness.{folder}")
        for info in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{info.name}")
            if hasattr(module, "VERSION") and hasattr(module, "run"):
                yield getattr(module, module.run.__annotations__["spec"])


SPECS = list(step_specs())
NEEDED = {
    "harness.data.hub.Spec": {"id": "owner/name"},
    "harness.data.pieces.Spec": {"corpus": {"kind": "manifest", "path": "some"}},
    "harness.train.augmentation.Augmentation": {"gain": {"p": 0.5}},
}
"""Fields without which a spec is refused, though each has a default, or that have no example here."""
ALSO = {"harness.train.whisper.Training": {"batch_size": "auto"}, "harness.score.scores.Spec": {"also": ["ru-strict"]}}
"""Fields with which others are allowed that are refused without, or that no example is allowed for."""


def example(annotation: Any) -> Any:
    """Some value for a required field."""
    annotation = bare(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return instance(annotation)
    if get_origin(annotation) is list:
        return [example(get_args(annotation)[0])]
    if get_origin(annotation) is dict:
        return {"some": example(get_args(annotation)[1])}
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    return {str: "some", int: 1, float: 0.5}[annotation]


def bare(annotation: Any) -> Any:
    """`Annotated[X, …]` → X."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def instance(spec: type[Spec]) -> Spec:
    required = {name: field for name, field in spec.model_fields.items() if field.is_required()}
    fields = {name: smallest(field) or example(field.annotation) for name, field in required.items()}
    return spec.model_validate({**fields, **NEEDED.get(f"{spec.__module__}.{spec.__name__}", {})})


def smallest(field: FieldInfo) -> float | None:
    """What a `ge` of the field allows."""
    return next((item.ge for item in field.metadata if isinstance(item, Ge)), None)


def others(value: Any, annotation: Any) -> Iterator[Any]:
    """Values beside `value` that the annotation may allow."""
    annotation = bare(annotation)
    if get_origin(annotation) in {Union, UnionType}:
        options = get_args(annotation)
        yield from (
            ()
            if value is None
            else chain.from_iterable(others(value, item) for item in options if item is not NoneType)
        )
        yield from (example(item) for item in options if value is None and item is not NoneType)
        yield from (None for _ in options[:1] if value is not None and NoneType in options)
    elif get_origin(annotation) is Literal:
        yield from (item for item in get_args(annotation) if item != value)
    elif get_origin(annotation) is list:
        (item,) = get_args(annotation)
        yield from ([*value, example(item)], value[1:])
        yield from ([changed, *value[1:]] for first in value[:1] for changed in others(first, item))
    elif get_origin(annotation) is dict:
        yield {**value, **example(annotation)}
    elif isinstance(value, Spec):
        yield from (value.model_copy(update={name: changed}) for name, changed in changes(value))
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, value / 2, value + 0.01)
    else:
        yield from (f"{value}x", "ru-strict")  # the second for whoever takes only normalisers


def changes(spec: Spec) -> Iterator[tuple[str, Any]]:
    """Field → another value that it allows; every field of nested specs comes too."""
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        for other in others(value, field.annotation):
            try:
                type(spec).model_validate({**dict(spec), name: other})
            except ValidationError:
                continue
            if other != value:
                yield name, other


def key(spec: Spec) -> str:
    return Builder(lambda path: f"digest of {path.name}").add("stage", "name", spec, {}).key


def test_all_steps_are_seen() -> None:
    names = {spec.__module__.removeprefix("harness.") for spec in SPECS}
    assert names >= {
        "data.manifest", "data.select", "data.leakage", "train.weights", "train.whisper",
        "export.whisper_onnx", "export.whisper_ggml", "score.onnx", "score.whispercpp", "score.scores",
    }  # fmt: skip


@pytest.mark.parametrize("spec_class", SPECS, ids=lambda spec: spec.__module__.removeprefix("harness."))
def test_every_field_counts_or_says_why_not(spec_class: type[Spec]) -> None:
    spec = instance(spec_class)
    tried = set()
    also = spec_class.model_validate({**dict(spec), **ALSO.get(f"{spec_class.__module__}.{spec_class.__name__}", {})})
    for start, name, other in ((item, *change) for item in (spec, also) for change in changes(item)):
        changed = spec_class.model_validate({**dict(start), name: other})
        if changed == start:
            continue  # what is left out is filled in
        tried.add(name)
        nested = [item for item in (getattr(start, name), other) if isinstance(item, Spec)]
        excused = len(nested) == 2 and nested[0].identity() == nested[1].identity()  # by its own class
        if name in spec_class.not_identity or excused:
            assert changed.identity() == start.identity(), name
        else:
            assert key(changed) != key(start), f"{name}: {getattr(start, name)!r} and {other!r} share a key"
    # A kind has one name; nothing else may be left out.
    single = {name for name, field in spec_class.model_fields.items() if len(get_args(field.annotation)) == 1}
    fixed = {name for name in single if get_origin(spec_class.model_fields[name].annotation) is Literal}
    # Some kinds explain why they refuse what others allow, such as `download: true`.
    switches = {name for name, field in spec_class.model_fields.items() if field.annotation is bool} - tried
    assert tried | switches | set(spec_class.not_identity) == set(spec_class.model_fields) - fixed | set(
        spec_class.not_identity
    )
    assert fixed <= {"kind"}
    assert set(spec_class.not_identity) <= set(spec_class.model_fields)
    assert all(spec_class.not_identity.values()), "each exception has a reason"


def test_nested_fields_are_changed_too() -> None:
    packings = [other for name, other in changes(whisper.Training()) if name == "packing"]
    default = whisper.Packing()
    assert None in packings
    for field in whisper.Packing.model_fields:
        assert any(item is not None and getattr(item, field) != getattr(default, field) for item in packings), field


def test_a_field_declared_as_its_base_keeps_its_own_fields() -> None:
    """A dump by the declared type drops what the subclass adds: then all learning rates share one key."""

    class Holder(Spec):
        training: TrainingSpec

    slow, fast = (Holder(training=whisper.Training(learning_rate=rate)) for rate in (1e-5, 3e-5))
    assert slow.model_dump() == fast.model_dump(), "the trap is gone from pydantic; this test can go, too"
    assert slow.identity() != fast.identity()
    assert slow.identity()["training"]["learning_rate"] == 1e-5


@pytest.mark.parametrize("what", FOLDERS)
def test_every_kind_is_a_step_or_a_model(what: str) -> None:
    for name, module in kinds(what).items():
        assert name == module.__name__.rsplit(".", 1)[1]
        if not getattr(module.Spec, "in_place", False):  # what is run as training leaves it is no step
            assert isinstance(module.VERSION, int), name
            assert callable(module.run), name
        assert module.__doc__, f"`harness list` shows the first line of {name}'s docstring"


def test_specs_are_strict_and_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        whisper.Training().epochs = 2
    with pytest.raises(ValidationError, match="not permitted"):
        whisper.Training(learning_rat=1)
    with pytest.raises(ValidationError, match="valid integer"):
        whisper.Training(epochs="2")
    with pytest.raises(ValidationError, match="finite"):
        whisper.Training(learning_rate=float("nan"))
