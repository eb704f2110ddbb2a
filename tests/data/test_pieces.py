"""A corpus that several steps prepare together comes out as if one had."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.artifact import Artifact, Work
from harness.core.manifests import read_manifest
from harness.core.recordings import read_samples
from harness.data import decoding, golos, hub, index, manifest, pieces, preparation
from harness.data.archives import Member
from harness.data.index import Index, Row
from harness.data.preparation import LISTING, SHARES
from harness.errors import DataError
from tests.conftest import artifact
from tests.corpora import build_golos
from tests.noises import corpus, fresh, pack, spec

if TYPE_CHECKING:
    from harness.data.corpus import CorpusSpec

OF = 3


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MIN_PART", 4)


def piece(whole: CorpusSpec, number: int | None) -> pieces.Spec:
    return pieces.Spec(corpus=whole, version=1, number=number, of=OF)


def made(whole: CorpusSpec, number: int | None, folder: Path, **inputs: list[Artifact]) -> Artifact:
    work = fresh(folder)
    meta = pieces.run(piece(whole, number), inputs, work)
    return artifact(work.path, **meta)


def together(whole: CorpusSpec, folder: Path) -> dict[str, list[Artifact]]:
    listing = [made(whole, None, folder / "list")]
    shares = [made(whole, number, folder / f"share-{number}", listing=listing) for number in range(OF)]
    return {LISTING: listing, SHARES: shares}


def files(work: Work) -> dict[str, bytes]:
    return {
        path.relative_to(work.path).as_posix(): path.read_bytes() for path in work.path.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("storage", ["wav", "flac", "shards"])
@pytest.mark.parametrize("form", ["a.tar", "a.tar.gz", "folder"])
def test_the_files_are_the_same_and_no_recording_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, storage: str
) -> None:
    content = corpus()
    content["set/crowd/double.wav"] = content["set/crowd/00.wav"]
    content["set/crowd/manifest.jsonl"] += b'\n{"audio_filepath": "double.wav", "text": "\xd0\xb0", "duration": 0.25}'
    whole = spec(pack(tmp_path / form, content), storage=storage, on_bad="skip", max_hours=5.5 / 3600)
    alone = fresh(tmp_path / "alone")
    expected = manifest.run(whole, {}, alone)
    assert (expected["num_refused"], expected["num_utterances"]) == (1, 21)
    inputs = together(whole, tmp_path)
    assert [item.meta["num_recordings"] for item in inputs[SHARES]] == [8, 8, 6]

    def refuse(part: Any) -> int:
        raise AssertionError(f"part {part.number} is decoded again")

    monkeypatch.setattr(preparation, "decode_part", refuse)
    joined = fresh(tmp_path / "joined")
    assert manifest.run(whole, inputs, joined) == expected
    assert files(joined) == files(alone)
    for item in read_manifest(joined.path)[::5]:
        assert len(read_samples(joined.path / item.audio)) == 4000
    kept = {path.stat().st_ino for share in inputs[SHARES] for path in (share.path / "audio").rglob("*.*")}
    assert {path.stat().st_ino for path in (joined.path / "audio").rglob("*.*")} <= kept, "second names, not copies"


def test_joined_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = spec(pack(tmp_path / "a.tar", corpus()))
    manifest.run(whole, {}, alone := fresh(tmp_path / "alone"))
    inputs = together(whole, tmp_path)

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    manifest.run(whole, inputs, joined := fresh(tmp_path / "joined"))
    assert files(joined) == files(alone)


def test_a_killed_join_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = spec(pack(tmp_path / "a.tar", corpus()))
    inputs = together(whole, tmp_path)
    manifest.run(whole, inputs, unbroken := fresh(tmp_path / "unbroken"))
    work = fresh(tmp_path / "work")
    monkeypatch.setattr(preparation, "assemble", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        manifest.run(whole, inputs, work)
    monkeypatch.undo()
    next((work.scratch / "rows").iterdir()).unlink()  # killed before that
    manifest.run(whole, inputs, work)
    assert files(work) == files(unbroken)


def test_a_killed_share_goes_on_at_its_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = spec(pack(tmp_path / "a.tar", corpus()))
    listing = [made(whole, None, tmp_path / "list")]
    work = fresh(tmp_path / "work")
    decoded = []

    def dies(part: decoding.Part) -> int:
        if decoded:
            raise KeyboardInterrupt
        decoded.append(part.number)
        return decoding.decode_part(part)

    monkeypatch.setattr(preparation, "decode_part", dies)
    with pytest.raises(KeyboardInterrupt):
        pieces.run(piece(whole, 1), {LISTING: listing}, work)
    monkeypatch.setattr(
        preparation, "decode_part", lambda part: decoded.append(part.number) or decoding.decode_part(part)
    )
    meta = pieces.run(piece(whole, 1), {LISTING: listing}, work)
    assert (decoded, meta) == ([2, 3], {"num_recordings": 8})


@pytest.mark.parametrize("known", ["seconds", "bytes", "nothing"])
@given(sizes=st.lists(st.integers(1, 5000), max_size=60), of=st.integers(1, 9))
def test_shares_are_ranges_of_about_equal_work(tmp_path_factory: Any, known: str, sizes: list[int], of: int) -> None:
    folder = tmp_path_factory.mktemp("index")
    with Index(folder / "index.sqlite") as made:
        if known == "bytes":
            made.add_members([Member(f"{line}.wav", line, size) for line, size in enumerate(sizes)], place=0)
        seconds = [size / 100 if known == "seconds" else None for size in sizes]
        made.add_rows(Row(line, f"{line}.wav", "да", duration_s=value) for line, value in enumerate(seconds))
        made.finish(in_folder=known != "bytes", max_hours=None, size_of=lambda _: 0)
        found = made.shares(of)
        weights = [
            sum(1 if known == "nothing" else sizes[row.line] for row, _ in made.part(number))
            for number in range(made.num_parts)
        ]
    assert len(found) == of
    assert [part for item in found for part in item] == list(range(len(weights)))
    for item in found:
        assert abs(sum(weights[number] for number in item) - sum(weights) / of) <= max(weights, default=0) + 1e-6


def test_another_kind_is_divided_in_the_same_way(tmp_path: Path) -> None:
    whole = golos.Spec(path=str(build_golos(tmp_path / "golos", form="tar.gz", audio="opus", tables="last")))
    expected = golos.run(whole, {}, alone := fresh(tmp_path / "alone"))
    assert golos.run(whole, together(whole, tmp_path), joined := fresh(tmp_path / "joined")) == expected
    assert files(joined) == files(alone)


def test_what_is_wrong_with_a_corpus_is_told_by_the_step_that_meets_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such manifest"):
        made(spec(tmp_path / "nowhere"), None, tmp_path / "nothing")
    content = {name: data for name, data in corpus().items() if not name.endswith("crowd/03.wav")}
    whole = spec(pack(tmp_path / "a.tar", content), on_bad="refuse")
    with pytest.raises(DataError, match="1 of 24 lines cannot be used"):
        manifest.run(whole, together(whole, tmp_path), fresh(tmp_path / "joined"))


def test_a_dataset_of_the_hub_is_not_divided() -> None:
    with pytest.raises(ValueError, match="tasks is 4, but each machine would ask the hub"):
        hub.Spec(id="bond005/sberdevices_golos_10h_crowd", tasks=4)
