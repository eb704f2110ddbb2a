"""The dataset card: what a prepared set consists of, to look at and to listen to, in one HTML file."""

from __future__ import annotations

import base64
import io
import json
import os
import unicodedata
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.core.manifests import SAMPLE_RATE_HZ
from harness.core.recordings import read_samples
from harness.data.figures import measure
from harness.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jinja2 import Template

    from harness.data.figures import Figures, Groups, Histogram

CARD_FILE, FIGURES_FILE = "card.html", "card.json"
SCHEMA = 1
RUSSIAN = "абвгдеёжзийклмнопрстуфхцчшщъыьэюя"
NUM_BARS = 30
DURATION_WIDTHS_S = (0.25, 0.5, 1.0, 2.0, 4.0)
CHARS_WIDTH = 1.0
MAX_EXAMPLE_S = 15
"""Longer recordings are cut for the card; the corpus keeps them whole."""
MAX_CHARACTERS = 120
"""Beside the Russian letters, on the page; the file of figures has all."""


def write_card(
    folder: Path,
    *,
    title: str,
    licences: Mapping[str, str],
    rejected: Mapping[str, int] | None = None,
    notes: Sequence[str] = (),
    place: Path | None = None,
) -> dict[str, Any]:
    """Write `card.html` and `card.json` into a folder with manifests; returns the figures of the latter.

    licences: source → its licence, links in it included; of a set with one source, its title → licence.
    rejected: reason → number of clips that were left out.
    place: where `folder` will lie, if recordings are looked up from there: a set's are in its neighbours.
    """
    measured = measure(folder)
    figures = {
        "schema": SCHEMA,
        "title": title,
        "harness": __version__,
        **_figures(measured, title=title),
        "licences": dict(licences),
        "rejected": dict(sorted((rejected or {}).items(), key=lambda item: -item[1])),
        "notes": list(notes),
    }
    examples = [example for row in measured.chosen() if (example := _example(row, place=place or folder))]
    page = _template().render(
        **figures,
        examples=examples,
        letters=_letters(measured.alphabet),
        others=_others(measured.alphabet),
        max_characters=MAX_CHARACTERS,
    )
    (folder / CARD_FILE).write_text(page, encoding="utf-8", newline="\n")
    text = json.dumps(figures, ensure_ascii=False, indent=1, allow_nan=False)
    (folder / FIGURES_FILE).write_text(text, encoding="utf-8", newline="\n")
    return figures


def _figures(measured: Figures, *, title: str) -> dict[str, Any]:
    widest = measured.duration_s.quantile(0.99) or 0.0
    width_s = next((width for width in DURATION_WIDTHS_S if width * NUM_BARS > widest), DURATION_WIDTHS_S[-1])
    return {
        "num_clips": measured.num_clips,
        "audio_s": round(measured.audio_s, 3),
        "num_speakers": len(measured.speakers),
        "num_without_speaker": measured.num_without_speaker,
        "num_characters": measured.num_characters,
        "splits": _plain(measured.splits),
        "sources": {name or title: group for name, group in _plain(measured.sources).items()},
        "tags": {name: _plain(values) for name, values in sorted(measured.tags.items())},
        "many_valued": sorted(measured.many_valued),
        "duration_s": _distribution(measured.duration_s, width=width_s),
        "chars_per_s": _distribution(measured.chars_per_s, width=CHARS_WIDTH),
        "alphabet": measured.alphabet,
    }


def _plain(groups: Groups) -> dict[str, dict[str, Any]]:
    """Largest first."""
    ordered = sorted(groups.items(), key=lambda item: (-item[1].audio_s, item[0]))
    return {name: {**asdict(group), "audio_s": round(group.audio_s, 3)} for name, group in ordered}


def _distribution(histogram: Histogram, *, width: float) -> dict[str, Any]:
    quantiles = {"p05": 0.05, "median": 0.5, "p95": 0.95}
    return {
        **{name: histogram.quantile(fraction) for name, fraction in quantiles.items()},
        "histogram": histogram.bars(width=width, num=NUM_BARS),
    }


def _example(row: Mapping[str, Any], *, place: Path) -> dict[str, Any] | None:
    """What the page plays; None for a recording that cannot be read, which is no reason to lose the set."""
    import soundfile

    try:
        # By text: `place` may not exist yet, and ".." of a folder that does not exist leads nowhere.
        samples = read_samples(Path(os.path.normpath(place / row["audio"])))
    except (OSError, soundfile.SoundFileError, DataError):
        return None
    # MP3, not Opus: every browser plays it, and libsndfile writes it several times faster. Old ones write neither.
    form, kind = ("MP3", "mpeg") if "MP3" in soundfile.available_formats() else ("FLAC", "flac")
    audio = io.BytesIO()
    soundfile.write(audio, samples[: MAX_EXAMPLE_S * SAMPLE_RATE_HZ], SAMPLE_RATE_HZ, format=form)
    encoded = base64.b64encode(audio.getvalue()).decode("ascii")
    return {
        **{name: row[name] for name in ("id", "text", "duration_s", "speaker", "split", "source")},
        "is_cut": row["duration_s"] > MAX_EXAMPLE_S,
        "audio": f"data:audio/{kind};base64,{encoded}",
    }


def _letters(alphabet: Mapping[str, int]) -> list[dict[str, Any]]:
    """The Russian letters in their order, both cases together, with their part of the most frequent one."""
    counts = [(letter, alphabet.get(letter, 0), alphabet.get(letter.upper(), 0)) for letter in RUSSIAN]
    most = max(lower + upper for _, lower, upper in counts) or 1
    return [
        {"letter": letter, "count": lower + upper, "num_upper": upper, "share": (lower + upper) / most}
        for letter, lower, upper in counts
    ]


def _others(alphabet: Mapping[str, int]) -> list[dict[str, Any]]:
    """All other characters but spaces, most frequent first."""
    return [
        {
            "letter": _visible(char),
            "count": count,
            "code": f"U+{ord(char):04X}",
            "name": unicodedata.name(char, "without a name").lower(),
        }
        for char, count in alphabet.items()
        if char != " " and char.lower() not in RUSSIAN
    ]


def _visible(char: str) -> str:
    category = unicodedata.category(char)
    if category[0] == "M":
        return f"\N{DOTTED CIRCLE}{char}"
    return f"{ord(char):04X}" if category[0] in "CZ" else char


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Transcripts, tags and licences are data from anywhere: everything is escaped.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"hours": _hours, "count": _count, "short": _short, "clock": _clock}
    return environment.get_template(CARD_FILE)


def _hours(seconds: float) -> str:
    if seconds >= 100 * 3600:
        return f"{seconds / 3600:,.0f} h"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _count(number: int) -> str:
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _short(number: int) -> str:
    """About how many, in four characters."""
    for limit, unit in ((10_000_000, "M"), (10_000, "k")):
        if number >= limit:
            return f"{number * 10 // limit}{unit}"
    return str(number)


def _clock(seconds: float) -> str:
    return f"{seconds:.1f} s"
