from __future__ import annotations

import json
import random
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core.manifests import utterance_table
from harness.core.records import Utterance
from harness.core.text import normalise
from harness.data.keys import read_keys
from harness.data.split import assign_splits
from harness.errors import DataError
from harness.suite.spec import Split
from tests.conftest import AELITA

RULE = Split(dev=0.1, test=0.2)
BY_RECORDING = Split(dev=0.1, test=0.2, by="recording")
GOLDEN = {"train": 131, "dev": 23, "test": 36}
"""Aelita's 190 under BY_RECORDING and seed 17."""
GOLDEN_DEV = ["ru_0005", "ru_0006", "ru_0030"]
QUICKSTART = Split(dev=0.06, test=0.15, by="recording")
QUICKSTART_SHA256 = "0ef7726b4f5edb58cef93713e5d1321db7aee6d521042aa5fbab31e6d859a8fb"


def utterance(name: str, text: str | None = None, **more: object) -> Utterance:
    digest = sha256(name.encode()).hexdigest()
    fields = {"id": name, "audio": f"{name}.wav", "sha256": digest, "text": f"слова {name}" if text is None else text}
    return Utterance(**{**fields, "duration_s": 1.5, **more})


def recording(name: str) -> str:
    return sha256(name.encode()).hexdigest()


def aelita() -> list[Utterance]:
    rows = map(json.loads, (AELITA / "manifest.jsonl").read_text("utf-8").splitlines())
    return [utterance(Path(row["audio_filepath"]).stem, row["text"], speaker=row["speaker"]) for row in rows]


def by_id(utterances: list[Utterance], *, rule: Split | None = BY_RECORDING, seed: int = 17) -> dict[str, str | None]:
    splits = assign_splits(read_keys(utterance_table(utterances).to_batches(7), seed=seed), rule=rule)
    names = [None if code < 0 else splits.names[code] for code in splits.codes]
    return {item.id: name for item, name in zip(utterances, names, strict=True)}


def test_golden_split_of_aelita() -> None:
    splits = by_id(aelita())
    assert Counter(splits.values()) == GOLDEN
    assert sorted(name for name, split in splits.items() if split == "dev")[:3] == GOLDEN_DEV


def test_golden_split_of_the_quickstart() -> None:
    """Its published figures are those of this very split."""
    lines = "\n".join(f"{name} {split}" for name, split in sorted(by_id(aelita(), rule=QUICKSTART).items()))
    assert sha256(lines.encode()).hexdigest() == QUICKSTART_SHA256


def test_another_seed_is_another_split() -> None:
    assert by_id(aelita(), seed=18) != by_id(aelita())


def test_another_dev_fraction_leaves_test_alone() -> None:
    tests = [
        {name for name, split in by_id(aelita(), rule=rule).items() if split == "test"}
        for rule in (BY_RECORDING, Split(dev=0.3, test=0.2, by="recording"))
    ]
    assert tests[0] == tests[1]


@pytest.mark.parametrize(
    ("dev", "test", "expected"),
    [(0.0, 0.2, {"train", "test"}), (0.1, 0.0, {"train", "dev"}), (0.0, 0.0, {"train"})],
)
def test_a_fraction_may_be_nothing(dev: float, test: float, expected: set[str]) -> None:
    assert set(by_id(aelita(), rule=Split(dev=dev, test=test, by="recording")).values()) == expected


@pytest.mark.parametrize("speakers", [None, 4000])
def test_fractions_are_met_on_many(speakers: int | None) -> None:
    rng = random.Random(3)
    many = [
        utterance(str(number), speaker=speakers and f"speaker {rng.randrange(speakers)}") for number in range(20_000)
    ]
    shares = Counter(by_id(many, rule=RULE).values())
    assert shares["test"] / 20_000 == pytest.approx(0.2, abs=0.02)
    assert shares["dev"] / 20_000 == pytest.approx(0.1, abs=0.02)


