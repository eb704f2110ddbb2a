"""What each export of a model changes: its WER against the first of the chain, and where their words part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.board.comparison import SMALLEST_TEST, resampled, word_counts
from harness.board.markdown import markdown_table
from harness.core.files import beside
from harness.core.manifests import read_jsonl, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from harness.core.artifact import Artifact
    from harness.engine.plan import Plan, Row
    from harness.engine.store import Store
    from harness.score.significance import Difference

WATERFALL_FILE = "waterfall.jsonl"
CHAIN = (
    *("torch-fp32", "nemo", "onnx-fp32", "onnx-fp16", "onnx-int8"),
    *("ggml-f32", "ggml-f16", "ggml-q8_0", "ggml-q5_1", "ggml-q5_0", "ggml-q4_0"),
)
"""From what training leaves to what has the fewest bits; exports that are not in it come last."""


class Parting(NamedTuple):
    """The first word in which two hypotheses of an utterance differ, after normalisation."""

    id: str
    position: int
    """From 1."""
    there: str | None
    """In the first export of the chain; None where it has ended."""
    here: str | None


@dataclass(frozen=True, slots=True)
class Fall:
    """One export of a chain."""

    row: str
    name: str
    """The export, and its runtime where several run it."""
    wer: float
    size_mib: float | None
    difference: Difference | None
    """To the first export of the chain; None of itself, and where utterances are too few."""
    partings: tuple[Parting, ...]


@dataclass(frozen=True, slots=True)
class Waterfall:
    """The exports of one variant, on one held-out set, in the order of CHAIN."""

    model: str
    variant: str
    heldout: str
    num_utterances: int
    falls: tuple[Fall, ...]


def waterfalls(plan: Plan, store: Store) -> list[Waterfall]:
    """Of every variant and held-out set with two finished exports or more, as far as WER is measured."""
    chains: dict[tuple[str, str, str], list[tuple[Row, Artifact]]] = {}
    for row in plan.rows:
        score = store.find(row.scored.folder, key=row.scored.key)
        if score is not None and score.meta["wer"] is not None:
            chains.setdefault((row.heldout, row.model, row.variant), []).append((row, score))
    return [_waterfall(chain, plan) for chain in chains.values() if len({row.export for row, _ in chain}) > 1]


def _waterfall(chain: list[tuple[Row, Artifact]], plan: Plan) -> Waterfall:
    chain = sorted(chain, key=lambda pair: CHAIN.index(pair[0].export) if pair[0].export in CHAIN else len(CHAIN))
    exports = [row.export for row, _ in chain]
    (first, first_score), *_ = chain
    drawn = resampled([word_counts(score) for _, score in chain], plan)
    falls = []
    for number, (row, score) in enumerate(chain):
        several = exports.count(row.export) > 1
        is_judged = number > 0 and drawn.num_utterances >= SMALLEST_TEST
        falls.append(
            Fall(
                row=row.row,
                name=f"{row.export} {row.runtime}" if several else row.export,
                wer=score.meta["wer"],
                size_mib=score.meta["size_mib"],
                difference=drawn.difference(number, 0) if is_judged else None,
                partings=tuple(_partings(first_score, score)),
            )
        )
    return Waterfall(first.model, first.variant, first.heldout, drawn.num_utterances, tuple(falls))


def _partings(first: Artifact, other: Artifact) -> Iterator[Parting]:
    """Of the utterances whose words differ. A failed utterance has no words."""
    for there, here in zip(_words(first), _words(other), strict=True):
        (name, expected), (_, found) = there, here
        if expected != found:
            at = next((n for n, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), None)
            at = min(len(expected), len(found)) if at is None else at
            yield Parting(name, at + 1, *(words[at] if at < len(words) else None for words in (expected, found)))


def _words(score: Artifact) -> Iterator[tuple[str, list[str]]]:
    for row in read_jsonl(score.path / "hypotheses.jsonl"):
        yield row["id"], row["hypothesis_norm"].split()


def publish_waterfalls(found: Sequence[Waterfall], *, folder: Path) -> None:
    """Write `waterfall.jsonl`, a line for each utterance of each export whose words part; no file without chains."""
    path = folder / WATERFALL_FILE
    if not found:
        path.unlink(missing_ok=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    write_jsonl(temporary, (line for waterfall in found for line in _lines(waterfall)))
    temporary.replace(path)


def _lines(waterfall: Waterfall) -> Iterator[dict[str, Any]]:
    against = waterfall.falls[0].row
    for fall in waterfall.falls:
        for parting in fall.partings:
            yield {"heldout": waterfall.heldout, "row": fall.row, "against": against, **parting._asdict()}


def cells(waterfall: Waterfall) -> list[dict[str, str]]:
    """The rows of a table, as people read them; empty is what is not there."""
    return [_cells(waterfall, fall) for fall in waterfall.falls]


def _cells(waterfall: Waterfall, fall: Fall) -> dict[str, str]:
    is_first = fall is waterfall.falls[0]
    difference = fall.difference
    return {
        "variant": f"{waterfall.model} {waterfall.variant}" if is_first else "",
        "export": fall.name,
        "WER": f"{fall.wer:.3f}",
        "ΔWER": "" if difference is None else f"{difference.delta:+.3f}",
        "95 %": "" if difference is None else f"{difference.lo:+.3f} to {difference.hi:+.3f}",
        "size MiB": "" if fall.size_mib is None else f"{fall.size_mib:.1f}",
        "part": "" if is_first else f"{len(fall.partings)} of {waterfall.num_utterances}",
        "for instance": _instance(fall.partings[0]) if fall.partings else "",
    }


def _instance(parting: Parting) -> str:
    there, here = (word or "(end)" for word in (parting.there, parting.here))
    return f"{parting.id}, word {parting.position}: {there} → {here}"


def render_waterfalls(found: Sequence[Waterfall]) -> str:
    """Markdown: a table for each held-out set; nothing without chains."""
    text = ""
    for heldout in dict.fromkeys(item.heldout for item in found):
        rows = [row for item in found if item.heldout == heldout for row in cells(item)]
        table = markdown_table(list(rows[0]), (row.values() for row in rows))
        text += f"\n**What each export changes: {heldout}**\n\n{table}"
    return text
