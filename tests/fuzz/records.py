"""Bundles, measurements and the project's own records, as other machines and interrupted runs leave them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from contextlib import closing, suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from harness import cli_promote
from harness.board import devices, ledger
from harness.board.mlflow import Projection
from harness.core.ggml_file import HEADER, MAGIC
from harness.engine.store import ARTIFACT_FILE, Store
from harness.promote.history import PROMOTIONS_FILE
from harness.promote.install import install, status
from harness.promote.manifest import MANIFEST_FILE
from harness.promote.parcel import opened
from harness.promote.targets import target
from tests.boards import SUITE, Finished, finished
from tests.fuzz.checksums import mend_zip
from tests.fuzz.corpora import json_lines, put
from tests.fuzz.target import Target
from tests.ggmls import bundle

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL = HEADER.pack(MAGIC, 51_865, 1500, 64, 1, 1, 448, 64, 1, 1, 80, 1, 80, 201)
SUITE_FILE = Path(__file__).parents[2] / "suites" / "quickstart.yaml"


# Bundles


@cache
def bundles() -> dict[str, bytes]:
    """The zip, under "zip", and the files of the folder."""
    with tempfile.TemporaryDirectory() as folder:
        path = bundle(Path(folder), MODEL)
        files = {item.relative_to(path).as_posix(): item.read_bytes() for item in path.rglob("*") if item.is_file()}
        return {"zip": path.with_name(f"{path.name}.zip").read_bytes(), **files}


def zip_places(data: bytes) -> list[int]:
    """The fields of its headers, and the manifest."""
    found = [data.find(b'"schema"'), data.find(b'"files"')]
    for mark, length in ((b"PK\3\4", 30), (b"PK\1\2", 46), (b"PK\5\6", 22)):
        place = data.find(mark)
        while place >= 0:
            found += [*range(place, place + length, 2), place + length, place + length + 8]
            place = data.find(mark, place + 4)
    return found


def installed(path: Path, folder: Path) -> None:
    """Verified and put in place; the model is not run, only looked at."""
    place = folder / "application"
    with opened(path) as parcel:
        install(parcel, target=target("folder"), folder=place, listen=lambda *_, **told: told["manifest"].smoke.text)
    assert not [fault for item in status(target("folder"), folder=place) for fault in item.faults]


def read_zip(data: bytes, folder: Path) -> None:
    (folder / "b.zip").write_bytes(data)
    installed(folder / "b.zip", folder)


def read_bundle(data: bytes, folder: Path, *, name: str) -> None:
    put(folder / "bundle", {**{file: content for file, content in bundles().items() if file != "zip"}, name: data})
    installed(folder / "bundle", folder)


@cache
def states() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder, "bundle"), {name: content for name, content in bundles().items() if name != "zip"})
        installed(Path(folder, "bundle"), Path(folder))
        return [next(Path(folder, "application").rglob("state.json")).read_bytes()]


def read_state(data: bytes, folder: Path) -> None:
    put(folder / "bundle", {name: content for name, content in bundles().items() if name != "zip"})
    installed(folder / "bundle", folder)
    next((folder / "application").rglob("state.json")).write_bytes(data)
    status(target("folder"), folder=folder / "application")


# Measurements


def measurements() -> list[bytes]:
    one = {
        "host": "studio", "asked": "metal", "device": "Metal GPU", "row": "tiny", "bundle": "tiny-01234567",
        "model_sha256": "0" * 64, "runtime": "whisper.cpp", "when": "2026-01-01T00:00:00+00:00", "num_clips": 2,
        "num_failed": 0, "audio_s": 3.5, "load_s": 0.1, "warm_up_s": 0.1, "rtf": 0.1, "latency_p50_ms": 90.0,
        "latency_p95_ms": None, "peak_ram_mib": 300.0, "peak_vram_mib": None,
        "buckets": [{"from_s": 0.0, "to_s": None}],
    }  # fmt: skip
    return [json.dumps({"schema": 1, "measurements": [one, {**one, "asked": "cpu"}]}).encode()]


def read_bench(data: bytes, folder: Path) -> None:
    (folder / "bench-studio.json").write_bytes(data)
    found = devices.read(folder / "bench-studio.json")
    devices.write(folder / devices.DEVICES_FILE, found)
    devices.with_columns([{"row": "tiny"}], {"tiny": devices.merged(folder)})


# Records


def promotions() -> list[bytes]:
    one = {
        "when": "2026-01-01T00:00:00.000+00:00", "action": "promote", "row": "a", "bundle": "a-01234567", "by": "anna",
        "suite": "quickstart", "reason": "", "previous": "", "to": "", "forced": None, "key": "0" * 64,
    }  # fmt: skip
    return [json_lines([one, {**one, "action": "rollback", "when": "2026-01-02"}, {**one, "reason": "[bold]да"}])]


def read_promotions(data: bytes, folder: Path) -> None:
    results = folder / "results"
    name = SUITE_FILE.stem
    put(results / name, {PROMOTIONS_FILE: data})
    with mock.patch("harness.promote.registry.follow_rollback"):
        cli_promote.history(SUITE_FILE, results)


def readings() -> list[bytes]:
    row = {"row": "a", "score": "0" * 16, "transcripts": "1" * 16}
    one = {
        "schema": 1, "when": "2026-01-01", "command": "board", "why": "first reading", "suite_sha256": "0" * 64,
        "heldout": "test", "normalise": "standard", "selection": {"row": "a"}, "rows": [row],
    }  # fmt: skip
    return [json_lines([one, {**one, "rows": [row, {**row, "row": "b"}]}])]


def read_readings(data: bytes, folder: Path) -> None:
    (folder / ledger.LEDGER_FILE).write_bytes(data)
    entries, _ = ledger.read(folder / ledger.LEDGER_FILE)
    {ledger._identity(entry) for entry in entries}


def artifacts() -> list[bytes]:
    record = {"schema": 1, "key": "a" * 64, "stage": "train", "files": {"m": {"sha256": "0" * 64, "size": 1}}}
    return [json.dumps({**record, "meta": {"notes": []}, "wall_s": 1.5, "adopted": {}}).encode()]


def read_artifact(data: bytes, folder: Path) -> None:
    put(folder / "store" / "train-a", {ARTIFACT_FILE: data, "m": b"m"})
    Store(folder / "store").find("train-a", key="a" * 64)


# MLflow


@cache
def database() -> bytes:
    """What this version of MLflow writes for an empty store."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mlflow.db")
        # Without an experiment: MLflow believes its database where that has its artifacts.
        MlflowClient(tracking_uri=f"sqlite:///{path.as_posix()}").search_experiments()
        dispose()
        return path.read_bytes()


