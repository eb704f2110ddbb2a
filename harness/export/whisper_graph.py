"""Whisper's encoder and decoder as ONNX graphs, with the inputs and outputs of optimum's merged export.

Written node by node instead of traced: it takes a second instead of a minute, depends on no version of torch, gives
the same bytes each time, and stores every weight once. Whatever the precision, inputs and outputs are float32, which
onnx-asr takes for granted.

Source: Radford et al. 2022; `modeling_whisper.py` of transformers; the names are optimum's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.export.onnx_graph import BYTES, MAX_EMBEDDED_BYTES, Graph, Precision, Weights, floats, save
from harness.export.onnx_precision import linear, lookup, matrix_product, narrow, widen

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import onnx

LAYER_NORM_EPSILON = 1e-5
EVERYTHING = 2**63 - 1
"""As the end of a Slice: up to the last element."""
ENCODER, DECODER = "model.encoder.", "model.decoder."
EMBEDDINGS, PROJECTION = "model.decoder.embed_tokens.weight", "proj_out.weight"


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that the graphs need, read from a model's config."""

    d_model: int
    num_mel_bins: int
    max_source_positions: int
    vocab_size: int
    encoder_layers: int
    encoder_attention_heads: int
    decoder_layers: int
    decoder_attention_heads: int


def write_encoder(
    path: Path, *, tensors: Mapping[str, np.ndarray], shape: Shape, precision: Precision = "fp32"
) -> None:
    """input_features float32 [batch, num_mel_bins, frames] → last_hidden_state float32 [batch, frames / 2, d_model]."""
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(ENCODER)}
    graph = Graph(_weights(own, path, precision))
    x = narrow(graph, "input_features")
    for convolution, stride in (("conv1", 1), ("conv2", 2)):
        names = [graph.weights.take(f"{ENCODER}{convolution}.{part}") for part in ("weight", "bias")]
        x = _gelu(graph, graph.op("Conv", x, *names, kernel_shape=[3], pads=[1, 1], strides=[stride]))
    x = graph.op("Transpose", x, perm=[0, 2, 1])
    x = graph.op("Add", x, graph.weights.take(f"{ENCODER}embed_positions.weight"))
    for number in range(shape.encoder_layers):
        layer = f"{ENCODER}layers.{number}."
        normed = _layer_norm(graph, x, f"{layer}self_attn_layer_norm")
        query, key, value = (
            _heads(graph, y, shape.encoder_attention_heads)
            for y in (
                _query(graph, normed, f"{layer}self_attn", shape.d_model // shape.encoder_attention_heads),
                linear(graph, normed, f"{layer}self_attn.k_proj"),
                linear(graph, normed, f"{layer}self_attn.v_proj"),
            )
        )
        x = _residual(graph, x, _attend(graph, query, key, value), f"{layer}self_attn.out_proj")
        x = _feed_forward(graph, x, layer)
    graph.name(widen(graph, _layer_norm(graph, x, f"{ENCODER}layer_norm")), "last_hidden_state")
    graph.weights.close()
    positions = shape.max_source_positions
    inputs = [floats("input_features", "batch_size", shape.num_mel_bins, 2 * positions)]
    outputs = [floats("last_hidden_state", "batch_size", positions, shape.d_model)]
    save(graph.finish("encoder", inputs=inputs, outputs=outputs), path)


def write_decoder(
    path: Path, *, tensors: Mapping[str, np.ndarray], shape: Shape, precision: Precision = "fp32"
) -> None:
    """The decoder with its key-value cache, for the first step (`use_cache_branch` false) and all later ones (true).

    In the first step the past is ignored, whatever its shape, and the cross-attention's keys and values come from
    `encoder_hidden_states`. In later steps they come from the past, and the `present` ones are empty
    [0, heads, 1, head_dim], as optimum's are: the caller keeps those it has.
    In fp16 attention runs in float32, as the cache is: narrowing the whole cache in every step would cost more.
    """
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(DECODER) or name == PROJECTION}
    graph = Graph(_weights(own, path, precision))
    steps = _Steps.of(graph)
    embedded = lookup(graph, "input_ids", EMBEDDINGS)
    x = graph.op("Add", embedded, graph.op("Gather", _positions_table(graph), steps.positions))
    for number in range(shape.decoder_layers):
        x = _decoder_layer(graph, x, number=number, steps=steps, shape=shape)
    x = _layer_norm(graph, x, f"{DECODER}layer_norm")
    graph.name(_logits(graph, x, shape), "logits")
    graph.weights.close()
    inputs, outputs = _interface(shape)
    save(graph.finish("decoder", inputs=inputs, outputs=outputs), path)


