"""GRAD in NumPy: coordinates, grids, fusion, mix and residual, written out (Huang et al., ICME 2025, arXiv 2504.00609).

The reference that the trained network and the graph in the bundle are tested against; the daemon runs the graph. Any
floating type goes in; the arithmetic keeps it. Where the paper is silent or contradicts itself, the code of CRAD (from
which GRAD grew) and the authors' module file decide.

Weights by name, folded (batch norms merged into the convolutions before them):

    features.scale, .shift               [C]: x = aligned taps * scale + shift
    coordinates.local1, local2           .weight [C, C, 1, 1], [2, C, 1, 1], .bias: of every position
    coordinates.pooled1, pooled2         the same of the mean over positions: of the picture as a whole
    coordinates.local_limit, .pooled_limit   [1]: coordinates are clamped to it; 1 changes nothing
    normal.local_grid                    [K, R_l, R_l]
    normal.global_grid                   [R_g * R_g, K * H * W], a node (row-major) a row: a whole feature map each
    normal.reduce.weight, .bias          [width, 2 K, 1, 1]: of both samples, the global first; or
    normal.sum.bias                      [width]: the reduction is merged into the grids, whose samples are added; or
                                         neither: the samples are concatenated and not reduced
    normal.block<i>.conv1, .conv2        3x3 each: a residual block; or
    normal.block<i>.expand, .depthwise, .squeeze, .excite, .project   a mobile bottleneck
    normal.out.weight                    [C, width, 1, 1], no bias
    abnormal.*                           the same, of the standardised samples; absent: no such branch
    mix                                  [1]: w of x_n + w x_a
    threshold                            [1]: of the mean squared error, up to which a position counts as rebuilt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.errors import HeadError

Floats = NDArray[np.floating[Any]]
Weights = Mapping[str, Floats]

MSE_WEIGHT, COSINE_WEIGHT = 0.3, 0.7  # of the two parts of the similarity
STD_EPS = 1e-5  # beside a standard deviation; the code has none and divides by zero where nothing varies
EPS = 1e-12  # beside the product of two lengths: a reconstruction of length 0 has a cosine of 0


def align(taps: Sequence[Floats]) -> Floats:
    """The taps [B, C_l, h_l, w_l], shallow to deep, brought to the first one's size (bilinear, corners on corners) and
    concatenated: [B, sum of C_l, h_1, w_1]. Raises HeadError where one is larger than the first."""
    height, width = taps[0].shape[2:]
    aligned = []
    for tap in taps:
        if tap.shape[2] > height or tap.shape[3] > width:
            raise HeadError(f"a map of {tap.shape[2]}x{tap.shape[3]} is larger than the first, {height}x{width}")
        rows, columns = (corner_weights(*sizes) for sizes in zip(tap.shape[2:], (height, width), strict=True))
        aligned.append(np.asarray(rows @ tap @ columns.T, tap.dtype))
    return np.concatenate(aligned, axis=1)


def corner_weights(short: int, long: int) -> NDArray[np.float64]:
    """[long, short]: bilinear weights of ``long`` places from the first to the last of ``short`` values."""
    places = np.linspace(0.0, short - 1.0, long) if long > 1 else np.zeros(1)
    return np.asarray(np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(short))), np.float64)


def coordinates(x: Floats, weights: Weights) -> tuple[Floats, Floats]:
    """Of every position [B, 2, H, W] and of the whole picture [B, 2, 1, 1], in [-1, 1], column first: two layers of
    tanh each, of x [B, C, H, W] and of its mean over positions."""
    found = []
    for name, value in (("local", x), ("pooled", x.mean(axis=(2, 3), keepdims=True))):
        for layer in (f"coordinates.{name}1", f"coordinates.{name}2"):
            value = np.tanh(conv(value, weights[f"{layer}.weight"], weights[f"{layer}.bias"]))
        limit = weights[f"coordinates.{name}_limit"].item()
        found.append(np.clip(value, -limit, limit))
    return found[0], found[1]


def hat_weights(coordinate: Floats, nodes: int) -> Floats:
    """[...] -> [..., nodes]: what each of ``nodes`` counts at a coordinate. Node i lies at (2 i + 1) / nodes - 1; a
    value midway counts both neighbours half; beyond the outer nodes the sum falls to 0 (the padding is zero)."""
    place = ((coordinate + 1) * nodes - 1) / 2
    return np.asarray(np.maximum(0, 1 - np.abs(place[..., None] - np.arange(nodes))), coordinate.dtype)


def sample_local(grid: Floats, local: Floats) -> Floats:
    """Every position reads the grid [C, R, R] at its own coordinates [B, 2, H, W]: [B, C, H, W]."""
    across, down = (hat_weights(local[:, axis], grid.shape[2 - axis]) for axis in (0, 1))
    return np.einsum("bhwr,bhws,crs->bchw", down, across, grid, optimize=True)


def sample_global(grid: Floats, whole: Floats, size: tuple[int, int]) -> Floats:
    """A picture reads a whole feature map off the grid [R * R, C * H * W] at its coordinates [B, 2, 1, 1]:
    [B, C, H, W]; ``size``: H, W."""
    nodes = round(len(grid) ** 0.5)
    across, down = (hat_weights(whole[:, axis, 0, 0], nodes) for axis in (0, 1))
    both = (down[:, :, None] * across[:, None, :]).reshape(len(whole), -1)
    return (both @ grid).reshape(len(whole), -1, *size)


def standardise(x: Floats) -> Floats:
    """Mean 0 and (unbiased) standard deviation 1 over the positions of every channel of every picture."""
    centred = x - x.mean(axis=(2, 3), keepdims=True)
    return centred / (x.std(axis=(2, 3), ddof=1, keepdims=True) + x.dtype.type(STD_EPS))


def branch(name: str, local: Floats, whole: Floats, weights: Weights) -> Floats:
    """What the ``normal`` or the ``abnormal`` branch makes of a picture's coordinates: [B, C, H, W]."""
    near = sample_local(weights[f"{name}.local_grid"], local)
    far = sample_global(weights[f"{name}.global_grid"], whole, (local.shape[2], local.shape[3]))
    if f"{name}.sum.bias" in weights:
        x: Floats = far + near + weights[f"{name}.sum.bias"][None, :, None, None]
    else:
        x = np.concatenate([far, near], axis=1)
        if name == "abnormal":
            x = standardise(x)
        if f"{name}.reduce.weight" in weights:
            x = conv(x, weights[f"{name}.reduce.weight"], weights[f"{name}.reduce.bias"])
    index = 0
    while any(key.startswith(f"{name}.block{index}.") for key in weights):
        mobile = f"{name}.block{index}.expand.weight" in weights
        x = (mobile_block if mobile else residual_block)(x, weights, f"{name}.block{index}")
        index += 1
    return conv(x, weights[f"{name}.out.weight"], None)


