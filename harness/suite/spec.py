"""The base of every declaration in a suite, and what makes one declaration differ from another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A declaration: strict, frozen, no unknown fields.

    Every field counts for the identity, and so for the key of the step, unless `not_identity` says why not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    not_identity: ClassVar[Mapping[str, str]] = {}
    """Field → the reason why two specs that differ in it give the same artifact."""

    def identity(self) -> dict[str, Any]:
        """The fields that count, as JSON values, read from the concrete class.

        A dump by a field's declared type would drop what a subclass adds, and all learning rates would
        share one key; hence the walk over the objects themselves.
        """
        return {name: _plain(getattr(self, name)) for name in type(self).model_fields if name not in self.not_identity}

    def outside(self) -> list[Path]:
        """Files and folders outside the store that the step reads; their content is part of its key."""
        return []


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.identity()
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


class DatasetSpec(Spec):
    """A kind of dataset: a file in `harness/data/`. Its step turns recordings into 16 kHz WAV and manifests."""

    kind: str


class ExportSpec(Spec):
    """A kind of export: a file in `harness/export/`. Its step takes `inputs["model"]`, a Hugging Face folder."""

    kind: str
    accepts: ClassVar[tuple[str, ...]] = ()
    """The kinds of model that it can write."""

    @property
    def label(self) -> str:
        """What the board calls it, fit for a file name: `onnx-fp32`, `ggml-f16`."""
        raise NotImplementedError


class RuntimeSpec(Spec):
    """A kind of runtime: a file in `harness/score/`. Its step takes `inputs["export"]` and `inputs["heldout"]`."""

    kind: str
    accepts: ClassVar[tuple[str, ...]] = ()
    """The kinds of export that it can run."""

    @property
    def label(self) -> str:
        """Tells rows apart when several runtimes run the same export: `onnx-cuda`."""
        device = getattr(self, "device", None)
        return f"{self.kind}-{device}" if device else self.kind
