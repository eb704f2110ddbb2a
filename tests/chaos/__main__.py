"""`python -m tests.chaos --kills 200`: kills in every stage, with their summary in `results/chaos/kills.json`."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness.train.weights import resolve
from tests.chaos.kills import STAGES, Campaign, Tally, attack
from tests.pipelines import ROOT, write_suite
from tests.whispers import write_tiny

SUMMARY = ROOT / "results" / "chaos" / "kills.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="of each stage")
    parser.add_argument("--stage", nargs="*", choices=STAGES, default=STAGES)
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="of each stage, at most")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--out", type=Path, default=SUMMARY)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # sums of floats depend on the number of threads
    known = json.loads(given.out.read_text("utf-8"))["stages"] if given.out.is_file() else {}

    def told(stage: str, tally: Tally) -> None:
        known[stage] = tally.as_json() | {"seed": given.seed}
        write(given.out, known)
        sys.stdout.write(f"{stage}: {json.dumps(known[stage], ensure_ascii=False)}\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory(prefix="harness-chaos-") as base:
        for name in ("model", "suite", "run"):
            (Path(base) / name).mkdir()
        model = write_tiny(Path(base) / "model", like=resolve("openai/whisper-base"))
        suite = write_suite(Path(base) / "suite", base=model)
        campaign = Campaign(suite, Path(base) / "run", random.Random(given.seed))
        campaign.begin()
        for stage in given.stage:
            until_s = time.monotonic() + given.minutes * 60
            attack(campaign, stage, kills=given.kills, until_s=until_s, told=told)
            if known[stage]["failures"]:
                return 1
    return 0


def write(path: Path, stages: dict[str, Any]) -> None:
    """What all stages have stood so far; a stage that was not run now keeps its figures."""
    totals = {name: sum(item[name] for item in stages.values()) for name in ("rounds", "kills", "hits")}
    summary = totals | {
        "failures": sum(len(item["failures"]) for item in stages.values()),
        "seconds": round(sum(item["seconds"] for item in stages.values())),
        "python": sys.version.split()[0],
        "platform": sys.platform,
        "stages": stages,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
