"""How sure an error rate is: percentile bootstrap over utterances.

Source: Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from harness.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    Counts = npt.NDArray[np.int64]

RESAMPLES = 2000
LEVEL = 0.95
BLOCK = 2_000_000
"""Draws at a time; bounds memory to some 50 MB whatever the size of the set."""


class Difference(NamedTuple):
    """Rate a minus rate b, with its interval."""

    delta: float
    lo: float
    hi: float


def rate_interval(
    errors: Sequence[int], references: Sequence[int], *, seed: int, resamples: int = RESAMPLES, level: float = LEVEL
) -> tuple[float, float]:
    """The interval (lo, hi) of a pooled error rate.

    errors, references: errors and reference units of each utterance.
    Equal arguments give equal results.
    Raises DataError for an empty set or one without reference units.
    """
    import numpy as np

    (pooled,), totals = _resample(np.asarray([errors]), np.asarray(references), seed=seed, resamples=resamples)
    return _percentiles(pooled / totals, level=level)


def paired_difference(
    errors_a: Sequence[int],
    errors_b: Sequence[int],
    references: Sequence[int],
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Difference:
    """How much higher the pooled rate of a is than that of b on the same utterances.

    Both are resampled by the same draws, so that what is hard for both cancels out; if 0 lies between lo and hi,
    the two cannot be told apart.
    Raises DataError for an empty set, one without reference units, or lists of different lengths.
    """
    import numpy as np

    if len(errors_a) != len(errors_b):
        raise DataError(f"{len(errors_a)} utterances against {len(errors_b)}; compare two results on the same set")
    errors, units = np.asarray([errors_a, errors_b]), np.asarray(references)
    (pooled_a, pooled_b), totals = _resample(errors, units, seed=seed, resamples=resamples)
    delta = float((errors[0].sum() - errors[1].sum()) / units.sum())
    return Difference(delta, *_percentiles((pooled_a - pooled_b) / totals, level=level))


def _resample(errors: Counts, references: Counts, *, seed: int, resamples: int) -> tuple[Counts, Counts]:
    """Pooled counts of `resamples` draws of as many utterances as there are, with replacement.

    errors: [num_systems, num_utterances]. references: [num_utterances].
    Returns errors [num_systems, num_resamples] and references [num_resamples].
    """
    import numpy as np

    if errors.shape[1] != len(references):
        raise DataError(f"{errors.shape[1]} utterances with errors but {len(references)} references; give one for each")
    if not len(references) or not references.sum():
        raise DataError(f"{len(references)} utterances with 0 reference units have no error rate; check the set")
    counts = np.vstack([errors, references])
    blocks = [counts[:, draws].sum(axis=-1) for draws in _draws(len(references), seed=seed, resamples=resamples)]
    pooled = np.concatenate(blocks, axis=1)
    # Tiny sets with empty references can draw nothing but those; such a draw has no rate.
    pooled = pooled[:, pooled[-1] > 0]
    return pooled[:-1], pooled[-1]


def _draws(num_utterances: int, *, seed: int, resamples: int) -> Iterator[Counts]:
    """Blocks [num_resamples of the block, num_utterances] of indices."""
    import numpy as np

    generator = np.random.default_rng(seed)
    rows = max(1, BLOCK // num_utterances)
    for start in range(0, resamples, rows):
        yield generator.integers(num_utterances, size=(min(rows, resamples - start), num_utterances))


def _percentiles(rates: npt.NDArray[np.float64], *, level: float) -> tuple[float, float]:
    import numpy as np

    lo, hi = np.percentile(rates, [50 * (1 - level), 50 * (1 + level)])
    return float(lo), float(hi)
