"""Low-rank adapters: little to learn beside frozen weights, merged into them before anything is exported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from harness.errors import SuiteError
from harness.suite.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Sequence

Target = Literal["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
"""Whisper's linear layers: those of an attention, and the two of a feed-forward block."""


class Lora(Spec):
    """Adapters beside the weights, which stay as they are."""

    r: int = Field(default=32, ge=1, description="Rank: how much an adapter can learn.")
    alpha: int = Field(default=64, ge=1, description="What an adapter says counts alpha / r times.")
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: list[Target] = Field(
        default=["q_proj", "v_proj"], min_length=1, description="Layers with an adapter, everywhere they occur."
    )


def attach(model: Any, lora: Lora, *, decoder_only: bool) -> None:
    """Put adapters into a transformers Whisper, in place: only they are trainable afterwards.

    The model stays of its own class: its checkpoints hold weights and adapters, and resume like any other's.
    Raises SuiteError if a target is no layer of this model.
    """
    from peft import LoraConfig, get_peft_model

    layers = _layers(model, decoder_only=decoder_only)
    for target in lora.targets:
        if not any(name.endswith(f".{target}") for name in layers):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
            raise SuiteError(f"lora.targets: '{target}' matches no layer of this model, which has: {known}")
    chosen = [name for name in layers if name.rpartition(".")[2] in lora.targets]
    config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=chosen)
    get_peft_model(model, config)


def merge(model: Any) -> Any:
    """Add the adapters, if there are some, to the weights: the model, which is returned, is a plain Whisper again.

    Raises ValueError if an adapter has learned what is no number.
    """
    for name, module in list(model.named_modules()):
        if hasattr(module, "lora_A"):
            module.merge(safe_merge=True)
            model.set_submodule(name, module.get_base_layer())
    return model


def _layers(model: Any, *, decoder_only: bool) -> Sequence[str]:
    """Names of the linear layers inside the encoder's and the decoder's blocks."""
    from torch import nn

    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and ".layers." in name
        and not (decoder_only and name.startswith("model.encoder."))
    ]
