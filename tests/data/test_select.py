from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.core.artifact import Artifact, Work
from harness.core.manifests import (
    ManifestWriter,
    iterate_utterances,
    read_jsonl,
    read_manifest,
    utterance_table,
    write_jsonl,
    write_manifests,
)
from harness.core.records import Utterance
from harness.data import select
from harness.data.select import Part
from harness.errors import DataError
from harness.suite.mix import Criteria
from harness.suite.spec import Split
from tests.conftest import artifact

RULE = Split(dev=0.1, test=0.2)


def utterance(name: str, text: str = "", **more: object) -> Utterance:
    digest = sha256(name.encode()).hexdigest()
    fields = {"id": name, "audio": f"audio/{name}.wav", "sha256": digest, "text": text or f"слова {name}"}
    return Utterance(**{**fields, "duration_s": 1.5, **more})


def dataset(folder: Path, utterances: list[Utterance]) -> Artifact:
    folder.mkdir(parents=True)
    write_manifests(folder, utterances)
    return artifact(folder)


def run(
    work: Work,
    parts: list[Part],
    datasets: list[Artifact],
    *,
    heldout: tuple[Artifact, ...] = (),
    transcripts: tuple[Artifact, ...] = (),
    **spec: object,
) -> dict:
    inputs = {"datasets": datasets, "heldout": heldout, "transcripts": transcripts}
    return select.run(select.Spec(parts=parts, seed=17, **spec), inputs, work)


def ids(work: Work) -> list[str]:
    return [item.id for item in read_manifest(work.path)]


def left_out(work: Work) -> dict[str, str]:
    """id → reason of what `left_out.parquet` lists."""
    table = pq.read_table(work.path / "left_out.parquet").to_pylist()
    return {row["id"]: row["reason"] for row in table}


def train(**fields: object) -> Part:
    return Part(**{"dataset": "d", "split": "train", **fields})


def test_run(tmp_path: Path, work: Work) -> None:
    golos = [utterance(f"g{n}", split="train" if n else "test", speaker="s1", duration_s=2.25) for n in range(4)]
    voice = [utterance(f"g{n}", f"другое {n}", speaker="s1" if n < 5 else None) for n in range(60)]
    artifacts = [dataset(tmp_path / "prepare-1", golos), dataset(tmp_path / "prepare-2", voice)]
    parts = [Part(dataset="golos", split="train"), Part(dataset="voice", split="train", rule=RULE)]
    meta = run(work, parts, artifacts)
    chosen = read_manifest(work.path)
    from_voice = [item.id.removeprefix("voice/") for item in chosen[3:]]
    assert 20 < len(from_voice) < 60
    assert from_voice == [item.id for item in voice if item.id in from_voice], "in their order"
    assert [item.id for item in chosen] == ["golos/g1", "golos/g2", "golos/g3", *(f"voice/{n}" for n in from_voice)]
    assert chosen[0].audio == "../prepare-1/audio/g1.wav"
    assert chosen[-1].audio == f"../prepare-2/audio/{from_voice[-1]}.wav"
    assert {item.source for item in chosen} == {"golos", "voice"}
    assert {item.split for item in chosen} == {"train"}
    assert [row["id"] for row in read_jsonl(work.path / "manifest.hf.jsonl")] == [item.id for item in chosen]
    hours = len(from_voice) * 1.5 / 3600
    assert meta == {
        "parts": {"golos/train": 3, "voice/train": len(from_voice)},
        "hours": {"golos/train": pytest.approx(6.75 / 3600, abs=1e-4), "voice/train": pytest.approx(hours, abs=1e-4)},
        "left_out": {},
        "num_utterances": 3 + len(from_voice),
        "audio_s": 3 * 2.25 + len(from_voice) * 1.5,
        # One label of two corpora is not one person.
        "num_speakers": 2,
        "notes": [],
    }
    assert not (work.path / "left_out.parquet").exists()


def test_ids_stay_as_they_are_in_a_set_of_one_dataset(tmp_path: Path, work: Work) -> None:
    data = dataset(tmp_path / "d", [utterance("x", split="dev"), utterance("y", split="public_val")])
    run(work, [Part(dataset="d", split="dev"), Part(dataset="d", split="public_val")], [data, data])
    assert ids(work) == ["x", "y"]


