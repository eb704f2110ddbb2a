"""What all kinds of probe declare: what an exported model does where WER does not look."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import field_validator
from pydantic.json_schema import SkipJsonSchema

from harness.suite.kinds import kinds
from harness.suite.spec import RuntimeSpec, Spec

FORGETTING = "forgetting"
"""The board's column for the loss on held-out sets with `role: probe`, which needs no probe beside their scores."""


PROBE_FILE = "probe.jsonl"
"""What a probe leaves in its artifact: one line for each recording that was heard."""


class ProbeSpec(Spec):
    """A kind of probe: a file in `harness/score/probes/`. Its step takes `inputs["export"]`, and what it `reads`."""

    kind: str
    runtime: Annotated[RuntimeSpec | None, SkipJsonSchema()] = None
    """What the export runs on. A suite leaves it out: its plan probes every export on every runtime that runs it."""

    accepts: ClassVar[tuple[str, ...] | None] = None
    """The kinds of export that it says something of; None: every one."""
    reads: ClassVar[Literal["dev", "languages"] | None] = None
    """dev: the dev sets come as `inputs["dev"]`. languages: the sets in other languages come as `inputs["clips"]`, and
    their codes, in the same order, as the field `languages`."""
    columns: ClassVar[tuple[str, ...]] = ()
    """What it measures: numbers of its artifact's meta, and the board's names for them. None where there is none."""
    ratios: ClassVar[Mapping[str, str]] = {}
    """A column more → the one whose ratio to the untrained model's it is."""

    @field_validator("runtime", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any) -> Any:
        """A worker reads the spec back from JSON."""
        return kinds("runtime")[value["kind"]].Spec.model_validate(value) if isinstance(value, dict) else value

    def identity(self) -> dict[str, Any]:
        """With the version of the runtime, whose text it judges."""
        module = sys.modules[type(self.runtime).__module__]
        return {**super().identity(), "runtime_version": getattr(module, "VERSION", None)}


@cache
def probe_columns() -> dict[str, str]:
    """The columns that probes give the board → the kind of probe."""
    return {
        column: name
        for name, module in kinds("probe").items()
        for column in (*module.Spec.columns, *module.Spec.ratios)
    }
