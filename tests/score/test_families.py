"""How much the families of onnx-asr hear at once."""

from __future__ import annotations

from typing import get_args

import pytest
from onnx_asr.loader import AsrNames, AsrTypeNames

from harness.score.families import takes_language, window_s


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("whisper", 30.0),
        ("onnx-community/whisper-large-v3-turbo", 30.0),
        ("nemo-conformer-tdt", 300.0),
        ("nemo-fastconformer-ru-ctc", 300.0),
        ("nemo-conformer-aed", 40.0),
        ("nemo-canary-1b-v2", 40.0),
        ("gigaam-v3-e2e-rnnt", 25.0),
        ("t-tech/t-one", 300.0),
        ("alphacep/vosk-model-ru", 30.0),
        ("something new", 30.0),
    ],
)
def test_the_longest_piece(name, seconds):
    assert window_s(name) == seconds


def test_those_that_must_be_told_the_language():
    names = [*get_args(AsrNames), *get_args(AsrTypeNames)]
    told = {name for name in names if takes_language(name)}
    assert told == {"whisper", "whisper-ort", "whisper-base", "nemo-canary-1b-v2", "nemo-conformer-aed"}
