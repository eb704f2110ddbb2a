"""What a bundle says of itself. It may come from anywhere: nothing in it is believed before it is checked."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.errors import HarnessError, first_line
from harness.suite.spec import NAME_PATTERN

SCHEMA = 2
"""1 had no smoke clip."""
MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 4 * 2**20
MAX_FILES = 1000
MAX_BYTES = 64 * 2**30
"""Ten times the largest model there is."""
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(?<!\.)")
"""Plain: nothing that Windows or a Mac would write under another name."""
DEVICES = frozenset({"aux", "con", "nul", "prn", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})
"""Names that Windows takes for devices, with any ending."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class File(_Part):
    """One file of the bundle."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0, le=MAX_BYTES)


class Smoke(_Part):
    """A clip, and what the exported model heard in it when it was scored."""

    audio: str
    text: str = Field(max_length=10_000)
    reference: str = Field(default="", max_length=10_000)


class Served(_Part):
    """How onnx-asr reads the model's folder."""

    type: str = Field(pattern=r"^[a-z0-9-]+$")
    quantization: str | None = Field(default=None, pattern=r"^[a-z0-9]+$")


class Manifest(_Part):
    """`manifest.json`."""

    schema_version: int = Field(alias="schema")
    name: str = Field(pattern=NAME_PATTERN, max_length=200)
    """The row of the board."""
    export_kind: str = Field(pattern=NAME_PATTERN)
    files: Annotated[dict[str, File], Field(max_length=MAX_FILES)]
    """All files but the manifest."""
    model: list[str] = Field(min_length=1)
    """Those that the model consists of."""
    smoke: Smoke
    serving: dict[str, Any] = {}
    """The runtime's declaration: kind, language, beam size and so on."""
    onnx_asr: Served | None = None
    fault: str | None = None
    """Why parakeet-rs could not run it."""
    leaderboard: list[dict[str, Any]] = []
    suite: str = ""
    suite_sha256: str = ""
    base: str = ""
    licences: dict[str, str] = {}
    non_commercial: list[str] = []
    runtime: str = ""
    decoding: dict[str, Any] = {}
    gate: list[dict[str, Any]] = []
    forced: str | None = None
    """Why it was promoted although the gate said no."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        for name in self.files:
            fault = fault_of_name(name)
            if fault:
                raise ValueError(f"file {name!r}: {fault}")
        folded = [name.casefold() for name in self.files]
        if len(set(folded)) < len(folded):
            raise ValueError("two files whose names differ by case only, which are one on a Mac")
        for name in (*self.model, self.smoke.audio):
            if name not in self.files:
                raise ValueError(f"'{name}' is used but not among its files")
        if sum(file.size for file in self.files.values()) > MAX_BYTES:
            raise ValueError(f"its files claim more than {MAX_BYTES >> 30} GiB")
        return self

    @property
    def authority(self) -> str:
        """On whose word it was promoted."""
        if self.forced:
            return f"FORCED past the gate: {self.forced}"
        if not self.gate:
            return "no gate has judged it"
        unmet = ", ".join(dict.fromkeys(str(item.get("what")) for item in self.gate if not item.get("met")))
        return f"a candidate that the gate did not let pass (not met: {unmet})" if unmet else "the gate let it pass"


def fault_of_name(name: str) -> str | None:
    """Why a file of a bundle may not be called so; None if it may."""
    parts = PurePosixPath(name).parts
    if not parts or name != "/".join(parts) or name.startswith("/"):
        return "a path that leaves the bundle, or is not written plainly"
    for part in parts:
        if not PART.fullmatch(part):
            return "a path that leaves the bundle, or with characters that not every system writes"
        if part.partition(".")[0].lower() in DEVICES:
            return "a name that Windows takes for a device"
    return "the manifest's own name" if name.casefold() == MANIFEST_FILE else None


def parse(content: bytes, *, where: str) -> Manifest:
    """Raises HarnessError that names what is wrong."""
    try:
        raw = json.loads(content)
        schema = raw["schema"]
        json.dumps(
            raw, allow_nan=False, ensure_ascii=False
        ).encode()  # as it will be written down where it is installed
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HarnessError(
            f"{where}: is no manifest of a bundle ({first_line(error)}); promote the model again"
        ) from error
    if not isinstance(schema, int) or schema > SCHEMA:
        raise HarnessError(f"{where}: schema {schema!r} is newer than {SCHEMA}, which this harness reads; update it")
    if schema < SCHEMA:
        raise HarnessError(f"{where}: schema {schema} is older than {SCHEMA}; promote the model again")
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        told = f"{place}: {first['msg']}" if place else first["msg"]
        raise HarnessError(f"{where}: {told}; promote the model again") from error
