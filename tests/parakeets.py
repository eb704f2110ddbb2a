"""Tiny random Parakeets: shaped as NVIDIA shapes them, a ten-thousandth of the size; their texts are varied noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.conftest import AELITA

VOCAB_SIZE = 96
DURATIONS = [0, 1, 2, 3, 4]
WIDTH, HIDDEN = 32, 24
UNKNOWN, NEVER = 0, 100.0
"""`<unk>`, which every runtime writes in its own way."""
DROPOUTS = ("dropout", "dropout_pre_encoder", "dropout_emb", "dropout_att")
SPEC_AUGMENT = {
    "_target_": "nemo.collections.asr.modules.SpectrogramAugmentation",
    "freq_masks": 2,
    "time_masks": 2,
    "freq_width": 15,
    "time_width": 0.05,
}
BLANK = {"tdt": 2.0, "hybrid": 2.0, "rnnt": 12.0, "ctc": 1.0}
"""How much more than any other token the blank scores, so that there are pauses."""


def build_parakeet(
    folder: Path, *, kind: str = "tdt", num_mels: int = 80, layers: int = 2, width: int = WIDTH, dropout: float = 0.0
) -> Path:
    """Save a random `.nemo` in `folder`. kind: tdt, rnnt, ctc or hybrid (tdt with an auxiliary ctc).

    dropout: of the encoder; with it training also masks the spectrogram.
    """
    import torch
    from nemo.collections.asr import models
    from nemo.utils import logging
    from omegaconf import OmegaConf

    logging.setLevel(logging.ERROR)
    classes = {
        "tdt": models.EncDecRNNTBPEModel,
        "rnnt": models.EncDecRNNTBPEModel,
        "ctc": models.EncDecCTCModelBPE,
        "hybrid": models.EncDecHybridRNNTCTCBPEModel,
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config = parakeet_config(_tokenizer(folder), kind=kind, num_mels=num_mels, layers=layers, width=width)
    if dropout:
        config["encoder"] |= dict.fromkeys(DROPOUTS, dropout)
        config["spec_augment"] = SPEC_AUGMENT
    model = classes[kind](OmegaConf.create(config)).eval()
    _vary(model, blank=BLANK[kind])
    path = folder / f"{kind}-{num_mels}.nemo"
    model.save_to(str(path))
    return path


def parakeet_config(tokenizer: Path, *, kind: str, num_mels: int, layers: int, width: int) -> dict[str, Any]:
    """NVIDIA's configuration of the kind, with small numbers."""
    modules = "nemo.collections.asr.modules"
    config: dict[str, Any] = {
        "sample_rate": 16000,
        "log_prediction": False,
        "tokenizer": {"dir": str(tokenizer), "type": "bpe"},
        "preprocessor": {
            "_target_": f"{modules}.AudioToMelSpectrogramPreprocessor",
            "sample_rate": 16000,
            "normalize": "per_feature",
            "window_size": 0.025,
            "window_stride": 0.01,
            "window": "hann",
            "features": num_mels,
            "n_fft": 512,
            "frame_splicing": 1,
            "dither": 1.0e-5,
            "pad_to": 0,
        },
        "encoder": {
            "_target_": f"{modules}.ConformerEncoder",
            "feat_in": num_mels,
            "feat_out": -1,
            "n_layers": layers,
            "d_model": width,
            "subsampling": "dw_striding",
            "subsampling_factor": 8,
            "subsampling_conv_channels": 16,
            "causal_downsampling": False,
            "ff_expansion_factor": 2,
            "self_attention_model": "rel_pos",
            "n_heads": 4,
            "att_context_size": [-1, -1],
            "xscaling": False,
            "untie_biases": True,
            "pos_emb_max_len": 5000,
            "conv_kernel_size": 9,
            "conv_norm_type": "batch_norm",
            **dict.fromkeys(DROPOUTS, 0.0),
        },
        "optim": {"name": "adamw", "lr": 0.001},
    }
    ctc = {"_target_": f"{modules}.ConvASRDecoder", "feat_in": width, "num_classes": -1, "vocabulary": []}
    if kind == "ctc":
        return config | {"decoder": ctc, "decoding": {"strategy": "greedy"}}
    tdt = kind != "rnnt"
    config |= {
        "model_defaults": {"enc_hidden": width, "pred_hidden": HIDDEN, "joint_hidden": HIDDEN},
        "decoder": {
            "_target_": f"{modules}.RNNTDecoder",
            "normalization_mode": None,
            "random_state_sampling": False,
            "blank_as_pad": True,
            "prednet": {"pred_hidden": HIDDEN, "pred_rnn_layers": 2, "dropout": 0.0},
        },
        "joint": {
            "_target_": f"{modules}.RNNTJoint",
            "log_softmax": None,
            "preserve_memory": False,
            "fuse_loss_wer": False,
            "num_extra_outputs": len(DURATIONS) if tdt else 0,
            "jointnet": {"joint_hidden": HIDDEN, "activation": "relu", "dropout": 0.0},
        },
        "loss": {"loss_name": "tdt", "tdt_kwargs": {"fastemit_lambda": 0.0, "durations": DURATIONS, "sigma": 0.02}}
        if tdt
        else {"loss_name": "default"},
        "decoding": {
            "strategy": "greedy_batch",
            "greedy": {"max_symbols": 10},
            **({"model_type": "tdt", "durations": DURATIONS} if tdt else {}),
        },
    }
    if kind == "hybrid":
        config["aux_ctc"] = {"ctc_loss_weight": 0.3, "decoder": ctc, "decoding": {"strategy": "greedy"}}
    return config


