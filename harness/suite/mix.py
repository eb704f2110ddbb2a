"""What a training set is made of: how much of each source, and what a clip must fulfil to stay."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema, model_validator

from harness.suite.spec import Spec
from harness.suite.wording import did_you_mean, found

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

ALL = "all"
HOURS = re.compile(r"(\d+(?:\.\d+)?) ?h")
MAX_WEIGHT = 20
"""Passes over a source in one epoch; a larger number was meant as hours."""
RUSSIAN = "абвгдеёжзийклмнопрстуфхцчшщъыьэюя"
ALPHABETS = {"ru": RUSSIAN, "ru+digits": f"{RUSSIAN}0123456789"}
MIN_LETTERS = 10
"""A shorter alphabet is the misspelled name of one."""

Texts = Annotated[
    list[str],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]
"""One text or a list of them."""

Where = dict[str, Texts]
"""Tag → the values that it may have; `speaker` and `source` count as tags."""

Heldback = Literal["transcript", "recording", "speaker"]
"""What a training clip may share with a held-out one."""


def _ordered(value: list[float]) -> list[float]:
    if len(value) != 2:
        raise ValueError(f"expected [min, max], found {found(value)}")
    if value[0] > value[1]:
        raise ValueError(f"min {value[0]:g} is over max {value[1]:g}; write the smaller number first")
    return value


Range = Annotated[
    list[Annotated[float, Field(ge=0)]],
    AfterValidator(_ordered),
    Field(json_schema_extra={"minItems": 2, "maxItems": 2}),
]
"""[min, max], both allowed."""


def _alphabet(value: str) -> str:
    if value in ALPHABETS or (len(set(value)) >= MIN_LETTERS and value.isalnum()):
        return value
    raise ValueError(
        f"expected one of {', '.join(ALPHABETS)}, or at least {MIN_LETTERS} different letters and digits, "
        f"found {found(value)}{did_you_mean(value, ALPHABETS)}"
    )


def _take(value: Any) -> str | float:
    if value == ALL or (isinstance(value, str) and HOURS.fullmatch(value) and float(value.rstrip(" h"))):
        return str(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_WEIGHT:
        return float(value)
    number = str(value) if isinstance(value, int | float | str) else ""
    hint = f"; for hours write {number}h" if re.fullmatch(r"\d+(\.\d+)?", number) and float(number) else ""
    raise ValueError(
        f"expected `{ALL}`, hours such as `100h`, or how often an epoch passes over it (2, 0.3; at most {MAX_WEIGHT}), "
        f"found {found(value)}{hint}"
    )


class Votes(Spec):
    """By Common Voice's tags `up_votes` and `down_votes`; a clip without them leaves."""

    min_up: int = Field(default=0, ge=0)
    max_down: int | None = Field(default=None, ge=0)
    min_margin: int | None = Field(default=None, description="Smallest up_votes - down_votes.")


class Criteria(Spec):
    """What a clip must fulfil by itself."""

    duration_s: Range | None = Field(default=None, description="[min, max] seconds.")
    chars_per_s: Range | None = Field(
        default=None, description="[min, max] letters and digits a second; spaces and punctuation do not count."
    )
    alphabet: Annotated[str, AfterValidator(_alphabet)] | None = Field(
        default=None,
        description="ru: Russian letters of either case; ru+digits; or the letters themselves. Spaces, punctuation and "
        "stress marks may stand beside them. Digits and Latin leave with `ru`: nobody wrote how they were read.",
    )
    votes: Votes | None = None
    max_hours_per_speaker: float | None = Field(
        default=None, gt=0, description="Of one source; a stable sample. Clips without a speaker are not capped."
    )


class Filter(Criteria):
    """What a clip must fulfil, by itself and by what a model hears in it."""

    max_cer: float | None = Field(
        default=None, ge=0, le=1, description="Largest CER between the corpus's text and what `agrees_with` hears."
    )
    agrees_with: str | None = Field(
        default=None, description="A model under `models`; its untrained base listens, in its first export."
    )

    @property
    def criteria(self) -> Criteria:
        """Without the part that needs a model."""
        return Criteria(**{name: getattr(self, name) for name in Criteria.model_fields})


class Share(Spec):
    """How much of a source a mix takes; `100h` alone is short for `{take: 100h}`."""

    take: Annotated[
        str | float,
        PlainValidator(_take),
        WithJsonSchema(
            {
                "anyOf": [
                    {"const": ALL},
                    {"type": "string", "pattern": f"^{HOURS.pattern}$"},
                    {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_WEIGHT},
                ]
            }
        ),
    ] = Field(
        default=ALL,
        description="all; hours, a stable sample (100h); or how often an epoch passes over it (2: twice, 0.3: a stable "
        "30 % sample). With max_cer, at most three times the hours are listened to.",
    )
    filter: Filter = Field(default=Filter(), description="On top of the training set's filter.")
    where: Where = Field(default={}, description="Tag → value or values that its clips must have.")

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return value if isinstance(value, dict | cls) else {"take": value}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": ["string", "number"]}, handler(schema)]}

    @property
    def hours(self) -> float | None:
        """None: as many as there are."""
        return float(self.take.rstrip(" h")) if isinstance(self.take, str) and self.take != ALL else None

    @property
    def weight(self) -> float:
        """How often an epoch passes over what is taken."""
        return 1.0 if isinstance(self.take, str) else self.take