@dataclass(frozen=True, slots=True)
class _Steps:
    """What all decoder layers share: where the new tokens stand, and which ones each of them sees."""

    past_end: str
    """int64 [1]: how much of the past counts; nothing in the first step."""
    positions: str
    """int64 [new]: the positions of the new tokens."""
    mask: str
    """float32 [new, past + new]: added to the attention's scores."""

    @classmethod
    def of(cls, graph: Graph) -> _Steps:
        weights = graph.weights
        end = graph.op("Where", "use_cache_branch", weights.integers(EVERYTHING), weights.integers(0))
        past = _past(graph, "past_key_values.0.decoder.key", end)
        zero, one = weights.integer(0), weights.integer(1)
        num_past = graph.op("Squeeze", graph.op("Shape", past, start=2, end=3))
        num_new = graph.op("Squeeze", graph.op("Shape", "input_ids", start=1, end=2))
        num_all = graph.op("Add", num_past, num_new)
        positions = graph.op("Range", num_past, num_all, one)
        keys = graph.op("Range", zero, num_all, one)
        ahead = graph.op("Greater", keys, graph.op("Unsqueeze", positions, weights.integers(1)))
        mask = widen(graph, graph.op("Where", ahead, weights.scalar(-math.inf), weights.scalar(0.0)))
        return cls(past_end=end, positions=positions, mask=mask)


def _decoder_layer(graph: Graph, x: str, *, number: int, steps: _Steps, shape: Shape) -> str:
    layer, heads = f"{DECODER}layers.{number}.", shape.decoder_attention_heads
    head_dim = shape.d_model // heads
    normed = _layer_norm(graph, x, f"{layer}self_attn_layer_norm")
    query = _heads(graph, _query(graph, normed, f"{layer}self_attn", head_dim), heads)
    query = widen(graph, query)
    batch = graph.op("Shape", "input_ids", start=0, end=1)
    past_shape = graph.op("Concat", batch, graph.weights.integers(heads, -1, head_dim), axis=0)
    present = []
    for what in ("key", "value"):
        new = widen(graph, _heads(graph, linear(graph, normed, f"{layer}self_attn.{what[0]}_proj"), heads))
        past = _past(graph, f"past_key_values.{number}.decoder.{what}", steps.past_end)
        # The first step's past may come with batch 0, which no Concat takes; it holds nothing, so it fits any batch.
        past = graph.op("Reshape", past, past_shape)
        present.append(graph.name(graph.op("Concat", past, new, axis=2), f"present.{number}.decoder.{what}"))
    attended = narrow(graph, _attend(graph, query, *present, mask=steps.mask))
    x = _residual(graph, x, attended, f"{layer}self_attn.out_proj")
    normed = _layer_norm(graph, x, f"{layer}encoder_attn_layer_norm")
    query = _heads(graph, _query(graph, normed, f"{layer}encoder_attn", head_dim), heads)
    attended = _cross_attention(graph, widen(graph, query), number=number, heads=heads, head_dim=head_dim)
    attended = narrow(graph, attended)
    x = _residual(graph, x, attended, f"{layer}encoder_attn.out_proj")
    return _feed_forward(graph, x, layer)


def _cross_attention(graph: Graph, query: str, *, number: int, heads: int, head_dim: int) -> str:
    """Attention to the encoder's output: an `If` of a few nodes, so that no cached key or value is ever copied."""
    attended = f"cross_attention.{number}"
    branches = []
    for cached in (True, False):
        branch = Graph(graph.weights, prefix=f"{attended}.{'cached' if cached else 'first'}.")
        keys = [f"past_key_values.{number}.encoder.{what}" for what in ("key", "value")]
        if not cached:
            layer = f"{DECODER}layers.{number}.encoder_attn."
            encoded = narrow(branch, "encoder_hidden_states")
            projected = [linear(branch, encoded, f"{layer}{what}_proj") for what in ("k", "v")]
            keys = [widen(branch, _heads(branch, y, heads)) for y in projected]
        context = _attend(branch, query, *keys)
        empty = branch.weights.integers(0, heads, 1, head_dim)
        present = [branch.op("ConstantOfShape", empty) if cached else key for key in keys]
        outputs = [
            floats(context, "batch_size", "decoder_sequence_length", heads * head_dim),
            *(floats(name, "present_batch_size", heads, "present_length", head_dim) for name in present),
        ]
        branches.append(branch.finish(branch.prefix.rstrip("."), inputs=[], outputs=outputs))
    names = [attended, *(f"present.{number}.encoder.{what}" for what in ("key", "value"))]
    graph.either("use_cache_branch", then=branches[0], otherwise=branches[1], outputs=names)
    return attended