def test_a_crowded_group_is_no_more_in_test_than_a_single_clip() -> None:
    """Of many draws the smallest is always small: a group must not be placed by it."""
    people = [utterance(f"{person} {number}", speaker=str(person)) for person in range(400) for number in range(20)]
    shares = Counter(by_id(people, rule=RULE).values())
    assert shares["test"] / len(people) == pytest.approx(0.2, abs=0.07)


def test_what_belongs_together_stays_together() -> None:
    # Chains: pairs share a transcript (written differently), and each pair a recording with the next.
    chain = []
    for number in range(40):
        chain.append(utterance(f"a{number}", f"Текст, {number}!", sha256=recording(f"{number}")))
        chain.append(utterance(f"b{number}", f"текст {number}", sha256=recording(f"{number + 1}")))
    assert len(set(by_id(chain).values())) == 1
    pairs = [utterance(f"{side}{n}", f"Ёлка {n}" if side == "a" else f"елка {n}") for n in range(40) for side in "ab"]
    splits = by_id(pairs)
    assert len(set(splits.values())) == 3
    assert all(splits[f"a{n}"] == splits[f"b{n}"] for n in range(40))


def test_clips_without_words_are_no_group() -> None:
    assert len(set(by_id([utterance(str(number), "…") for number in range(60)]).values())) == 3


@pytest.mark.parametrize(("rule", "apart"), [(BY_RECORDING, True), (RULE, False), (Split(by="speaker"), False)])
def test_speakers_stay_together_unless_told_otherwise(rule: Split, *, apart: bool) -> None:
    people = [utterance(str(number), speaker=f"speaker {number % 30}") for number in range(300)]
    splits = by_id(people, rule=rule)
    assert len(set(splits.values())) == 3
    assert any(splits[str(number)] != splits[str(number + 30)] for number in range(270)) is apart


def test_a_split_by_speaker_needs_speakers() -> None:
    people = [utterance("x", speaker="ann"), utterance("y"), utterance("z", split="test")]
    with pytest.raises(DataError, match=r"split by speaker: 1 of 3 utterances name no speaker, the first in line 2 "):
        by_id(people, rule=Split(by="speaker"))


def test_own_splits_are_kept_and_followed() -> None:
    own = [utterance(str(number), split="public_youtube700_val") for number in range(30)]
    assert set(by_id(own).values()) == {"public_youtube700_val"}
    assert set(by_id([utterance("a"), utterance("b", split="dev")], rule=None).values()) == {None, "dev"}
    twins = [utterance(f"{n}{side}", f"т {n}", split="test" if side else None) for n in range(30) for side in (0, 1)]
    assert set(by_id(twins).values()) == {"test"}
    torn = [utterance("a", "т", split="dev"), utterance("b", "т", split="test"), utterance("c", "т")]
    assert by_id(torn)["a"] == "dev"
    assert by_id(torn)["b"] == "test"
    assert by_id(torn)["c"] in {"train", "dev", "test"}


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        # Golos: no dev of its own.
        ({"train", "test"}, {"train", "test", "dev"}),
        ({"train", "dev", "test", "other"}, {"train", "dev", "test", "other"}),
        ({"train"}, {"train", "dev", "test"}),
        ({"train", "dev"}, {"train", "dev", "test"}),
        ({"validated", "test"}, {"validated", "test"}),
    ],
)
def test_what_a_corpus_lacks_is_taken_out_of_its_train(own: set[str], expected: set[str]) -> None:
    clips = [utterance(f"{split} {number}", split=split) for split in sorted(own) for number in range(100)]
    splits = by_id(clips)
    assert set(splits.values()) == expected
    moved = {item.split for item in clips if splits[item.id] != item.split}
    assert moved == ({"train"} if expected - own else set())


def test_train_that_reaches_into_test_does_not_become_dev() -> None:
    shared = [utterance(f"{split} {n}", f"вместе {n}", split=split) for n in range(100) for split in ("train", "test")]
    alone = [utterance(f"alone {number}", split="train") for number in range(100)]
    splits = by_id([*shared, *alone])
    assert {splits[f"train {number}"] for number in range(100)} == {"train"}
    assert {splits[f"alone {number}"] for number in range(100)} == {"train", "dev"}


