from __future__ import annotations

import base64
import io
import json
import tarfile
from collections import Counter
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from harness.core.manifests import SAMPLE_RATE_HZ, write_manifests
from harness.core.records import Utterance
from harness.data.card import CARD_FILE, FIGURES_FILE, MAX_EXAMPLE_S, write_card
from harness.data.figures import EXAMPLE_S, MAX_VALUES, NUM_EXAMPLES, Histogram, measure
from tests.conftest import AELITA

ROWS = [json.loads(line) for line in (AELITA / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
HOSTILE = "</p><script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>&{{ 7*7 }}"


class Page(HTMLParser):
    """The tags with their attributes, and the text, of a card."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed((folder / CARD_FILE).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        self.text += data

    def attributes(self, tag: str, name: str) -> list[str | None]:
        return [attributes[name] for found, attributes in self.tags if found == tag and name in attributes]


def write_set(folder: Path, *, num: int = 12, **changes: object) -> list[Utterance]:
    """A prepared set of real recordings; `changes` replace fields of all utterances."""
    (folder / "audio").mkdir(parents=True)
    utterances = []
    for number, row in enumerate(ROWS[:num]):
        samples, rate_hz = soundfile.read(AELITA / row["audio_filepath"], dtype="int16")
        assert rate_hz == SAMPLE_RATE_HZ
        audio = f"audio/{number}.wav"
        soundfile.write(folder / audio, samples, rate_hz, subtype="PCM_16")
        fields = {
            "id": str(number),
            "audio": audio,
            "sha256": sha256(samples.tobytes()).hexdigest(),
            "text": row["source_text"],
            "duration_s": len(samples) / SAMPLE_RATE_HZ,
            "speaker": None if number == 0 else f"s{number % 2}",
            "split": ("train", "train", "test")[number % 3],
            "tags": {"subset": ("crowd", "farfield")[number % 2]},
        }
        utterances.append(Utterance(**{**fields, **changes}))
    write_manifests(folder, utterances)
    return utterances


def test_the_figures_are_those_of_the_set(tmp_path: Path) -> None:
    utterances = write_set(tmp_path)
    figures = write_card(tmp_path, title="aelita", licences={"aelita": "free"}, rejected={"a": 1, "b": 3}, notes=["n"])
    assert figures == json.loads((tmp_path / FIGURES_FILE).read_text(encoding="utf-8"))
    seconds = [item.duration_s for item in utterances]
    assert (figures["num_clips"], figures["num_speakers"], figures["num_without_speaker"]) == (12, 2, 1)
    assert figures["audio_s"] == pytest.approx(sum(seconds), abs=1e-3)
    assert {name: group["num_clips"] for name, group in figures["splits"].items()} == {"train": 8, "test": 4}
    assert sum(group["audio_s"] for group in figures["tags"]["subset"].values()) == pytest.approx(
        sum(seconds), abs=0.01
    )
    assert figures["sources"]["aelita"]["num_clips"] == 12
    assert figures["alphabet"] == Counter("".join(item.text for item in utterances))
    assert sum(figures["duration_s"]["histogram"]["counts"]) == 12
    assert figures["duration_s"]["median"] == pytest.approx(np.quantile(seconds, 0.5, method="inverted_cdf"), abs=0.01)
    rates = [sum(map(str.isalnum, item.text)) / item.duration_s for item in utterances]
    assert figures["chars_per_s"]["p05"] >= min(rates) - 0.05
    assert figures["chars_per_s"]["p95"] <= max(rates) + 0.05
    assert list(figures["rejected"].items()) == [("b", 3), ("a", 1)]


def test_the_page_is_whole_in_itself(tmp_path: Path) -> None:
    write_set(tmp_path)
    licence = "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/"
    write_card(tmp_path, title="aelita", licences={"aelita": licence}, rejected={"cut off": 3}, notes=["resampled: 5"])
    page = Page(tmp_path)
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    sources = page.attributes("audio", "src")
    assert len(sources) == NUM_EXAMPLES
    assert all(source.startswith("data:audio/mpeg;base64,") for source in sources)
    # The one way out is the licence's own link.
    assert page.attributes("a", "href") == ["https://creativecommons.org/licenses/by/4.0/"]
    assert [value for value in page.attributes("meta", "content") if "default-src 'none'" in value]
    for told in ("CC BY 4.0", "cut off", "resampled: 5"):
        assert told in page.text


def test_examples_can_be_heard(tmp_path: Path) -> None:
    utterances = {item.text: item for item in write_set(tmp_path)}
    write_card(tmp_path, title="aelita", licences={})
    page = Page(tmp_path)
    heard = [item for text, item in utterances.items() if text in page.text]
    lengths_s = []
    for source in page.attributes("audio", "src"):
        samples, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert rate_hz == SAMPLE_RATE_HZ
        assert np.abs(samples).max() > 0.05
        lengths_s.append(len(samples) / rate_hz)
    assert len(heard) == len(lengths_s) == NUM_EXAMPLES
    assert sorted(lengths_s) == pytest.approx(sorted(item.duration_s for item in heard), abs=0.15)


def test_long_recordings_are_cut_for_the_card_only(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio/0.wav", np.zeros(20 * SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
    write_manifests(tmp_path, [Utterance("0", "audio/0.wav", "0" * 64, "долго", 20.0)])
    write_card(tmp_path, title="long", licences={})
    page = Page(tmp_path)
    (source,) = page.attributes("audio", "src")
    samples, _ = soundfile.read(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert len(samples) / SAMPLE_RATE_HZ == pytest.approx(MAX_EXAMPLE_S, abs=0.15)
    assert "20.0 s (the beginning)" in page.text


def test_recordings_in_shards_and_in_neighbouring_folders(tmp_path: Path) -> None:
    first = write_set(tmp_path / "prepare-1", num=1)[0]
    shard = tmp_path / "prepare-1" / "audio" / "00000.tar"
    with tarfile.open(shard, "w") as archive:
        archive.add(tmp_path / "prepare-1" / first.audio, "0.wav")
    with tarfile.open(shard) as archive:
        member = archive.getmember("0.wav")
    folder = tmp_path / ".partial" / "out"
    folder.mkdir(parents=True)
    audio = f"../prepare-1/audio/00000.tar/0.wav@{member.offset_data}+{member.size}"
    write_manifests(folder, [Utterance("0", audio, first.sha256, "да", first.duration_s, source="a")])
    # The set will be published beside the other; its own folder is not there yet.
    write_card(folder, title="train", licences={"a": ""}, place=tmp_path / "select-1")
    assert len(Page(folder).attributes("audio", "src")) == 1


def test_what_a_corpus_says_is_data(tmp_path: Path) -> None:
    write_set(
        tmp_path,
        num=2,
        **dict.fromkeys(("text", "speaker", "split", "source"), HOSTILE),
        tags={HOSTILE: HOSTILE},
    )
    write_card(
        tmp_path,
        title=HOSTILE,
        licences={HOSTILE: f"{HOSTILE} javascript:alert(1) https://ok.example/a'onclick='x"},
        rejected={HOSTILE: 1},
        notes=[HOSTILE],
    )
    page = Page(tmp_path)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert all(href.startswith(("http://evil.example", "https://ok.example")) for href in page.attributes("a", "href"))
    # Title and heading, transcript and line below it of two clips, split, tag, its value, licence, reason, note.
    assert page.text.count(HOSTILE) >= 12


def test_examples_are_the_same_every_time_and_of_all_sources(tmp_path: Path) -> None:
    utterances = write_set(tmp_path / "set")
    sources = ["large"] * 10 + ["small"] * 2
    mixed = [
        Utterance(**{**{name: getattr(item, name) for name in Utterance.__slots__}, "id": name, "source": source})
        for copy in range(2)
        for number, (item, source) in enumerate(zip(utterances, sources, strict=True))
        for name in [f"{number}#{copy}"]
    ]
    chosen = []
    for order in (mixed, mixed[::-1]):
        write_manifests(tmp_path / "set", order)
        chosen.append(measure(tmp_path / "set").chosen())
    recordings = [[row["sha256"] for row in rows] for rows in chosen]
    assert set(recordings[0]) == set(recordings[1])
    assert len(set(recordings[0])) == NUM_EXAMPLES, "a recording that an epoch passes over twice comes once"
    assert Counter(row["source"] for row in chosen[0]) == {"large": 6, "small": 2}
    shortest, longest = EXAMPLE_S
    fit = [item for item in utterances if shortest <= item.duration_s <= longest]
    assert len(fit) >= NUM_EXAMPLES
    assert all(shortest <= row["duration_s"] <= longest for row in chosen[0] if row["source"] == "large")


def test_a_tag_that_names_every_clip_is_only_mentioned(tmp_path: Path) -> None:
    utterances = [
        Utterance(str(number), "", f"{number:064x}", "да", 1.0, tags={"file": str(number), "kind": str(number % 3)})
        for number in range(MAX_VALUES + 1)
    ]
    write_manifests(tmp_path, utterances)
    figures = measure(tmp_path)
    assert (figures.many_valued, set(figures.tags)) == ({"file"}, {"kind"})
    write_manifests(tmp_path, utterances[:-1])
    assert set(measure(tmp_path).tags) == {"file", "kind"}


def test_an_empty_set_has_a_card(tmp_path: Path) -> None:
    write_manifests(tmp_path, [])
    figures = write_card(tmp_path, title="none", licences={"none": ""})
    assert (figures["num_clips"], figures["duration_s"]["median"], figures["alphabet"]) == (0, None, {})
    assert "not stated in the suite" in Page(tmp_path).text


@given(values=st.lists(st.floats(0, 40), min_size=1), fraction=st.floats(0.01, 1), width=st.sampled_from([0.25, 1.0]))
def test_a_histogram_knows_its_quantiles(values: list[float], fraction: float, width: float) -> None:
    histogram = Histogram(step=0.05, top=30)
    for value in values:
        histogram.add(np.array([value]))
    expected = min(float(np.quantile(values, fraction, method="inverted_cdf")), 30.0)
    assert histogram.quantile(fraction) == pytest.approx(expected, abs=0.051)
    assert sum(histogram.bars(width=width, num=20)["counts"]) == len(values)


def test_bars_are_cut_where_they_should_be() -> None:
    histogram = Histogram(step=0.05, top=30)
    histogram.add(np.array([0.0, 0.99, 1.0, 1.05, 2.0, 3.7, 55.0]))
    assert histogram.bars(width=1.0, num=3) == {"width": 1.0, "counts": [2, 2, 3]}
