"""Recordings that a JSON Lines manifest lists, in NeMo's or in Hugging Face's form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from harness.core.manifests import write_manifests
from harness.data.entries import iterate_lines, named_files, parse_line
from harness.data.preparation import prepare
from harness.data.report import RefusedError, Report
from harness.errors import DataError
from harness.suite.spec import DatasetSpec

if TYPE_CHECKING:
    from harness.core.artifact import Inputs, Work
    from harness.data.entries import Entry

VERSION = 1


class Spec(DatasetSpec):
    """A manifest and the recordings beside it."""

    kind: Literal["manifest"] = "manifest"
    path: str = Field(
        min_length=1,
        description="A .jsonl file with audio_filepath, text, duration a line, or audio, sentence; "
        "paths in it are relative to its folder.",
    )
    licence: str = Field(default="", description="Of the recordings; goes into the bundle.")
    on_bad: Literal["refuse", "skip"] = Field(
        default="refuse", description="What to do about lines that cannot be used; both list them all in a report."
    )

    not_identity: ClassVar[Mapping[str, str]] = {
        **DatasetSpec.not_identity,
        "path": "the manifest's content and that of its recordings count, wherever they lie",
    }

    def outside(self) -> list[Path]:
        """The manifest and every file that it names, there or not."""
        manifest = Path(self.path).resolve()
        return [manifest, *named_files(manifest)] if manifest.is_file() else [manifest]


def run(spec: Spec, inputs: Inputs, work: Work) -> dict[str, Any]:
    """Write `audio/*.wav` (16 kHz mono PCM-16), both manifests, and `report.json` with what became of each line.

    Raises DataError after a look at every line: if any cannot be used (`on_bad: refuse`), or if none can.
    """
    del inputs
    report = Report()
    utterances = prepare(_read_entries(Path(spec.path), report=report), work=work, report=report)
    if report.refused and (spec.on_bad == "refuse" or not utterances):
        kept = report.write(work.scratch)
        advice = "mend them, or leave them out with `on_bad: skip`" if spec.on_bad == "refuse" else "none is left"
        raise DataError(
            f"{spec.path}: {len(report.refused)} of {report.num_lines} lines cannot be used; {advice}\n"
            f"{report.summary()}\nThe whole report: {kept}"
        )
    if not utterances:
        raise DataError(f"{spec.path}: the manifest has no lines; list at least one recording")
    write_manifests(work.path, utterances)
    report.write(work.path)
    return {
        "num_utterances": len(utterances),
        "audio_s": round(sum(item.duration_s for item in utterances), 3),
        "num_speakers": len({item.speaker for item in utterances if item.speaker is not None}),
        "licence": spec.licence,
        "notes": report.sentences(),
        **report.counts,
    }


def _read_entries(manifest: Path, *, report: Report) -> list[Entry]:
    if not manifest.is_file():
        raise DataError(f"{manifest}: there is no such manifest; `path` must name a .jsonl file")
    manifest = manifest.resolve()
    entries = []
    for number, line in iterate_lines(manifest):
        report.num_lines += 1
        try:
            entry = parse_line(line, number=number, folder=manifest.parent)
        except RefusedError as error:
            report.refused[number] = error
        else:
            entries.append(entry)
    return entries
