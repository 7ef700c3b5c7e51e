"""A small builder of ONNX graphs: exactly the operators that our backbones need, written by hand.

Why not ``torch.onnx``: the bytes of a graph are part of a bundle's identity, so they must depend on the
weights and on nothing else (no exporter version, no node numbering of its own), and writing them needs no
torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError, brief

PRODUCER = "edge-inspect"
INPUT = "images"
BATCH = "batch"  # symbolic name of the dynamic dimension
OPSET = 17
IR_VERSION = 8  # the oldest that opset 17 allows, so that older runtimes read the file
MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB in [0, 1]
STD = (0.229, 0.224, 0.225)

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Value:
    """A tensor inside the graph: float32 NCHW [batch, channels, height, width]."""

    name: str
    channels: int
    height: int
    width: int


def import_onnx() -> Any:
    """The ``onnx`` package, which only exporting needs. Raises EngineError where it is not installed."""
    try:
        import onnx
        import onnx.helper
    except ImportError:
        raise EngineError(
            'writing a graph needs the package onnx: install the extra "fit" (edge-inspect[fit])'
        ) from None
    return onnx


@dataclass
class GraphBuilder:
    """Collects nodes and constants in the order of the calls; ``build`` gives the bytes.

    Constants keep the names the caller gives (the keys of the state dict), so that a graph can be read back.
    """

    height: int
    width: int
    _nodes: list[Any] = field(default_factory=list)
    _constants: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    _outputs: list[tuple[str, Value]] = field(default_factory=list)

    def images(self, scale: Floats | None = None, shift: Floats | None = None) -> Value:
        """The input, uint8 RGB [batch, height, width, 3], as normalised float32 NCHW.

        ``scale`` and ``shift`` ([3], float64) are a further affine map after the ImageNet normalisation, for
        networks that begin with a batch norm on the data; the two are merged in float64.
        """
        a = 1.0 / (255.0 * np.asarray(STD))
        b = -np.asarray(MEAN) / np.asarray(STD)
        if scale is not None and shift is not None:
            a, b = a * scale, b * scale + shift
        self._node("Cast", [INPUT], "input.float", to=1)  # 1: TensorProto.FLOAT
        self._node("Transpose", ["input.float"], "input.nchw", perm=[0, 3, 1, 2])
        return self.affine(Value("input.nchw", 3, self.height, self.width), "input", a, b)

    def conv(self, x: Value, key: str, weight: Floats, bias: Floats | None, stride: int = 1) -> Value:
        """Square convolution padded by half its size: weight [out, in, k, k], bias [out]. ``key`` names
        both."""
        out, _, k, _ = weight.shape
        inputs = [x.name, self._constant(f"{key}.weight", weight)]
        if bias is not None:
            inputs.append(self._constant(f"{key}.bias", bias))
        self._node("Conv", inputs, key, kernel_shape=[k, k], strides=[stride, stride], pads=[k // 2] * 4, group=1)
        return Value(key, out, _strided(x.height, k, stride), _strided(x.width, k, stride))

    def relu(self, x: Value) -> Value:
        return self._like(x, "Relu", [x.name], f"{x.name}.relu")

    def leaky_relu(self, x: Value, slope: float) -> Value:
        self._node("LeakyRelu", [x.name], f"{x.name}.leaky", alpha=slope)
        return Value(f"{x.name}.leaky", x.channels, x.height, x.width)

    def repeat(self, x: Value, factor: int) -> Value:
        """Nearest-neighbour upsampling: every pixel becomes a block of ``factor`` x ``factor`` equal ones."""
        name = f"{x.name}.up{factor}"
        scales = self._constant(f"{name}.scales", np.array([1.0, 1.0, factor, factor]))
        modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        self._node("Resize", [x.name, "", scales], name, **modes)
        return Value(name, x.channels, x.height * factor, x.width * factor)

    def add(self, a: Value, b: Value, name: str) -> Value:
        if (a.channels, a.height, a.width) != (b.channels, b.height, b.width):
            raise ValueError(f"cannot add {a} and {b}")
        return self._like(a, "Add", [a.name, b.name], name)

    def affine(self, x: Value, key: str, scale: Floats, shift: Floats) -> Value:
        """x * scale + shift by channel, both [channels]: a batch norm that no convolution precedes."""
        shape = (1, x.channels, 1, 1)
        factor = self._constant(f"{key}.scale", np.reshape(scale, shape))
        offset = self._constant(f"{key}.shift", np.reshape(shift, shape))
        scaled = self._like(x, "Mul", [x.name, factor], f"{key}.scaled")
        return self._like(x, "Add", [scaled.name, offset], f"{key}.affine")

    def cosine_distance(self, a: Value, b: Value, name: str, eps: float) -> Value:
        """|1 - a.b / (|a| |b| + eps)| over the channels: [batch, 1, height, width], in [0, 2] up to rounding.

        The absolute value only undoes a rounding below zero. A maximum with zero would do that too, but in some
        runtimes would turn NaN into zero."""
        if (a.channels, a.height, a.width) != (b.channels, b.height, b.width):
            raise ValueError(f"cannot compare {a} and {b}")
        # The mean keeps its axis as an attribute in this opset; a sum takes an int64 tensor.
        self._node("Mul", [a.name, b.name], f"{name}.products")
        self._node("ReduceMean", [f"{name}.products"], f"{name}.mean", axes=[1], keepdims=1)
        count = self._constant(f"{name}.channels", np.full((1, 1, 1, 1), float(a.channels)))
        self._node("Mul", [f"{name}.mean", count], f"{name}.dot")
        for side, value in (("a", a), ("b", b)):
            self._node("ReduceL2", [value.name], f"{name}.norm_{side}", axes=[1], keepdims=1)
        self._node("Mul", [f"{name}.norm_a", f"{name}.norm_b"], f"{name}.norms")
        smallest = self._constant(f"{name}.eps", np.full((1, 1, 1, 1), eps))
        self._node("Add", [f"{name}.norms", smallest], f"{name}.norms.eps")
        self._node("Div", [f"{name}.dot", f"{name}.norms.eps"], f"{name}.cosine")
        one = self._constant(f"{name}.one", np.ones((1, 1, 1, 1)))
        self._node("Sub", [one, f"{name}.cosine"], f"{name}.difference")
        self._node("Abs", [f"{name}.difference"], name)
        return Value(name, 1, a.height, a.width)

    def max_pool(self, x: Value, name: str, size: int = 3, stride: int = 2) -> Value:
        pads = [size // 2] * 4
        self._node("MaxPool", [x.name], name, kernel_shape=[size, size], strides=[stride, stride], pads=pads)
        return Value(name, x.channels, _strided(x.height, size, stride), _strided(x.width, size, stride))

    def output(self, x: Value, tap: str) -> None:
        """Makes ``x`` the graph's next output, called ``tap``."""
        if x.name != tap:
            self._node("Identity", [x.name], tap)
        self._outputs.append((tap, x))

    def build(self, name: str, metadata: Mapping[str, str]) -> bytes:
        """The ONNX file. Equal calls give equal bytes. Raises EngineError where onnx is not installed."""
        onnx = import_onnx()
        helper, types = onnx.helper, onnx.TensorProto
        nodes = [
            helper.make_node(op, inputs, [output], name=output, **attributes)
            for op, inputs, output, attributes in self._nodes
        ]
        constants = [
            helper.make_tensor(key, types.FLOAT, array.shape, array.astype("<f4").tobytes(), raw=True)
            for key, array in self._constants.items()
        ]
        images = helper.make_tensor_value_info(INPUT, types.UINT8, [BATCH, self.height, self.width, 3])
        outputs = [
            helper.make_tensor_value_info(tap, types.FLOAT, [BATCH, x.channels, x.height, x.width])
            for tap, x in self._outputs
        ]
        graph = helper.make_graph(nodes, name, [images], outputs, constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            producer_name=PRODUCER,
            ir_version=IR_VERSION,
        )
        helper.set_model_props(model, dict(sorted(metadata.items())))
        onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString(deterministic=True)
        return data

    @classmethod
    def extend(cls, data: bytes) -> tuple[GraphBuilder, dict[str, Value], dict[str, str]]:
        """A builder that goes on where ``build`` gave ``data``; its outputs by name, which are outputs no longer;
        and its metadata. Nodes and constants are taken over unchanged. Raises EngineError for any other graph."""
        onnx = import_onnx()
        try:
            model = onnx.load_from_string(data)
        except Exception as error:  # protobuf's errors have no base that is part of its interface
            raise EngineError(f"the graph cannot be read ({brief(error)}): export it again") from None
        if model.producer_name != PRODUCER:
            raise EngineError(
                "only a graph that `edge engine export` wrote can be extended: export the backbone with it"
            )
        _, height, width, _ = (size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim)
        builder = cls(height, width)
        sources = {}
        shapes = {output.name: output.type.tensor_type.shape.dim for output in model.graph.output}
        for node in model.graph.node:
            if node.output[0] in shapes and node.op_type == "Identity":
                sources[node.output[0]] = node.input[0]
                continue
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            builder._node(node.op_type, list(node.input), node.output[0], **attributes)
        for tensor in model.graph.initializer:
            builder._constant(tensor.name, np.frombuffer(tensor.raw_data, "<f4").reshape(tuple(tensor.dims)))
        taps = {
            name: Value(sources.get(name, name), *(size.dim_value for size in dims[1:]))
            for name, dims in shapes.items()
        }
        return builder, taps, {entry.key: entry.value for entry in model.metadata_props}

    def _node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self._nodes.append((op, inputs, output, attributes))

    def _like(self, x: Value, op: str, inputs: list[str], output: str) -> Value:
        self._node(op, inputs, output)
        return Value(output, x.channels, x.height, x.width)

    def _constant(self, key: str, array: Floats) -> str:
        if key in self._constants:
            raise ValueError(f"constant {key} is given twice")
        self._constants[key] = np.ascontiguousarray(array, dtype=np.float32)
        return key

    def constant(self, key: str, array: Floats) -> str:
        """A float32 constant called ``key``, for :meth:`apply`."""
        return self._constant(key, array)

    def integers(self, key: str, values: Sequence[int]) -> str:
        """An int64 constant [len(values)] called ``key``, for :meth:`apply`: a node, as the graph's own constants are
        floats."""
        self._node("Constant", [], key, value_ints=[int(value) for value in values])
        return key

    def apply(
        self, op: str, inputs: Sequence[Value | str], name: str, shape: tuple[int, int, int], **attributes: Any
    ) -> Value:
        """Any other operator: its output, called ``name``, is [batch, *shape]. ``build`` checks types, not this
        shape."""
        names = [each.name if isinstance(each, Value) else each for each in inputs]
        self._node(op, names, name, **attributes)
        return Value(name, *shape)


def read_constants(data: bytes) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    """The float32 constants of a graph that ``GraphBuilder`` wrote, by name, and its metadata."""
    onnx = import_onnx()
    model = onnx.load_from_string(data)
    constants = {
        tensor.name: np.frombuffer(tensor.raw_data, dtype="<f4").reshape(tuple(tensor.dims))
        for tensor in model.graph.initializer
    }
    return constants, {entry.key: entry.value for entry in model.metadata_props}


def _strided(size: int, kernel: int, stride: int) -> int:
    return (size + 2 * (kernel // 2) - kernel) // stride + 1
