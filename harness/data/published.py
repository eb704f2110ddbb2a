"""What the authors of public corpora publish: sizes, links, checksums.

Sources: `golos/README.md` and `golos/md5sum.txt` of github.com/salute-developers/golos; `README.md` and `md5sum.lst`
of github.com/snakers4/open_stt; `datasets/scripted-speech` of github.com/common-voice/cv-dataset.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from harness.core.estimates import Size

Extent = tuple[int, float]
"""Clips and hours."""


def expected(trained: Iterable[Extent], *, heldout: Mapping[str, Iterable[Extent]], max_hours: float | None) -> Size:
    """What a corpus of these parts prepares to: `max_hours` cuts the training parts, held-out splits stay whole."""
    from harness.core.estimates import Size

    num_clips, hours = (sum(numbers) for numbers in zip((0, 0.0), *trained, strict=True))
    share = min(1.0, max_hours / hours) if max_hours is not None and hours else 1.0
    splits = {"train": Size(round(num_clips * share), hours * share * 3600)}
    for name, extents in heldout.items():
        num_heldout, heldout_hours = (sum(numbers) for numbers in zip((0, 0.0), *extents, strict=True))
        splits[name] = Size(int(num_heldout), heldout_hours * 3600)
    whole = sum(splits.values(), Size(0, 0.0))
    return Size(whole.num_clips, whole.audio_s, splits)


@dataclass(frozen=True, slots=True)
class Published:
    """A file as its authors publish it."""

    name: str
    urls: tuple[str, ...]
    """The first that serves it is used."""
    md5: str
    gigabytes: float
    """As published, rounded."""


def refuse_archive(path: str) -> None:
    """Raises ValueError for a `path` that nothing can be downloaded into."""
    if path.lower().endswith((".tar", ".tar.gz", ".tgz")):
        raise ValueError(f"download: true needs a folder in `path`, not an archive ({PurePath(path).name})")


GOLOS_PAGE = "https://github.com/salute-developers/golos"
GOLOS_LICENCE = "Golos, https://github.com/salute-developers/golos/blob/master/license/en_us.pdf"
GOLOS_OPUS = Published(
    "golos_opus.tar",
    ("https://cdn.chatwm.opensmodel.sberdevices.ru/golos/golos_opus.tar",),
    md5="453d4f8ef1d8adcc9d87020712f973c3",
    gigabytes=20.5,
)
GOLOS_SIZES = {
    ("train", "crowd"): (979_796, 1_095.0),
    ("train", "farfield"): (124_003, 132.4),
    ("test", "crowd"): (9_994, 11.2),
    ("test", "farfield"): (1_916, 1.4),
}
"""(split, subset) → clips, hours."""

COMMON_VOICE_LICENCE = "CC0 1.0 (Mozilla Common Voice)"
COMMON_VOICE_PAGE = "https://datacollective.mozillafoundation.org"
COMMON_VOICE_CLIP_S = 5.19
"""Mean of the Russian clips of release 23."""
COMMON_VOICE_CLIPS = {
    "train": 26_721,
    "dev": 10_253,
    "test": 10_253,
    "validated": 172_808,
    "other": 17_446,
    "invalidated": 10_535,
}
"""Table → clips of release 23, Russian."""

OPENSTT_LICENCE = "CC BY-NC 4.0 (OpenSTT, https://github.com/snakers4/open_stt)"
OPENSTT_PAGE = "https://github.com/snakers4/open_stt"
OPENSTT_FORM = "https://forms.gle/nosMaNgj8MWKm99d9"
"""Where the texts of three subsets are asked for."""
AZURE = "https://azureopendatastorage.blob.core.windows.net/openstt/ru_open_stt_opus/archives"
ZENODO = "https://zenodo.org/record"


@dataclass(frozen=True, slots=True)
class Subset:
    """A part of OpenSTT."""

    num_clips: int
    hours: float
    annotation: str
    """manual, or how it was made without people: aligned, subtitles, ASR, TTS."""
    gigabytes: float
    """Of the archive."""
    record: int | None
    """Of the mirror on Zenodo; None: the texts are not public."""
    stem: str
    """Of the archive's name, and the name of its folder."""
    md5: str

    @property
    def archive(self) -> Published:
        name = f"{self.stem}.tar.gz"
        mirror = (f"{ZENODO}/{self.record}/files/{name}",) if self.record else ()
        return Published(name, (f"{AZURE}/{name}", *mirror), self.md5, self.gigabytes)