def _interface(shape: Shape) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """The decoder's inputs and outputs, in optimum's order."""
    from onnx import TensorProto, helper

    heads, head_dim = shape.decoder_attention_heads, shape.d_model // shape.decoder_attention_heads
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "decoder_sequence_length"]),
        floats("encoder_hidden_states", "batch_size", "encoder_sequence_length", shape.d_model),
    ]
    outputs = [floats("logits", "batch_size", "decoder_sequence_length", shape.vocab_size)]
    # The past has a batch of its own: onnx-asr and optimum start with other sizes than the tokens' batch.
    for number in range(shape.decoder_layers):
        for side in ("decoder", "encoder"):
            for what in ("key", "value"):
                name, length = f"{number}.{side}.{what}", f"{side}_sequence_length"
                inputs.append(floats(f"past_key_values.{name}", "past_batch_size", heads, f"past_{length}", head_dim))
                batch = "batch_size" if side == "decoder" else "present_batch_size"
                outputs.append(floats(f"present.{name}", batch, heads, f"present_{length}", head_dim))
    inputs.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]))
    return inputs, outputs


def _weights(tensors: Mapping[str, np.ndarray], path: Path, precision: Precision) -> Weights:
    size = sum(tensor.size * BYTES[precision] for tensor in tensors.values())
    return Weights(tensors, precision, path.with_suffix(".onnx_data") if size > MAX_EMBEDDED_BYTES else None)


def _positions_table(graph: Graph) -> str:
    return graph.weights.take(f"{DECODER}embed_positions.weight")


def _logits(graph: Graph, x: str, shape: Shape) -> str:
    projection = PROJECTION if PROJECTION in graph.weights.tensors else EMBEDDINGS
    if graph.weights.precision == "int8":
        return matrix_product(graph, x, projection)
    # Through Gemm, which reads the embeddings as they are: a transposed copy would cost as much again.
    flat = graph.op("Reshape", x, graph.weights.integers(-1, shape.d_model))
    flat = widen(graph, graph.op("Gemm", flat, graph.weights.take(projection), transB=1))
    tokens = graph.op("Shape", "input_ids")
    return graph.op("Reshape", flat, graph.op("Concat", tokens, graph.weights.integers(shape.vocab_size), axis=0))


def _past(graph: Graph, name: str, end: str) -> str:
    integers = graph.weights.integers
    return graph.op("Slice", name, integers(0), end, integers(2))


def _query(graph: Graph, x: str, attention: str, head_dim: int) -> str:
    return graph.op("Mul", linear(graph, x, f"{attention}.q_proj"), graph.weights.scalar(head_dim**-0.5))


def _heads(graph: Graph, x: str, heads: int) -> str:
    """[batch, length, heads * head_dim] → [batch, heads, length, head_dim]."""
    return graph.op("Transpose", graph.op("Reshape", x, graph.weights.integers(0, 0, heads, -1)), perm=[0, 2, 1, 3])


def _attend(graph: Graph, query: str, key: str, value: str, *, mask: str | None = None) -> str:
    """Softmax attention of split heads → [batch, length, d_model]. The query is scaled already."""
    scores = graph.op("MatMul", query, graph.op("Transpose", key, perm=[0, 1, 3, 2]))
    if mask is not None:
        scores = graph.op("Add", scores, mask)
    context = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), value)
    return graph.op("Reshape", graph.op("Transpose", context, perm=[0, 2, 1, 3]), graph.weights.integers(0, 0, -1))


def _residual(graph: Graph, x: str, y: str, name: str) -> str:
    return graph.op("Add", x, linear(graph, y, name))


def _feed_forward(graph: Graph, x: str, layer: str) -> str:
    hidden = _gelu(graph, linear(graph, _layer_norm(graph, x, f"{layer}final_layer_norm"), f"{layer}fc1"))
    return _residual(graph, x, hidden, f"{layer}fc2")


def _layer_norm(graph: Graph, x: str, name: str) -> str:
    names = [graph.weights.take(f"{name}.{part}") for part in ("weight", "bias")]
    return graph.op("LayerNormalization", x, *names, axis=-1, epsilon=LAYER_NORM_EPSILON)


def _gelu(graph: Graph, x: str) -> str:
    """The exact form, in the pattern that ONNX Runtime fuses to one kernel."""
    scalar = graph.weights.scalar
    error = graph.op("Erf", graph.op("Div", x, scalar(math.sqrt(2))))
    return graph.op("Mul", graph.op("Mul", x, graph.op("Add", error, scalar(1.0))), scalar(0.5))
