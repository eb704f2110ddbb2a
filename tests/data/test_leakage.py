"""The check of whole sets: what it finds, what it lets pass, and what it tells."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from harness.core.manifests import write_manifests
from harness.core.records import Utterance
from harness.data import leakage, near_recordings
from harness.data.exclusions import read_exclusions
from harness.errors import LeakageError
from tests.conftest import artifact
from tests.copies import COPIES, WORDS, clips, cut, prepared, same_words

if TYPE_CHECKING:
    from pathlib import Path

    from harness.core.artifact import Artifact, Work

SENTENCE = "За окном шумел холодный ветер и гнал по улице сухие листья."


def said(name: str, text: str, **fields: Any) -> Utterance:
    """An utterance whose recording is its own."""
    digest = sha256(name.encode()).hexdigest()
    return replace(Utterance(id=name, audio="a.wav", sha256=digest, text=text, duration_s=3.0, source="d"), **fields)


def selected(folder: Path, utterances: list[Utterance]) -> Artifact:
    folder.mkdir()
    write_manifests(folder, utterances)
    return artifact(folder, "select", parts={f"d/{folder.name}": len(utterances)})


def check(work: Work, train: list[Utterance], *heldout: list[Utterance], **spec: Any) -> dict[str, Any]:
    """Names of held-out sets: dev, test, more."""
    folder = work.path.parent
    names = ["dev", "test", "more"][: len(heldout)]
    sealed = [selected(folder / name, items) for name, items in zip(names, heldout, strict=True)]
    inputs = {"train": [selected(folder / "train", train)], "heldout": sealed}
    return leakage.run(leakage.Spec(names=names, **spec), inputs, work)


def leaks(work: Work) -> list[dict[str, Any]]:
    path = work.scratch / "leaks.jsonl"
    path = path if path.is_file() else work.path / "leaks.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_sets_apart_pass(work: Work) -> None:
    train = [said("1", "мой дом"), said("2", "...")]
    meta = check(work, train, [said("3", "мои дома"), said("4", "!")], [said("5", "ещё")])
    assert meta == {
        "train": {"train": 2},
        "heldout": {"dev": 2, "test": 1},
        "num_leaks": 0,
        "leaks": {},
        "num_candidates": 0,
        "num_compared": 0,
        "num_without_fingerprint": 5,
        "ignored": [],
        "allowed": None,
        "notes": [
            "5 of 5 recordings are silent or too short for a fingerprint: they were compared by their samples only"
        ],
    }
    assert json.loads((work.path / "leakage.json").read_text("utf-8")) == meta
    assert leaks(work) == []


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        (said("1", "да", sha256="ab" * 32), said("2", "нет", sha256="ab" * 32), "recording"),
        (said("1", SENTENCE, sha256="ab" * 32), said("2", SENTENCE, sha256="ab" * 32), "recording"),
        (said("1", "Ёлка!"), said("2", "елка", duration_s=60.0), "transcript"),
        (said("1", "дом 5"), said("2", "Дом — пять"), "transcript"),
        (said("1", SENTENCE), said("2", SENTENCE.replace("шумел", "шумела")), "transcript"),
        (said("1", SENTENCE), said("2", SENTENCE.replace("по улице", "поулице")), "transcript"),
        (said("1", SENTENCE), said("2", SENTENCE.replace("шумел", "шумела"), duration_s=9.0), None),
        (said("1", SENTENCE), said("2", SENTENCE.replace("холодный", "весенний")), None),
        (said("1", "мой дом"), said("2", "мои дом"), None),
        (said("1", "да", speaker="7"), said("2", "нет", speaker="7", source="e"), None),
    ],
)
def test_kinds_of_leaks(work: Work, one: Utterance, other: Utterance, kind: str | None) -> None:
    if kind is None:
        assert check(work, [said("0", "иное"), one], [other])["num_leaks"] == 0
        return
    with pytest.raises(LeakageError):
        check(work, [said("0", "иное"), one], [other])
    (found,) = leaks(work)
    assert (found["kind"], found["id"], found["heldout_id"]) == (kind, "1", "2")


def test_each_utterance_of_training_is_listed_once_for_a_set(work: Work) -> None:
    """A second copy of "да" in the held-out set says nothing new; another training copy must go too."""
    dev = [said("3", "да"), said("4", "да"), said("5", SENTENCE), said("6", SENTENCE.replace("шумел", "шумела"))]
    train = [said("1", "да"), said("2", "Да!"), said("7", SENTENCE.replace("ветер", "вечер"))]
    with pytest.raises(LeakageError):
        check(work, train, dev, [said("8", "да")])
    found = [(item["id"], item["heldout"], item["heldout_id"], item["score"]) for item in leaks(work)]
    assert found == [
        ("1", "dev", "3", 1.0),
        ("2", "dev", "3", 1.0),
        ("1", "test", "8", 1.0),
        ("2", "test", "8", 1.0),
        ("7", "dev", "5", 0.9792),
    ]


VOICES = [said("a", "раз", speaker="1"), said("b", "два", speaker="2"), said("c", "три", speaker="3")]


@pytest.mark.parametrize(
    ("train", "dev", "leaking", "noted"),
    [
        # Two voices in all, both known: nobody could have split by speaker.
        (VOICES[:2], [said("d", "ух", speaker="1")], [], True),
        (VOICES[:1], [said("d", "ух", speaker="1")], [], True),
        # A third voice, in training or held out: a split by speaker was possible.
        (VOICES, [said("d", "ух", speaker="1"), said("e", "ах", speaker="2")], ["a", "b"], False),
        (VOICES[:1], [said("d", "ух", speaker="1"), said("e", "ах", speaker="2")], ["a"], False),
        (VOICES, [said("d", "ух", speaker="4")], [], False),
        (VOICES, [said("d", "ух")], [], False),
        (VOICES, [said("d", "ух", speaker="1", source="other")], [], False),
    ],
)
def test_speakers(work: Work, train: list[Utterance], dev: list[Utterance], leaking: list[str], noted: bool) -> None:
    if leaking:
        with pytest.raises(LeakageError, match="speaker"):
            check(work, train, dev)
        assert [(item["kind"], item["id"], item["speaker"]) for item in leaks(work)] == [
            ("speaker", name, {"a": "1", "b": "2"}[name]) for name in leaking
        ]
        return
    notes = check(work, train, dev)["notes"]
    assert ("the speakers of d are in training and in dev: its figures hold for known voices" in notes) == noted


def test_dev_and_test_may_share_speakers_and_transcripts_but_not_recordings(work: Work) -> None:
    dev = [said("a", "раз", speaker="1"), said("b", SENTENCE, speaker="2"), said("c", "три", speaker="3")]
    test = [said("d", "раз", speaker="1"), said("e", SENTENCE.replace("шумел", "шумела"), speaker="2")]
    meta = check(work, [said("x", "иное")], dev, test)
    assert meta["num_leaks"] == 0
    assert "dev and test share 2 transcripts" in meta["notes"]


def test_recordings_shared_by_dev_and_test_stop_the_run(work: Work) -> None:
    with pytest.raises(LeakageError) as caught:
        check(work, [said("x", "иное")], [said("a", "раз")], [said("a", "раз", id="b")], [said("c", "три")])
    assert "- 1 lie between two held-out sets: take these from different splits" in str(caught.value)
    assert "train: {" not in str(caught.value), "training cannot help it"
    assert [(item["set"], item["id"], item["heldout"], item["heldout_id"]) for item in leaks(work)] == [
        ("dev", "a", "test", "b")
    ]


def test_training_on_a_held_out_set_itself_is_a_leak(work: Work) -> None:
    dev = selected(work.path.parent / "dev", [said("a", "раз"), said("b", "два")])
    with pytest.raises(LeakageError, match=r"2 leaks \(2 recording\)"):
        leakage.run(leakage.Spec(), {"train": [dev], "heldout": [dev]}, work)


def test_sets_are_called_by_their_parts_where_the_suite_gives_no_name(work: Work) -> None:
    folder = work.path.parent
    far, near = selected(folder / "test", [said("a", "раз")]), selected(folder / "near", [said("b", "два")])
    same = replace(near, meta=far.meta)
    train = [selected(folder / "one", [said("c", "три")]), selected(folder / "two", [said("d", "ух")])]
    meta = leakage.run(leakage.Spec(), {"train": train, "heldout": [far, same]}, work)
    assert meta["train"] == {"d/one": 1, "d/two": 1}
    assert meta["heldout"] == {"d/test (1)": 1, "d/test (2)": 1}


def test_the_message_is_short_and_the_file_is_whole(work: Work) -> None:
    rows = [said(str(number), f"слово {number}") for number in range(500)]
    one = said("one", "одно", sha256=rows[7].sha256)
    long = said("long", f"{'очень ' * 30}длинно")
    with pytest.raises(LeakageError) as caught:
        check(work, [*rows, one, long], [*[replace(item, sha256="cd" * 32) for item in rows[:400]], rows[7], long])
    message = str(caught.value).splitlines()
    assert message[0] == (
        "held-out sets are not held out: 402 leaks (399 transcript, 3 recording); leave these out, or say why they may "
        "stay"
    )
    assert len(message[1:9]) == 8
    assert message[1] == "  recording: train 7, dev 7: 'слово 7'"
    assert sum(line.startswith("  transcript: ") for line in message) == 5
    assert any(line.endswith("очень…'") for line in message)
    assert message[9:] == [
        "  … and 394 more",
        f"All of them: {work.scratch / 'leaks.jsonl'}",
        "- `train: {drop_heldout: [recording, transcript]}`",
        "- `train: {exclude: FILE}` with a copy of that list, which leaves out exactly these",
        "- `allow_leakage: {reason: …}`, which marks every row of the leaderboard",
    ]
    assert len(leaks(work)) == 402


def test_near_transcripts_can_only_be_left_out_by_the_list(work: Work) -> None:
    with pytest.raises(LeakageError) as caught:
        check(work, [said("1", SENTENCE)], [said("2", SENTENCE.replace("по улице", "поулице"))])
    assert "drop_heldout" not in str(caught.value), "which drops equal transcripts only"
    assert "- `train: {exclude: FILE}` with a copy of that list" in str(caught.value)


def test_the_list_of_leaks_is_one_to_exclude_by(work: Work) -> None:
    with pytest.raises(LeakageError):
        check(
            work,
            [said("d/1", "да"), said("d/2", "нет"), said("e/1", "ой", source="e")],
            [said("3", "да"), said("4", "ой")],
        )
    import pyarrow as pa

    listed = read_exclusions(work.scratch / "leaks.jsonl")
    assert listed.mask(pa.array(["1", "2"]), dataset="d").tolist() == [True, False]
    assert listed.mask(pa.array(["1", "2"]), dataset="e").tolist() == [True, False]
    assert listed.notes == []


def test_a_reason_lets_leaks_pass_and_tells_them(work: Work) -> None:
    meta = check(work, [said("1", "да")], [said("2", "да")], allow="one reader, a demo")
    assert (meta["num_leaks"], meta["leaks"], meta["allowed"]) == (1, {"transcript": 1}, "one reader, a demo")
    assert meta["notes"][0] == "1 leak (1 transcript), allowed: one reader, a demo"
    assert len(leaks(work)) == 1
    assert json.loads((work.path / "leakage.json").read_text("utf-8")) == meta


def test_a_reason_without_leaks_is_told_to_be_needless(work: Work) -> None:
    meta = check(work, [said("1", "да")], [said("2", "нет")], allow="one reader, a demo")
    assert meta["notes"][0] == "there are no leaks: `allow_leakage` is not needed and marks the leaderboard for nothing"


@pytest.mark.parametrize(
    ("ignore", "kinds"),
    [
        ([], {"recording", "near-duplicate", "transcript", "speaker"}),
        (["transcript"], {"recording", "near-duplicate", "speaker"}),
        (["speaker", "near-duplicate"], {"recording", "transcript"}),
        (["recording"], {"near-duplicate", "transcript", "speaker"}),
    ],
)
def test_kinds_that_the_suite_accepts_are_not_looked_for(work: Work, ignore: list[str], kinds: set[str]) -> None:
    folder = work.path.parent
    train = prepared(
        folder / "train", [("1", "раз", cut(1, 0, 3)), ("2", "два", cut(2, 0, 3)), ("3", "три", cut(3, 0, 3))]
    )
    dev = prepared(
        folder / "dev", [("4", "раз", cut(4, 0, 3)), ("5", "иное", cut(2, 0, 3)), ("6", "ещё", cut(3, 0, 3) // 2)]
    )
    voices = [
        selected(
            folder / f"voices {number}", [said(f"{number}{name}", f"{number} {name}", speaker=name) for name in names]
        )
        for number, names in enumerate(["абв", "бг"])
    ]
    spec = leakage.Spec(ignore=ignore, allow="to see them all")
    meta = leakage.run(spec, {"train": [train, voices[0]], "heldout": [dev, voices[1]]}, work)
    assert meta["leaks"].keys() == kinds
    assert meta["ignored"] == ignore


def test_near_duplicates_are_told_with_their_similarity(work: Work) -> None:
    folder = work.path.parent
    train = prepared(
        folder / "train", [("1", "раз", cut(1, 0, 4)), ("2", "два", COPIES["Opus 30 kbit/s"](cut(2, 0, 4), None))]
    )
    dev = prepared(folder / "dev", [("3", "три", cut(2, 0, 4)), ("4", "ух", cut(3, 0, 4))])
    with pytest.raises(LeakageError) as caught:
        leakage.run(leakage.Spec(names=["dev"]), {"train": [train], "heldout": [dev]}, work)
    (found,) = leaks(work)
    assert 0.9 < found["score"] < 1
    assert f"  near-duplicate ({found['score']:.2f}): train 2, dev 3: 'два' and 'три'" in str(caught.value)
    assert "drop_heldout" not in str(caught.value), "which knows equal samples only"


def test_what_could_not_be_compared_is_told(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_recordings, "MAX_VERIFIED", 2)
    folder = work.path.parent
    train = prepared(folder / "train", [(str(number), str(number), cut(1, 0, 3) // number) for number in range(2, 7)])
    dev = prepared(folder / "dev", [("0", "раз", cut(1, 0, 3))])
    meta = leakage.run(leakage.Spec(allow="to see the notes"), {"train": [train], "heldout": [dev]}, work)
    assert (meta["num_candidates"], meta["num_compared"], meta["leaks"]) == (5, 2, {"near-duplicate": 2})
    assert meta["notes"][1:] == [
        "2 of 5 pairs of recordings that look alike were heard, the most alike of each held-out recording"
    ]


def test_near_duplicates_of_reencoded_clips(work: Work) -> None:
    """Recall over every way of copying, and precision among sentences, words and cuts of the same voice."""
    folder, rng, numbers = work.path.parent, np.random.default_rng(5), count()
    sentences = sorted(clips())
    originals, others = sentences[:95], sentences[95:]
    train = [(f"other {number}", f"a{number}", clips()[number][0]) for number in others]
    copied: dict[str, set[tuple[str, str]]] = {}
    for name, copy in COPIES.items():
        for turn in range(8):
            number = originals[(next(numbers) * 7) % len(originals)]
            train.append((f"{name} {turn}", f"b{name} {turn}", copy(cut(number, 0, 5), rng)))
            copied.setdefault(name, set()).add((f"{name} {turn}", f"{number}"))
    heldout = [(f"{number}", f"c{number}", cut(number, 0, 5)) for number in originals]
    for word, cuts in same_words(margin_s=0.1).items():
        heldout.append((word, f"d{word}", cuts[0][1]))
        train += [(f"{word} {turn}", f"e{word} {turn}", samples) for turn, (_, samples) in enumerate(cuts[1:])]
    for number in sorted({*others} - {place[0] for places in WORDS.values() for place in places})[:20]:
        heldout.append((f"cut {number}", f"f{number}", cut(number, 0, 1.8)))
        train += [
            (f"next {number}", f"g{number}", cut(number, 1.8, 3.6)),
            (f"lap {number}", f"h{number}", cut(number, 1.6, 3.4)),
        ]
    sets = {"train": [prepared(folder / "train", train)], "heldout": [prepared(folder / "dev", heldout)]}
    meta = leakage.run(leakage.Spec(allow="to see them all"), sets, work)
    found = {(item["id"], item["heldout_id"]) for item in leaks(work)}
    true = set().union(*copied.values())
    recalls = {name: len(pairs & found) / len(pairs) for name, pairs in copied.items()}
    assert meta["num_compared"] == meta["num_candidates"] < 2 * len(true), "fingerprints leave little to listen to"
    assert len(true & found) / len(true) >= 0.99, recalls
    assert min(recalls.values()) > 0.9, recalls
    assert Counter(pair in true for pair in found) == Counter({True: len(true & found)}), "precision 1"
