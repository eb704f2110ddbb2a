"""The report: a finished suite as one HTML file, to read, to compare, to listen to; it opens from disk."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.board.comparison import COMPARED, best_on_dev
from harness.board.leaderboard import intervals_told, told_beside
from harness.board.page import own, packed, packed_text, plotly, script_hash, script_json, template
from harness.board.profiles import MARK
from harness.board.slices import sliced
from harness.board.transcripts import embed, find_recordings, read_transcripts
from harness.board.verdict import sentences
from harness.core.files import replace_text
from harness.core.manifests import read_jsonl
from harness.train.curves import CURVES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from harness.board.leaderboard import Line
    from harness.board.transcripts import Recordings, Transcripts
    from harness.board.waterfall import Waterfall
    from harness.engine.plan import Plan
    from harness.engine.store import Store

REPORT_FILE = "report.html"
SCRIPTS = ("report.js", "report_charts.js", "report_alignment.js", "report_utterances.js")
MAX_AUDIO_B = 40 * 2**20
"""Of embedded recordings, in base64: browsers open a page of this size without delay."""
MAX_POINTS = 400
"""Of one curve; more than a chart has pixels for."""
SHOWN = {
    "rank": "#",
    "row": "row",
    "heldout": "held-out",
    "wer": "WER %",
    "cer": "CER %",
    "rtf": "RTF",
    "latency_p50_ms": "p50 ms",
    "latency_p95_ms": "p95 ms",
    "load_s": "load s",
    "peak_ram_mib": "RAM MiB",
    "peak_vram_mib": "VRAM MiB",
    "size_mib": "size MiB",
    "num_failed": "failed",
}
"""Column of the board → its heading. Columns that the board has beside COLUMNS of people and files follow."""
NOT_SHOWN = {
    *("family", "variant", "export", "runtime", "split_role", "wer_lo", "wer_hi", "cer_lo", "cer_hi"),
    *("interval_over", "num_utterances", "audio_s", "sealed_readings", "leakage", "note", "device", "run_id"),
    *COMPARED,
}
"""Told elsewhere on the page."""


def write_report(
    plan: Plan,
    store: Store,
    *,
    board: Sequence[Line],
    folder: Path,
    falls: Sequence[Waterfall] = (),
    promotion: Mapping[str, Any] | None = None,
    audio: bool = False,
) -> Path:
    """Write `report.html` into `folder`, by one rename; returns its path.

    board: the lines that `leaderboard.csv` has; the page repeats their figures to the last digit.
    falls: what each export changes, by `waterfalls`.
    promotion: `row`, the one that would be promoted or None, and `sentences` on why.
    audio: embed recordings, up to MAX_AUDIO_B; otherwise the page refers to those in the store.
    Raises MissingError if a package that draws the page is missing.
    """
    sets, notes = _sets(plan, store, folder=folder, audio=audio)
    data = _data(plan, store, board=board, sets=sets) | {"promoted": promotion["row"] if promotion else None}
    charts = plotly()
    scripts = [own(name) for name in SCRIPTS]
    html = template().render(
        page=data,
        harness=__version__,
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        verdicts=_verdicts(plan, board),
        promotion=promotion,
        told=[*told_beside(board), *_failures(board)],
        audio_notes=notes,
        waterfalls=falls,
        slices=[item for item in sliced(board, plan, store) if item.slices],
        columns=_columns(board),
        lines=board,
        devices=sorted({line["device"] for line in board if line["device"]}),
        data=script_json(data),
        packed=[(packed(heard.columns() | about), clips) for _, heard, (about, clips) in sets],
        charts=packed_text(charts),
        style=own("report.css"),
        scripts=scripts,
        hashes=[script_hash(script) for script in (*scripts, charts)],
    )
    replace_text(folder / REPORT_FILE, html)
    return folder / REPORT_FILE


def _data(plan: Plan, store: Store, *, board: Sequence[Line], sets: Sets) -> dict[str, Any]:
    """What the page's scripts read at once."""
    return {
        "suite": plan.suite.suite,
        "normalise": plan.suite.score.normalise,
        "board": [{name: _json_number(value) for name, value in line.items()} for line in board],
        "models": {row.row: row.model for row in plan.rows},
        "sets": [name for name, _, _ in sets],
        "curves": list(_curves(plan, store)),
    }


Sets = list[tuple[str, "Transcripts", tuple[dict[str, Any], str]]]
"""Held-out set: name, transcripts, columns about its recordings and embedded clips."""


