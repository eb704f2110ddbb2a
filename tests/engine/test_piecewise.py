"""A corpus that several steps prepare, as a run walks it."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from harness.engine.digests import Digests
from harness.engine.estimates import outlook
from harness.engine.local import LocalExecutor
from harness.engine.plan import plan
from harness.engine.store import Store
from harness.engine.walk import run_steps
from harness.suite.load import load
from tests.boards import SUITE
from tests.conftest import AELITA
from tests.engine.test_stopping import Quiet

if TYPE_CHECKING:
    from pathlib import Path

    from harness.engine.plan import Plan
    from harness.engine.walk import Outcome

STAGES = ("list", "decode", "prepare")


def planned(folder: Path, *, tasks: int) -> Plan:
    """The small suite on ten clips."""
    rows = [json.loads(line) for line in (AELITA / "manifest.jsonl").read_text("utf-8").splitlines()][:10]
    (folder / "clips" / "clips").mkdir(parents=True, exist_ok=True)
    for row in rows:
        shutil.copyfile(AELITA / row["audio_filepath"], folder / "clips" / row["audio_filepath"])
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "clips" / "manifest.jsonl").write_text(lines, encoding="utf-8")
    text = SUITE.replace("kind: manifest,", f"kind: manifest, tasks: {tasks},")
    (folder / "small.yaml").write_text(text, encoding="utf-8")
    return plan(load(folder / "small.yaml"), digest=Digests(folder / "digests.json"))


def walked(whole: Plan, store: Store) -> dict[str, Outcome]:
    steps = [step for step in whole.steps if step.stage in STAGES]
    outcomes = run_steps(steps, store=store, executor=LocalExecutor(store.root / "logs", jobs=2), listener=Quiet())
    return {step.name: outcomes[step.key] for step in steps}


def test_what_they_leave_may_go_once_it_is_joined(tmp_path: Path) -> None:
    together, alone = Store(tmp_path / "together"), Store(tmp_path / "alone")
    whole = planned(tmp_path, tasks=2)
    told = outlook(whole, together)
    expected = {step.name: told.steps[step.key] for step in whole.steps if step.stage in STAGES}
    assert [expected[name].num_clips for name in ("decode aelita 1/2", "prepare aelita")] == [5, 10]
    assert {outcome.state for outcome in walked(whole, together).values()} == {"done"}
    walked(planned(tmp_path, tasks=1), alone)
    (one,), (other,) = (list(store.root.glob("prepare-*")) for store in (together, alone))
    assert one.name == other.name
    assert (one / "utterances.parquet").read_bytes() == (other / "utterances.parquet").read_bytes()

    for stage in ("list", "decode"):
        for path in together.root.glob(f"{stage}-*"):
            shutil.rmtree(path)
    assert {outcome.state for outcome in walked(whole, together).values()} == {"cached"}
    assert not list(together.root.glob("decode-*"))
    told = outlook(whole, together)
    assert all(told.steps[step.key].is_measured for step in whole.steps if step.stage in STAGES)
