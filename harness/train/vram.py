"""What fine-tuning a Whisper takes of a GPU: pure arithmetic over its config and the training's settings.

The activations agree with what PyTorch's autograd keeps, counted tensor by tensor (tests/train/test_vram.py). The sum
is predicted: it has not been measured on a card. The CUDA context and what the allocator wastes are rules of thumb.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, Protocol

from harness.core.estimates import Memory
from harness.train.lora import Lora
from harness.train.micro_batch import candidates

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

GIB = 2**30
CONTEXT_B = round(0.6 * GIB)
"""CUDA's context and the libraries' workspaces."""
WASTE = 0.05
"""Of everything else: what the allocator holds in pieces too small to use."""
LOGIT_PEAK_B = 12
"""For each logit, as the backward pass begins: log-probabilities, their gradient, the logits' gradient, in float32."""
LOGIT_FORWARD_B = 10
"""As the forward pass ends: log-probabilities and a float32 copy of the half-precision logits."""
STATE_B = {"adamw": 8.0, "adamw_8bit": 2 + 8 / 256}
"""Of an optimizer for each weight: two moments; in 8 bits with two scales for 256 weights.

bitsandbytes leaves small tensors, and transformers embeddings, in float32.
"""
MASK_B = 1
"""Of a dropout mask's element, on CUDA."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A Whisper's size, by the names of its config."""

    d_model: int
    encoder_layers: int
    decoder_layers: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    encoder_ffn_dim: int
    decoder_ffn_dim: int
    num_mel_bins: int
    vocab_size: int
    max_source_positions: int = 1500
    max_target_positions: int = 448


def _openai(d_model: int, layers: int, *, decoder_layers: int | None = None, mels: int = 80) -> Shape:
    """As OpenAI shapes them: heads of 64, blocks four times as wide; one language more with 128 mel bins."""
    heads, wide = d_model // 64, 4 * d_model
    vocabulary = 51_866 if mels == 128 else 51_865
    return Shape(d_model, layers, decoder_layers or layers, heads, heads, wide, wide, mels, vocabulary)


KNOWN = {
    "openai/whisper-tiny": _openai(384, 4),
    "openai/whisper-base": _openai(512, 6),
    "openai/whisper-small": _openai(768, 12),
    "openai/whisper-medium": _openai(1024, 24),
    "openai/whisper-large": _openai(1280, 32),
    "openai/whisper-large-v2": _openai(1280, 32),
    "openai/whisper-large-v3": _openai(1280, 32, mels=128),
    "openai/whisper-large-v3-turbo": _openai(1280, 32, decoder_layers=4, mels=128),
}


class Recipe(Protocol):
    """The settings that matter, by the names of `harness.train.whisper.Training`."""

    @property
    def batch_size(self) -> int | Literal["auto"]: ...
    @property
    def per_step(self) -> int: ...
    @property
    def devices(self) -> int: ...
    @property
    def precision(self) -> str: ...
    @property
    def gradient_checkpointing(self) -> bool: ...
    @property
    def freeze(self) -> str: ...
    @property
    def optimizer(self) -> str: ...
    @property
    def lora(self) -> Lora | None: ...
    @property
    def eval_batch_size(self) -> int: ...


def shape_of(base: str, *, folder: Path | None) -> Shape | None:
    """The size of a base model; None if it cannot be known yet.

    folder: where its files lie on this machine, if they do.
    """
    if base in KNOWN or folder is None:
        return KNOWN.get(base)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        sizes = {field.name: config.get(field.name, field.default) for field in fields(Shape)}
    except (OSError, ValueError, AttributeError):
        return None
    return Shape(**sizes) if all(type(size) is int and size > 0 for size in sizes.values()) else None


