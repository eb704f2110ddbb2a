"""What a model is trained to write: a corpus's transcript under a declared policy.

Apart from the scoring normaliser on purpose: a model may learn case, punctuation and ё, and still be scored without.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal, Protocol

from harness.core.alternatives import first_wording
from harness.core.text import spell_numbers, words_only

VERSION = 2
"""Goes up whenever a policy gives another text; it is part of the key of every training."""

Case = Literal["as_is", "lower", "cased"]
Yo = Literal["keep", "fold"]
Digits = Literal["keep", "words"]


class Policy(Protocol):
    """What `harness.suite.targets.TextPolicy` declares."""

    @property
    def case(self) -> Case: ...
    @property
    def yo(self) -> Yo: ...
    @property
    def digits(self) -> Digits: ...


PLAIN = re.compile(r"[А-Яа-яЁё0-9A-Za-z .,!?:;—–«»\"-]*")
"""What most transcripts consist of: no marks, no markup."""
STRESSED = str.maketrans({"\u0300": None, "\u0301": None, "ѐ": "е", "ѝ": "и", "Ѐ": "Е", "Ѝ": "И"})
"""Main and secondary stress; only "е" and "и" have characters of their own with it."""
YO = re.compile("([ёЁ])\u0308*")
PLUS_STRESS = re.compile(r"(?<![\d+])\+(?=[аеёиоуыэюя])", re.IGNORECASE)
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060\ufeff]")
"""Soft hyphens, joiners, directions, byte order marks."""
NOISES = (
    "шум|смех|см[её]тся|музыка|аплодисменты|вздох|кашель|пауза|тишина|неразборчиво|нрзб|noise|laughter|music|silence"
)
MARKUP = re.compile(
    rf"<[/!|]?\w[^<>]*> | \[[^\[\]]*\] | \{{[^{{}}]*\}} | \(\s*(?:{NOISES})\s*\.?\s*\) | \*(?:{NOISES})\* | ⁇",
    re.VERBOSE | re.IGNORECASE,
)
"""`<b>`, `<unk>`, `<|endoftext|>` (a tokenizer would take it for its own), `[шум]`, `{cough}`, `(смех)`, `*кашель*`."""
MARKED = re.compile(r"[<\[{(*⁇]")
"""Where MARKUP may begin; looked for first, since it costs a tenth."""
MAX_NESTING = 16
LOOSE = re.compile(r"\s+(?=[.,!?:;…»)])")
GLUED = re.compile(r"(?<=[^\W\d_])[.,:/+](?=[^\W\d_])")
"""What stood between two numbers, once they are words: "12:30"."""
PUNCTUATION = re.compile(r"[.,!?:;…—–«»\"()]")
"""What shows that a corpus punctuates; hyphens and apostrophes belong to words."""


def target_text(text: str, policy: Policy) -> str | None:
    """What the model shall write for a clip, or None if the clip cannot teach it: leave it out of training.

    Always: NFC, stress marks and markup removed, spaces collapsed. Digits become words as in the scoring normaliser.
    Of wordings as in `{две тысячи|2000}` the first is learnt; None where such braces are not well-formed.
    `lower`: letters, digits and single spaces; hyphens too become spaces, since corpora do not agree on them.
    `cased`: as the corpus writes it; None where it has neither capitals nor punctuation, or capitals only.
    Raises MissingError if digits must be spelled without num2words.
    """
    first = first_wording(text)
    if first is None:
        return None
    text = _clean(first)
    if policy.digits == "words" and any(map(str.isdecimal, text)):
        text = _collapsed(GLUED.sub(" ", spell_numbers(text)))
    if policy.case == "lower":
        text = words_only(text.lower())
    elif policy.case == "cased" and not _is_cased(text):
        return None
    if policy.yo == "fold":
        text = unicodedata.normalize("NFC", YO.sub(lambda found: "е" if found[1] == "ё" else "Е", text))
    return text if any(map(str.isalnum, text)) else None


def left_out(num_clips: int, *, of: str, policy: Policy) -> list[str]:
    """The note about clips without a target, as a list to add to others; empty if there are none.

    of: which clips: `train`, `dev`.
    """
    cased = ", or neither capitals nor punctuation to learn (`text: cased`)" if policy.case == "cased" else ""
    return [f"{num_clips} {of} clips have no words to train on{cased}, and were left out"] if num_clips else []


def _clean(text: str) -> str:
    if PLAIN.fullmatch(text):
        return _collapsed(text)
    # NFC before the stress goes: Common Voice has "и" + U+0306, and in Latin "é" the mark is a part of the letter.
    text = unicodedata.normalize("NFC", text).translate(STRESSED)
    # Again: the stress may have stood between a letter and its breve.
    text = unicodedata.normalize("NFC", INVISIBLE.sub("", text))
    text = PLUS_STRESS.sub("", text)
    return _collapsed(_without_markup(text) if MARKED.search(text) else text)


def _without_markup(text: str) -> str:
    before = text
    for _ in range(MAX_NESTING):
        text, found = MARKUP.subn(" ", text)
        if not found:
            break
    # "да, [смех], нет" has a comma to spare.
    return text if text == before else re.sub(",,+", ",", LOOSE.sub("", text)).lstrip(" ,;:")


def _collapsed(text: str) -> str:
    return " ".join(text.split())


def _is_cased(text: str) -> bool:
    mixed = text not in {text.lower(), text.upper()}
    return mixed or (text != text.upper() and PUNCTUATION.search(text) is not None)
