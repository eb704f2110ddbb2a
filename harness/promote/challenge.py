"""The champion on today's sealed clips: heard again from its bundle where no row of the suite is that model now."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ValidationError

from harness.board.devices import model_digest
from harness.board.slices import Sliced
from harness.core.files import copy_hashed
from harness.engine.local import LocalExecutor
from harness.engine.plan import Builder, with_needs
from harness.engine.walk import run_steps
from harness.errors import HarnessError, SuiteError
from harness.promote.parcel import again, check_sha256, opened
from harness.score.scores import SLICES_FILE
from harness.suite import spec as base
from harness.suite.kinds import kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from harness.board.leaderboard import Line
    from harness.core.artifact import Artifact, Inputs, Work
    from harness.engine.plan import Plan, Step
    from harness.engine.store import Store
    from harness.engine.walk import Listener
    from harness.promote.gate import Champion
    from harness.promote.manifest import Manifest

    Watched = Callable[[int], AbstractContextManager[Listener]]
    """Number of steps → who watches them."""

VERSION = 1


class Spec(base.Spec):
    """A bundle's model as an artifact, to be run like any export."""

    not_identity: ClassVar[Mapping[str, str]] = {"bundle": "where it lies; `model_sha256` tells what is in it"}

    bundle: str
    model_sha256: str


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Copy the model's files, each verified. meta: `onnx_asr`, as its export had it."""
    del inputs
    with opened(Path(spec.bundle)) as parcel:
        for name in parcel.manifest.model:
            target = work.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with parcel.files.open(name) as source, target.open("wb") as file:
                _, sha256 = copy_hashed(source, file)
            check_sha256(parcel, name, sha256)
        served = parcel.manifest.onnx_asr
    return {"onnx_asr": served.model_dump()} if served else {}


def rescored(
    champion: Champion, plan: Plan, store: Store, *, folder: Path, watch: Watched | None
) -> dict[str, Artifact]:
    """Test set → the champion's score there, by its own runtime and the suite's normaliser; from the store if it can.

    folder: `results/<suite>`. watch: None lets nothing run.
    Raises HarnessError if the bundle is gone or damaged, a step fails, or nothing may run that has to.
    """
    steps = _steps(champion, plan, folder=folder)
    found = _found(steps, store)
    if len(found) < len(steps):
        if watch is None:
            raise HarnessError(
                f"the champion {champion.bundle} has not been heard on {', '.join(steps.keys() - found.keys())} yet; "
                "this hears it: harness promote SUITE --dry-run"
            )
        _run(steps.values(), store, logs=folder / "logs", watch=watch)
        found = _found(steps, store)
    return found


def lines(name: str, scores: Mapping[str, Artifact]) -> list[Line]:
    """What the board would say of it on its test sets."""
    return [{**score.meta, "row": name, "heldout": heldout, "split_role": "test"} for heldout, score in scores.items()]


def slices(name: str, scores: Mapping[str, Artifact]) -> list[Sliced]:
    """Its parts of the test sets."""
    return [
        Sliced(
            name,
            heldout,
            score.meta["wer"],
            json.loads((score.path / SLICES_FILE).read_text(encoding="utf-8")),
            score.meta["error_classes"],
        )
        for heldout, score in scores.items()
    ]


def _steps(champion: Champion, plan: Plan, *, folder: Path) -> dict[str, Step]:
    """Test set → the step that scores the champion on it."""
    path, manifest = _bundle(champion, folder=folder)
    build = Builder(lambda _path: "")
    digest = model_digest({name: manifest.files[name].sha256 for name in manifest.model})
    spec = Spec(bundle=str(path.resolve()), model_sha256=digest)
    placed = build.add("export", f"champion {champion.bundle}", spec, {})
    runtime = _runtime(manifest)
    scored: dict[str, Step] = {}
    for row in plan.rows:
        if row.split_role == "test" and row.heldout not in scored:
            name = f"{champion.bundle} {row.heldout}"
            inputs = {"export": (placed,), "heldout": row.scored.inputs["heldout"]}
            heard = build.add("transcribe", name, runtime, inputs)
            scored[row.heldout] = build.add("score", name, row.scored.spec, {"transcripts": (heard,), **inputs})
    return scored


def _bundle(champion: Champion, *, folder: Path) -> tuple[Path, Manifest]:
    """Where the champion's bundle lies, as a folder or a zip, and what it says of itself."""
    whole = folder / "bundles" / champion.bundle
    path = next((item for item in (whole, whole.with_name(f"{whole.name}.zip")) if item.exists()), None)
    if path is None:
        raise SuiteError(
            f"gate.better_than: the champion '{champion.row}', promoted {champion.when}, is no row of this suite any "
            f"more, and its bundle {whole} is gone, so nothing can be compared with it on the same clips; put the "
            "bundle back, add its variant again, or name another variant"
        )
    with opened(path) as parcel:
        if parcel.name != champion.bundle:
            raise HarnessError(f"{path}: is {parcel.name}, and not the champion {champion.bundle}; {again()}")
        return path, parcel.manifest


def _runtime(manifest: Manifest) -> base.RuntimeSpec:
    """As its suite declared it when it was promoted."""
    known = kinds("runtime")
    kind = str(manifest.serving.get("kind"))
    try:
        spec: base.RuntimeSpec = known[kind].Spec.model_validate(manifest.serving)
    except (KeyError, ValidationError) as error:
        raise HarnessError(
            f"{manifest.name}: its manifest's `serving` names no runtime that can be run ({kind}); known: "
            f"{', '.join(known)}; promote it again"
        ) from error
    return spec


def _found(steps: Mapping[str, Step], store: Store) -> dict[str, Artifact]:
    found = {heldout: store.find(step.folder, key=step.key) for heldout, step in steps.items()}
    return {heldout: artifact for heldout, artifact in found.items() if artifact}


def _run(steps: Iterable[Step], store: Store, *, logs: Path, watch: Watched) -> None:
    """These and all that they need, each in a process of its own."""
    wanted = with_needs(steps)
    with watch(len(wanted)) as listener:
        executor = LocalExecutor(logs, jobs=1)
        outcomes = run_steps(list(wanted.values()), store=store, executor=executor, listener=listener)
    for step in wanted.values():
        if outcomes[step.key].state == "failed":
            raise HarnessError(f"{step.name}: {outcomes[step.key].error}; its log: {outcomes[step.key].log}")
