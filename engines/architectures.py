"""The backbones, written as ONNX from the arrays of a state dict; batch norm is folded where a convolution
precedes it.

Key names are torchvision's (ResNet: He et al., arXiv 1512.03385; Wide ResNet: arXiv 1605.07146), with the
same names for the pre-activation network (arXiv 1603.05027, as Gluon and the ONNX model zoo have it) and our
own for the built-in one. Only what the asked taps need is read: a file that ends after layer3 serves taps up
to layer3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.graph import GraphBuilder, Value

Float64 = NDArray[np.float64]
_EPS = 1e-5  # torch's and Gluon's batch norm


@dataclass(frozen=True)
class State:
    """A state dict that says which key is missing or mis-shaped, and of what."""

    backbone: str
    arrays: Mapping[str, NDArray[np.float32]]

    def take(self, key: str, shape: tuple[int, ...]) -> Float64:
        """The array called ``key`` as float64. Raises EngineError where it is missing or of another shape."""
        array = self.arrays.get(key)
        if array is None:
            raise EngineError(
                f"the weights have no {key!r}, which the asked taps of {self.backbone} need: "
                "give a state dict of this backbone, or ask for shallower taps"
            )
        if array.shape != shape:
            raise EngineError(
                f"the weights' {key!r} has the shape {array.shape}, but {self.backbone} needs {shape}: "
                "they belong to another backbone"
            )
        return array.astype(np.float64)

    def batch_norm(self, key: str, channels: int) -> tuple[Float64, Float64]:
        """(scale, shift), each [channels], with which a batch norm in evaluation is x * scale + shift."""
        gamma, beta, mean, var = (
            self.take(f"{key}.{part}", (channels,)) for part in ("weight", "bias", "running_mean", "running_var")
        )
        if (var < 0).any():
            raise EngineError(f"the weights' '{key}.running_var' is negative in places: the file is damaged")
        scale = gamma / np.sqrt(var + _EPS)
        return scale, beta - mean * scale


@dataclass(frozen=True)
class Network:
    """A graph under construction together with the weights it is written from."""

    graph: GraphBuilder
    state: State
    taps: tuple[str, ...]  # the asked ones, "layer1" to "layer4", in any order

    @property
    def depth(self) -> int:
        """The number of stages that the asked taps need."""
        return max(int(tap.removeprefix("layer")) for tap in self.taps)

    def conv(self, x: Value, key: str, out: int, k: int, stride: int = 1, bias: bool = False) -> Value:
        weight = self.state.take(f"{key}.weight", (out, x.channels, k, k))
        offset = self.state.take(f"{key}.bias", (out,)) if bias else None
        return self.graph.conv(x, key, weight, offset, stride)

    def conv_bn(self, x: Value, key: str, norm: str, out: int, k: int, stride: int = 1) -> Value:
        weight = self.state.take(f"{key}.weight", (out, x.channels, k, k))
        scale, shift = self.state.batch_norm(norm, out)
        return self.graph.conv(x, key, weight * scale[:, None, None, None], shift, stride)


Block = Callable[[Network, Value, str, int, int], Value]


def _basic(net: Network, x: Value, key: str, planes: int, stride: int) -> Value:
    y = net.graph.relu(net.conv_bn(x, f"{key}.conv1", f"{key}.bn1", planes, 3, stride))
    y = net.conv_bn(y, f"{key}.conv2", f"{key}.bn2", planes, 3)
    return _join(net, x, y, key, stride)


def _bottleneck(width: int) -> Block:
    """The three-convolution block; ``width`` 2 is Wide ResNet's. The stride is in the 3x3 (torchvision)."""

    def block(net: Network, x: Value, key: str, planes: int, stride: int) -> Value:
        inner = planes * width
        y = net.graph.relu(net.conv_bn(x, f"{key}.conv1", f"{key}.bn1", inner, 1))
        y = net.graph.relu(net.conv_bn(y, f"{key}.conv2", f"{key}.bn2", inner, 3, stride))
        y = net.conv_bn(y, f"{key}.conv3", f"{key}.bn3", planes * 4, 1)
        return _join(net, x, y, key, stride)

    return block


