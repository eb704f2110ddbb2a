"""Names that refer to nothing, and declarations that nothing refers to.

Works on the plain data, so that it still speaks when the suite has other mistakes.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from harness.suite.kinds import kinds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.suite.document import Place

Fault = tuple["Place", str]


def reference_faults(data: dict[str, Any]) -> list[Fault]:
    """All faults between the parts of a suite; parts of a wrong type are passed over."""
    return [*_dataset_faults(data), *_export_faults(data), *_role_faults(data)]


def _dataset_faults(data: dict[str, Any]) -> Iterator[Fault]:
    declared = list(_mapping(data.get("datasets")))
    used = set()
    for place, source in _sources(data):
        name, slash, split = source.partition("/")
        used.add(name)
        if name not in declared:
            near = difflib.get_close_matches(name, declared, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            yield place, f"dataset '{name}' is not declared{hint} (declared: {', '.join(declared) or 'none'})"
        elif not slash or not split:
            yield place, f"'{source}' names a dataset without its split; write '{name}/train', '{name}/dev' or the like"
    for name in declared:
        if name not in used:
            yield ("datasets", name), f"nothing uses dataset '{name}'; refer to it under train or heldout, or remove it"


def _sources(data: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    sections: list[tuple[Place, Any]] = [(("train",), data.get("train"))]
    sections += [(("heldout", name), entry) for name, entry in _mapping(data.get("heldout")).items()]
    for place, section in sections:
        sources = _mapping(section).get("from")
        if isinstance(sources, str):
            yield (*place, "from"), sources
        for index, source in enumerate(sources if isinstance(sources, list) else []):
            if isinstance(source, str):
                yield (*place, "from", index), source


def _export_faults(data: dict[str, Any]) -> Iterator[Fault]:
    """Every export suits its model and has a runtime; every runtime has an export; rows have names of their own."""
    runtimes = _kinds_in(_mapping(data.get("score")).get("runtimes"), "runtime")
    served = {export for kind in runtimes.values() for export in kinds("runtime")[kind].Spec.accepts}
    used = set()
    for name, model in _mapping(data.get("models")).items():
        family = _mapping(model).get("kind")
        exports = _kinds_in(_mapping(model).get("export"), "export")
        for index, kind in exports.items():
            place: Place = ("models", name, "export", index)
            used.add(kind)
            fitting = kinds("export")[kind].Spec.accepts
            if family in kinds("model") and family not in fitting:
                yield place, f"export '{kind}' takes {' or '.join(fitting)}, but '{name}' is {family}"
            if runtimes and kind not in served:
                able = [runtime for runtime, module in kinds("runtime").items() if kind in module.Spec.accepts]
                yield (
                    place,
                    f"no runtime of score.runtimes can run '{kind}'; add one of: {', '.join(able) or 'none known'}",
                )
    for index, kind in runtimes.items():
        accepts = kinds("runtime")[kind].Spec.accepts
        if used and not used & set(accepts):
            yield ("score", "runtimes", index), f"no model exports what '{kind}' runs ({', '.join(accepts)})"


def _kinds_in(entries: Any, what: str) -> dict[int, str]:
    """Index → kind, for the entries that are given as `NAME` or `{kind: NAME}` and known."""
    named = {
        index: entry if isinstance(entry, str) else _mapping(entry).get("kind")
        for index, entry in enumerate(entries if isinstance(entries, list) else [])
    }
    return {index: kind for index, kind in named.items() if kind in kinds(what)}


def _role_faults(data: dict[str, Any]) -> Iterator[Fault]:
    heldout = _mapping(data.get("heldout"))
    roles = [_mapping(entry).get("role") for entry in heldout.values()]
    for role, purpose in (("dev", "variants are chosen on it"), ("test", "the verdict is given on it")):
        if heldout and role not in roles:
            yield ("heldout",), f"no set has `role: {role}`; declare one: {purpose}"


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
