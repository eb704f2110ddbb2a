"""WER and CER of Russian by the project's normaliser and counts, for `evaluate.load`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from harness.core.text import normalise
from harness.core.wer import count_errors, pool

DESCRIPTION = "Word and character error rate of a set, pooled over its utterances, both sides normalised."


class RussianWer(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """`compute(predictions=…, references=…)` → `{"wer": …, "cer": …}`, fractions."""

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="predictions, references: lists of texts.",
            features=datasets.Features(features),
        )

    def _compute(self, predictions: list[str], references: list[str], profile: str = "ru") -> dict[str, Any]:
        said = [normalise(item, profile=profile) for item in references]
        heard = [normalise(item, profile=profile) for item in predictions]
        return {
            "wer": pool(count_errors(said, heard)).rate,
            "cer": pool(count_errors(said, heard, unit="char")).rate,
        }