def _tokenizer(folder: Path) -> Path:
    """SentencePiece of the shipped transcripts, with NeMo's `vocab.txt` beside it."""
    import sentencepiece

    lines = (AELITA / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    target = folder / "tokenizer"
    if not target.is_dir():
        target.mkdir()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([json.loads(line)["text"].lower() for line in lines]),
            model_prefix=str(target / "tokenizer"),
            vocab_size=VOCAB_SIZE,
            model_type="bpe",
            bos_id=-1,
            eos_id=-1,
            minloglevel=2,
            num_threads=1,
        )
        pieces = (target / "tokenizer.vocab").read_text(encoding="utf-8").splitlines()
        (target / "vocab.txt").write_text("\n".join(piece.split("\t")[0] for piece in pieces[1:]), encoding="utf-8")
    return target


def _vary(model: Any, *, blank: float) -> None:
    """Make tokens follow the sound, some frames blank: a fresh encoder's frames are nearly alike.

    The layer after the encoder is scaled until its outputs over the frames of a real clip have mean 0 and deviation 1.
    """
    import soundfile
    import torch

    samples, _ = soundfile.read(AELITA / "clips" / "ru_0001.opus", dtype="float32")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        features, length = model.preprocessor(
            input_signal=torch.from_numpy(samples)[None], length=torch.tensor([len(samples)])
        )
        frames = model.encoder(audio_signal=features, length=length)[0][0].T
        heads = [layer for name, layer in model.named_modules() if name.endswith(("joint.enc", "decoder_layers.0"))]
        for layer in heads:
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
            outputs = frames @ layer.weight.reshape(len(layer.weight), -1).T
            layer.weight /= outputs.std(dim=0).reshape(-1, *[1] * (layer.weight.dim() - 1))
            layer.bias.copy_(-outputs.mean(dim=0) / outputs.std(dim=0))
            if layer.weight.dim() == 3:
                layer.bias[VOCAB_SIZE] += blank
                layer.bias[UNKNOWN] -= NEVER
        if hasattr(model, "joint"):
            last = model.joint.joint_net[-1]
            last.weight.copy_(torch.randn(last.weight.shape, generator=generator))
            last.bias.zero_()
            last.bias[VOCAB_SIZE] = blank
            last.bias[UNKNOWN] = -NEVER
