"""The bootstrap of ten models on ten thousand utterances."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest

from harness.score.significance import RESAMPLES, Bootstrap

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

NUM_MODELS = 10
NUM_UTTERANCES = 10_000
NUM_SPEAKERS = 500
MAX_WALL_S = 5
MAX_MIB = 100


@pytest.mark.parametrize("by_speaker", [False, True])
def test_ten_models_on_ten_thousand_utterances(benchmark: BenchmarkFixture, *, by_speaker: bool) -> None:
    generator = np.random.default_rng(1)
    words = generator.integers(3, 20, NUM_UTTERANCES)
    hard = generator.beta(3, 17, NUM_UTTERANCES)
    errors = [generator.binomial(words, hard * (1 + 0.01 * number)).tolist() for number in range(NUM_MODELS)]
    speakers = [f"s{number % NUM_SPEAKERS}" for number in range(NUM_UTTERANCES)] if by_speaker else None

    def judge() -> int:
        """Every model's interval, all against the best, all against a baseline."""
        drawn = Bootstrap(errors, words.tolist(), speakers=speakers, seed=17)
        for number in range(NUM_MODELS):
            drawn.interval(number)
        drawn.compare([(number, 0) for number in range(1, NUM_MODELS)])
        drawn.compare([(number, NUM_MODELS - 1) for number in range(NUM_MODELS - 1)])
        return drawn.resampled.shape[1]

    assert benchmark.pedantic(judge, rounds=3) == RESAMPLES
    if benchmark.enabled:
        assert benchmark.stats.stats.median < MAX_WALL_S
    tracemalloc.start()
    judge()
    _, peak_b = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_b < MAX_MIB * 2**20