def dispose() -> None:
    """Close what MLflow keeps open of stores that are gone."""
    from mlflow.store.tracking import sqlalchemy_store

    store = sqlalchemy_store.SqlAlchemyStore
    for engine in store._engine_map.values():
        engine.dispose()
    store._engine_map.clear()


def older() -> bytes:
    """As a version of MLflow leaves it whose tables are others."""
    return database().replace(_revision(), b"0" * 12)


def _revision() -> bytes:
    import sqlite3

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "m.db").write_bytes(database())
        with closing(sqlite3.connect(Path(folder, "m.db"))) as connection:
            return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]).encode()


def databases() -> list[bytes]:
    return [database(), older()]


def pages(data: bytes) -> list[int]:
    """The header and the first bytes of each page."""
    return [*range(0, 100, 4), *(start + field for start in range(0, len(data), 4096) for field in (0, 3, 5, 8, 40))]


@cache
def run() -> Finished:
    # Kept for all inputs: only read.
    return finished(Path(tempfile.mkdtemp(prefix="harness-fuzz-")), suite=SUITE)


def read_database(data: bytes, folder: Path) -> None:
    """The results are there, whatever MLflow says."""
    from harness.session import publish_results

    done = run()
    put(folder / "mlruns", {"mlflow.db": data})
    results = folder / "small"
    tracking = Projection("small", folder=folder / "mlruns", record=results / "runs.json")
    try:
        lines = publish_results(
            done.plan, done.store, results, tracking, suite=done.path, command="board", succeeded=True
        )
    finally:
        with suppress(Exception):
            dispose()
    assert lines
    assert (results / "leaderboard.csv").is_file()


def runs() -> list[bytes]:
    key = hashlib.sha256(b"key").hexdigest()
    return [json.dumps({"uri": "URI", "runs": {key: "0" * 32}, "figures": {key: "1" * 16}, "models": {}}).encode()]


def read_runs(data: bytes, folder: Path) -> None:
    put(folder, {"mlruns/mlflow.db": b"", "runs.json": data})
    uri = f"sqlite:///{(folder / 'mlruns' / 'mlflow.db').resolve().as_posix()}"
    (folder / "runs.json").write_bytes(data.replace(b"URI", uri.encode()))
    Projection("small", folder=folder / "mlruns", record=folder / "runs.json")


def places(data: bytes) -> Sequence[int]:
    return range(len(data))


TARGETS = (
    Target("bundle-zip", lambda: [bundles()["zip"]], read_zip, weight=2.0, mend=mend_zip, places=zip_places),
    Target("bundle-manifest", lambda: [bundles()[MANIFEST_FILE]], partial(read_bundle, name=MANIFEST_FILE), weight=2.0),
    Target(
        "bundle-file", lambda: [bundles()["ggml-model.bin"]], partial(read_bundle, name="ggml-model.bin"), weight=0.3
    ),
    Target("installed-state", states, read_state, weight=0.5),
    Target("bench", measurements, read_bench, weight=1.0),
    Target("promotions", promotions, read_promotions, weight=0.7),
    Target("ledger", readings, read_readings, weight=0.7),
    Target("artifact", artifacts, read_artifact, weight=0.7),
    Target("mlflow-runs", runs, read_runs, weight=0.5),
    Target("mlflow-database", databases, read_database, weight=0.15, places=pages, is_quick=False),
)