def test_fingerprints_and_shards_are_passed_on(tmp_path: Path, work: Work) -> None:
    (tmp_path / "d").mkdir()
    clips = [utterance(name, audio=f"audio/00000.tar@{n}+9", split="train") for n, name in enumerate("abc")]
    with ManifestWriter(tmp_path / "d") as writer:
        writer.write(utterance_table(clips, fingerprints=[b"one", None, b"three"]))
    run(work, [train(weight=2.0)], [artifact(tmp_path / "d")])
    (batch,) = iterate_utterances(work.path)
    assert batch.column("fingerprint").to_pylist() == [b"one", None, b"three"] * 2
    assert batch.column("audio")[0].as_py() == "../d/audio/00000.tar@0+9"


def test_more_clips_than_a_batch(tmp_path: Path, work: Work) -> None:
    clips = [utterance(str(number), duration_s=3.0) for number in range(25_000)]
    data = dataset(tmp_path / "d", clips)
    spec = {"rule": Split(dev=0.5, test=0)}
    meta = run(work, [train(**spec, criteria=[Criteria(duration_s=[0, 5])])], [data])
    other = Work(tmp_path / "dev", tmp_path / "scratch")
    other.path.mkdir()
    run(other, [Part(dataset="d", split="dev", **spec)], [data])
    assert sorted([*ids(work), *ids(other)]) == sorted(item.id for item in clips)
    assert meta["num_utterances"] == pytest.approx(12_500, rel=0.05)
    assert pq.ParquetFile(work.path / "utterances.parquet").num_row_groups <= 3


def test_where_takes_clips_by_their_tags(tmp_path: Path, work: Work) -> None:
    clips = [utterance(name, split="test", tags={"subset": name[0]}) for name in ("crowd", "far1", "far2")]
    data = dataset(tmp_path / "d", clips)
    assert run(work, [Part(dataset="d", split="test", where={"subset": ["f"]})], [data])["left_out"] == {}
    assert ids(work) == ["far1", "far2"], "what was never asked for did not leave"


def test_every_clip_that_leaves_is_counted_and_listed(tmp_path: Path, work: Work) -> None:
    votes = {"up_votes": "2", "down_votes": "0"}
    clips = [
        utterance("good", "хорошо", tags=votes, duration_s=3.0),
        utterance("listed", tags=votes, duration_s=2.0),
        utterance("heldout", "Сказано: вслух!", tags=votes),
        utterance("short", tags=votes, duration_s=0.1),
        utterance("fast", "очень много слов за такое время", tags=votes),
        utterance("latin", "это ok", tags=votes),
        utterance("unloved", "ну", tags={"up_votes": "1", "down_votes": "3"}),
        utterance("cheap", "нет слов", tags={"up_votes": "2", "down_votes": "1"}),
        utterance("both", "ok", duration_s=0.1, tags=votes),
    ]
    data = dataset(tmp_path / "d", [Utterance(**{**vars_of(item), "split": "train"}) for item in clips])
    held = dataset(tmp_path / "held", [utterance("h", "сказано вслух", source="other")])
    (tmp_path / "bad.jsonl").write_text('{"id": "listed"}\n{"id": "gone"}\n', encoding="utf-8")
    strict = Criteria.model_validate({"duration_s": [0.5, 30], "chars_per_s": [1, 15], "alphabet": "ru+digits"})
    own = Criteria.model_validate({"votes": {"min_up": 2, "max_down": 0}})
    meta = run(
        work,
        [train(criteria=[strict, own])],
        [data],
        heldout=(held,),
        drop_heldout=["transcript"],
        exclude=str(tmp_path / "bad.jsonl"),
    )
    assert ids(work) == ["good"]
    expected = {
        "listed": "exclude",
        "heldout": "drop_heldout: transcript",
        "short": "duration_s",
        "both": "duration_s",
        "fast": "chars_per_s",
        "latin": "alphabet",
        "unloved": "votes",
        "cheap": "votes",
    }
    assert left_out(work) == expected
    assert pq.read_table(work.path / "left_out.parquet").column("source").unique().to_pylist() == ["d"]
    counts = meta["left_out"]["d/train"]
    assert {reason: item["num"] for reason, item in counts.items()} == {
        reason: list(expected.values()).count(reason) for reason in expected.values()
    }
    assert counts["exclude"]["hours"] == pytest.approx(2 / 3600, abs=1e-4)
    told, unknown = meta["notes"]
    assert told.startswith("d/train: 8 of 9 clips left out (exclude 1 (0.00 h), drop_heldout: transcript 1 (0.00 h), ")
    assert told.endswith("votes 2 (0.00 h)); left_out.parquet lists them")
    assert unknown == "bad.jsonl: 1 of 2 lines name no clip of this set"


