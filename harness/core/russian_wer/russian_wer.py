"""WER and CER of Russian by the project's normaliser and counts, for `evaluate.load`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from harness.core.alternatives import normalised_pair
from harness.core.text import is_counted
from harness.core.wer import count_errors, pool

DESCRIPTION = "Word and character error rate of a set, pooled over its utterances, both sides normalised."


class RussianWer(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """`compute(predictions=…, references=…, profile="ru")` → `{"wer": …, "cer": …}`, fractions.

    profile: ru, ru-strict or ru-no-digits. References may allow wordings, as in `{две тысячи|2000}`.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="predictions, references: lists of texts.",
            features=datasets.Features(features),
        )

    def _compute(self, predictions: list[str], references: list[str], profile: str = "ru") -> dict[str, Any]:
        pairs = [
            normalised_pair(reference, prediction, profile=profile, name=f"number {number}")
            for number, (reference, prediction) in enumerate(zip(references, predictions, strict=True), start=1)
            if is_counted(reference, profile=profile)
        ]
        said, heard = [first for first, _ in pairs], [second for _, second in pairs]
        return {
            "wer": pool(count_errors(said, heard)).rate,
            "cer": pool(count_errors(said, heard, unit="char")).rate,
        }