def _sets(plan: Plan, store: Store, *, folder: Path, audio: bool) -> tuple[Sets, list[str]]:
    """In the order of the board, and what is to be said of recordings that the page cannot play."""
    sets: Sets = []
    notes: list[str] = []
    left_b = MAX_AUDIO_B
    for name in _heldout_sets(plan):
        rows = [row for row in plan.rows if row.heldout == name]
        scores = {row.row: found for row in rows if (found := store.find(row.scored.folder, key=row.scored.key))}
        (selected,) = rows[0].scored.inputs["heldout"]
        heldout = store.find(selected.folder, key=selected.key)
        if not scores or heldout is None:
            continue
        heard = read_transcripts(scores)
        recordings = find_recordings(heldout, root=store.root)
        about: dict[str, Any] = {"speakers": recordings.speakers}
        clips: list[str | None] = []
        if audio:
            clips = _embedded(recordings, heard, limit_b=left_b)
            left_b -= sum(map(len, filter(None, clips)))
            num = sum(clip is not None for clip in clips)
            if num < len(clips):
                notes.append(f"{name}: {num} of {len(clips)} recordings are in this page: most errors first")
        else:
            links = recordings.links(folder)
            about["audio"] = links
            if None in links:
                notes.append(f"{name}: {_why_silent(recordings, links)}")
        sets.append((name, heard, (about, packed(clips) if clips else "")))
    return sets, notes


def _heldout_sets(plan: Plan) -> list[str]:
    """Test sets first, as on the board."""
    roles = {row.heldout: row.split_role for row in plan.rows}
    return sorted(roles, key=lambda name: roles[name] != "test")


def _why_silent(recordings: Recordings, links: Sequence[str | None]) -> str:
    sharded = sum(link is None and path is not None for link, path in zip(links, recordings.paths, strict=True))
    if sharded:
        return f"{sharded} recordings lie in shards, which a page cannot play; embed them: harness report SUITE --audio"
    return f"{links.count(None)} of {len(links)} recordings are not in the store of this machine"


def _embedded(recordings: Recordings, heard: Transcripts, *, limit_b: int) -> list[str | None]:
    """Clips as base64, those with most errors first, until `limit_b` is reached."""
    totals = [sum(counts) for counts in zip(*(heard.errors(row) for row in heard.rows), strict=True)]
    clips: list[str | None] = [None] * len(recordings.paths)
    for number in sorted(range(len(clips)), key=lambda index: -totals[index]):
        path = recordings.paths[number]
        clip = embed(path) if path else None
        if clip is not None and len(clip) > limit_b:
            break
        clips[number] = clip
        limit_b -= len(clip or "")
    return clips


def _verdicts(plan: Plan, board: Sequence[Line]) -> list[tuple[str, list[str]]]:
    """Test set → sentences; of the dev sets only where there is no test set."""
    roles = {line["heldout"]: line["split_role"] for line in board}
    judged = [name for name, role in roles.items() if role == "test"] or list(roles)
    chosen = best_on_dev(plan, board)
    groups = {name: [line for line in board if line["heldout"] == name] for name in judged}
    return [(name, [*sentences(group, chosen=chosen), *intervals_told(group)]) for name, group in groups.items()]


def _failures(board: Sequence[Line]) -> list[str]:
    return [
        f"{line['row']} failed on {line['num_failed']} of {line['num_utterances']} utterances of {line['heldout']}; "
        "all their words count as deleted"
        for line in board
        if line["num_failed"]
    ]


def _json_number(value: Any) -> Any:
    """JSON knows no NaN; the page says by itself which figures are none."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _columns(board: Sequence[Line]) -> dict[str, str]:
    """Columns that hold anything → their headings: known ones first, then what other parts of the board add."""
    names = dict.fromkeys(name for line in board for name in line if name.partition(MARK)[0] not in NOT_SHOWN)
    filled = [name for name in names if any(line.get(name) is not None for line in board)]
    known = {name: heading for name, heading in SHOWN.items() if name in filled}
    return known | {name: _heading(name) for name in filled if name not in known}


def _heading(name: str) -> str:
    figure, _, profile = name.partition(MARK)
    return f"{SHOWN[figure]} {profile}" if profile else name.replace("_", " ")


def _curves(plan: Plan, store: Store) -> Iterator[dict[str, Any]]:
    """By trained variant, its curves by MLflow's names: [[step, value], …]."""
    trainings = {row.trained.key: (row, row.trained) for row in plan.rows if row.trained}
    for row, step in trainings.values():
        artifact = store.find(step.folder, key=step.key)
        if artifact is None or "curves.jsonl" not in artifact.files:
            continue
        entries = list(read_jsonl(artifact.path / "curves.jsonl"))
        series = {
            ours: [[entry["step"], entry[theirs]] for entry in entries if _is_finite(entry.get(theirs))]
            for theirs, ours in CURVES.items()
        }
        kept = {name: points[:: -(-len(points) // MAX_POINTS)] for name, points in series.items() if points}
        yield {"model": row.model, "variant": row.variant, "series": kept}


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
