"""The base of every declaration in a suite, and what makes one declaration differ from another."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import CoreSchema, core_schema

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidatorFunctionWrapHandler
    from pydantic.json_schema import JsonSchemaValue


NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
"""Fit for a file name on every system."""

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""As wide as every random generator takes it."""


class Spec(BaseModel):
    """A declaration: strict, frozen, no unknown fields.

    Every field counts for the identity, and so for the key of the step, unless `not_identity` says why not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

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


RULED = ("train", "dev", "test")
"""What a `Split` divides into."""


class Split(Spec):
    """How recordings without a split of their own are divided; what is neither dev nor test is train.

    Where all recordings have a split of their own, only what the corpus lacks of dev and test is taken, out of its
    train.
    """

    dev: float = Field(default=0.1, ge=0, lt=1, description="Fraction of the recordings.")
    test: float = Field(default=0.2, ge=0, lt=1, description="Fraction of the recordings.")
    by: Literal["auto", "recording", "speaker"] = Field(
        default="auto",
        description="What never lies in two splits, beside equal transcripts. auto: the speaker where one is named, "
        "else the recording.",
    )

    @model_validator(mode="after")
    def _leave_train(self) -> Self:
        if self.dev + self.test >= 1:
            raise ValueError(
                f"dev {self.dev} and test {self.test} leave nothing to train on; their sum must be under 1"
            )
        return self


class DatasetSpec(Spec):
    """A kind of dataset: a file in `harness/data/`. Its step turns recordings into 16 kHz WAV and manifests."""

    not_identity: ClassVar[Mapping[str, str]] = {"split": "applied when sets are selected, not when data is prepared"}

    kind: str
    split: Split | None = None

    own_splits: ClassVar[tuple[str, ...] | None] = None
    """What the corpus itself divides into; None where only its files tell."""


class OneOrMore:
    """Marks a field of an export that a suite may give a list: `ExportSpec.spread` makes an export of each value."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(value: Any, one: ValidatorFunctionWrapHandler) -> Any:
            if not isinstance(value, list):
                return one(value)
            if not value:
                raise ValueError("expected at least one value, found an empty list")
            return [one(item) for item in value]

        return core_schema.no_info_wrap_validator_function(validate, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        one = handler(schema)
        default = {"default": one.pop("default")} if "default" in one else {}
        return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}], **default}


class ExportSpec(Spec):
    """A kind of export: a file in `harness/export/`. Its step takes `inputs["model"]`, a base or trained model."""

    kind: str
    accepts: ClassVar[tuple[str, ...]] = ()
    """The kinds of model that it can write."""
    in_place: ClassVar[bool] = False
    """Whether the model is run as it lies in the artifact of its training; then there is no step, and no `run`."""
    is_checkpoint: ClassVar[bool] = False
    """Whether it holds the weights as training left them: other exports are held against it."""

    @property
    def label(self) -> str:
        """What the board calls it, fit for a file name: `onnx-fp32`, `ggml-f16`."""
        raise NotImplementedError

    def spread(self) -> list[Self]:
        """The exports that this one stands for: `quantize: [fp32, int8]` are two."""
        several = {name: value for name, value in self if isinstance(value, list)}
        return [
            self.model_copy(update=dict(zip(several, values, strict=True)))
            for values in itertools.product(*several.values())
        ]


class RuntimeSpec(Spec):
    """A kind of runtime: a file in `harness/score/`. Its step takes `inputs["export"]` and `inputs["heldout"]`."""

    kind: str
    accepts: ClassVar[tuple[str, ...]] = ()
    """The kinds of export that it can run."""

    @property
    def label(self) -> str:
        """What the board calls it: `onnx`, or with the device that the suite asks for, `onnx-cuda`."""
        device = getattr(self, "device", "auto")
        return self.kind if device == "auto" else f"{self.kind}-{device}"
