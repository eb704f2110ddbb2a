"""A suite file → a `Suite`, or all its mistakes at once, each with file and line."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import ValidationError

from harness.errors import Problem, SuiteError
from harness.suite.document import Document, Place, dotted, read
from harness.suite.kinds import KindOf, kinds
from harness.suite.model import ModelSpec, trained_as
from harness.suite.references import reference_faults
from harness.suite.schema import Suite
from harness.suite.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic_core import ErrorDetails

Fault = tuple[Place, str]

EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def load(path: Path) -> Suite:
    """Read and check a suite. Paths in it are relative to its folder.

    Raises SuiteError with every mistake that could be found.
    """
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [item.name for item in path.parent.glob("*.y*ml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise SuiteError(f"{path}: no such suite file{hint}")
    document = read(path)
    problems = [Problem(document.file, line, where, message) for line, where, message in document.faults]
    suite, faults = _parse(document)
    problems += [Problem(document.file, document.line(place), dotted(place), message) for place, message in faults]
    if problems or suite is None:
        problems.sort(key=lambda problem: problem.line)
        count = f"{len(problems)} mistake{'s' if len(problems) != 1 else ''}"
        raise SuiteError(f"{path}: {count} in this suite", tuple(problems))
    return suite


def _parse(document: Document) -> tuple[Suite | None, list[Fault]]:
    if not isinstance(document.data, dict):
        if document.faults:
            return None, []
        return None, [((), f"expected a mapping that starts with `suite: NAME`, found {_found(document.data)}")]
    faults: list[Fault] = []
    suite = None
    try:
        suite = Suite.model_validate(_absolute(document.data, Path(document.file).parent))
    except ValidationError as error:
        faults += [_fault(detail) for detail in error.errors(include_url=False)]
    faults += reference_faults(document.data)
    if suite is not None:
        faults += [fault for name, model in suite.models.items() for fault in _variant_faults(name, model)]
    return suite, faults


def _absolute(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The data with `path` of datasets, and `base` of models where it is a folder, relative to the suite's folder."""

    def resolved(section: str, field: str, *, only_existing: bool) -> Any:
        entries = data.get(section)
        if not isinstance(entries, dict):
            return entries
        changed = dict(entries)
        for name, entry in entries.items():
            value = entry.get(field) if isinstance(entry, dict) else None
            if isinstance(value, str) and value:
                path = (folder / Path(value).expanduser()).resolve()
                if path.is_dir() or not only_existing:
                    changed[name] = {**entry, field: str(path)}
        return changed

    return {
        **data,
        **{
            section: resolved(section, field, only_existing=only_existing)
            for section, field, only_existing in (("datasets", "path", False), ("models", "base", True))
            if section in data
        },
    }


def _variant_faults(name: str, model: ModelSpec) -> Iterator[Fault]:
    """Each value of the grid and of each named variant, tried alone, so that the fault has its own line."""
    known = list(type(model.train).model_fields)
    for field, values in model.grid.items():
        place: Place = ("models", name, "grid", field)
        if field not in known:
            yield place, _unknown("training field", field, known)
            continue
        for index, value in enumerate(values):
            yield from _training_faults(model, {field: value}, (*place, index))
    for variant, fields in model.variants.items():
        place = ("models", name, "variants", variant)
        unknown = [field for field in fields if field not in known]
        yield from (((*place, field), _unknown("training field", field, known)) for field in unknown)
        if not unknown:
            yield from _training_faults(model, fields, place)


def _training_faults(model: ModelSpec, changes: dict[str, Any], place: Place) -> Iterator[Fault]:
    try:
        trained_as(model, {}, changes)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            inner = tuple(part for part in detail["loc"] if part not in changes or len(changes) > 1)
            yield (*place, *inner), _message(detail, ())


def _fault(detail: ErrorDetails) -> Fault:
    return detail["loc"], _message(detail, detail["loc"])


def _message(detail: ErrorDetails, place: Place) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown("key", str(place[-1]), sorted(_keys_at(place[:-1])))
    if kind == "missing":
        return "this key is required"
    if kind == "union_tag_invalid":
        return _unknown("kind", str(context["tag"]), [tag.strip("' ") for tag in context["expected_tags"].split(",")])
    if kind == "union_tag_not_found":
        return "the key `kind` is required"
    if kind in EXPECTED:
        return f"expected {EXPECTED[kind]}, found {_found(detail['input'])}"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"expected {message}, found {_found(detail['input'])}" if kind != "value_error" else message


def _unknown(what: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"unknown {what} '{name}'{hint} (known: {', '.join(known)})"


def _found(value: Any) -> str:
    if value is None:
        return "nothing"
    names = {bool: "true/false", int: "whole number", float: "number", str: "text", list: "list", dict: "mapping"}
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{shown if len(shown) <= 40 else shown[:37] + '…'} ({names.get(type(value), type(value).__name__)})"


def _keys_at(place: Place) -> set[str]:
    """The keys that a mapping at `place` may have, found by walking the types of the suite."""
    at: Any = Suite
    for part in place:
        at = _step(at, part)
    if isinstance(at, type) and issubclass(at, Spec):
        return {field.alias or name for name, field in at.model_fields.items()}
    return set()


def _step(at: Any, part: str | int) -> Any:
    if isinstance(at, type) and issubclass(at, Spec):
        for name, field in at.model_fields.items():
            if part == (field.alias or name):
                kind_of = next((item for item in field.metadata if isinstance(item, KindOf)), None)
                return kind_of or field.annotation
        return None
    if isinstance(at, KindOf):
        return kinds(at.what)[str(part)].Spec if part in kinds(at.what) else at
    arguments = get_args(at)
    if get_origin(at) is dict:
        return _unwrapped(arguments[1])
    if get_origin(at) is list:
        return _unwrapped(arguments[0])
    return next((_step(argument, part) for argument in arguments if isinstance(argument, type)), None)


def _unwrapped(annotation: Any) -> Any:
    """`Annotated[X, KindOf(…)]` → the KindOf, `Annotated[X, …]` → X."""
    extras = getattr(annotation, "__metadata__", ())
    return next(
        (item for item in extras if isinstance(item, KindOf)), get_args(annotation)[0] if extras else annotation
    )
