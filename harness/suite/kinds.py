"""Finding kinds: each is a file of its stage's folder, and the file's name is the kind.

Dropping a file with a `Spec` into a folder adds a kind: the suite's schema, `harness list`, the "did you mean" of
an unknown kind and the editors' completion follow from it.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic_core import CoreSchema, core_schema

if TYPE_CHECKING:
    from types import ModuleType

    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue

FOLDERS = {"dataset": "data", "model": "train", "export": "export", "runtime": "score", "probe": "score.probes"}
"""What a suite calls it → the folder of `harness/` that its kinds live in."""
DECLARED = re.compile(r"^    kind: Literal\[", re.MULTILINE)
"""What a kind's file has in its `Spec`."""


@cache
def kinds(what: str) -> dict[str, ModuleType]:
    """The modules of all kinds of `what`, by name. Cheap: kinds import heavy packages inside functions."""
    folder = importlib.import_module(f"harness.{FOLDERS[what]}")
    found = {}
    for info in pkgutil.iter_modules(folder.__path__):
        # Most files of a folder are no kinds; to import them all would cost every command a tenth of a second.
        if info.ispkg or not DECLARED.search(Path(folder.__path__[0], f"{info.name}.py").read_text(encoding="utf-8")):
            continue
        module = importlib.import_module(f"{folder.__name__}.{info.name}")
        spec = getattr(module, "Spec", None)
        if spec is None or "kind" not in spec.model_fields:
            continue
        (name,) = get_args(spec.model_fields["kind"].annotation)
        if name != info.name:
            raise TypeError(f"{module.__name__}: its kind is {name!r}; the file's name must be the kind")
        found[name] = module
    return found


class KindOf:
    """Marks a field as "one of the kinds of `what`", given as `{kind: NAME, …}` or as just `NAME`."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(module.Spec) for name, module in kinds(self.what).items()}
        union = core_schema.tagged_union_schema(choices, discriminator="kind")
        return core_schema.no_info_before_validator_function(_expand, union)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"enum": sorted(kinds(self.what))}, handler(schema)]}


def _expand(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value
