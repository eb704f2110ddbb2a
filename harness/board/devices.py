"""Figures of the machines where models shall run, measured there by `harness bench`, beside the board's own."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.core.files import parse_json, replace_text
from harness.errors import HarnessError, first_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from harness.board.leaderboard import Line
    from harness.engine.plan import Plan
    from harness.engine.store import Store

SCHEMA = 1
DEVICES_FILE = "devices.json"
"""In `results/<suite>/`: all measurements that were merged."""
FIGURES = ("load_s", "rtf", "latency_p50_ms", "latency_p95_ms", "peak_ram_mib")
MAX_BYTES = 16 * 2**20


class Measurement(BaseModel):
    """One model on one device of one machine."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    host: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    asked: str = Field(pattern=r"^[a-z]+$")
    """cpu, metal, coreml, cuda or auto."""
    device: str = Field(max_length=200)
    """In words."""
    row: str = Field(max_length=200)
    bundle: str = Field(max_length=200)
    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """`model_digest` of its files: another model of the same name is another model."""
    runtime: str = Field(max_length=200)
    when: str = Field(max_length=40)
    num_clips: int = Field(ge=1)
    num_failed: int = Field(ge=0)
    audio_s: float = Field(gt=0)
    load_s: float
    warm_up_s: float
    rtf: float | None
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    peak_ram_mib: float
    peak_vram_mib: float | None
    buckets: list[dict[str, Any]] = []
    """By duration: `from_s`, `to_s`, `num_clips`, `rtf`, `latency_p50_ms`, `latency_p95_ms`."""

    @property
    def place(self) -> str:
        """Of a column: `studio-metal`."""
        return self.host if self.asked == "auto" else f"{self.host}-{self.asked}"

    @property
    def identity(self) -> tuple[str, str, str]:
        """What a newer measurement takes the place of."""
        return self.host, self.asked, self.model_sha256


def model_digest(files: Mapping[str, str]) -> str:
    """A hash of a model. files: name → sha256."""
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def read(path: Path) -> list[Measurement]:
    """Of a file that `harness bench` wrote. Raises HarnessError if it is something else."""
    if not path.is_file():
        raise HarnessError(f"{path}: there is no such file; `harness bench BUNDLE` writes bench-<host>.json")
    try:
        with path.open("rb") as file:
            content = parse_json(file.read(MAX_BYTES))
        if content["schema"] > SCHEMA:
            raise HarnessError(f"{path}: schema {content['schema']} is newer than {SCHEMA}; update harness")
        return [Measurement.model_validate(item) for item in content["measurements"]]
    except ValidationError as error:
        first = error.errors()[0]
        told = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise HarnessError(f"{path}: {told}; measure again: harness bench BUNDLE") from error
    except (ValueError, KeyError, TypeError) as error:
        raise HarnessError(f"{path}: no measurements can be read ({first_line(error)}); measure again") from error


def write(path: Path, measurements: Sequence[Measurement]) -> None:
    """Add to what `path` has, in the place of older ones of the same model on the same device."""
    known = {item.identity: item for item in (read(path) if path.is_file() else [])}
    known |= {item.identity: item for item in measurements}
    content = {"schema": SCHEMA, "measurements": [item.model_dump() for item in known.values()]}
    replace_text(path, json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def merged(folder: Path) -> list[Measurement]:
    """All that have been merged into the results of a suite."""
    return read(folder / DEVICES_FILE) if (folder / DEVICES_FILE).is_file() else []


def measurements_by_row(plan: Plan, store: Store, measurements: Sequence[Measurement]) -> dict[str, list[Measurement]]:
    """Row → what was measured of exactly its files."""
    found: dict[str, list[Measurement]] = {}
    for row in {row.row: row for row in plan.rows}.values():
        artifact = store.find(row.exported.folder, key=row.exported.key) if measurements else None
        digest = model_digest(artifact.files) if artifact else ""
        same = [item for item in measurements if item.model_sha256 == digest]
        if same:
            found[row.row] = same
    return found


def with_columns(board: list[Line], by_row: Mapping[str, Sequence[Measurement]]) -> list[Line]:
    """The board with columns such as `rtf/studio-metal`; empty where a row was not measured."""
    places = sorted({item.place for items in by_row.values() for item in items})
    blank = {f"{name}/{place}": None for place in places for name in FIGURES}
    return [{**line, **blank, **_cells(by_row.get(line["row"], ()))} for line in board]


def _cells(measurements: Sequence[Measurement]) -> dict[str, Any]:
    return {f"{name}/{item.place}": getattr(item, name) for item in measurements for name in FIGURES}


def log_to_mlflow(by_row: Mapping[str, Sequence[Measurement]], board: Sequence[Line], *, uri: str) -> None:
    """Add the figures to the runs of the board's rows, as metrics such as `rtf/studio-metal`."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    for line in board:
        for item in by_row.get(line["row"], ()):
            values = {name: getattr(item, name) for name in FIGURES}
            for name, value in values.items():
                if value is not None and line["run_id"]:
                    client.log_metric(line["run_id"], f"{name}/{item.place}", value)