def memory(spec: Recipe, base: str, *, folder: Path | None, budget_b: float | None) -> Memory | None:
    """What a training will take of each GPU; None for a base model whose size is not known yet.

    folder: of the base weights, where they are on this machine.
    budget_b: what `batch_size: auto` has to fit into; without it, one window at a time is reckoned with.
    """
    shape = shape_of(base, folder=folder)
    if shape is None:
        return None
    if spec.batch_size != "auto":
        return predict(shape, spec, micro_batch=spec.batch_size)
    found = predict(shape, spec, micro_batch=1)
    for size in candidates(spec.per_step // spec.devices):
        found = replace(predict(shape, spec, micro_batch=size), micro_batch=size)
        if budget_b is not None and found.total_b <= budget_b:
            break
    return found


def lighter(spec: Recipe) -> Iterator[dict[str, Any]]:
    """Changes of the training's fields that take less memory, those that change the training least first."""
    sizes = [] if spec.batch_size == "auto" else candidates(spec.batch_size)[1:]
    each = spec.per_step // spec.devices
    smaller = [{"batch_size": size, "gradient_accumulation_steps": each // size} for size in sizes]
    computed: list[dict[str, Any]] = [{}] if spec.gradient_checkpointing else [{}, {"gradient_checkpointing": True}]
    evaluated: list[dict[str, Any]] = [{}] if spec.eval_batch_size == 1 else [{}, {"eval_batch_size": 1}]
    frozen, quantised = {"freeze": "encoder"}, {"optimizer": "adamw_8bit"}
    learnt: list[dict[str, Any]] = [{}, quantised, frozen, frozen | quantised, {"lora": Lora()}]
    for changes in product(learnt, [{}, *smaller], computed, evaluated):
        yield {name: value for change in changes for name, value in change.items()}


def predict(shape: Shape, recipe: Recipe, *, micro_batch: int) -> Memory:
    """The peak over training and evaluation, of windows with a full text context.

    micro_batch: windows in one forward pass.
    """
    count = Count(shape, recipe)
    resident = {
        "weights": 4 * count.num_parameters,
        # Several devices exchange theirs through a copy.
        "gradients": 4 * count.num_trainable * (2 if recipe.devices > 1 else 1),
        "optimizer": count.optimizer_b(),
    }
    # Between steps there are no gradients; the evaluation has their room.
    training = count.training_b(micro_batch)
    evaluation = count.evaluation_b(recipe.eval_batch_size) - 4 * count.num_trainable
    parts = {**resident, "activations": max(training, evaluation)}
    return Memory({**parts, "context": CONTEXT_B + round(WASTE * sum(parts.values()))})


@dataclass(frozen=True, slots=True)
class Linear:
    """Linear layers of one shape."""

    target: str
    in_encoder: bool
    inputs: int
    outputs: int
    count: int

    @property
    def size(self) -> int:
        """Elements of their weights together."""
        return self.inputs * self.outputs * self.count


class Count:
    """The elements and bytes of one model under one recipe."""

    def __init__(self, shape: Shape, recipe: Recipe) -> None:
        self.shape = shape
        self.lora = recipe.lora
        self.checkpointing = recipe.gradient_checkpointing
        self.optimizer = recipe.optimizer
        self.encoder_frozen = recipe.freeze == "encoder"
        # `auto` is a half precision on every card that is worth planning for.
        self.half = recipe.precision != "fp32"
        self.width = 2 if self.half else 4
        self.linears = list(_linears(shape))

    @property
    def embeddings(self) -> int:
        """Tokens, which are the output layer too, and positions of the text."""
        return self.shape.d_model * (self.shape.vocab_size + self.shape.max_target_positions)

    @property
    def convolutions(self) -> int:
        return 3 * self.shape.d_model * (self.shape.num_mel_bins + self.shape.d_model)

    def small(self, *, in_encoder: bool) -> int:
        """Elements of norms and biases."""
        d = self.shape.d_model
        if in_encoder:
            # Two norms and an attention's three biases, of which the keys have none; the convolutions' and last norm.
            return self.shape.encoder_layers * (8 * d + self.shape.encoder_ffn_dim) + 4 * d
        return self.shape.decoder_layers * (13 * d + self.shape.decoder_ffn_dim) + 2 * d

    @property
    def positions(self) -> int:
        """Of the audio: sinusoids, but trained like all others once transformers has loaded them."""
        return self.shape.d_model * self.shape.max_source_positions

    @property
    def num_parameters(self) -> int:
        small = self.small(in_encoder=True) + self.small(in_encoder=False)
        return sum(item.size for item in self.linears) + self.convolutions + self.embeddings + self.positions + small

    @property
    def adapters(self) -> int:
        lora = self.lora
        return sum(lora.r * (item.inputs + item.outputs) * item.count for item in self._adapted()) if lora else 0

    @property
    def num_trainable(self) -> int:
        if self.lora:
            return self.adapters
        decoder = sum(item.size for item in self.linears if not item.in_encoder) + self.embeddings
        decoder += self.small(in_encoder=False)
        if self.encoder_frozen:
            return decoder
        encoder = sum(item.size for item in self.linears if item.in_encoder) + self.convolutions + self.positions
        return decoder + encoder + self.small(in_encoder=True)

    def optimizer_b(self) -> int:
        if self.lora:
            return round(STATE_B[self.optimizer] * self.adapters)
        plain = self.embeddings + self.small(in_encoder=False)
        if not self.encoder_frozen:
            plain += self.positions + self.small(in_encoder=True)
        return round(STATE_B["adamw"] * plain + STATE_B[self.optimizer] * (self.num_trainable - plain))

    def training_b(self, micro_batch: int) -> int:
        """Of activations and half-precision copies of weights, at the peak of a training step."""
        logits = self.shape.max_target_positions * self.shape.vocab_size
        kept = self.outer_b() + self.layers_b()
        copies = self.weight_copies_b()
        if not self.checkpointing:
            return copies + micro_batch * (kept + (LOGIT_PEAK_B - 4) * logits)
        # As the forward pass ends, as the backward pass begins, and while the largest layer is computed again.
        forward = (0 if self.lora else copies) + micro_batch * (LOGIT_FORWARD_B - 4) * logits
        again = max(self.encoder_layer_b() if self.encoder_has_graph else 0, self.decoder_layer_b())
        return micro_batch * kept + max(forward, micro_batch * max((LOGIT_PEAK_B - 4) * logits, again - 4 * logits))

    def evaluation_b(self, batch: int) -> int:
        """Of generating: cached keys and values of every frame and token, one encoder layer, copies of the weights."""
        shape = self.shape
        positions = shape.max_source_positions + shape.max_target_positions
        cache = 2 * shape.decoder_layers * positions * shape.d_model * self.width
        layer = shape.max_source_positions * (12 * shape.d_model + 2 * self.width * shape.encoder_ffn_dim)
        return (0 if self.lora else self.weight_copies_b()) + batch * (cache + layer)

    @property
    def encoder_has_graph(self) -> bool:
        return not self.encoder_frozen

    def outer_b(self) -> int:
        """Kept for the backward pass by what is no layer: convolutions, last norms, output, loss."""
        shape, width = self.shape, self.width
        frames, tokens, d = shape.max_source_positions, shape.max_target_positions, shape.d_model
        kept = _norm_b(tokens, d) + 4 * tokens * shape.vocab_size
        if self.encoder_has_graph:
            kept += _norm_b(frames, d)
        if self.checkpointing or not self.half:
            kept += 4 * frames * d
        if not self.lora:
            kept += width * tokens * d
            if self.encoder_has_graph:
                kept += width * frames * (2 * shape.num_mel_bins + 5 * d)
        return kept

    def layers_b(self) -> int:
        """Kept by all layers; with checkpointing only what goes into each."""
        shape = self.shape
        encoder, decoder = self.encoder_layer_b(), self.decoder_layer_b()
        if self.checkpointing:
            encoder = 4 * shape.max_source_positions * shape.d_model
            decoder = 4 * shape.max_target_positions * shape.d_model
        return (shape.encoder_layers * encoder if self.encoder_has_graph else 0) + shape.decoder_layers * decoder

    def encoder_layer_b(self) -> int:
        frames, d, wide = self.shape.max_source_positions, self.shape.d_model, self.shape.encoder_ffn_dim
        attention = self._self_attention_b(frames, heads=self.shape.encoder_attention_heads)
        return attention + self._feed_forward_b(frames, d, wide)

    def decoder_layer_b(self) -> int:
        frames, tokens = self.shape.max_source_positions, self.shape.max_target_positions
        d, heads = self.shape.d_model, self.shape.decoder_attention_heads
        # Queries and outcome; keys and values of every frame. In float32 all layers share the encoder's output.
        cross = _norm_b(tokens, d) + tokens * (2 * d * self.width + 4 * heads) + 2 * frames * d * self.width
        cross += self._inputs_b(["q_proj"], tokens, d) + self._inputs_b(["out_proj"], tokens, d)
        cross += self._inputs_b(["k_proj", "v_proj"], frames, d, shared_outside=True)
        attention = self._self_attention_b(tokens, heads=heads)
        return attention + cross + self._feed_forward_b(tokens, d, self.shape.decoder_ffn_dim)

    def weight_copies_b(self) -> int:
        """Of weights in half precision, which live until the forward pass has ended, or the backward pass."""
        if not self.half:
            return 0
        kept = sum(item.size for item in self.linears if not (item.in_encoder and self.encoder_frozen))
        kept += self.shape.d_model * self.shape.vocab_size + self.adapters
        return 2 * (kept + (0 if self.encoder_frozen or self.lora else self.convolutions))

    def _self_attention_b(self, positions: int, *, heads: int) -> int:
        d = self.shape.d_model
        kept = _norm_b(positions, d) + positions * (4 * d * self.width + 4 * heads)
        inputs = self._inputs_b(["q_proj", "k_proj", "v_proj"], positions, d)
        return kept + inputs + self._inputs_b(["out_proj"], positions, d)

    def _feed_forward_b(self, positions: int, d: int, wide: int) -> int:
        kept = _norm_b(positions, d) + positions * wide * self.width
        return kept + self._inputs_b(["fc1"], positions, d) + self._inputs_b(["fc2"], positions, wide)

    def _inputs_b(self, targets: Sequence[str], positions: int, inputs: int, *, shared_outside: bool = False) -> int:
        """Of what goes into linear layers side by side: kept by those that learn.

        In float32 they share one tensor; autocast and dropout make one for each.
        """
        lora = self.lora
        count = sum(target in lora.targets for target in targets) if lora else len(targets)
        kept = positions * inputs * self.width
        apart = self.half or (lora is not None and lora.dropout > 0)
        kept *= count if apart else 0 if shared_outside else min(count, 1)
        if lora:
            kept += count * positions * lora.r * self.width
            kept += count * positions * inputs * MASK_B if lora.dropout else 0
        return kept

    def _adapted(self) -> Iterator[Linear]:
        for item in self.linears:
            if self.lora and item.target in self.lora.targets and not (item.in_encoder and self.encoder_frozen):
                yield item


def _linears(shape: Shape) -> Iterator[Linear]:
    d = shape.d_model
    for in_encoder, layers, attentions, wide in (
        (True, shape.encoder_layers, 1, shape.encoder_ffn_dim),
        (False, shape.decoder_layers, 2, shape.decoder_ffn_dim),
    ):
        for target in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield Linear(target, in_encoder, d, d, layers * attentions)
        yield Linear("fc1", in_encoder, d, wide, layers)
        yield Linear("fc2", in_encoder, wide, d, layers)


def _norm_b(positions: int, width: int) -> int:
    """A norm keeps its input, in float32, with a mean and a deviation for each position."""
    return positions * (4 * width + 8)