def vars_of(item: Utterance) -> dict:
    return {name: getattr(item, name) for name in Utterance.__dataclass_fields__}


@pytest.mark.parametrize(
    ("drop", "gone"),
    [
        ([], set()),
        (["transcript"], {"text"}),
        (["recording"], {"sound"}),
        (["speaker"], {"voice"}),
        (["transcript", "recording", "speaker"], {"text", "sound", "voice"}),
    ],
)
def test_what_training_may_not_share_with_held_out_sets(
    tmp_path: Path, work: Work, drop: list[str], gone: set[str]
) -> None:
    clips = [
        utterance("text", "Ёлка"),
        utterance("sound", sha256="ab" * 32),
        utterance("voice", speaker="ann"),
        utterance("namesake", speaker="bob"),
        utterance("silent", "…"),
        utterance("own"),
    ]
    data = dataset(tmp_path / "d", [Utterance(**{**vars_of(item), "split": "train"}) for item in clips])
    held = [
        utterance("1", "елка!", source="other"),
        utterance("2", "?", source="other", sha256="ab" * 32),
        utterance("3", "иное", source="d", speaker="ann"),
        # One label of two corpora is not one person.
        utterance("4", "другое", source="other", speaker="bob"),
    ]
    both = dataset(tmp_path / "one", held[:2]), dataset(tmp_path / "two", held[2:])
    run(work, [train()], [data], heldout=both if drop else (), drop_heldout=drop)
    assert set(ids(work)) == {item.id for item in clips} - gone


def test_repeated_passes_and_shares_of_one(tmp_path: Path, work: Work) -> None:
    one = dataset(tmp_path / "one", [utterance(f"a{n}", split="train") for n in range(2)])
    two = dataset(tmp_path / "two", [utterance(f"b{n}", split="train", speaker=str(n)) for n in range(400)])
    parts = [Part(dataset="one", split="train", weight=3.0), Part(dataset="two", split="train", weight=1.5)]
    meta = run(work, parts, [one, two])
    found = ids(work)
    assert found[:6] == ["one/a0", "one/a1", "one/a0#2", "one/a1#2", "one/a0#3", "one/a1#3"]
    assert len(set(found)) == len(found) == meta["num_utterances"] == sum(meta["parts"].values())
    repeated = [name for name in found if name.startswith("two/") and name.endswith("#2")]
    assert len(repeated) == pytest.approx(200, abs=40)
    assert not any(name.endswith("#3") for name in found if name.startswith("two/"))
    assert meta["hours"]["one/train"] == pytest.approx(6 * 1.5 / 3600, abs=1e-4)
    assert (meta["num_speakers"], meta["left_out"]) == (400, {})


def test_a_sample_leaves_the_rest_behind(tmp_path: Path, work: Work) -> None:
    data = dataset(tmp_path / "d", [utterance(str(n), split="train", duration_s=36.0) for n in range(300)])
    meta = run(work, [train(weight=0.3)], [data])
    few = set(ids(work))
    assert len(few) == pytest.approx(90, abs=30)
    assert set(left_out(work).values()) == {"take"}
    assert meta["left_out"]["d/train"]["take"]["num"] == 300 - len(few)
    again = Work(tmp_path / "again", tmp_path / "scratch")
    again.path.mkdir()
    assert run(again, [train(hours=1.0)], [data])["hours"] == {"d/train": 1.0}
    assert len(ids(again)) == 100


def test_more_hours_than_there_are(tmp_path: Path, work: Work) -> None:
    data = dataset(tmp_path / "d", [utterance(str(n), split="train", duration_s=36.0) for n in range(5)])
    notes = run(work, [train(hours=100.0)], [data])["notes"]
    assert notes == ["d/train: 0.05 h are there, fewer than the 100 h to take; all of them are taken"]
    assert len(ids(work)) == 5


