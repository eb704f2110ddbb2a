"""The command that does the work: run."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli_promote import RESULTS, Results, Shared, SuitePath
from harness.console import err, out, tolerant
from harness.session import finder, open_suite, publish_results

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from harness.board.mlflow import Projection
    from harness.core.estimates import Memory
    from harness.engine.plan import Plan, Step
    from harness.engine.store import Store
    from harness.engine.walk import Environment, Executor, Outcome

INTERRUPTED = 130
"""Exit code after Ctrl-C, by the shell's convention."""

running = typer.Typer()


class Where(StrEnum):
    """What runs the steps."""

    local = "local"
    ray = "ray"


@running.command()
def run(
    suite: SuitePath,
    only: Annotated[str | None, typer.Option("--only", metavar="STAGE", help="Up to this stage only.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Light steps that run side by side.")] = 2,
    executor: Annotated[Where, typer.Option("--executor", help="On this machine, or on a Ray cluster.")] = Where.local,
    address: Annotated[
        str, typer.Option("--address", metavar="ADDRESS", help="Of the Ray cluster: auto, local, HOST:PORT, ray://….")
    ] = "auto",
    shared: Shared = None,
    results: Results = RESULTS,
) -> None:
    """Prepare, train, export, transcribe, score, and publish the board. Goes on where it stopped."""
    from harness.board.mlflow import Projection
    from harness.engine.fit import check_fit
    from harness.engine.search import surviving
    from harness.engine.store import BULKY, Store
    from harness.engine.upkeep import write_needed
    from harness.engine.walk import run_steps
    from harness.terminal import Watch

    planned, store = open_suite(suite, results, whole=True, remote=shared)
    steps = _up_to(planned, only)
    here = Store(store.root)  # to predict what trainings take, no weights are downloaded
    todo = [step for step in steps if not _is_trained(step, store)]
    known = check_fit(todo, here, budget=planned.suite.budget)
    folder = results / planned.suite.suite
    write_needed(planned.steps, folder=folder, beside=True)
    # For this and for the board, no model of another machine is downloaded.
    tracking = Projection(planned.suite.suite, folder=Path("mlruns"), record=folder / "runs.json", find=finder(here))
    figures = Store(store.root, remote=store.remote, brief=BULKY)
    live = partial(_environment, tracking=tracking, where=executor)
    logs = folder / "logs"
    try:
        with (
            _executor(executor, address, steps, store, memories=known, logs=logs, jobs=jobs, environment=live) as runs,
            Watch(out, total=len(steps), on_end=partial(_end_training, tracking=tracking)) as watch,
        ):
            outcomes = run_steps(steps, store=store, executor=runs, listener=watch)
    except KeyboardInterrupt:
        same = " ".join(["harness", *sys.argv[1:]])
        err.print(f"\nStopped. Finished steps are kept; go on with: {same}", markup=False)
        tolerant(lambda: tracking.close(attach=[], status="KILLED"))
        sys.exit(INTERRUPTED)
    failed = [(step, outcomes[step.key]) for step in steps if outcomes[step.key].state == "failed"]
    planned = surviving(planned, store)
    _show(planned, steps, outcomes, store, folder=folder)
    publish_results(planned, figures, folder, tracking, suite=suite, command="run", succeeded=not failed)
    store.share([step.folder for step in steps])
    _end(failed)


def _environment(step: Step, *, tracking: Projection, where: Where) -> dict[str, str]:
    """Where a training logs its curves: other machines reach a server only."""
    live = step.stage == "train" and (where is Where.local or tracking.is_served)
    return tolerant(lambda: tracking.training_environment(step)) or {} if live else {}


def _end_training(step: Step, outcome: Outcome, *, tracking: Projection) -> None:
    if step.stage == "train" and outcome.state in ("done", "failed"):
        tolerant(lambda: tracking.training_ended(step, succeeded=outcome.state == "done"))


@contextmanager
def _executor(
    where: Where,
    address: str,
    steps: Sequence[Step],
    store: Store,
    *,
    memories: Mapping[str, Memory | None],
    logs: Path,
    jobs: int,
    environment: Environment,
) -> Iterator[Executor]:
    if where is Where.local:
        from harness.engine.local import LocalExecutor

        yield LocalExecutor(logs, jobs=jobs, environment=environment)
        return
    from harness.engine.ram import peaks_mib
    from harness.engine.ray import RayExecutor, cluster

    with cluster(address):
        rams_mib = peaks_mib(steps, store)
        executor = RayExecutor(logs, environment=environment, memories=memories, rams_mib=rams_mib)
        executor.check(steps, None if store.remote else store.root)
        yield executor


def _up_to(planned: Plan, only: str | None) -> list[Step]:
    """All steps, or those of one stage with everything that they need."""
    from harness.engine.plan import with_needs

    if only is None:
        return list(planned.steps)
    stages = list(dict.fromkeys(step.stage for step in planned.steps))
    if only not in stages:
        raise typer.BadParameter(f"unknown stage '{only}'; this suite has: {', '.join(stages)}", param_hint="--only")
    wanted = with_needs(step for step in planned.steps if step.stage == only)
    return [step for step in planned.steps if step.key in wanted]


def _is_trained(step: Step, store: Store) -> bool:
    return step.stage == "train" and store.has(step.folder, key=step.key)


def _show(planned: Plan, steps: Sequence[Step], outcomes: dict[str, Outcome], store: Store, *, folder: Path) -> None:
    """What the run has done, if anything, and where its datasets are described."""
    from harness.board.cards import publish_cards
    from harness.engine.search import stopped
    from harness.engine.store import Store
    from harness.terminal import summary

    if any(outcome.state not in {"cached", "pruned"} for outcome in outcomes.values()):
        out.print(summary(steps, outcomes))
        _tell([step for step in steps if outcomes[step.key].state == "done"], store)
        for variant in stopped(planned, store):
            out.print(str(variant), markup=False, highlight=False)
    # Of what is here: a corpus is not downloaded for its card.
    cards = publish_cards(planned, Store(store.root), folder=folder)
    if cards and any(outcomes[step.key].state == "done" for step in steps if step.stage == "prepare"):
        out.print(f"dataset cards: {folder / 'cards'}", markup=False, highlight=False)


def _tell(steps: Sequence[Step], store: Store) -> None:
    """What finished steps have to say."""
    for step in steps:
        artifact = store.find(step.folder, key=step.key)
        for note in artifact.meta.get("notes", []) if artifact else []:
            out.print(f"note: {step.name}: {note}", markup=False, highlight=False)


def _end(failed: Sequence[tuple[Step, Outcome]]) -> None:
    """Name the steps that failed, if any did, and exit with the gravest code."""
    for step, outcome in failed:
        err.print(f"failed: {step.name}: {outcome.error}\n  log: {outcome.log}", style="red", markup=False)
    if failed:
        sys.exit(max(outcome.exit_code for _, outcome in failed))