def _join(net: Network, x: Value, y: Value, key: str, stride: int) -> Value:
    if stride != 1 or x.channels != y.channels:
        x = net.conv_bn(x, f"{key}.downsample.0", f"{key}.downsample.1", y.channels, 1, stride)
    return net.graph.relu(net.graph.add(y, x, f"{key}.sum"))


def _preactivation(net: Network, x: Value, key: str, planes: int, stride: int) -> Value:
    """Norm and ReLU come first, so only bn2 and bn3 can be folded; the sum stays without activation."""
    r = net.graph.relu(net.graph.affine(x, f"{key}.bn1", *net.state.batch_norm(f"{key}.bn1", x.channels)))
    y = net.graph.relu(net.conv_bn(r, f"{key}.conv1", f"{key}.bn2", planes, 1))
    y = net.graph.relu(net.conv_bn(y, f"{key}.conv2", f"{key}.bn3", planes, 3, stride))
    y = net.conv(y, f"{key}.conv3", planes * 4, 1)
    if key.endswith(".0"):
        x = net.conv(r, f"{key}.downsample", planes * 4, 1, stride)
    return net.graph.add(y, x, f"{key}.sum")


def _stages(net: Network, x: Value, block: Block, counts: Sequence[int]) -> dict[str, Value]:
    taps = {}
    for stage in range(net.depth):
        for index in range(counts[stage]):
            stride = 2 if stage > 0 and index == 0 else 1
            x = block(net, x, f"layer{stage + 1}.{index}", 64 * 2**stage, stride)
        taps[f"layer{stage + 1}"] = x
    return taps


def _resnet(block: Block, counts: Sequence[int]) -> Callable[[Network], dict[str, Value]]:
    def write(net: Network) -> dict[str, Value]:
        x = net.graph.relu(net.conv_bn(net.graph.images(), "conv1", "bn1", 64, 7, 2))
        return _stages(net, net.graph.max_pool(x, "maxpool"), block, counts)

    return write


def _resnet_v2(net: Network) -> dict[str, Value]:
    x = net.graph.images(*net.state.batch_norm("bn0", 3))
    x = net.graph.relu(net.conv_bn(x, "conv1", "bn1", 64, 7, 2))
    return _stages(net, net.graph.max_pool(x, "maxpool"), _preactivation, (3, 4, 6, 3))


def _builtin(net: Network) -> dict[str, Value]:
    """stem 3x3/2, then by stage 3x3/2 and a residual block; each tap is a 1x1 beside the trunk."""
    graph = net.graph
    x = graph.relu(net.conv(graph.images(), "stem", 16, 3, 2, bias=True))
    taps = {}
    for stage in range(1, net.depth + 1):
        width = 16 * 2**stage
        x = graph.relu(net.conv(x, f"stage{stage}.down", width, 3, 2, bias=True))
        key = f"stage{stage}.block0"
        y = graph.relu(net.conv(x, f"{key}.conv1", width, 3, bias=True))
        y = net.conv(y, f"{key}.conv2", width, 3, bias=True)
        x = graph.relu(graph.add(x, y, f"{key}.sum"))
        if f"layer{stage}" in net.taps:
            taps[f"layer{stage}"] = net.conv(x, f"tap{stage}", 2 * width, 1, bias=True)
    return taps


_WRITERS: dict[str, Callable[[Network], dict[str, Value]]] = {
    "builtin": _builtin,
    "resnet18": _resnet(_basic, (2, 2, 2, 2)),
    "resnet50": _resnet(_bottleneck(1), (3, 4, 6, 3)),
    "wide_resnet50_2": _resnet(_bottleneck(2), (3, 4, 6, 3)),
    "resnet50v2": _resnet_v2,
}


def write_graph(
    name: str,
    arrays: Mapping[str, NDArray[Any]],
    taps: Sequence[str],
    input_size: tuple[int, int],
    metadata: Mapping[str, str],
) -> bytes:
    """The ONNX of backbone ``name`` with the outputs ``taps`` in this order.

    ``arrays``: the state dict. ``input_size``: (height, width) in pixels. Raises EngineError naming the first
    key that is missing or has another shape.
    """
    builder = GraphBuilder(*input_size)
    values = _WRITERS[name](Network(builder, State(name, arrays), tuple(taps)))
    for tap in taps:
        builder.output(values[tap], tap)
    return builder.build(name, metadata)
