"""The models that probes listen to: those that a runtime itself would load."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.core.artifact import Inputs
    from harness.suite.probe import ProbeSpec


def load(spec: ProbeSpec, inputs: Inputs, **changes: Any) -> Any:
    """The recogniser of `inputs["export"]` on the spec's runtime.

    changes: fields of the runtime in which the probe differs from the scoring.
    Raises what the runtime raises for an export that it cannot load.
    """
    if spec.runtime is None:
        raise TypeError(f"probe {spec.kind} has no runtime; its plan gives it one")
    runtime = spec.runtime.model_copy(update=changes)
    return sys.modules[type(runtime).__module__].recogniser(runtime, inputs["export"][0])
