from __future__ import annotations

import random
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest
from pydantic import ValidationError

from harness.core.artifact import Artifact, Work
from harness.core.manifests import read_jsonl, read_manifest, write_manifests
from harness.core.records import Utterance
from harness.data import select
from harness.data.select import Part, assign_splits
from harness.errors import DataError
from harness.suite.spec import Split

AELITA = Path(__file__).parents[2] / "suites" / "data" / "aelita"
RULE = Split(dev=0.1, test=0.2)
GOLDEN = {"train": 131, "dev": 23, "test": 36}
"""Aelita's 190 under RULE and seed 17."""
GOLDEN_DEV = ["ru_0005", "ru_0006", "ru_0030"]


def utterance(name: str, text: str = "", **more: object) -> Utterance:
    digest = sha256(name.encode()).hexdigest()
    fields = {"id": name, "audio": f"audio/{name}.wav", "sha256": digest, "text": text or f"слова {name}"}
    return Utterance(**{**fields, "duration_s": 1.5, **more})


def aelita() -> list[Utterance]:
    rows = read_jsonl(AELITA / "manifest.jsonl")
    return [utterance(Path(row["audio_filepath"]).stem, row["text"], speaker=row["speaker"]) for row in rows]


def by_id(utterances: list[Utterance], **options: object) -> dict[str, str | None]:
    splits = assign_splits(utterances, **{"rule": RULE, "seed": 17, **options})
    return {item.id: split for item, split in zip(utterances, splits, strict=True)}


def test_golden_split_of_aelita() -> None:
    splits = by_id(aelita())
    assert Counter(splits.values()) == GOLDEN
    assert sorted(name for name, split in splits.items() if split == "dev")[:3] == GOLDEN_DEV


def test_neither_order_nor_other_lines_matter() -> None:
    utterances = aelita()
    before = by_id(utterances)
    shuffled = random.Random(1).sample(utterances, len(utterances))  # repeatable, not secret
    assert by_id(shuffled) == before
    more = [utterance(f"new{number}", f"совсем новый текст {number}") for number in range(100)]
    after = by_id([*more[:50], *utterances, *more[50:]])
    assert {name: after[name] for name in before} == before
    assert by_id(utterances[:50]) == {item.id: before[item.id] for item in utterances[:50]}


def test_another_seed_is_another_split() -> None:
    assert by_id(aelita(), seed=18) != by_id(aelita())


def test_another_dev_fraction_leaves_test_alone() -> None:
    tests = [
        {name for name, split in by_id(aelita(), rule=Split(dev=dev, test=0.2)).items() if split == "test"}
        for dev in (0.1, 0.3)
    ]
    assert tests[0] == tests[1]


def test_fractions_are_met_on_many() -> None:
    many = [utterance(str(number)) for number in range(20_000)]
    shares = Counter(by_id(many).values())
    assert shares["test"] / 20_000 == pytest.approx(0.2, abs=0.01)
    assert shares["dev"] / 20_000 == pytest.approx(0.1, abs=0.01)


def test_what_belongs_together_stays_together() -> None:
    # Chains: pairs share a transcript (written differently), and each pair a recording with the next.
    chain = []
    for number in range(40):
        chain.append(utterance(f"a{number}", f"Текст, {number}!", sha256=f"recording {number}"))
        chain.append(utterance(f"b{number}", f"текст {number}", sha256=f"recording {number + 1}"))
    assert len(set(by_id(chain).values())) == 1
    pairs = [utterance(f"{side}{n}", f"Ёлка {n}" if side == "a" else f"елка {n}") for n in range(40) for side in "ab"]
    splits = by_id(pairs)
    assert len(set(splits.values())) == 3
    assert all(splits[f"a{n}"] == splits[f"b{n}"] for n in range(40))


def test_speakers_stay_together_if_asked() -> None:
    people = [utterance(str(number), speaker=f"speaker {number % 30}") for number in range(300)]
    alone = by_id(people)
    assert any(alone[str(number)] != alone[str(number + 30)] for number in range(270))
    together = by_id(people, rule=Split(dev=0.1, test=0.2, by="speaker"))
    assert len(set(together.values())) == 3
    assert all(together[str(number)] == together[str(number + 30)] for number in range(270))


def test_a_split_by_speaker_needs_speakers() -> None:
    people = [utterance("x", speaker="ann"), utterance("y"), utterance("z", split="test")]
    with pytest.raises(DataError, match="split by speaker: 1 of 3 utterances name no speaker, such as y"):
        by_id(people, rule=Split(by="speaker"))


