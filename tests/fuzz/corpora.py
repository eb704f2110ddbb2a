"""Suites, manifests, tables, archives and recordings, as `harness check` and `harness run` read them."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import soundfile

from harness.core.artifact import Work
from harness.core.manifests import read_manifest
from harness.data import common_voice, golos, manifest, openstt, preparation
from harness.data.audio import read_recording
from harness.data.exclusions import read_exclusions
from harness.errors import HarnessError
from harness.promote.bench import read_any
from harness.suite.load import load
from harness.train.augmentation import recorded_noise
from tests.corpora import RATE_HZ, speech
from tests.fuzz.checksums import mend_ogg, mend_tar
from tests.fuzz.target import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

SUITES = Path(__file__).parents[2] / "suites"
WORDS = ("да ну", "привет, {мир|свет}", "сорок два", "Ещё раз")


@cache
def clip(number: int, container: str = "WAV", subtype: str = "PCM_16", *, samples: int = 4_000) -> bytes:
    """A quarter of a second of speech."""
    buffer = io.BytesIO()
    soundfile.write(buffer, speech(number)[0][:samples], RATE_HZ, format=container, subtype=subtype)
    return buffer.getvalue()


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def prepared(kind: Any, spec: Any, folder: Path) -> None:
    """Run a dataset's step as the engine does, and look where its recordings lie."""
    work = Work(path=folder / "out", scratch=folder / "scratch")
    work.path.mkdir()
    work.scratch.mkdir()
    spec.outside()
    if hasattr(kind, "size"):
        kind.size(spec)
    # Long tables go to processes of its own, which exchange objects by pickles of its own.
    with mock.patch.object(preparation, "FEW", sys.maxsize):
        kind.run(spec, {}, work)
    for item in read_manifest(work.path):
        place = (work.path / item.audio.partition("@")[0]).resolve()
        assert place.is_relative_to(work.path.resolve()), item.audio


def json_lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


# Suites


def suites() -> list[bytes]:
    return [path.read_bytes() for path in sorted(SUITES.glob("*.yaml"))]


def read_suite(data: bytes, folder: Path) -> None:
    (folder / "suite.yaml").write_bytes(data)
    load(folder / "suite.yaml")


# Manifests


def manifests() -> list[bytes]:
    nemo = [{"audio_filepath": f"{n}.wav", "text": text, "duration": 0.25, "id": n} for n, text in enumerate(WORDS)]
    hub = [{"audio": {"path": f"{n}.wav"}, "sentence": text, "speaker": "a"} for n, text in enumerate(WORDS)]
    return [json_lines(nemo), json_lines(hub), b"\xef\xbb\xbf" + json_lines([nemo[0], hub[1] | {"split": "test"}])]


def read_nemo_manifest(data: bytes, folder: Path) -> None:
    put(folder / "in", {"m.jsonl": data, **{f"{n}.wav": clip(n) for n in range(len(WORDS))}})
    prepared(manifest, manifest.Spec(path=str(folder / "in" / "m.jsonl"), on_bad="skip"), folder)


def tables() -> list[bytes]:
    header = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale"
    rows = [f'{"ab"[n % 2] * 128}\t{n}.mp3\t"{text}\t2\t0\t\t\t\tru' for n, text in enumerate(WORDS)]
    return ["\n".join([header, *rows]).encode(), "\r\n".join([header, *rows[:1]]).encode()]


def durations() -> list[bytes]:
    return [b"clip\tduration[ms]\n" + b"".join(b"%d.mp3\t%d\n" % (n, 300) for n in range(len(WORDS)))]


def read_common_voice(data: bytes, folder: Path, *, name: str) -> None:
    whole = {"train.tsv": tables()[0], "dev.tsv": tables()[1], "clip_durations.tsv": durations()[0], name: data}
    clips = {f"clips/{n}.mp3": clip(n, "MP3", "MPEG_LAYER_III") for n in range(len(WORDS))}
    put(folder / "in" / "ru", {**whole, **clips})
    prepared(common_voice, common_voice.Spec(path=str(folder / "in")), folder)


def openstt_csv() -> list[bytes]:
    rows = [f"public_youtube700/0/0{n}/{'a' * 12}.wav,public_youtube700/0/0{n}/{'a' * 12}.txt,0.25" for n in range(3)]
    return ["\n".join(rows).encode(), "\n".join(f"{n},{row}" for n, row in enumerate(rows)).encode()]


def openstt_files() -> dict[str, bytes]:
    stems = [f"public_youtube700/0/0{n}/{'a' * 12}" for n in range(3)]
    return {f"{stem}.opus": clip(n, "OGG", "OPUS") for n, stem in enumerate(stems)} | {
        f"{stem}.txt": WORDS[n].encode() for n, stem in enumerate(stems)
    }


def read_openstt(data: bytes, folder: Path) -> None:
    put(folder / "in", {**openstt_files(), "public_youtube700.csv": data})
    prepared(openstt, openstt.Spec(path=str(folder / "in"), subsets=["public_youtube700"]), folder)


