"""Faults in what a suite probes: probes without anything to look at, and limits on what nothing measures.

Works on the plain data, as `references` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.suite.kinds import kinds
from harness.suite.probe import FORGETTING, probe_columns
from harness.suite.sources import mapping

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from harness.suite.wording import Fault


def probe_faults(data: dict[str, Any], *, exports: Collection[str]) -> Iterator[Fault]:
    """exports: the kinds that the suite's models come in."""
    declared = mapping(data.get("score")).get("probes", [])
    items = declared if isinstance(declared, list) else []
    named = [str(item if isinstance(item, str) else mapping(item).get("kind")) for item in items]
    heldout = [mapping(entry) for entry in mapping(data.get("heldout")).values()]
    spoken = any("language" in entry for entry in heldout)
    for index, kind in enumerate(named):
        if kind not in kinds("probe"):
            continue  # a mistake of its own
        spec = kinds("probe")[kind].Spec
        if spec.accepts is not None and exports and not set(exports) & set(spec.accepts):
            message = f"no model exports what '{kind}' looks at ({', '.join(spec.accepts)})"
            yield ("score", "probes", index), message
        if spec.reads == "languages" and not spoken:
            message = f"'{kind}' needs speech in other languages; declare a held-out set"
            yield ("score", "probes", index), f"{message} {{from: …, role: probe, language: en}}"
    told = any(kind in kinds("probe") and kinds("probe")[kind].Spec.reads == "languages" for kind in named)
    for name, entry in mapping(data.get("heldout")).items():
        if mapping(entry).get("role") == "probe" and "language" in entry and not told:
            yield ("heldout", name, "language"), "nothing listens to this set; add `language` to score.probes"
    yield from _limit_faults(data, named, compared=any(_is_compared(entry) for entry in heldout))


def _is_compared(heldout: dict[str, Any]) -> bool:
    return heldout.get("role") == "probe" and "language" not in heldout


def _limit_faults(data: dict[str, Any], named: list[str], *, compared: bool) -> Iterator[Fault]:
    """A limit on what is not measured would refuse every model."""
    for column in mapping(mapping(data.get("gate")).get("probes")):
        place = ("gate", "probes", column)
        needed = probe_columns().get(column)
        # A kind that is not known may be the very one: its own mistake comes first.
        if needed is not None and needed not in named and set(named) <= set(kinds("probe")):
            yield place, f"the probe '{needed}' measures it; add it to score.probes"
        if column == FORGETTING and not compared:
            yield (
                place,
                "is measured on held-out sets with `role: probe`; declare one of general Russian speech",
            )