def test_caps_and_hours_go_by_what_is_left(tmp_path: Path, work: Work) -> None:
    clips = [utterance(f"{who}{n}", split="train", speaker=who, duration_s=36.0) for who in "ab" for n in range(50)]
    nameless = [utterance(f"c{n}", split="train", duration_s=36.0) for n in range(3)]
    data = dataset(tmp_path / "d", [*clips, *nameless, utterance("long", split="train", duration_s=999.0)])
    short = Criteria.model_validate({"duration_s": [0, 99], "max_hours_per_speaker": 0.3})
    meta = run(work, [train(criteria=[short, Criteria(max_hours_per_speaker=0.2)], hours=0.4)], [data])
    assert len(ids(work)) == 40
    reasons = {reason: item["num"] for reason, item in meta["left_out"]["d/train"].items()}
    assert reasons == {"duration_s": 1, "max_hours_per_speaker": 60, "take": 3}


def heard(folder: Path, texts: dict[str, str | None]) -> Artifact:
    folder.mkdir()
    rows = [
        {"id": name, "text": text, "wall_s": 1.0, "error": None if text else "boom"} for name, text in texts.items()
    ]
    write_jsonl(folder / "transcripts.jsonl", rows)
    return artifact(folder)


def test_clips_that_a_model_hears_otherwise_leave(tmp_path: Path, work: Work) -> None:
    names = ["same", "near", "far", "failed", "unheard"]
    one = dataset(tmp_path / "one", [utterance(name, "двадцать одна корова", split="train") for name in names])
    two = dataset(tmp_path / "two", [utterance("x", "раз", split="train"), utterance("y", "два", split="train")])
    texts = {"same": "Двадцать одна корова.", "near": "двадцать один корова", "far": "что", "failed": None}
    first, second = heard(tmp_path / "h1", texts), heard(tmp_path / "h2", {"x": "раз", "y": "двор"})
    parts = [
        Part(dataset="one", split="train", max_cer=[0.2]),
        Part(dataset="two", split="train", max_cer=[0.9, 0.0]),
    ]
    third = heard(tmp_path / "h3", {"x": "раз", "y": "два", "z": "лишнее"})
    meta = run(work, parts, [one, two, two][:2], transcripts=(first, third, second))
    assert ids(work) == ["one/same", "one/near", "two/x"]
    assert left_out(work) == {
        "one/far": "max_cer",
        "one/failed": "max_cer",
        # Beyond the hours that a model listens to.
        "one/unheard": "take",
        "two/y": "max_cer",
    }
    assert meta["left_out"]["one/train"]["max_cer"]["num"] == 2
    again = Work(tmp_path / "again", tmp_path / "scratch")
    again.path.mkdir()
    wish = Part(dataset="one", split="train", max_cer=[0.2], hours=5.0)
    assert run(again, [wish], [one], transcripts=(first,))["notes"][0] == (
        "one/train: 0.00 h agree with what was heard, fewer than the 5 h to take; all of them are taken"
    )


@pytest.mark.parametrize(
    ("clips", "part", "message"),
    [
        ({"dev": 2, "test": 1}, {}, r"^d/train selects nothing; d has dev \(2\), test \(1\)$"),
        ({"dev": 2, "test": 1}, {"rule": {}}, r"^d/train selects nothing; d has dev \(2\), test \(1\)$"),
        ({"train": 1}, {"split": "trian"}, r"^d/trian selects nothing; d has train \(1\); did you mean 'train'\?$"),
        ({None: 3}, {}, "d has no splits; 3 utterances belong to none: give the dataset a `split`$"),
        ({"a": 1, None: 2}, {}, r"d has a \(1\); 2 utterances belong to none"),
        (
            {"train": 2},
            {"where": {"subset": ["crowd"]}},
            r"^no clip of d has the tag 'subset'; did you mean 'subsets'\? \(its tags: subsets\)$",
        ),
        (
            {"train": 2},
            {"where": {"subsets": ["crowd", "x"]}},
            r"^d/train has no clip with subsets = crowd or x; its subsets is a \(2\)$",
        ),
        (
            {"train": 2},
            {"criteria": [{"votes": {}}]},
            r"^no clip of d has the tag 'down_votes', which `votes` needs \(its tags: subsets\); give `votes`",
        ),
        (
            {"train": 2},
            {"criteria": [{"max_hours_per_speaker": 1}]},
            "^d names no speakers, which max_hours_per_speaker needs; give it under the sources of the mix that do$",
        ),
        (
            {"train": 3},
            {"criteria": [{"duration_s": [2, 3]}]},
            r"^d/train: nothing is left of its 3 clips \(duration_s: 3\); loosen these$",
        ),
        ({"train": 3}, {"hours": 0.0001}, r"nothing is left of its 3 clips \(take: 3\)"),
    ],
)
def test_a_part_that_is_empty(tmp_path: Path, work: Work, clips: dict, part: dict, message: str) -> None:
    named = [(split, number) for split, count in clips.items() for number in range(count)]
    data = dataset(tmp_path / "d", [utterance(f"{s}{n}", split=s, tags={"subsets": "a"}) for s, n in named])
    with pytest.raises(DataError, match=message):
        run(work, [Part.model_validate({"dataset": "d", "split": "train", **part})], [data])