OPENSTT: Mapping[str, Subset] = {
    "radio_v4": Subset(
        7_603_192, 10_430, "aligned", 176, None, "radio_v4_manifest", "b808ef771aab22b4cbf333e2f478b3aa"
    ),
    "public_speech": Subset(
        1_700_060, 2_709, "aligned", 47.4, None, "public_speech_manifest", "2339d242aca15890eefaa73e86a4b527"
    ),
    "audiobook_2": Subset(
        1_149_404, 1_511, "aligned", 25.8, 4899208, "private_buriy_audiobooks_2", "34419c7d29cc21d8d1a280c78dd6aa5c"
    ),
    "radio_2": Subset(651_645, 1_439, "aligned", 24.6, 4899885, "radio_2", "6975f79b4593121cc61eaca9c4e976bb"),
    "public_youtube1120": Subset(
        1_410_979, 1_104, "subtitles", 19, 4899577, "public_youtube1120", "27cc829396f72fc0a7b8a15693609714"
    ),
    "public_youtube700": Subset(
        759_483, 701, "subtitles", 12.2, 4899208, "public_youtube700", "2ba18cc170f3254d32f917d2ef619355"
    ),
    "tts_russian_addresses": Subset(
        1_741_838,
        754,
        "TTS",
        12.9,
        4899577,
        "tts_russian_addresses_rhvoice_4voices",
        "2bdd0e26d972f60a0e54dafeef642264",
    ),
    "asr_public_phone_calls_2": Subset(
        603_797, 601, "ASR", 9.4, 4899885, "asr_public_phone_calls_2", "61736beda9893df218cf755ea2308077"
    ),
    "public_youtube1120_hq": Subset(
        369_245, 291, "subtitles", 4.9, 4899208, "public_youtube1120_hq", "32e727b732c2caead2b36664302905b7"
    ),
    "asr_public_phone_calls_1": Subset(
        233_868, 211, "ASR", 3.2, 4899885, "asr_public_phone_calls_1", "8a6da753d8e76fc0188505ba84761efa"
    ),
    "radio_v4_add": Subset(
        92_679, 157, "aligned", 2.8, None, "radio_v4_add_manifest", "79dbbbed705e69ae811a4e598e47e4e2"
    ),
    "asr_public_stories_2": Subset(
        78_186, 78, "ASR", 1.4, 4899885, "asr_public_stories_2", "207deb061308d4906ecdb558b94dcac0"
    ),
    "asr_public_stories_1": Subset(
        46_142, 38, "ASR", 0.7, 4899885, "asr_public_stories_1", "2926853f6eefe67dff4db2b9fdb93d44"
    ),
    "public_series_1": Subset(
        20_243, 17, "subtitles", 0.3, 4899885, "public_series_1", "10f41cb506403dd3d9100ced98c0cc0d"
    ),
    "asr_calls_2_val": Subset(
        12_950, 7.7, "manual", 0.8, 4899885, "asr_calls_2_val", "5146eef0aa64af41e17c5ec18a9cab5c"
    ),
    "public_lecture_1": Subset(
        6_803, 6, "subtitles", 0.1, 4899885, "public_lecture_1", "184a4d0a2016f8f5359bd4365a488fe5"
    ),
    "buriy_audiobooks_2_val": Subset(
        7_850, 4.9, "manual", 0.5, 4899885, "buriy_audiobooks_2_val", "dc6e33299e09d804eb6cedad49c7866a"
    ),
    "public_youtube700_val": Subset(
        7_311, 4.5, "manual", 0.13, 4899885, "public_youtube700_val", "0bd6b99cfe702d70b65c2e5210eaf135"
    ),
}
