"""The models that probes listen to: those that a runtime itself would load."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.core.artifact import Inputs
    from harness.suite.probe import ProbeSpec
    from harness.suite.spec import RuntimeSpec


def load(spec: ProbeSpec, inputs: Inputs, **changes: Any) -> Any:
    """The recogniser of `inputs["export"]` on the spec's runtime.

    changes: fields of the runtime in which the probe differs from the scoring.
    Raises what the runtime raises for an export that it cannot load.
    """
    runtime = _runtime(spec).model_copy(update=changes)
    return sys.modules[type(runtime).__module__].recogniser(runtime, inputs["export"][0])


def device(spec: ProbeSpec) -> str:
    """Where `load` puts it, in words: as the board's column `device` says it."""
    runtime = _runtime(spec)
    return str(sys.modules[type(runtime).__module__].described(runtime))


def _runtime(spec: ProbeSpec) -> RuntimeSpec:
    if spec.runtime is None:
        raise TypeError(f"probe {spec.kind} has no runtime; its plan gives it one")
    return spec.runtime