def test_a_corpus_that_divides_only_a_part_keeps_its_train() -> None:
    clips = [utterance(f"own {n}", split="train") for n in range(50)] + [utterance(f"none {n}") for n in range(50)]
    splits = by_id(clips)
    assert {splits[f"own {number}"] for number in range(50)} == {"train"}
    assert {splits[f"none {number}"] for number in range(50)} == {"train", "dev", "test"}


CLIPS = st.lists(
    st.tuples(
        st.sampled_from([None, "анна", "борис", "вера", "глеб", "дарья"]),
        st.sampled_from(["", "Да.", "да", "нет", "ёлка", "елка", "1943", *(f"предложение {n}" for n in range(40))]),
        st.integers(0, 50),
        st.sampled_from([None, None, None, "train", "test"]),
    ),
    min_size=1,
    max_size=60,
)
"""Speaker, text, recording, own split."""


def clips(drawn: list[tuple[str | None, str, int, str | None]], *, prefix: str = "") -> list[Utterance]:
    return [
        utterance(f"{prefix}{number}", text, speaker=speaker, split=split, sha256=recording(f"{prefix}{sound}"))
        for number, (speaker, text, sound, split) in enumerate(drawn)
    ]


@given(drawn=CLIPS, by=st.sampled_from(["auto", "recording"]))
@settings(max_examples=150, deadline=None)
def test_nothing_that_the_rule_divides_is_in_two_splits(drawn: list, by: str) -> None:
    utterances = clips([(speaker, text, sound, None) for speaker, text, sound, _ in drawn])
    splits = by_id(utterances, rule=Split(dev=0.3, test=0.3, by=by))
    shared = [
        ("recording", [item.sha256 for item in utterances]),
        ("transcript", [normalise(item.text) for item in utterances]),
        *([("speaker", [item.speaker for item in utterances])] if by == "auto" else []),
    ]
    for what, values in shared:
        found: dict[str, set] = {}
        for item, value in zip(utterances, values, strict=True):
            if value:
                found.setdefault(value, set()).add(splits[item.id])
        assert all(len(several) == 1 for several in found.values()), what


@given(drawn=CLIPS, seed=st.integers(0, 5), data=st.data())
@settings(max_examples=100, deadline=None)
def test_order_does_not_matter_and_own_splits_stay(drawn: list, seed: int, data: st.DataObject) -> None:
    utterances = clips(drawn)
    before = by_id(utterances, rule=RULE, seed=seed)
    assert by_id(data.draw(st.permutations(utterances)), rule=RULE, seed=seed) == before
    assert {before[item.id] for item in utterances if item.split == "test"} <= {"test"}


@given(drawn=CLIPS, more=CLIPS, by=st.sampled_from(["auto", "recording"]))
@settings(max_examples=100, deadline=None)
def test_clips_of_other_people_move_nobody(drawn: list, more: list, by: str) -> None:
    rule = Split(dev=0.3, test=0.3, by=by)
    utterances = clips([(speaker, text, sound, None) for speaker, text, sound, _ in drawn])
    strangers = clips(
        [(speaker and f"чужая {speaker}", text and f"чужое {text}", sound, None) for speaker, text, sound, _ in more],
        prefix="new ",
    )
    before = by_id(utterances, rule=rule)
    after = by_id([*strangers, *utterances], rule=rule)
    assert {name: after[name] for name in before} == before


@given(drawn=CLIPS, more=st.lists(st.integers(0, 59), max_size=30))
@settings(max_examples=100, deadline=None)
def test_more_sentences_of_the_same_people_move_nobody(drawn: list, more: list[int]) -> None:
    rule = Split(dev=0.3, test=0.3)
    utterances = clips([(speaker or "женя", text, sound, None) for speaker, text, sound, _ in drawn])
    said = [
        utterance(f"new {number}", f"новое {number}", speaker=utterances[index % len(utterances)].speaker)
        for number, index in enumerate(more)
    ]
    before = by_id(utterances, rule=rule)
    after = by_id([*utterances, *said], rule=rule)
    assert {name: after[name] for name in before} == before
