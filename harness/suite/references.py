"""Names that refer to nothing, and declarations that nothing refers to.

Works on the plain data, so that it still speaks when the suite has other mistakes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from harness.suite.kinds import kinds
from harness.suite.model import CHAMPION, TUNED, ZERO_SHOT, ModelSpec, combinations, variant_name
from harness.suite.probes import probe_faults
from harness.suite.sources import mapping, source_faults
from harness.suite.wording import Fault, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.suite.document import Place

MAX_COMBINATIONS = 1000


def reference_faults(data: dict[str, Any]) -> list[Fault]:
    """All faults between the parts of a suite; parts of a wrong type are passed over."""
    return [
        *source_faults(data),
        *_export_faults(data),
        *_role_faults(data),
        *_variant_faults(data),
        *_gate_faults(data),
        *_checkpoint_faults(data),
        *probe_faults(data, exports={kind for model in entries(data, "models") for _, kind in _runnable(*model)}),
    ]


def entries(data: dict[str, Any], section: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The named entries of a section that are mappings, as they should be."""
    return ((name, entry) for name, entry in mapping(data.get(section)).items() if isinstance(entry, dict))


def _export_faults(data: dict[str, Any]) -> Iterator[Fault]:
    """Every export suits its model and has a runtime; every runtime has an export."""
    runtimes = _kinds_in(mapping(data.get("score")).get("runtimes"))
    accepted = {index: _accepted("runtime", kind) for index, kind in runtimes.items()}
    exports = {place: kind for name, model in entries(data, "models") for place, kind in _runnable(name, model)}
    # A kind that is not known may be the very one that fits: its own mistake comes first.
    for place, kind in exports.items():
        name = str(place[1])
        fitting, family = _fitting(kind), data["models"][name].get("kind")
        if fitting is not None and family in list(kinds("model")) and family not in fitting:
            yield place, f"export '{kind}' takes {' or '.join(fitting)}, but '{name}' is {family}"
        if fitting is None or None in accepted.values() or not accepted:
            continue
        if all(kind not in (takes or ()) for takes in accepted.values()):
            able = [runtime for runtime in kinds("runtime") if kind in (_accepted("runtime", runtime) or ())]
            message = f"no runtime of score.runtimes runs '{kind}'"
            yield (
                place,
                f"{message}; add one of: {', '.join(able)}" if able else f"{message}, and none is known that does",
            )
    if not exports or any(_fitting(kind) is None for kind in exports.values()):
        return
    for index, takes in accepted.items():
        if takes is not None and not set(takes) & set(exports.values()):
            yield ("score", "runtimes", index), f"no model exports what '{runtimes[index]}' runs ({', '.join(takes)})"


