"""A backbone that goes on into GRAD: one graph from the picture to the map of its residual.

Source: GRAD (Huang et al., ICME 2025, arXiv 2504.00609). The arithmetic and the names of the weights are those of the
NumPy reference, ``edge/heads/grad.py``. Two grids are read: the global one (a whole feature map a node) by hat weights
and a matrix product, as one point is read a picture and a GridSample of so many channels is slow; the local one by
GridSample (opset 16), which reads four nodes a position where a matrix product would read them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.graph import GraphBuilder, Value

RESIDUAL = "residual"
MSE_WEIGHT, COSINE_WEIGHT = 0.3, 0.7  # of the two parts of the similarity
STD_EPS = 1e-5  # beside a standard deviation
EPS = 1e-12  # beside the product of two lengths

Arrays = Mapping[str, NDArray[np.floating[Any]]]


def write_grad_graph(backbone: bytes, weights: Arrays, layers: Sequence[str], metadata: Mapping[str, str]) -> bytes:
    """The ONNX of ``backbone`` (a graph of ours with the taps ``layers``, shallow to deep) with GRAD behind it.

    Output: ``residual``, float32 [batch, 1, h, w] of the first layer's size. ``metadata`` is added to the backbone's.
    Raises EngineError: a graph that is not ours or lacks a tap, weights that are missing or do not fit, taps that
    cannot be aligned."""
    builder, taps, facts = GraphBuilder.extend(backbone)
    missing = [layer for layer in layers if layer not in taps]
    if missing or not layers:
        raise EngineError(f"the backbone has no tap {(missing or ['at all'])[0]!r}; it has {', '.join(taps)}")
    check_alignment({layer: (taps[layer].height, taps[layer].width) for layer in layers})
    writer = _Writer(builder, weights)
    x = writer.features([taps[layer] for layer in layers])
    builder.output(writer.residual(x, writer.rebuild(x)), RESIDUAL)
    return builder.build(f"{facts.get('backbone', 'backbone')}-grad", {**facts, **metadata})


def check_alignment(sizes: Mapping[str, tuple[int, int]]) -> None:
    """``sizes``: layer -> (height, width). Raises EngineError unless no layer is larger than the first, whose size all
    are brought to."""
    (first, (height, width)), *others = sizes.items()
    for name, (rows, columns) in others:
        if rows > height or columns > width:
            raise EngineError(
                f"{name}, {rows}x{columns}, cannot be aligned to {first}, {height}x{width}: name the layers from"
                " shallow to deep"
            )


class _Writer:
    """Nodes in the order of the reference's functions, which have the same names."""

    def __init__(self, builder: GraphBuilder, weights: Arrays) -> None:
        self.builder, self.weights = builder, weights

    def features(self, taps: Sequence[Value]) -> Value:
        aligned = [self._aligned(tap, taps[0]) for tap in taps]
        channels = sum(tap.channels for tap in taps)
        shape = (channels, taps[0].height, taps[0].width)
        x = self._apply("Concat", aligned, "grad.taps", shape, axis=1) if len(taps) > 1 else aligned[0]
        scale, shift = self._weight("features.scale"), self._weight("features.shift")
        if scale.shape != (channels,) or shift.shape != (channels,):
            raise EngineError(f"GRAD was trained on {scale.size} channels, the taps have {channels}: train it again")
        return self.builder.affine(x, "grad.features", scale, shift)

    def rebuild(self, x: Value) -> Value:
        local, whole = self._coordinates(x, "local"), self._coordinates(x, "pooled")
        size = (x.height, x.width)
        rebuilt = self._branch("normal", local, whole, size)
        if "abnormal.out.weight" in self.weights:
            mix = float(self._weight("mix").item())
            rebuilt = self.builder.add(rebuilt, self._branch("abnormal", local, whole, size, mix), "grad.rebuilt")
        if rebuilt.channels != x.channels:
            raise EngineError(f"GRAD rebuilds {rebuilt.channels} channels, the taps have {x.channels}: train it again")
        return rebuilt

    def residual(self, x: Value, rebuilt: Value) -> Value:
        shape = (1, x.height, x.width)
        difference = self._apply("Sub", [rebuilt, x], "grad.difference", (x.channels, *shape[1:]))
        square = self._like("Mul", [difference, difference], "grad.square", difference)
        error = self._apply("ReduceMean", [square], "grad.error", shape, axes=[1], keepdims=1)
        share = self._times(error, "grad.share", 0.5 / float(self._weight("threshold").item()))
        # A minimum and not a Clip: fewer inputs, and whatever a runtime makes of NaN here, the length keeps it.
        bounded = self._like("Min", [share, self._number("grad.share.most", 1.0)], "grad.bounded", share)
        failed = self._times(self._like("Round", [bounded], "grad.failed", share), "grad.failed.weighted", MSE_WEIGHT)
        products = self._like("Mul", [x, rebuilt], "grad.products", x)
        mean = self._apply("ReduceMean", [products], "grad.products.mean", shape, axes=[1], keepdims=1)
        dot = self._times(mean, "grad.dot", COSINE_WEIGHT * x.channels)
        one, other = (
            self._apply("ReduceL2", [value], f"grad.length_{side}", shape, axes=[1], keepdims=1)
            for side, value in (("a", x), ("b", rebuilt))
        )
        lengths = self._plus(self._like("Mul", [one, other], "grad.lengths", error), "grad.lengths.eps", EPS)
        cosine = self._like("Div", [dot, lengths], "grad.cosine", error)
        # 1 - similarity = 1 - 0.3 (1 - failed) - 0.7 cosine
        rest = self._plus(self._like("Sub", [failed, cosine], "grad.rest", error), "grad.apart", 1.0 - MSE_WEIGHT)
        apart = self._like("Abs", [rest], "grad.weight", error)
        length = self._apply("ReduceL2", [difference], "grad.length", shape, axes=[1], keepdims=1)
        # Under the output's own name: behind an Identity, a runtime may report this one's.
        return self._like("Mul", [apart, length], RESIDUAL, error)

    def _aligned(self, tap: Value, first: Value) -> Value:
        """Bilinear, corners on corners, as two matrix products: exact for any two sizes in every runtime."""
        x, name = tap, f"grad.{tap.name}"
        if tap.height != first.height:
            rows = self.builder.constant(f"{name}.rows.weights", _corners(tap.height, first.height))
            x = self._apply("MatMul", [rows, x], f"{name}.rows", (x.channels, first.height, x.width))
        if tap.width != first.width:
            columns = self.builder.constant(f"{name}.columns.weights", _corners(tap.width, first.width).T)
            x = self._apply("MatMul", [x, columns], f"{name}.columns", (x.channels, x.height, first.width))
        return x

    def _coordinates(self, x: Value, name: str) -> Value:
        if name == "pooled":
            x = self._apply("GlobalAveragePool", [x], "grad.pooled", (x.channels, 1, 1))
        for layer in (f"coordinates.{name}1", f"coordinates.{name}2"):
            x = self._conv(x, layer)
            x = self._like("Tanh", [x], f"grad.{layer}.tanh", x)
        if x.channels != 2:
            raise EngineError(f"GRAD needs two coordinates, not {x.channels}: train it again")
        limit = float(self._weight(f"coordinates.{name}_limit").item())
        if limit < 1:
            for op, bound in (("Max", -limit), ("Min", limit)):
                key = f"grad.{name}.{op.lower()}"
                x = self._like(op, [x, self._number(f"{key}.bound", bound)], key, x)
        return x

    def _branch(
        self, name: str, local: Value, whole: Value, size: tuple[int, int], factor: float | None = None
    ) -> Value:
        """``factor``: of the output, merged into the last convolution."""
        near, far = self._sample_local(name, local), self._sample_global(name, whole, size)
        if near.channels != far.channels:
            raise EngineError(f"GRAD's {name} grids differ, {near.channels} and {far.channels} channels")
        if f"{name}.sum.bias" in self.weights:
            x = self.builder.add(far, near, f"grad.{name}.sum")
            bias = self._weight(f"{name}.sum.bias")
            if bias.shape != (x.channels,):
                raise EngineError(f"GRAD's {name}.sum.bias, {list(bias.shape)}, does not fit {x.channels} channels")
            offset = self.builder.constant(f"{name}.sum.bias", bias.reshape(1, -1, 1, 1))
            x = self._like("Add", [x, offset], f"grad.{name}.biased", x)
        else:
            x = self._apply("Concat", [far, near], f"grad.{name}.samples", (2 * far.channels, *size), axis=1)
            if name == "abnormal":
                x = self._standardise(x)
            if f"{name}.reduce.weight" in self.weights:
                x = self._conv(x, f"{name}.reduce")
        index = 0
        while any(key.startswith(f"{name}.block{index}.") for key in self.weights):
            mobile = f"{name}.block{index}.expand.weight" in self.weights
            x = (self._mobile_block if mobile else self._residual_block)(x, f"{name}.block{index}")
            index += 1
        return self._conv(x, f"{name}.out", bias=False, factor=factor)

    def _sample_local(self, name: str, local: Value) -> Value:
        grid = self._weight(f"{name}.local_grid")
        channels, height, width = len(grid), local.height, local.width
        key = f"grad.{name}.local"
        # GridSample wants as many grids as pictures. There is one, so the pictures' rows become one tall picture's.
        last = self._apply("Transpose", [local], f"{key}.last", (height, width, 2), perm=[0, 2, 3, 1])
        tall = self._reshape(last, f"{key}.tall", [1, -1, width, 2], (0, width, 2))
        grid_name = self.builder.constant(f"{name}.local_grid", grid[None])
        modes = {"mode": "bilinear", "padding_mode": "zeros", "align_corners": 0}
        found = self._apply("GridSample", [grid_name, tall], f"{key}.tall.sample", (channels, 0, width), **modes)
        rows = self._reshape(found, f"{key}.rows", [channels, -1, height * width], (0, height, width))
        swapped = self._apply("Transpose", [rows], f"{key}.swapped", (channels, height, width), perm=[1, 0, 2])
        return self._reshape(swapped, f"{key}.sample", [-1, channels, height, width], (channels, height, width))

    def _sample_global(self, name: str, whole: Value, size: tuple[int, int]) -> Value:
        grid = self._weight(f"{name}.global_grid")
        nodes, key = round(len(grid) ** 0.5), f"grad.{name}.global"
        channels, rest = divmod(grid.shape[1], size[0] * size[1])
        if rest or nodes**2 != len(grid):
            raise EngineError(f"GRAD's {name}.global_grid, {list(grid.shape)}, fits no map of {size[0]}x{size[1]}")
        node = np.arange(nodes, dtype=np.float64)
        places = np.stack([np.tile(node, nodes), np.repeat(node, nodes)])  # column first, as the coordinates
        hats = []
        for axis, place in zip(("column", "row"), places, strict=True):
            index = 0 if axis == "column" else 1
            picked = np.zeros((nodes**2, 2, 1, 1))
            picked[:, index] = nodes / 2  # ((g + 1) R - 1) / 2 - i, for every node at once
            apart = self.builder.conv(whole, f"{key}.{axis}", picked, (nodes - 1) / 2 - place)
            near = self._like("Abs", [apart], f"{key}.{axis}.abs", apart)
            half = self.builder.affine(near, f"{key}.{axis}.near", -np.full(nodes**2, 0.5), np.full(nodes**2, 0.5))
            # max(0, u) as u / 2 + |u / 2|: in some runtimes a ReLU turns NaN into zero.
            positive = self._like("Abs", [half], f"{key}.{axis}.near.abs", half)
            hats.append(self.builder.add(half, positive, f"{key}.{axis}.hat"))
        both = self._like("Mul", hats, f"{key}.hats", hats[0])
        flat = self._apply("Flatten", [both], f"{key}.flat", (nodes**2, 1, 1), axis=1)
        found = self._apply(
            "MatMul",
            [flat, self.builder.constant(f"{name}.global_grid", grid)],
            f"{key}.found",
            (grid.shape[1], 1, 1),
        )
        return self._reshape(found, f"{key}.sample", [-1, channels, *size], (channels, *size))

    def _standardise(self, x: Value) -> Value:
        shape, count = (x.channels, 1, 1), x.height * x.width
        mean = self._apply("ReduceMean", [x], f"{x.name}.mean", shape, axes=[2, 3], keepdims=1)
        centred = self._like("Sub", [x, mean], f"{x.name}.centred", x)
        square = self._like("Mul", [centred, centred], f"{x.name}.square", x)
        variance = self._apply("ReduceMean", [square], f"{x.name}.variance", shape, axes=[2, 3], keepdims=1)
        unbiased = self._times(variance, f"{x.name}.unbiased", count / (count - 1))
        std = self._plus(
            self._like("Sqrt", [unbiased], f"{x.name}.root", unbiased),
            f"{x.name}.std",
            STD_EPS,
        )
        return self._like("Div", [centred, std], f"{x.name}.standard", x)

    def _residual_block(self, x: Value, key: str) -> Value:
        inner = self.builder.relu(self._conv(x, f"{key}.conv1"))
        return self.builder.relu(self.builder.add(x, self._conv(inner, f"{key}.conv2"), f"grad.{key}"))

    def _mobile_block(self, x: Value, key: str) -> Value:
        inner = self._swish(self._conv(x, f"{key}.expand"))
        inner = self._swish(self._depthwise(inner, f"{key}.depthwise"))
        gate = self._apply("GlobalAveragePool", [inner], f"grad.{key}.pooled", (inner.channels, 1, 1))
        gate = self._conv(self.builder.relu(self._conv(gate, f"{key}.squeeze")), f"{key}.excite")
        gate = self._like("HardSigmoid", [gate], f"grad.{key}.gate", gate, alpha=1 / 6, beta=0.5)
        inner = self._like("Mul", [inner, gate], f"grad.{key}.gated", inner)
        return self.builder.add(x, self._conv(inner, f"{key}.project"), f"grad.{key}")

    def _swish(self, x: Value) -> Value:
        return self._like("HardSwish", [x], f"{x.name}.swish", x)

    def _depthwise(self, x: Value, key: str) -> Value:
        weight, bias = self._weight(f"{key}.weight"), self._weight(f"{key}.bias")
        if weight.shape[:2] != (x.channels, 1) or bias.shape != (x.channels,):
            raise EngineError(f"GRAD's {key}, {list(weight.shape)}, does not fit {x.channels} channels")
        size = weight.shape[2]
        inputs: list[Value | str] = [
            x,
            self.builder.constant(f"{key}.weight", weight),
            self.builder.constant(f"{key}.bias", bias),
        ]
        return self._like(
            "Conv", inputs, f"grad.{key}", x, kernel_shape=[size, size], pads=[size // 2] * 4, group=x.channels
        )

    def _conv(self, x: Value, key: str, bias: bool = True, factor: float | None = None) -> Value:
        weight = self._weight(f"{key}.weight")
        offset = self._weight(f"{key}.bias") if bias else None
        if weight.ndim != 4 or weight.shape[1] != x.channels:
            raise EngineError(f"GRAD's {key}, {list(weight.shape)}, does not fit {x.channels} channels")
        if factor is not None:
            weight = np.asarray(weight, np.float64) * factor
        return self.builder.conv(x, key, weight, offset)

    def _weight(self, key: str) -> NDArray[np.floating[Any]]:
        try:
            return self.weights[key]
        except KeyError:
            raise EngineError(f"GRAD lacks {key!r}: train it again") from None

    def _reshape(self, x: Value, name: str, sizes: Sequence[int], shape: tuple[int, int, int]) -> Value:
        return self._apply("Reshape", [x, self.builder.integers(f"{name}.sizes", sizes)], name, shape)

    def _number(self, key: str, value: float) -> str:
        return self.builder.constant(key, np.full((1, 1, 1, 1), value))

    def _times(self, x: Value, name: str, factor: float) -> Value:
        return self._like("Mul", [x, self._number(f"{name}.factor", factor)], name, x)

    def _plus(self, x: Value, name: str, term: float) -> Value:
        return self._like("Add", [x, self._number(f"{name}.term", term)], name, x)

    def _like(self, op: str, inputs: Sequence[Value | str], name: str, like: Value, **attributes: Any) -> Value:
        return self._apply(op, inputs, name, (like.channels, like.height, like.width), **attributes)

    def _apply(
        self, op: str, inputs: Sequence[Value | str], name: str, shape: tuple[int, int, int], **attributes: Any
    ) -> Value:
        return self.builder.apply(op, inputs, name, shape, **attributes)


def _corners(short: int, long: int) -> NDArray[np.float64]:
    places = np.linspace(0.0, short - 1.0, long) if long > 1 else np.zeros(1)
    return np.asarray(np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(short))), np.float64)
