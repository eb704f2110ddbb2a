"""The probes of an exported model, as steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from harness.engine.plan import Builder, Step
    from harness.suite.model import Runnable
    from harness.suite.probe import ProbeSpec
    from harness.suite.schema import Suite
    from harness.suite.spec import RuntimeSpec


def probe_steps(
    build: Builder,
    suite: Suite,
    *,
    row: str,
    export: Runnable,
    runtime: RuntimeSpec,
    exported: Step,
    sets: Mapping[str, Step],
) -> Iterator[Step]:
    """A step for each probe of the suite that says something of this kind of export. sets: all that are held out."""
    for probe in suite.score.probes:
        if probe.accepts is None or export.kind in probe.accepts:
            fields, read = _read(probe, suite, sets)
            spec = probe.model_copy(update={"runtime": runtime, **fields})
            yield build.add("probe", f"{row} {probe.kind}", spec, {"export": (exported,), **read})


def _read(
    probe: ProbeSpec, suite: Suite, heldout: Mapping[str, Step]
) -> tuple[dict[str, Any], dict[str, tuple[Step, ...]]]:
    """What a probe is told of the sets that it reads, and these."""
    if probe.reads == "dev":
        return {}, {"dev": tuple(heldout[name] for name, spec in suite.heldout.items() if spec.role == "dev")}
    if probe.reads == "languages":
        spoken = {name: spec.language for name, spec in suite.heldout.items() if spec.language}
        return {"languages": list(spoken.values())}, {"clips": tuple(heldout[name] for name in spoken)}
    return {}, {}