def test_own_splits_are_kept_and_followed() -> None:
    own = [utterance(str(number), split="validated") for number in range(30)]
    assert set(by_id(own).values()) == {"validated"}
    assert set(by_id([utterance("a"), utterance("b", split="dev")], rule=None).values()) == {None, "dev"}
    twins = [utterance(f"{n}{side}", f"т {n}", split="test" if side else None) for n in range(30) for side in (0, 1)]
    assert set(by_id(twins).values()) == {"test"}
    torn = [utterance("a", "т", split="dev"), utterance("b", "т", split="test"), utterance("c", "т")]
    assert by_id(torn)["a"] == "dev"
    assert by_id(torn)["b"] == "test"
    assert by_id(torn)["c"] in {"train", "dev", "test"}


@pytest.mark.parametrize("fields", [{"dev": 0.0}, {"test": 1.0}, {"dev": 0.5, "test": 0.5}, {"by": "day"}])
def test_impossible_splits(fields: dict) -> None:
    with pytest.raises(ValidationError):
        Split(**fields)


def dataset(folder: Path, utterances: list[Utterance]) -> Artifact:
    folder.mkdir()
    write_manifests(folder, utterances)
    return Artifact(key="0" * 64, stage="prepare", path=folder, files={}, meta={})


def run(work: Work, parts: list[Part], datasets: list[Artifact]) -> dict:
    return select.run(select.Spec(parts=parts, seed=17), {"datasets": datasets}, work)


def test_run(tmp_path: Path, work: Work) -> None:
    golos = [utterance(f"g{n}", split="train" if n else "test", speaker="s1", duration_s=2.25) for n in range(4)]
    voice = [utterance(f"g{n}", f"другое {n}", speaker="s1" if n < 5 else None) for n in range(60)]
    artifacts = [dataset(tmp_path / "prepare-1", golos), dataset(tmp_path / "prepare-2", voice)]
    parts = [Part(dataset="golos", split="train"), Part(dataset="voice", split="train", rule=RULE)]
    meta = run(work, parts, artifacts)
    chosen = read_manifest(work.path)
    from_voice = [name for name, split in by_id(voice).items() if split == "train"]
    assert [item.id for item in chosen] == ["golos/g1", "golos/g2", "golos/g3", *(f"voice/{n}" for n in from_voice)]
    assert chosen[0].audio == "../prepare-1/audio/g1.wav"
    assert chosen[-1].audio == f"../prepare-2/audio/{from_voice[-1]}.wav"
    assert {item.source for item in chosen} == {"golos", "voice"}
    assert {item.split for item in chosen} == {"train"}
    assert meta == {
        "parts": {"golos/train": 3, "voice/train": len(from_voice)},
        "num_utterances": 3 + len(from_voice),
        "audio_s": 3 * 2.25 + len(from_voice) * 1.5,
        # One label of two corpora is not one person.
        "num_speakers": 2,
    }


def test_ids_stay_as_they_are_in_a_set_of_one_dataset(tmp_path: Path, work: Work) -> None:
    data = dataset(tmp_path / "d", [utterance("x", split="dev"), utterance("y", split="test")])
    run(work, [Part(dataset="d", split="dev"), Part(dataset="d", split="test")], [data, data])
    assert [item.id for item in read_manifest(work.path)] == ["x", "y"]


@pytest.mark.parametrize(
    ("splits", "rule", "wanted", "message"),
    [
        (["dev", "dev", "test"], None, "train", r"d/train selects nothing; d has dev \(2\), test \(1\)$"),
        ([None, None, None], None, "dev", "d has no splits; 3 utterances belong to none: give the dataset a `split`"),
        (["a", None, None], None, "b", r"d has a \(1\); 2 utterances belong to none"),
    ],
)
def test_an_empty_part(tmp_path, work, splits, rule, wanted, message) -> None:  # a table's columns
    data = dataset(tmp_path / "d", [utterance(str(n), split=split) for n, split in enumerate(splits)])
    with pytest.raises(DataError, match=message):
        run(work, [Part(dataset="d", split=wanted, rule=rule)], [data])


def test_a_part_named_twice(tmp_path: Path, work: Work) -> None:
    data = dataset(tmp_path / "d", [utterance("x", split="dev")])
    with pytest.raises(DataError, match="d/dev selects x, which an earlier part has selected"):
        run(work, [Part(dataset="d", split="dev")] * 2, [data, data])


def test_identity_has_the_rule_and_the_normaliser() -> None:
    identity = select.Spec(parts=[Part(dataset="d", split="dev", rule=RULE)], seed=3).identity()
    rule = {"dev": 0.1, "test": 0.2, "by": "recording"}
    assert identity == {"parts": [{"dataset": "d", "split": "dev", "rule": rule}], "seed": 3, "normaliser": 1}
