"""Text normalisation before scoring: what may differ between reference and hypothesis without being an error."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

from harness.errors import MissingError, SuiteError

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION = 1
"""Goes up whenever a profile gives another text; it is part of the key of every score."""

STRESS = "\u0301"
MAX_DIGITS = 15
"""Longer numbers are codes, which nobody reads as a quantity: they are spelled digit by digit."""
MAX_DECIMALS = 6
DIGIT_OR_LATIN = re.compile(r"\d|[a-zß-öø-ɏ]")

GROUPED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:(?: \d{3})+|(?:\.\d{3}){2,})(?![.,]?\d)")
"""1 000 and 1.000.000; a single "1.000" is a decimal."""
NUMBER = re.compile(
    r"""
      (?P<ordinal>\d{1,9}) [-\u2010]
      (?P<ending>[иоы]?й|[аь]?я|[оь]?е|[еоь]?го|[ео]?му|[еиоы]?м|[уь]?ю|[иы]?х|[иы]?ми|ти) (?!\w)
    | (?<!\d[.,]) (?P<whole>\d+) [.,] (?P<fraction>\d+) (?![.,]?\d)
    | (?P<integer>\d+)
    """,
    re.VERBOSE,
)


def normalise(text: str, *, profile: str = "ru") -> str:
    """What is compared instead of `text`; a function of the text alone, for references and hypotheses alike.

    profile: a name in PROFILES.
    Raises SuiteError for an unknown profile, MissingError if digits must be spelled without num2words.
    """
    if profile not in PROFILES:
        raise SuiteError(f"unknown normaliser {profile!r}; known: {', '.join(PROFILES)}")
    return PROFILES[profile](text)


def _normalise_ru(text: str) -> str:
    """Lower case, ё as е, numbers as words, nothing but letters and single spaces.

    Latin is kept. Numbers become what num2words says (nominative), whatever the case in the sentence.
    """
    text = lower_case(text)
    if any(map(str.isdecimal, text)):
        text = spell_numbers(text)
    # Never NFKD: without its mark, "мой" would be "мои".
    return words_only(text).replace("ё", "е")


def _normalise_strict(text: str) -> str:
    """As written, with case and punctuation: only the spelling of characters and spaces is made one."""
    return " ".join(unicodedata.normalize("NFC", text).split())


PROFILES: dict[str, Callable[[str], str]] = {
    "ru": _normalise_ru,
    "ru-strict": _normalise_strict,
    "ru-no-digits": _normalise_ru,
}
PARTIAL = ("ru-no-digits",)
"""Profiles that leave utterances out: fit to stand beside another one, not alone."""


def is_counted(reference: str, *, profile: str) -> bool:
    """Whether a profile compares utterances with this reference, as written.

    `ru-no-digits` leaves out what may be written in several ways: references with digits or Latin letters.
    """
    return profile not in PARTIAL or not DIGIT_OR_LATIN.search(lower_case(reference))


class _Letters(dict[int, int | str | None]):
    """A table for `str.translate`, filled as characters are met."""

    def __missing__(self, code: int) -> int | str | None:
        char = chr(code)
        category = unicodedata.category(char)
        kept: int | str | None = " "
        # Soft hyphens and joiners (Cf), and marks that belong to no letter: "й" is one character by now.
        if category in {"Cf", "Mn", "Me"}:
            kept = None
        elif category[0] in "LMN":
            kept = code
        self[code] = kept
        return kept


_LETTERS = _Letters()

_FORMS = {
    "й": ("n", "m"), "я": ("n", "f"), "е": ("n", "n"), "го": ("g", "m"), "му": ("d", "m"), "им": ("i", "m"),
    "ым": ("i", "m"), "м": ("p", "m"), "ю": ("a", "f"), "х": ("g", "p"), "ми": ("i", "p"), "ти": ("g", "p"),
}  # fmt: skip
"""How the ending of "5-го" ends → case and gender (p: plural) of the ordinal; the first that fits."""


def lower_case(text: str) -> str:
    """Lower case, one spelling of each character, no stress marks; punctuation, digits and ё as they are."""
    # NFC before the stress goes: in Latin "é" it is a part of the letter.
    text = unicodedata.normalize("NFC", text).replace(STRESS, "")
    # NFKC would spell "№" in Latin: "No".
    return unicodedata.normalize("NFKC", text.replace("№", " ")).lower()


def words_only(text: str) -> str:
    """Letters and digits as they are, single spaces for everything else."""
    return " ".join(text.translate(_LETTERS).split())


def spell_numbers(text: str) -> str:
    """Numbers as words (nominative, or the case that an ending as in "5-го" tells); the rest as it is."""
    text = GROUPED.sub(lambda match: match[0].replace(" ", "").replace(".", ""), text)
    return NUMBER.sub(_set_apart, text)


def _set_apart(match: re.Match[str]) -> str:
    """The words of a number, with a space wherever it touches anything but space and punctuation."""
    text = match.string
    before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
    left, right = ("" if not char or char.translate(_LETTERS) == " " else " " for char in (before, after))
    return f"{left}{_spell(match)}{right}"


def _spell(match: re.Match[str]) -> str:
    if match["ordinal"]:
        return _spell_ordinal(int(match["ordinal"]), ending=match["ending"])
    if match["fraction"]:
        whole, fraction = match["whole"], match["fraction"]
        if len(whole) <= MAX_DIGITS and len(fraction) <= MAX_DECIMALS:
            return _num2words(f"{int(whole)}.{_ascii(fraction)}")
        return f"{_spell_integer(whole)} {_spell_integer(fraction)}"
    return _spell_integer(match["integer"])


def _spell_integer(digits: str) -> str:
    if len(digits) > MAX_DIGITS or (len(digits) > 1 and int(digits[0]) == 0):
        return " ".join(_num2words(_ascii(digit)) for digit in digits)
    # "1943" is read "тысяча девятьсот…", which is also how num2words begins the ordinal.
    return _num2words(_ascii(digits)).removeprefix("одна ") if len(digits) == 4 else _num2words(_ascii(digits))


def _spell_ordinal(number: int, *, ending: str) -> str:
    case, gender = next(form for tail, form in _FORMS.items() if ending.endswith(tail))
    # "2-х", "5-ти" and "8-ми" are no ordinals: "двух", "пяти", "восьми".
    if ending == "ти" or (ending == "х" and number in {2, 3, 4}) or (ending == "ми" and number in {7, 8}):
        return _num2words(str(number), case="g")
    # "90-е" are the nineties, "5-е" is the fifth of a month.
    if ending == "е" and number and number % 10 == 0:
        gender = "p"
    return _num2words(str(number), to="ordinal", case=case, gender=gender, plural=gender == "p")


def _ascii(digits: str) -> str:
    """Digits of any script as 0 to 9, zeros kept."""
    return "".join(str(int(digit)) for digit in digits)


def _num2words(number: str, **form: str | bool) -> str:
    try:
        from num2words import num2words
    except ImportError as error:
        raise MissingError("spelling digits needs num2words, which is not installed: pip install num2words") from error
    return str(num2words(number, lang="ru", **form))
