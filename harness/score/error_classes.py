"""Word errors by their cause: what a reader would put right at a glance, apart from what a model misheard.

Counted before the normaliser of the board forgives anything: in lower case and without punctuation, but with ё, digits
and hyphens as written. An error belongs to a class if it vanishes once both sides are written alike in that respect.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from harness.core.alternatives import nearest_wording
from harness.core.text import lower_case, spell_numbers, words_only
from harness.core.wer import count_errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Fold = Literal["", "yo", "numbers", "hyphens", "glued hyphens"]

CLASSES = {
    "yo": "ё or е",
    "numbers": "digits or words",
    "hyphens": "with a hyphen or without",
    "joined": "words joined or split, as тоже and то же",
    "latin": "words with Latin letters on either side",
    "silence": "inserted where the reference has no words",
}
"""Class → what it means."""
HYPHEN = re.compile(r"(?<=\w)[-\u2010\u2011](?=\w)")
HYPHEN_MARK = "\ua78f"
"""Stands for a hyphen inside a word: a letter to the normaliser, and in no text."""
LATIN = re.compile("[a-zß-öø-ɏ]")
FOLDS: Mapping[str, tuple[re.Pattern[str], Sequence[Fold]]] = {
    "yo": (re.compile("ё"), ("yo",)),
    "numbers": (re.compile(r"\d"), ("numbers",)),
    "hyphens": (re.compile(HYPHEN_MARK), ("hyphens", "glued hyphens")),
}
"""Class → what one side must hold, and the ways in which both may be written alike."""
MAX_JOINED = 3
"""Words that may have become one."""


def count_classes(
    references: Sequence[str], hypotheses: Sequence[str | None], *, names: Sequence[str]
) -> dict[str, int]:
    """Class → word errors of a set, and `num_words`, the reference words that they are counted over.

    references, hypotheses: as written; None for an utterance that failed, which is passed over. names: of the
    utterances.
    """
    heard = [
        (said, text, name) for said, text, name in zip(references, hypotheses, names, strict=True) if text is not None
    ]
    pairs = [(_wording(said, text, name=name), text) for said, text, name in heard]
    plain = [(_words(said), _words(text)) for said, text in pairs]
    counts = dict.fromkeys(CLASSES, 0)
    counts["silence"] = sum(len(text.split()) for said, text in plain if not said)
    wrong = [number for number, (said, text) in enumerate(plain) if said and said != text]
    if wrong:
        before = dict(zip(wrong, _errors([plain[number] for number in wrong]), strict=True))
        for name, (mark, folds) in FOLDS.items():
            marked = [number for number in wrong if any(map(mark.search, plain[number]))]
            after = [_folded([pairs[number] for number in marked], fold=fold) for fold in folds]
            counts[name] = _vanished([before[number] for number in marked], list(map(min, zip(*after, strict=True))))
        joined = [number for number in wrong if _may_be_joined(*map(str.split, plain[number]))]
        after_joins = [_errors_but_joins(*map(str.split, plain[number])) for number in joined]
        counts["joined"] = _vanished([before[number] for number in joined], after_joins)
        counts["latin"] = _latin([plain[number] for number in wrong])
    return {"num_words": sum(len(said.split()) for said, _ in plain), **counts}


def _wording(reference: str, hypothesis: str, *, name: str) -> str:
    return nearest_wording(reference, _words(hypothesis).split(), words=lambda text: _words(text).split(), name=name)


def _words(text: str, *, fold: Fold = "") -> str:
    text = lower_case(text)
    if fold == "yo":
        text = text.replace("ё", "е")
    if fold == "numbers" and any(map(str.isdecimal, text)):
        text = spell_numbers(text)
    return words_only(HYPHEN.sub({"hyphens": " ", "glued hyphens": ""}.get(fold, HYPHEN_MARK), text))


def _folded(pairs: Sequence[tuple[str, str]], *, fold: Fold) -> list[int]:
    return _errors([(_words(said, fold=fold), _words(text, fold=fold)) for said, text in pairs])


def _errors(pairs: Sequence[tuple[str, str]]) -> list[int]:
    if not pairs:
        return []
    return [count.errors for count in count_errors([said for said, _ in pairs], [text for _, text in pairs])]


def _vanished(before: Sequence[int], after: Sequence[int]) -> int:
    # Spelled out, a misheard number is wrong in more words than before; that is no merit of the others.
    return sum(max(0, ours - theirs) for ours, theirs in zip(before, after, strict=True))


def _may_be_joined(said: Sequence[str], heard: Sequence[str]) -> bool:
    return not (_joins(said).isdisjoint(heard) and _joins(heard).isdisjoint(said))


def _joins(words: Sequence[str]) -> set[str]:
    """Neighbours as one word."""
    sizes = range(2, MAX_JOINED + 1)
    return {"".join(words[at : at + size]) for size in sizes for at in range(len(words) - size + 1)}


def _errors_but_joins(said: list[str], heard: list[str]) -> int:
    """The fewest errors if words that were joined or split, and are otherwise alike, are none."""
    cost = [[at + there for there in range(len(heard) + 1)] for at in range(len(said) + 1)]
    for at in range(1, len(said) + 1):
        for there in range(1, len(heard) + 1):
            wrong = said[at - 1] != heard[there - 1]
            best = min(cost[at - 1][there - 1] + wrong, cost[at - 1][there] + 1, cost[at][there - 1] + 1)
            for num in range(2, MAX_JOINED + 1):
                if num <= there and said[at - 1] == "".join(heard[there - num : there]):
                    best = min(best, cost[at - 1][there - num])
                if num <= at and "".join(said[at - num : at]) == heard[there - 1]:
                    best = min(best, cost[at - num][there - 1])
            cost[at][there] = best
    return cost[-1][-1]


def _latin(pairs: Sequence[tuple[str, str]]) -> int:
    """Errors that have a word with Latin letters on either side."""
    import jiwer

    mixed = [pair for pair in pairs if any(map(LATIN.search, pair))]
    if not mixed:
        return 0
    output = jiwer.process_words([said for said, _ in mixed], [text for _, text in mixed])
    found = 0
    for (said, text), chunks in zip(mixed, output.alignments, strict=True):
        for chunk in chunks:
            if chunk.type == "equal":
                continue
            ours = said.split()[chunk.ref_start_idx : chunk.ref_end_idx]
            theirs = text.split()[chunk.hyp_start_idx : chunk.hyp_end_idx]
            length = max(len(ours), len(theirs))
            sides = zip(ours or [""] * length, theirs or [""] * length, strict=True)
            found += sum(any(map(LATIN.search, words)) for words in sides)
    return found
