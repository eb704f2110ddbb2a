"""Pydantic's errors in the words of someone who writes a suite: what was expected, what is there, what was meant."""

from __future__ import annotations

import difflib
import re
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from harness.suite.kinds import KindOf, kinds
from harness.suite.spec import NAME_PATTERN, Spec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic_core import ErrorDetails

    from harness.suite.document import Place

Fault = tuple["Place", str]

EXPECTED = {
    "string_type": "a text",
    "string_too_short": "at least {min_length} letter",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "greater_than": "a number greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "a number less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "bool_type": "true or false",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} entry",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
MARKS = ("[key]", "[list]", "[range]")
"""Parts of pydantic's locations that no file has."""
MAX_LISTED = 10
MAX_SHOWN = 40
"""Characters of a value that a message repeats."""


def fault(detail: ErrorDetails, *, root: type[Spec]) -> Fault:
    """Place and message of one error that validating a `root` gave."""
    place, _ = _walk(root, detail["loc"])
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        _, at = _walk(root, detail["loc"][:-1])
        return place, unknown("key", str(place[-1]), known=sorted(_keys(at)))
    if kind == "missing":
        return place, "this key is required"
    if kind == "union_tag_invalid":
        tags = re.findall(r"'([^']*)'", context["expected_tags"])
        return (*place, "kind"), unknown("kind", str(context["tag"]), known=tags)
    if kind == "union_tag_not_found":
        return place, "the key `kind` is required"
    if kind == "value_error":
        return place, detail["msg"].removeprefix("Value error, ")
    return place, f"expected {_expected(detail)}, found {found(detail['input'])}{_near(detail)}"


def unknown(what: str, name: str, *, known: Iterable[str]) -> str:
    """`unknown kind 'manifset'; did you mean 'manifest'? (known: …)`."""
    names = list(known)
    near = did_you_mean(name, names)
    # A spelling that is near says enough where the whole list is long.
    listed = "" if near and len(names) > MAX_LISTED else f" (known: {', '.join(names) or 'none'})"
    return f"unknown {what} '{name}'{near}{listed}"


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """`; did you mean 'NEAREST'?`, or nothing where no spelling is near.

    cutoff: how much of the two is alike, from 0 to 1.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean '{near[0]}'?" if near else ""


def found(value: Any) -> str:
    """A value as the author wrote it, with its type: `'four' (text)`."""
    if value is None:
        return "nothing"
    names = {bool: "true/false", int: "whole number", float: "number", str: "text", list: "list", dict: "mapping"}
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[: MAX_SHOWN - 1]}…"
    return f"{shown} ({names.get(type(value), type(value).__name__)})"


def _expected(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    if detail["type"] == "string_pattern_mismatch" and context["pattern"] == NAME_PATTERN:
        return "a name of letters, digits, '.', '_' and '-' that starts with a letter or digit"
    if detail["type"] == "string_too_short" and context["min_length"] > 1:
        return f"at least {context['min_length']} letters"
    if detail["type"] in EXPECTED:
        told = EXPECTED[detail["type"]].format(**context)
        return re.sub(r"\b(?:True|False)\b", lambda word: word[0].lower(), told)  # as YAML writes them
    return detail["msg"].removeprefix("Input should be ")


def _near(detail: ErrorDetails) -> str:
    if detail["type"] != "literal_error" or not isinstance(detail["input"], str):
        return ""
    return did_you_mean(detail["input"], re.findall(r"'([^']*)'", detail.get("ctx", {})["expected"]))


def _walk(root: type[Spec], location: Iterable[str | int]) -> tuple[Place, Any]:
    """The place in the file that pydantic's location stands for, and the type that belongs there.

    Pydantic's locations also name the kind that a mapping was read as, mark keys by `[key]`, and what a value of a
    grid was read as by `[list]` or `[range]`.
    """
    place: Place = ()
    at: Any = root
    for part in location:
        if part in MARKS:
            continue
        if isinstance(at, KindOf):
            at = kinds(at.what)[str(part)].Spec
        else:
            place, at = (*place, part), _inside(at, part)
    return place, at


def _inside(at: Any, part: str | int) -> Any:
    """The type of what stands at `part` of an `at`."""
    if isinstance(at, type) and issubclass(at, Spec):
        for name, field in at.model_fields.items():
            if part == (field.alias or name):
                kind_of = next((item for item in field.metadata if isinstance(item, KindOf)), None)
                return kind_of or _unwrapped(field.annotation)
    if get_origin(at) in {dict, list}:
        return _unwrapped(get_args(at)[-1])
    return None


def _unwrapped(annotation: Any) -> Any:
    """`Annotated[X, KindOf(…)]` → the KindOf, `Annotated[X, …]` → X, `X | None` → X, `list | SPEC` → the Spec."""
    extras = getattr(annotation, "__metadata__", ())
    for item in extras:
        if isinstance(item, KindOf):
            return item
    plain = get_args(annotation)[0] if extras else annotation
    if get_origin(plain) not in {Union, UnionType}:
        return plain
    options = [item for item in get_args(plain) if item is not NoneType]
    if len(options) > 1:
        # Of a list, no key can be unknown.
        tagged = [get_args(item)[0] if hasattr(item, "__metadata__") else item for item in options]
        options = [item for item in tagged if isinstance(item, type) and issubclass(item, Spec)]
    return options[0] if len(options) == 1 else plain


def _keys(at: Any) -> set[str]:
    """The keys that a mapping of type `at` may have."""
    return (
        {field.alias or name for name, field in at.model_fields.items()}
        if isinstance(at, type) and issubclass(at, Spec)
        else set()
    )
