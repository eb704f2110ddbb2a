"""Writing an ONNX file by hand: nodes with generated names, and weights inside the file or beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

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


@dataclass(slots=True)
class Weights:
    """The initialisers of one file. Only the outermost graph has them; the branches of an `If` see them too."""

    tensors: Mapping[str, np.ndarray]
    """Parameter name → float32 array, in the layout of the checkpoint."""
    data_file: Path | None = None
    """Where weights go that are too large for the ONNX file itself."""
    protos: dict[str, onnx.TensorProto] = field(default_factory=dict)
    _data: BinaryIO | None = field(default=None, repr=False)

    def take(self, name: str, *, transpose: bool = False) -> str:
        """The initialiser of parameter `name`; `transpose` turns torch's [out, in] into MatMul's [in, out]."""
        stored = f"{name}.T" if transpose else name
        if stored not in self.protos:
            tensor = self.tensors[name]
            self.protos[stored] = self._proto(stored, tensor.T if transpose else tensor)
        return stored

    def integers(self, *values: int) -> str:
        """A one-dimensional int64 constant."""
        import numpy as np

        return self._constant("i64_" + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def scalar(self, value: float) -> str:
        """A float32 constant without dimensions."""
        import numpy as np

        return self._constant(f"f32_{value!r}", np.array(value, dtype=np.float32))

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

    def _proto(self, name: str, tensor: np.ndarray) -> onnx.TensorProto:
        import numpy as np
        from onnx import TensorProto, external_data_helper, numpy_helper

        # Little endian is what the format stores, on every machine.
        tensor = np.ascontiguousarray(tensor, dtype="<f4")
        if self.data_file is None:
            return numpy_helper.from_array(tensor, name)
        if self._data is None:
            self._data = self.data_file.open("wb")
        self._data.write(bytes(-self._data.tell() % ALIGNMENT_BYTES))
        proto = TensorProto(name=name, dims=tensor.shape, data_type=TensorProto.FLOAT, raw_data=b"")
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

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output, and give the name of that."""
        name = f"{self.prefix}{kind}_{len(self.nodes)}"
        self._add(kind, inputs, [name], attributes)
        return name

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
