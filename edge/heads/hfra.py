"""HFRA in NumPy: the decoder and its residual, written out (Chen, Chen, Mao, Jiang; arXiv 2405.09148).

The reference that the trained network and the graph in the bundle are tested against; the daemon runs the graph. Any
floating type goes in; the arithmetic keeps it. Where the paper is silent, STFPM's code (which it follows in wording
and optimiser) decides: features are normalised at each position over their channels, so that the channel sum of
1/2 (f_enc - f_dec)^2 is 1 minus their cosine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

SLOPE = 0.1  # of the LeakyReLU
EPS = 1e-12  # beside the product of two lengths
BLOCKS = ("conv1", "conv2", "conv3")


def conv(x: Floats, weight: Floats, bias: Floats) -> Floats:
    """Convolution, zero padding of half the kernel: [B, C, h, w], [out, C, k, k], [out] -> [B, out, h, w]."""
    size = weight.shape[2]
    pad = size // 2
    batch, _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    total = np.zeros((batch, len(weight), height, width), x.dtype)
    for row in range(size):
        for column in range(size):
            part = padded[:, :, row : row + height, column : column + width]
            total += np.einsum("oc,bchw->bohw", weight[:, :, row, column], part, optimize=True)
    total += bias[None, :, None, None]
    return total


def leaky_relu(x: Floats) -> Floats:
    """x where positive, a tenth of it elsewhere."""
    return np.where(x > 0, x, x * x.dtype.type(SLOPE))


def repeat(x: Floats, factor: int) -> Floats:
    """Nearest-neighbour upsampling of [..., h, w]: blocks of ``factor`` x ``factor`` equal values."""
    return np.repeat(np.repeat(x, factor, axis=-2), factor, axis=-1)


def decode(deepest: Floats, weights: Mapping[str, Floats], sizes: Mapping[str, tuple[int, int]]) -> dict[str, Floats]:
    """The reconstruction of every level from the deepest feature [B, C, h, w] (equations 3 and 4: what goes on to the
    next shallower level is the reconstruction, upsampled).

    weights: folded, ``<layer>.<conv1|conv2|conv3|out>.<weight|bias>``; sizes: layer -> (h, w), shallow to deep."""
    x = deepest
    rebuilt: dict[str, Floats] = {}
    for layer in reversed(list(sizes)):
        x = repeat(x, sizes[layer][0] // x.shape[-2])
        for block in BLOCKS:
            x = leaky_relu(conv(x, weights[f"{layer}.{block}.weight"], weights[f"{layer}.{block}.bias"]))
        x = rebuilt[layer] = conv(x, weights[f"{layer}.out.weight"], weights[f"{layer}.out.bias"])
    return rebuilt


def residual(feature: Floats, rebuilt: Floats) -> Floats:
    """1 minus the cosine over the channels (equation 6, summed): [B, C, h, w] twice -> [B, h, w], in [0, 2] up to
    rounding; zero where the one is a positive multiple of the other, 1 where either has length 0."""
    dot = (feature * rebuilt).sum(axis=1)
    lengths = np.sqrt((feature * feature).sum(axis=1)) * np.sqrt((rebuilt * rebuilt).sum(axis=1))
    return np.abs(1 - dot / (lengths + feature.dtype.type(EPS)))


def loss(residuals: Sequence[Floats]) -> float:
    """Mean over the levels of the mean over pictures and positions (equations 7 and 8)."""
    return float(np.mean([level.mean(dtype=np.float64) for level in residuals]))


def printed_weights(sizes: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """The level weights of equation 9, 1 / (w h): the deepest level of 256x256 counts 16 times the shallowest. The
    factor may be a slip carried over from the loss (STFPM has it there alone); uniform weights are our default."""
    return tuple(1.0 / (height * width) for height, width in sizes)
