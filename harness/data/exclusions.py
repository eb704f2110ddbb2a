"""Clips that somebody listed to leave out: JSON lines with an `id`, such as the leakage check writes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.core.files import parse_json
from harness.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

COPY = re.compile(r"#\d+$")
"""The end of a repeated clip's id."""
REMEDY = 'write lines such as {"id": "clip-17"}'


@dataclass(frozen=True, slots=True, eq=False)
class Exclusions:
    """A list of clips by id, with the dataset's name before it or without, and which of its lines were met."""

    file: str
    names: pa.Array
    lines: npt.NDArray[np.int64]
    """[num_names], the line that each name is from, from 0."""
    met: npt.NDArray[np.bool_]
    """[num_lines]."""

    def mask(self, ids: pa.Array, *, dataset: str) -> npt.NDArray[np.bool_]:
        """Which of a dataset's clips are listed."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        listed = np.zeros(len(ids), np.bool_)
        for written in (ids, pc.binary_join_element_wise(pa.scalar(dataset), ids, "/")):
            index = pc.index_in(written, value_set=self.names).fill_null(-1).to_numpy()
            listed |= index >= 0
            self.met[self.lines[index[index >= 0]]] = True
        return listed

    @property
    def notes(self) -> list[str]:
        """What the user should know of lines that named no clip."""
        unknown = int((~self.met).sum())
        return [f"{self.file}: {unknown} of {len(self.met)} lines name no clip of this set"] if unknown else []


def read_exclusions(path: Path) -> Exclusions:
    """Lines `{"id": …}`, with `source` where an id alone would name clips of several datasets; other fields are free.

    The id is the prepared one or that of a training set: with its dataset before it, and `#2` after a repeated one's.
    Raises DataError for a missing file and for a line without an id.
    """
    import numpy as np
    import pyarrow as pa

    if not path.is_file():
        raise DataError(f"{path}: there is no such file; `exclude` names JSON lines with an `id`")
    names: list[str] = []
    lines: list[int] = []
    num_lines = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            name = _name(line, place=f"{path.name}:{number}")
            written = {name, COPY.sub("", name)}
            names += sorted(written)
            lines += [num_lines] * len(written)
            num_lines += 1
    return Exclusions(path.name, pa.array(names, pa.string()), np.array(lines, np.int64), np.zeros(num_lines, np.bool_))


def _name(line: bytes, *, place: str) -> str:
    try:
        row = parse_json(line.decode())
        json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair, escaped, is no text
    except ValueError as error:
        raise DataError(f'{place}: is no JSON ({error}); write lines such as {{"id": "clip-17"}}') from error
    name = row.get("id") if isinstance(row, dict) else None
    if not isinstance(name, str):
        raise DataError(f'{place}: has no `id`; write lines such as {{"id": "clip-17"}}')
    source = row.get("source")
    return f"{source}/{name}" if isinstance(source, str) and not name.startswith(f"{source}/") else name
