"""Train, dev and test that share no recording, no transcript and, where it is known, no speaker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.data.keys import NONE
from harness.errors import DataError
from harness.suite.spec import RULED

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from harness.data.keys import Keys
    from harness.suite.spec import Split

    Labels = npt.NDArray[np.int32]


UNBOUND = -1
TORN = -2


@dataclass(frozen=True, slots=True, eq=False)
class Splits:
    """Which split each clip of a set is in."""

    codes: npt.NDArray[np.int16]
    """[num_clips], of `names`; -1 for a clip in none."""
    names: list[str]
    num_groups: int = 0
    """Of clips that the rule does not part; 0 without a rule."""
    largest_group: int = 0
    """Its clips."""

    def mask(self, name: str) -> npt.NDArray[np.bool_]:
        """Which clips are in the split `name`."""
        found: npt.NDArray[np.bool_] = self.codes == (self.names.index(name) if name in self.names else len(self.names))
        return found

    @property
    def counts(self) -> dict[str, int]:
        """Clips by split, those in none left out."""
        found = {name: int(self.mask(name).sum()) for name in self.names}
        return {name: count for name, count in sorted(found.items()) if count}


def assign_splits(keys: Keys, *, rule: Split | None) -> Splits:
    """The split of each clip: the corpus's own, else by `rule`; none where it has neither.

    Clips that share a recording, a transcript or (unless `by: recording`) a speaker are one group, and a group is
    never torn by the rule. A hash of its speaker, else of its transcript, with the seed decides where it goes, so that
    neither order nor clips outside the group matter. Where some of a group have a split of their own, and the same
    one, the others follow.
    Where every clip has a split of its own, the rule takes what the corpus lacks of dev and test out of its train,
    but no group that reaches into its other splits.
    Raises DataError for `by: speaker` with clips that name none.
    """
    import numpy as np

    if rule is None:
        return Splits(keys.splits, keys.split_names)
    names = [*keys.split_names, *(name for name in RULED if name not in keys.split_names)]
    code = {name: np.int16(index) for index, name in enumerate(names)}
    without = keys.splits < 0
    carved = not without.any()
    free = keys.splits == code["train"] if carved else without
    lacking = {name for name in ("dev", "test") if not (carved and name in keys.split_names)}
    if not (lacking and free.any()):
        return Splits(keys.splits, keys.split_names)
    if rule.by == "speaker":
        _refuse_nameless(free & (keys.speakers == NONE))
    groups = _groups(keys, by=rule.by)
    place = _places(keys, groups, by=rule.by)
    # Test first: another fraction for dev leaves the sealed set as it is.
    test = rule.test if "test" in lacking else 0.0
    dev = rule.dev if "dev" in lacking else 0.0
    drawn = np.select([place < test, place < test + dev], [code["test"], code["dev"]], code["train"]).astype(np.int16)
    fixed = ~free
    own = _own(groups[fixed], keys.splits[fixed], num_groups=int(groups.max(initial=-1)) + 1)[groups]
    if carved:
        # A group that reaches into test may not go to dev: the two would share a transcript.
        drawn[own != UNBOUND] = code["train"]
    else:
        drawn = np.where(own >= 0, own, drawn)
    sizes = np.bincount(groups)
    codes = np.where(free, drawn, keys.splits)
    return Splits(codes, names, num_groups=len(sizes), largest_group=int(sizes.max(initial=0)))


def _groups(keys: Keys, *, by: str) -> Labels:
    """The number of each clip's group: connected components over what clips share."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = [], []
    for column in (keys.recordings, keys.transcripts, *([] if by == "recording" else [keys.speakers])):
        present = np.flatnonzero(column != NONE)
        _, first, inverse = np.unique(column[present], return_index=True, return_inverse=True)
        partners = present[first[inverse]]
        linked = partners != present
        one.append(present[linked])
        other.append(partners[linked])
    ends = np.concatenate(one), np.concatenate(other)
    shape = (len(keys.recordings),) * 2
    graph = coo_array((np.ones(len(ends[0]), np.bool_), ends), shape=shape)
    labels: Labels = connected_components(graph, directed=False)[1]
    return labels


def _places(keys: Keys, groups: Labels, *, by: str) -> npt.NDArray[np.float64]:
    """Where each clip's group lies in [0, 1): where the member with the smallest key does."""
    import numpy as np

    by_speaker = (keys.speakers != NONE) & (by != "recording")
    ranks = np.where(by_speaker, keys.speakers, keys.transcripts)
    # What is known of a group's speakers decides: another sentence of theirs moves nobody.
    order = np.lexsort((ranks, ~by_speaker, groups))
    _, first = np.unique(groups[order], return_index=True)
    draws = np.where(by_speaker, keys.speaker_draws, keys.draws)
    places: npt.NDArray[np.float64] = (draws[order[first]] / 2.0**64)[groups]
    return places


def _own(groups: Labels, splits: npt.NDArray[np.int16], *, num_groups: int) -> npt.NDArray[np.int16]:
    """The one split of its own that each group has: UNBOUND without one, TORN between several."""
    import numpy as np

    lowest = np.full(num_groups, np.iinfo(np.int16).max, np.int16)
    highest = np.full(num_groups, UNBOUND, np.int16)
    np.minimum.at(lowest, groups, splits)
    np.maximum.at(highest, groups, splits)
    return np.where((highest >= 0) & (lowest != highest), np.int16(TORN), highest)


def _refuse_nameless(nameless: npt.NDArray[np.bool_]) -> None:
    count = int(nameless.sum())
    if count:
        raise DataError(
            f"split by speaker: {count} of {len(nameless)} utterances name no speaker, the first in line "
            f"{int(nameless.argmax()) + 1} of the prepared manifest; name them, or split `by: auto` or `by: recording`"
        )