def residual_block(x: Floats, weights: Weights, key: str) -> Floats:
    """ReLU(x + conv2(ReLU(conv1(x)))), 3x3 each."""
    inner = np.maximum(conv(x, weights[f"{key}.conv1.weight"], weights[f"{key}.conv1.bias"]), 0)
    return np.asarray(np.maximum(x + conv(inner, weights[f"{key}.conv2.weight"], weights[f"{key}.conv2.bias"]), 0))


def mobile_block(x: Floats, weights: Weights, key: str) -> Floats:
    """A bottleneck of MobileNetV3: wider by a 1x1, a 3x3 channel by channel, a gate a channel from the mean over
    positions, narrower by a 1x1, added to x."""
    inner = hard_swish(conv(x, weights[f"{key}.expand.weight"], weights[f"{key}.expand.bias"]))
    inner = hard_swish(depthwise(inner, weights[f"{key}.depthwise.weight"], weights[f"{key}.depthwise.bias"]))
    gate = inner.mean(axis=(2, 3), keepdims=True)
    gate = np.maximum(conv(gate, weights[f"{key}.squeeze.weight"], weights[f"{key}.squeeze.bias"]), 0)
    gate = hard_sigmoid(conv(gate, weights[f"{key}.excite.weight"], weights[f"{key}.excite.bias"]))
    return x + conv(inner * gate, weights[f"{key}.project.weight"], weights[f"{key}.project.bias"])