def test_one_speaker_cannot_be_parted(tmp_path: Path, work: Work) -> None:
    data = dataset(tmp_path / "d", [utterance(str(number), speaker="ann") for number in range(50)])
    told = []
    for split in ("train", "dev", "test"):
        try:
            run(work, [Part(dataset="d", split=split, rule=RULE)], [data])
        except DataError as error:
            told.append(str(error))
    assert len(told) == 2, "which of the three they are in is the hash's choice"
    for message in told:
        assert "; its 50 utterances are 1 group by the speakers, transcripts or recordings that they share" in message
        assert message.endswith("give that a larger fraction, or divide the dataset `by: recording`")


def test_a_large_group_is_told(tmp_path: Path, work: Work) -> None:
    clips = [utterance(str(n), speaker="ann" if n < 30 else str(n), split=None) for n in range(100)]
    data = dataset(tmp_path / "d", clips)
    (note,) = run(work, [train(rule=RULE)], [data])["notes"]
    assert note.startswith("d: 30 of 100 clips hang together by what they share and lie in one split; the fractions")


def test_a_part_named_twice(tmp_path: Path, work: Work) -> None:
    data = dataset(tmp_path / "d", [utterance("x", split="dev")])
    with pytest.raises(DataError, match=r"^d/dev stands twice in this set; name each split once$"):
        run(work, [Part(dataset="d", split="dev")] * 2, [data, data])


@given(
    drawn=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), min_size=3, max_size=40),
    wishes=st.tuples(st.floats(0.002, 0.03), st.floats(0.002, 0.03)),
    data=st.data(),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_training_set_depends_on_its_clips_and_wishes_alone(
    tmp_path_factory: pytest.TempPathFactory, drawn: list, wishes: tuple[float, float], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("drawn")
    clips = [
        utterance(str(number), f"текст {text}", speaker=str(speaker), duration_s=6.0, split="train")
        for number, (text, speaker) in enumerate(drawn)
    ]
    held = dataset(folder / "held", [utterance("h", "текст 3", source="d"), utterance("i", "текст 4", source="d")])

    def chosen(name: str, utterances: list[Utterance], hours: float) -> set[str]:
        work = Work(folder / name / "out", folder)
        work.path.mkdir(parents=True)
        try:
            run(work, [train(hours=hours)], [dataset(folder / name / "d", utterances)], heldout=(held,),
                drop_heldout=["transcript"])  # fmt: skip
        except DataError as error:
            assert "nothing is left" in str(error)  # noqa: PT017  # rare, and as good an answer
            return set()
        return set(ids(work))

    less, more = (chosen(name, clips, hours) for name, hours in zip("ab", sorted(wishes), strict=True))
    assert less <= more
    assert chosen("c", data.draw(st.permutations(clips)), max(wishes)) == more
    assert not {clips[int(name)].text for name in more} & {"текст 3", "текст 4"}


def test_identity_has_the_rule_and_the_normaliser() -> None:
    identity = select.Spec(parts=[Part(dataset="d", split="dev", rule=RULE)], seed=3, exclude="bad.jsonl").identity()
    part = {"dataset": "d", "split": "dev", "rule": {"dev": 0.1, "test": 0.2, "by": "auto"}}
    more = {"where": {}, "criteria": [], "max_cer": [], "hours": None, "weight": 1.0}
    assert identity == {"parts": [{**part, **more}], "seed": 3, "drop_heldout": [], "normaliser": 1}


def test_the_content_of_the_list_of_exclusions_counts() -> None:
    spec = select.Spec(parts=[], seed=3, exclude="bad.jsonl")
    assert (spec.outside(), select.Spec(parts=[], seed=3).outside()) == ([Path("bad.jsonl")], [])
