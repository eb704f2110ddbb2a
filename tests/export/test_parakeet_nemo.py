"""What an export has to know of a Parakeet, and the `.nemo` file as it is served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.core.artifact import Artifact
from harness.errors import DataError, ExportError
from harness.export import parakeet_nemo
from harness.export.nemo_model import Shape, describe, load, parakeet_rs_fault
from tests.conftest import artifact
from tests.parakeets import build_parakeet

NUM_MELS = {"hybrid": 80, "ctc": 128}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Artifact]:
    """Kind → an artifact as training leaves it."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for kind, num_mels in NUM_MELS.items():
        path = build_parakeet(folder / "made", kind=kind, num_mels=num_mels)
        (folder / kind / "model").mkdir(parents=True)
        path.rename(folder / kind / "model" / "model.nemo")
        found[kind] = artifact(folder / kind)
    return found


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("hybrid", ("nemo-conformer-tdt", 80, 8, 10, 5, (2, 24), 400.0)),
        ("ctc", ("nemo-conformer-ctc", 128, 8, 1000, 0, None, 400.0)),
    ],
)
def test_a_model_is_described(models, kind, expected):
    shape = describe(load(models[kind]), path=Path("model.nemo"))
    assert len(shape.vocabulary) == 96
    assert shape.is_ctc is (kind == "ctc")
    assert (
        shape.model_type,
        shape.num_mels,
        shape.subsampling_factor,
        shape.max_tokens_per_step,
        shape.num_durations,
        shape.prediction,
        shape.max_audio_s,
    ) == expected


def set_config(model, place, value):
    from omegaconf import OmegaConf, open_dict

    with open_dict(model.cfg):
        OmegaConf.update(model.cfg, place, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: set_config(model, "sample_rate", 8000), "made for 8000 Hz, only 16000 Hz is exported"),
        (lambda model: set_config(model, "preprocessor.features", 64), "64 mel bins; .* for 80 and 128 only"),
        (lambda model: setattr(model, "encoder", model.joint), "its encoder is a RNNTJoint, only NeMo's Conformer"),
        (lambda model: setattr(model, "decoder", model.encoder), "it decodes by ConformerEncoder and RNNTJoint; only"),
        (
            lambda model: setattr(model.decoding, "durations", [0, 2, 4]),
            r"for the durations \[0, 2, 4\]; runtimes know",
        ),
        (
            lambda model: setattr(model.joint, "_num_extra_outputs", 2),
            r"2 outputs beside the tokens, for the durations",
        ),
        (
            lambda model: setattr(model, "tokenizer", Pieces(["а", "б б"])),
            r"the token 'б б' cannot stand in vocab\.txt",
        ),
        (lambda model: setattr(model, "tokenizer", Pieces(["а", "<blk>"])), "the token '<blk>' cannot stand"),
    ],
)
def test_what_the_layout_cannot_say_is_refused(models, change, message):
    model = load(models["hybrid"])
    change(model)
    with pytest.raises(ExportError, match=message):
        describe(model, path=Path("model.nemo"))


class Pieces:
    """A tokenizer."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces, self.vocab_size = pieces, len(pieces)

    def ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[number] for number in ids]


def test_a_space_among_characters_becomes_sentencepieces(models):
    model = load(models["hybrid"])
    model.tokenizer = Pieces(["а", " ", "б"])
    shape = describe(model, path=Path("model.nemo"))
    assert list(shape.lines) == ["а 0\n", "▁ 1\n", "б 2\n", "<blk> 3\n"]


V3 = Shape(
    model_type="nemo-conformer-tdt",
    num_mels=128,
    subsampling_factor=8,
    vocabulary=("а",),
    max_tokens_per_step=10,
    num_durations=5,
    prediction=(2, 640),
    max_audio_s=400.0,
)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, None),
        ({"num_mels": 80}, "its num_mels is 80, and Mimir (parakeet-rs) takes 128 for granted"),
        ({"model_type": "nemo-conformer-rnnt"}, "its model_type is nemo-conformer-rnnt, and Mimir"),
        ({"prediction": (1, 640)}, "its prediction is (1, 640), and Mimir (parakeet-rs) takes (2, 640)"),
        ({"num_durations": 3}, "its num_durations is 3, and Mimir (parakeet-rs) takes 5"),
    ],
)
def test_whether_mimir_can_run_it_is_said(change, fault):
    found = parakeet_rs_fault(replace(V3, **change))
    assert found == fault if fault is None else found.startswith(fault)


@pytest.mark.parametrize("kind", NUM_MELS)
def test_the_nemo_file_is_served_as_it_is(models, work, kind):
    meta = parakeet_nemo.run(parakeet_nemo.Spec(), {"model": [models[kind]]}, work)
    source = models[kind].path / "model" / "model.nemo"
    assert (work.path / "model.nemo").read_bytes() == source.read_bytes()
    assert meta == {
        "files": ["model.nemo"],
        "size_bytes": source.stat().st_size,
        "model_class": "EncDecCTCModelBPE" if kind == "ctc" else "EncDecHybridRNNTCTCBPEModel",
        "num_parameters": meta["num_parameters"],
        "vocab_size": 96,
        "num_mels": NUM_MELS[kind],
    }
    assert meta["num_parameters"] == sum(item.numel() for item in load(models[kind]).parameters())
    assert parakeet_nemo.Spec().label == "nemo"


def test_a_nemo_file_that_brings_code_is_not_served(models, tmp_path, work):
    path = tmp_path / "model" / "model.nemo"
    path.parent.mkdir()
    path.write_bytes((models["ctc"].path / "model" / "model.nemo").read_bytes()[:5000])
    with pytest.raises(DataError, match="no whole tar archive"):
        parakeet_nemo.run(parakeet_nemo.Spec(), {"model": [artifact(tmp_path)]}, work)
    assert not list(work.path.iterdir())
