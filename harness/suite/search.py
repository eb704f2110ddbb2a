"""How a model's variants are searched: every combination, a sample of them, or all with the worst stopped early."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, WithJsonSchema, model_validator

from harness.errors import MissingError
from harness.suite.spec import Spec
from harness.suite.wording import found

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.distributions import BaseDistribution
    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

TRIALS = 8
"""Of `search: random`, where the suite does not say."""
MAX_TRIALS = 1000
DIGITS = 4
"""Of a drawn value, so that the names of variants stay short; more where a range is narrow."""
KINDS = ("grid", "random", "asha")


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"expected a number, found {found(value)}")
    return value


Number = Annotated[Any, AfterValidator(_number), WithJsonSchema({"type": "number"})]
"""Stays whole where it is written so: a range between whole numbers gives whole numbers."""


class Range(Spec):
    """All values between two, for `search: random`."""

    low: Number = Field(alias="from")
    high: Number = Field(alias="to")
    scale: Literal["linear", "log"] = Field(default="linear", description="log: each power of ten as likely.")

    @model_validator(mode="after")
    def _ascend(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"from {self.low:g} is not under to {self.high:g}; write the smaller number first")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"scale: log needs numbers over 0, but from is {self.low:g}; raise it or use linear")
        return self

    @property
    def num_values(self) -> float:
        """Infinite between numbers that are not whole."""
        return self.high - self.low + 1 if self._is_whole else math.inf

    @property
    def _is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def distribution(self) -> BaseDistribution:
        """As Optuna has it."""
        from optuna.distributions import FloatDistribution, IntDistribution

        of = IntDistribution if self._is_whole else FloatDistribution
        return of(self.low, self.high, log=self.scale == "log")

    def rounded(self, value: float) -> float:
        """A drawn value, as short as the range allows."""
        if isinstance(value, int):
            return value
        largest = max(abs(self.low), abs(self.high))
        digits = DIGITS + round(math.log10(largest / min(largest, self.high - self.low)))
        return float(min(max(float(f"{value:.{digits}g}"), self.low), self.high))


Values = Annotated[
    Annotated[list[Any], Field(min_length=1), Tag("[list]")] | Annotated[Range, Tag("[range]")],
    Discriminator(lambda value: "[range]" if isinstance(value, dict | Range) else "[list]"),
]
"""What a field of a grid may be: listed, or anything between two numbers."""
Grid = dict[str, Values]


class Search(Spec):
    """Which variants are trained, and how far; `search: asha` is short for `{kind: asha}`."""

    kind: Literal["grid", "random", "asha"] = Field(
        default="grid",
        description="grid: every combination. random: a sample of them. asha: every combination begins, and at each "
        "rung only the best by dev WER go on.",
    )
    trials: int | None = Field(
        default=None, ge=1, le=MAX_TRIALS, description=f"random: combinations to train; {TRIALS} unless given."
    )
    rungs: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] | None = Field(
        default=None,
        description="asha: optimizer steps at which variants are compared; unless given, the shares keep² and keep of "
        "the shortest training.",
    )
    keep: float = Field(default=0.5, gt=0, lt=1, description="asha: the share that goes on at a rung; at least one.")

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        for name, kind in (("trials", "random"), ("rungs", "asha"), ("keep", "asha")):
            if getattr(self, name) != type(self).model_fields[name].default and self.kind != kind:
                told = f"`{name}` belongs to `kind: {kind}`, but this is {self.kind}"
                raise ValueError(f"{told}; remove it or change the kind")
        rungs = self.rungs or []
        if any(later <= earlier for earlier, later in itertools.pairwise(rungs)):
            raise ValueError(f"rungs {rungs} do not increase; give each step once, the earlier before the later")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"enum": list(KINDS)}, handler(schema)]}

    def stops(self, max_steps: Sequence[int]) -> list[int]:
        """The rungs of `asha`, in optimizer steps.

        max_steps: of each variant.
        """
        if self.rungs is not None:
            return self.rungs
        shortest = min(max_steps)
        return sorted({round(shortest * self.keep**2), round(shortest * self.keep)} - {0, shortest})


def num_combinations(grid: Mapping[str, list[Any] | Range]) -> float:
    """How many different variants a grid can make; infinite where a range has no end of values."""
    sizes = [item.num_values if isinstance(item, Range) else len(set(map(repr, item))) for item in grid.values()]
    return math.prod(sizes)


def sampled(grid: Mapping[str, list[Any] | Range], *, trials: int | None, seed: int) -> list[dict[str, Any]]:
    """So many different combinations of a grid, by Optuna's random sampler; more of them begin with the fewer.

    trials: at most the number of combinations; None: TRIALS, or all if there are fewer.
    Raises MissingError without Optuna.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingError("`search: random` needs Optuna, which is not installed: pip install '.[train]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {
        name: item.distribution()
        if isinstance(item, Range)
        else optuna.distributions.CategoricalDistribution(range(len(item)))
        for name, item in grid.items()
    }
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    chosen: dict[str, dict[str, Any]] = {}
    wanted = min(num_combinations(grid), trials or TRIALS)
    while len(chosen) < wanted:
        drawn = study.ask(space).params
        fields = {
            name: item.rounded(drawn[name]) if isinstance(item, Range) else item[drawn[name]]
            for name, item in grid.items()
        }
        chosen.setdefault(repr(fields), fields)
    return list(chosen.values())
