"""Damaged input of every kind from outside ends in success or in one message. The whole of it is `make fuzz`."""

from __future__ import annotations

import json
import random
import sys

import pytest

from tests.fuzz import campaign
from tests.fuzz.campaign import attack, make, shares
from tests.fuzz.mutation import mutate
from tests.fuzz.targets import TARGETS
from tests.fuzz.traitors import EXPECTED, SEED
from tests.fuzz.traitors import TARGETS as TRAITORS

COUNT = 500


def test_a_share_of_the_campaign_finds_nothing(tmp_path):
    quick = [target for target in TARGETS if target.is_quick]
    inputs = [(target, number) for target, count in shares(quick, COUNT) for number in range(count)]
    tallies = attack(inputs, seed=17, base=tmp_path)
    assert {name: tally.findings for name, tally in tallies.items() if tally.findings} == {}
    assert sum(tally.num_inputs for tally in tallies.values()) == len(inputs) >= COUNT


def test_whatever_no_reader_may_do_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "LIMIT_S", 1.0)
    changed = [next(n for n in range(99) if make(target, n, seed=17) != SEED) for target in TRAITORS]
    tallies = attack(list(zip(TRAITORS, changed, strict=True)), seed=17, base=tmp_path, targets="tests.fuzz.traitors")
    assert (tallies["quiet"].accepted, tallies["refuse"].refused) == (1, 1)
    for name, expected in EXPECTED.items():
        if name == "eat" and sys.platform != "linux":
            continue
        (finding,) = tallies[name].findings
        assert expected in finding["what"]
    assert not (tmp_path / "outside" / "new").exists()


@pytest.mark.parametrize("target", [target for target in TARGETS if target.is_quick], ids=lambda target: target.name)
def test_inputs_are_made_again_from_their_numbers_and_differ(target):
    seeds = target.seeds()
    made = [make(target, number, seed=17) for number in range(4)]
    assert made == [make(target, number, seed=17) for number in range(4)]
    assert len(set(made) - set(seeds)) >= 2


def test_json_is_changed_below_its_surface():
    rng = random.Random(3)
    found = [mutate(b'{"a": {"b": [1, 2]}}', rng=rng, others=[b"{}"]) for _ in range(200)]
    inner = [json.loads(item)["a"] for item in found if item.startswith(b'{"a": ') and is_json(item)]
    assert len({json.dumps(item) for item in inner}) > 20


def is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def test_every_target_gets_its_share():
    counts = {target.name: count for target, count in shares(TARGETS, 10_000)}
    assert sum(counts.values()) >= 10_000
    assert min(counts.values()) >= 30