def _runnable(name: str, model: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    """Where each kind of export of a model stands; of a published model, the model itself is what is run."""
    kind = model.get("kind")
    if isinstance(kind, str) and _is_published(kind):
        yield ("models", name), kind
    yield from ((("models", name, "export", index), item) for index, item in _kinds_in(model.get("export")).items())


def _is_published(kind: str) -> bool:
    return kind in kinds("model") and not issubclass(kinds("model")[kind].Spec, ModelSpec)


def _fitting(kind: str) -> tuple[str, ...] | None:
    """The kinds of model that a kind of export takes; None for a kind that is not known."""
    return (kind,) if _is_published(kind) else _accepted("export", kind)


def _kinds_in(items: Any) -> dict[int, str]:
    """Index → kind, as it is written, for entries that are given as `NAME` or `{kind: NAME}`."""
    named = {
        index: item if isinstance(item, str) else mapping(item).get("kind")
        for index, item in enumerate(items if isinstance(items, list) else [])
    }
    return {index: kind for index, kind in named.items() if isinstance(kind, str)}


def _accepted(what: str, kind: str) -> tuple[str, ...] | None:
    """What a kind of export or runtime takes; None for a kind that is not known."""
    return kinds(what)[kind].Spec.accepts if kind in kinds(what) else None


def _role_faults(data: dict[str, Any]) -> Iterator[Fault]:
    heldout = mapping(data.get("heldout"))
    roles = [mapping(entry).get("role") for entry in heldout.values()]
    for role, purpose in (("dev", "variants are chosen on it"), ("test", "the verdict is given on it")):
        # A role that is missing or misspelled may be this one.
        if heldout and role not in roles and all(known in ("dev", "test", "probe") for known in roles):
            yield ("heldout",), f"no set has `role: {role}`; declare one: {purpose}"


def _variant_faults(data: dict[str, Any]) -> Iterator[Fault]:
    """Two variants of one name would be one row of the board."""
    for name, model in entries(data, "models"):
        if _grid_size(model) > MAX_COMBINATIONS and not _is_sampled(model):
            limit = f"over the limit of {MAX_COMBINATIONS:,}; give some fields one value"
            yield ("models", name, "grid"), f"{_grid_size(model):,} combinations, {limit}"
            continue
        seen: dict[str, Place] = {}
        for place, variant in _variants(name, model):
            first = seen.setdefault(variant.lower(), place)  # some file systems do not tell case
            if first is place:
                continue
            if first == place:
                yield place, f"two combinations make the variant '{variant}'; the values of a field must differ"
            else:
                yield place, f"'{variant}' is also the name that {OTHERS[str(first[2])]} has; choose another"


OTHERS = {"zero_shot": "the untrained model", "grid": "a combination of the grid", "variants": "another variant"}


def _grid_size(model: dict[str, Any]) -> int:
    return math.prod(len(values) for values in mapping(model.get("grid")).values() if isinstance(values, list))


def _is_sampled(model: dict[str, Any]) -> bool:
    """Which combinations of the grid are variants is decided later."""
    search = model.get("search")
    return "random" in (search, mapping(search).get("kind"))


def _variants(name: str, model: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    """Where each variant of a model is declared, and its name."""
    if isinstance(model.get("kind"), str) and _is_published(model["kind"]):
        yield ("models", name), ZERO_SHOT
        return
    grid = {field: values for field, values in mapping(model.get("grid")).items() if isinstance(values, list)}
    named = mapping(model.get("variants"))
    if model.get("zero_shot", True):
        yield ("models", name, "zero_shot"), ZERO_SHOT
    for fields in [] if _is_sampled(model) else combinations(grid):
        yield ("models", name, "grid"), variant_name(fields)
    for variant in named:
        yield ("models", name, "variants", variant), variant
    if not grid and not named:
        yield ("models", name, "train"), TUNED


def _gate_faults(data: dict[str, Any]) -> Iterator[Fault]:
    """The gate compares with a variant of the same model."""
    gate = data.get("gate", {})
    wanted = gate.get("better_than", ZERO_SHOT) if isinstance(gate, dict) else None
    if not isinstance(wanted, str) or wanted == CHAMPION or not ("gate" in data or "promote" in data):
        return
    for name, model in entries(data, "models"):
        # What is published is never promoted.
        if _grid_size(model) > MAX_COMBINATIONS or _is_published(str(model.get("kind"))) or _is_sampled(model):
            continue
        names = [variant for _, variant in _variants(name, model)]
        if wanted not in names:
            hint = did_you_mean(wanted, names)
            yield (
                ("gate", "better_than"),
                f"model '{name}' has no variant '{wanted}'{hint} (it has: {', '.join(names)})",
            )


def _checkpoint_faults(data: dict[str, Any]) -> Iterator[Fault]:
    """What an export loses is counted from a row of its checkpoint, and without one no model would pass."""
    if mapping(data.get("gate")).get("export_loss") is None:
        return
    runtimes = _kinds_in(mapping(data.get("score")).get("runtimes")).values()
    for name, model in entries(data, "models"):
        declared = set(_kinds_in(model.get("export")).values())
        specs = {kind: module.Spec for kind, module in kinds("export").items()}
        fitting = [kind for kind, spec in specs.items() if spec.is_checkpoint and model.get("kind") in spec.accepts]
        # A kind that is not known may be the very one: its own mistake comes first.
        if not fitting or declared & set(fitting) or not declared <= set(specs):
            continue
        able = [runtime for runtime in kinds("runtime") if fitting[0] in (_accepted("runtime", runtime) or ())]
        more = "" if set(able) & set(runtimes) else f", and '{able[0]}' to score.runtimes"
        message = (
            f"is counted from the checkpoint, of which '{name}' has no row; add '{fitting[0]}' to its export{more}"
        )
        yield ("gate", "export_loss"), message