def hard_sigmoid(x: Floats) -> Floats:
    return np.clip(x / 6 + x.dtype.type(0.5), 0, 1)


def hard_swish(x: Floats) -> Floats:
    return x * hard_sigmoid(x)


def conv(x: Floats, weight: Floats, bias: Floats | None) -> Floats:
    """Convolution, zero padding of half the kernel: [B, C, h, w], [out, C, k, k], [out] -> [B, out, h, w]."""
    total = _over_kernel(x, weight.shape[2], lambda part, row, column: _mix(weight[:, :, row, column], part))
    return total if bias is None else total + bias[None, :, None, None]


def depthwise(x: Floats, weight: Floats, bias: Floats) -> Floats:
    """Convolution of each channel by itself, zero padding of half the kernel: weight [C, 1, k, k]."""
    total = _over_kernel(
        x, weight.shape[2], lambda part, row, column: part * weight[None, :, 0, row, column, None, None]
    )
    return total + bias[None, :, None, None]


def similarity(x: Floats, rebuilt: Floats, threshold: float) -> Floats:
    """[B, C, H, W] twice -> [B, H, W], in [-0.7, 1]: 0.3 where the mean squared error over the channels is up to
    ``threshold``, plus 0.7 times the cosine (0 where either has length 0).

    Written as in the code, where the indicator is a rounding: half of the threshold's share rounds to even, so the
    threshold itself still counts as rebuilt. NaN stays NaN."""
    error = ((rebuilt - x) ** 2).mean(axis=1)
    indicator = 1 - np.round(np.minimum(error * x.dtype.type(0.5 / threshold), 1))
    lengths = np.sqrt((x * x).sum(axis=1)) * np.sqrt((rebuilt * rebuilt).sum(axis=1))
    cosine = (x * rebuilt).sum(axis=1) / (lengths + x.dtype.type(EPS))
    return np.asarray(MSE_WEIGHT * indicator + COSINE_WEIGHT * cosine, x.dtype)


def residual(x: Floats, rebuilt: Floats, threshold: float) -> Floats:
    """|1 - similarity| times the length of (rebuilt - x): [B, H, W], >= 0.

    It is the length of (refined - x), where refined = similarity * x + (1 - similarity) * rebuilt."""
    length = np.sqrt(((rebuilt - x) ** 2).sum(axis=1))
    return np.asarray(np.abs(1 - similarity(x, rebuilt, threshold)) * length, x.dtype)


def rebuild(x: Floats, weights: Weights) -> Floats:
    """x [B, C, H, W] as the grids know it: x_n + w x_a."""
    local, whole = coordinates(x, weights)
    rebuilt = branch("normal", local, whole, weights)
    if "abnormal.out.weight" in weights:
        rebuilt = rebuilt + weights["mix"].item() * branch("abnormal", local, whole, weights)
    return np.asarray(rebuilt, x.dtype)


def features(taps: Sequence[Floats], weights: Weights) -> Floats:
    """x: the taps, aligned, on the scale that the network was trained on."""
    scale, shift = (weights[f"features.{name}"][None, :, None, None] for name in ("scale", "shift"))
    return align(taps) * scale + shift


def level(taps: Sequence[Floats], weights: Weights) -> Floats:
    """The level map of the taps [B, C_l, h_l, w_l]: [B, H, W]."""
    x = features(taps, weights)
    return residual(x, rebuild(x, weights), weights["threshold"].item())


def _over_kernel(x: Floats, size: int, term: Any) -> Floats:
    pad = size // 2
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    parts = (
        term(padded[:, :, row : row + height, column : column + width], row, column)
        for row in range(size)
        for column in range(size)
    )
    total: Floats = sum(parts)
    return total


def _mix(weight: Floats, x: Floats) -> Floats:
    mixed: Floats = np.einsum("oc,bchw->bohw", weight, x, optimize=True)
    return mixed
