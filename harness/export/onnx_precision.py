"""The same layers with weights in 32, 16 or 8 bits.

fp16 stores and computes in float16; `narrow` and `widen` are its borders to float32. int8 stores matrices as bytes with
a scale per output, and quantises each layer's input while it runs; everything else stays float32.

Not by onnxruntime's `quantize_dynamic`: it turns the token embeddings round for the logits, and the lookup of tokens,
which reads the same tensor, no longer fits; such a graph does not load (onnxruntime 1.31).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.export.onnx_graph import FLOAT, FLOAT16, ZERO_BYTE

if TYPE_CHECKING:
    from harness.export.onnx_graph import Graph


def linear(graph: Graph, x: str, name: str) -> str:
    """The layer `name`, [..., in] → [..., out]; the bias is added where the checkpoint has one."""
    product = matrix_product(graph, x, f"{name}.weight")
    if f"{name}.bias" not in graph.weights.tensors:
        return product
    return graph.op("Add", product, graph.weights.take(f"{name}.bias"))


def matrix_product(graph: Graph, x: str, name: str) -> str:
    """Values [..., in] times the transposed parameter `name`, which is [out, in]."""
    if graph.weights.precision != "int8":
        return graph.op("MatMul", x, graph.weights.take(name, transpose=True))
    weights, scales = graph.weights.take_bytes(name)
    if x not in graph.quantised:
        graph.quantised[x] = graph.three("DynamicQuantizeLinear", x)
    stored, scale, zero = graph.quantised[x]
    product = graph.op("MatMulInteger", stored, weights, zero, graph.weights.zero_byte())
    # In the order of onnxruntime's own quantiser: it fuses these nodes into one.
    return graph.op("Mul", graph.op("Cast", product, to=FLOAT), graph.op("Mul", scale, scales))


def lookup(graph: Graph, ids: str, name: str) -> str:
    """Rows `ids` of the parameter `name`: [...] → [..., width]."""
    if graph.weights.precision != "int8":
        return graph.op("Gather", graph.weights.take(name), ids)
    weights, scales = graph.weights.take_bytes(name)
    # The matrix lies there as the logits need it, a column for each token.
    rows = graph.op("Transpose", graph.op("Gather", weights, ids, axis=1), perm=[1, 2, 0])
    rows = graph.op("Sub", graph.op("Cast", rows, to=FLOAT), graph.weights.scalar(float(ZERO_BYTE)))
    scale = graph.op("Unsqueeze", graph.op("Gather", scales, ids), graph.weights.integers(-1))
    return graph.op("Mul", rows, scale)


def narrow(graph: Graph, x: str) -> str:
    """Float32 as the graph computes: float16 in fp16, itself otherwise."""
    return graph.op("Cast", x, to=FLOAT16) if graph.weights.precision == "fp16" else x


def widen(graph: Graph, x: str) -> str:
    """What the graph computes as float32."""
    return graph.op("Cast", x, to=FLOAT) if graph.weights.precision == "fp16" else x
