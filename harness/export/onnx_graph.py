"""Writing an ONNX file by hand: nodes with generated names, and weights inside the file or beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from harness.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import onnx

OPSET = 17
"""The first with LayerNormalization, and old enough for every ONNX Runtime in use."""
IR_VERSION = 8
"""The one that came with opset 17."""

MAX_EMBEDDED_BYTES = 1_900_000_000
"""Protobuf reads no message above 2 GiB; nodes and names need the rest."""
ALIGNMENT_BYTES = 4096
"""External tensors start on a page, so that they can be mapped into memory."""

Precision = Literal["fp32", "fp16", "int8"]
BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 1}
"""Of a weight of a matrix."""
FLOAT, FLOAT16 = 1, 10
"""ONNX's numbers for types."""
ZERO_BYTE = 128
"""Bytes without a sign: of signed ones, processors without VNNI lose what passes 16 bits."""


@dataclass(slots=True)
class Weights:
    """The initialisers of one file. Only the outermost graph has them; the branches of an `If` see them too."""

    tensors: Mapping[str, np.ndarray]
    """Parameter name → float32 array, in the layout of the checkpoint."""
    precision: Precision = "fp32"
    data_file: Path | None = None
    """Where weights go that are too large for the ONNX file itself."""
    protos: dict[str, onnx.TensorProto] = field(default_factory=dict)
    _data: BinaryIO | None = field(default=None, repr=False)

    def take(self, name: str, *, transpose: bool = False) -> str:
        """The initialiser of parameter `name`; `transpose` turns torch's [out, in] into MatMul's [in, out]."""
        stored = f"{name}.T" if transpose else name
        if stored not in self.protos:
            tensor = self._float(name)
            self.protos[stored] = self._proto(stored, tensor.T if transpose else tensor)
        return stored

    def take_bytes(self, name: str) -> tuple[str, str]:
        """The initialisers of matrix `name`, [out, in], as int8 has it: uint8 [in, out] around 128, scales [out]."""
        import numpy as np

        stored, scales = f"{name}.uint8", f"{name}.scale"
        if stored not in self.protos:
            matrix = self.tensors[name]
            scale = np.abs(matrix).max(axis=1) / np.float32(ZERO_BYTE - 1)
            scale[scale == 0] = 1.0
            rounded = np.rint(matrix / scale[:, None]) + ZERO_BYTE
            self.protos[stored] = self._proto(stored, rounded.astype(np.uint8).T)
            self.protos[scales] = self._proto(scales, scale)
        return stored, scales

    def integers(self, *values: int) -> str:
        """A one-dimensional int64 constant."""
        import numpy as np

        return self._constant("i64_" + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def scalar(self, value: float) -> str:
        """A constant without dimensions, float16 in fp16, float32 otherwise."""
        import numpy as np

        bits, dtype = (16, np.float16) if self.precision == "fp16" else (32, np.float32)
        return self._constant(f"f{bits}_{value!r}", np.array(value, dtype=dtype))

    def zero_byte(self) -> str:
        """What stands for zero in bytes."""
        import numpy as np

        return self._constant("u8_zero", np.array(ZERO_BYTE, dtype=np.uint8))

    def integer(self, value: int) -> str:
        """An int64 constant without dimensions."""
        import numpy as np

        return self._constant(f"i64_scalar_{value}", np.array(value, dtype=np.int64))

    def close(self) -> None:
        if self._data is not None:
            self._data.close()
            self._data = None

    def _constant(self, name: str, value: np.ndarray) -> str:
        from onnx import numpy_helper

        if name not in self.protos:
            self.protos[name] = numpy_helper.from_array(value, name)
        return name

    def _float(self, name: str) -> np.ndarray:
        """A parameter as the graph computes. Raises ExportError where float16 cannot hold it."""
        import numpy as np

        tensor = self.tensors[name]
        if self.precision != "fp16":
            return tensor
        with np.errstate(over="ignore"):
            half = tensor.astype(np.float16)
        if np.isinf(half).any():
            largest = float(np.abs(tensor).max())
            raise ExportError(f"tensor {name!r} reaches {largest:.6g}, but float16 ends at 65504; export it as fp32")
        return half

    def _proto(self, name: str, tensor: np.ndarray) -> onnx.TensorProto:
        import numpy as np
        from onnx import TensorProto, external_data_helper, helper, numpy_helper

        # Little endian is what the format stores, on every machine.
        tensor = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<"))
        if self.data_file is None:
            return numpy_helper.from_array(tensor, name)
        if self._data is None:
            self._data = self.data_file.open("wb")
        self._data.write(bytes(-self._data.tell() % ALIGNMENT_BYTES))
        kind = helper.np_dtype_to_tensor_dtype(tensor.dtype)
        proto = TensorProto(name=name, dims=tensor.shape, data_type=kind, raw_data=b"")
        external_data_helper.set_external_data(
            proto, location=self.data_file.name, offset=self._data.tell(), length=tensor.nbytes
        )
        proto.ClearField("raw_data")
        self._data.write(tensor.data)
        return proto


@dataclass(slots=True)
class Graph:
    """A graph under construction. Values are named by strings, as in ONNX itself."""

    weights: Weights
    prefix: str = ""
    """Before the names of this graph's values: the branches of an `If` share one space of names with their parent."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    quantised: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """Value → itself as bytes, with scale and zero: several layers may read the same."""

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output, and give the name of that."""
        name = f"{self.prefix}{kind}_{len(self.nodes)}"
        self._add(kind, inputs, [name], attributes)
        return name

    def three(self, kind: str, *inputs: str) -> tuple[str, str, str]:
        """Add a node with three outputs, and give their names."""
        name = f"{self.prefix}{kind}_{len(self.nodes)}"
        outputs = (name, f"{name}.1", f"{name}.2")
        self._add(kind, inputs, outputs, {})
        return outputs

    def name(self, value: str, output: str) -> str:
        """Let `value` be known as `output`, a name that is part of the interface."""
        self._add("Identity", [value], [output], {})
        return output

    def either(
        self, condition: str, *, then: onnx.GraphProto, otherwise: onnx.GraphProto, outputs: Sequence[str]
    ) -> None:
        """Add an `If` whose branches give `outputs`."""
        self._add("If", [condition], list(outputs), {"then_branch": then, "else_branch": otherwise})

    def finish(
        self, name: str, *, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        """The graph as ONNX; the initialisers go to the outermost graph only."""
        from onnx import helper

        initialisers = [] if self.prefix else list(self.weights.protos.values())
        return helper.make_graph(self.nodes, name, list(inputs), list(outputs), initialisers)

    def _add(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], attributes: dict[str, Any]) -> None:
        from onnx import helper

        name = f"{self.prefix}{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=name, **attributes))


def floats(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    """A float32 input or output; a dimension given by name is dynamic."""
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def save(graph: onnx.GraphProto, path: Path) -> None:
    """Write the graph as a model file. The same graph gives the same bytes."""
    from onnx import helper

    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="harness")
    path.write_bytes(model.SerializeToString(deterministic=True))
