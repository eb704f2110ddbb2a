"""What a page that opens from disk is made of: template, scripts, packed data, and the policy on what may run."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.board import slices
from harness.board.profiles import MARK
from harness.board.waterfall import cells
from harness.errors import MissingError

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = "report.html"


def plotly() -> str:
    """Plotly's script, out of its package, without importing that."""
    found = find_spec("plotly")
    if found is None or not found.submodule_search_locations:
        raise MissingError("the report draws its charts with plotly, which is not installed: pip install plotly")
    script = Path(found.submodule_search_locations[0]) / "package_data" / "plotly.min.js"
    return script.read_text(encoding="utf-8")


def own(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def script_hash(script: str) -> str:
    """As a Content-Security-Policy names the scripts that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def packed(value: Any) -> str:
    return packed_text(json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def packed_text(text: str) -> str:
    """Packed by gzip, in base64: nothing in it can end the element that holds it. Equal texts give equal results."""
    return base64.b64encode(gzip.compress(text.encode("utf-8", "surrogatepass"), 6, mtime=0)).decode("ascii")


def script_json(value: Any) -> str:
    """JSON that nothing in it can end: `</script>` and `<!--` need a "<"; old scripts end lines at U+2028."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


@cache
def template() -> Template:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise MissingError("the report needs jinja2, which is not installed: pip install jinja2") from error

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "cells": cells}
    environment.filters |= {"slice_cells": slices.cells, "class_cells": slices.class_cells}
    return environment.get_template(TEMPLATE)


def _figure(value: Any, column: str) -> str:
    """As the table shows it; the whole number is in the cell's `data-value`."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if column.partition(MARK)[0] in {"wer", "cer", "wer_lo", "wer_hi", "cer_lo", "cer_hi"}:
        return f"{100 * value:.1f}"
    if isinstance(value, int):
        return str(value)
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 3
    return f"{value:.{decimals}f}"
