"""`python -m tests.fuzz --count 10000`: the whole campaign, with its summary in `results/chaos/fuzz.json`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.campaign import ROOT, attack, make, shares
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="inputs of all targets together")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--target", nargs="*", choices=[target.name for target in TARGETS])
    parser.add_argument("--only", type=int, help="this input alone; it is written to --save")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "chaos" / "fuzz.json")
    given = parser.parse_args()
    targets = [target for target in TARGETS if not given.target or target.name in given.target]
    if given.save:
        given.save.write_bytes(make(targets[0], given.only, seed=given.seed))
    start = time.monotonic()
    found = {}
    for target, count in shares(targets, given.count):
        numbers = range(count) if given.only is None else [given.only]
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="harness-fuzz-", ignore_cleanup_errors=True) as base:
            tally = attack([(target, number) for number in numbers], seed=given.seed, base=Path(base))[target.name]
        found[target.name] = {**tally.as_json(), "seconds": round(time.monotonic() - began, 1)}
        shown = {name: value for name, value in found[target.name].items() if name != "findings"}
        print(f"{target.name}: {shown}", *(f"  {item}" for item in tally.findings), sep="\n", flush=True)  # noqa: T201  # a command
    num_findings = sum(len(item["findings"]) for item in found.values())
    summary = {
        "inputs": sum(item["inputs"] for item in found.values()),
        "accepted": sum(item["accepted"] for item in found.values()),
        "refused": sum(item["refused"] for item in found.values()),
        "findings": num_findings,
        "slowest_s": max(item["slowest_s"] for item in found.values()),
        "peak_rss_mib": max(item["peak_rss_mib"] for item in found.values()),
        "seconds": round(time.monotonic() - start),
        "seed": given.seed,
        "python": sys.version.split()[0],
        "platform": sys.platform,
        "targets": found,
    }
    if given.only is None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(summary, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print({name: value for name, value in summary.items() if name != "targets"})  # noqa: T201  # a command
    return 1 if num_findings else 0


if __name__ == "__main__":
    sys.exit(main())