def golos_lists() -> list[bytes]:
    rows = [
        {"id": f"{n}", "audio_filepath": f"crowd/0/{n}.wav", "text": text, "duration": 0.25}
        for n, text in enumerate(WORDS)
    ]
    return [json_lines(rows), json_lines([{**row, "text": None} for row in rows[:2]] + rows[2:])]


def read_golos(data: bytes, folder: Path) -> None:
    files = {f"train/crowd/0/{n}.wav": clip(n) for n in range(len(WORDS))}
    test = json_lines([{"id": "t", "audio_filepath": "files/t.wav", "text": "да", "duration": 0.25}])
    files |= {"train/manifest.jsonl": data, "test/crowd/manifest.jsonl": test, "test/crowd/files/t.wav": clip(9)}
    put(folder / "in", files)
    prepared(golos, golos.Spec(path=str(folder / "in"), subsets=["crowd"]), folder)


def exclusions() -> list[bytes]:
    return [json_lines([{"id": "a"}, {"id": "b#2", "source": "golos"}, {"id": "c", "why": [1]}])]


def read_excluded(data: bytes, folder: Path) -> None:
    (folder / "e.jsonl").write_bytes(data)
    read_exclusions(folder / "e.jsonl")


# Archives


def tar(files: dict[str, bytes], *, form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, bufsize=512) as archive:
        for name, content in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


def headers(data: bytes) -> list[int]:
    """Where the fields of a tar's headers begin: name, mode, size, kind, link, magic, prefix."""
    starts = [start for start in range(0, len(data), 512) if data[start + 257 : start + 262] == b"ustar"]
    return [start + field for start in starts for field in (0, 100, 124, 124, 135, 156, 156, 157, 257, 345)]


def archives() -> list[bytes]:
    files = {"a/manifest.jsonl": manifests()[0], **{f"a/{n}.wav": clip(n) for n in range(len(WORDS))}}
    long = {f"{'папка' * 12}/{name}": content for name, content in files.items()}
    return [tar(files), tar(long, form=tarfile.PAX_FORMAT), tar(long)]


def read_archive(data: bytes, folder: Path, *, suffix: str) -> None:
    path = folder / f"corpus{suffix}"
    path.write_bytes(data if suffix == ".tar" or data[:2] == b"\x1f\x8b" else gzip.compress(data, 1))
    prepared(manifest, manifest.Spec(path=str(path), on_bad="skip"), folder)


def read_openstt_archive(data: bytes, folder: Path) -> None:
    (folder / "in").mkdir()
    (folder / "in" / "public_youtube700.tar.gz").write_bytes(
        data if data[:2] == b"\x1f\x8b" else gzip.compress(data, 1)
    )
    prepared(openstt, openstt.Spec(path=str(folder / "in"), subsets=["public_youtube700"], storage="shards"), folder)


# Recordings

FORMS = (
    *(
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("WAV", "ULAW"),
        ("WAV", "MS_ADPCM"),
        ("WAVEX", "PCM_24"),
        ("RF64", "PCM_16"),
    ),
    *(("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16")),
    *(("AU", "PCM_16"), ("CAF", "PCM_16"), ("W64", "PCM_16"), ("CAF", "ALAC_16"), ("OGG", "OPUS"), ("FLAC", "PCM_24")),
)


def recordings() -> list[bytes]:
    return [clip(number, container, subtype) for number, (container, subtype) in enumerate(FORMS)]


def sound_header(_: bytes) -> range:
    return range(160)


def read_sound(data: bytes, folder: Path) -> None:
    """In a corpus; as a clip to measure with; as noise to train with."""
    import numpy as np

    path = folder / "clip"
    path.write_bytes(data)
    refusals = []
    for read in (
        lambda: read_recording(data, name="clip"),
        lambda: read_recording(path, name="clip", duration_s=0.25),
        lambda: read_any(path),
        lambda: recorded_noise(path, 8_000, rng=np.random.default_rng(0)),
    ):
        try:
            read()
        except HarnessError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


TARGETS = (
    Target("suite", suites, read_suite, weight=1.0),
    Target("manifest", manifests, read_nemo_manifest, weight=1.5),
    Target("common-voice", tables, partial(read_common_voice, name="train.tsv")),
    Target("common-voice-durations", durations, partial(read_common_voice, name="clip_durations.tsv"), weight=0.3),
    Target("openstt-csv", openstt_csv, read_openstt, weight=0.6),
    Target("golos", golos_lists, read_golos, weight=0.6),
    Target("exclusions", exclusions, read_excluded, weight=0.5),
    Target("tar", archives, partial(read_archive, suffix=".tar"), weight=1.5, mend=mend_tar, places=headers),
    Target(
        "tar-gz",
        lambda: [*archives(), gzip.compress(archives()[0])],
        partial(read_archive, suffix=".tar.gz"),
        mend=mend_tar,
        places=headers,
    ),
    Target(
        "openstt-tar-gz",
        lambda: [tar(openstt_files())],
        read_openstt_archive,
        weight=0.5,
        mend=mend_tar,
        places=headers,
    ),
    Target("recording", recordings, read_sound, weight=3.0, mend=mend_ogg, places=sound_header),
)
