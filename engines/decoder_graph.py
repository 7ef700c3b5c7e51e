"""A backbone that goes on into HFRA's decoder: one graph from the picture to the residual of every level.

Source: HFRA (Chen, Chen, Mao, Jiang; arXiv 2405.09148). The decoder starts from the deepest feature; at every level
three convolutions (1x1, 3x3, 1x1), each with batch norm and LeakyReLU, and a bare 1x1 give that level's
reconstruction, which is what goes on, upsampled by repetition, to the next shallower level (equations 3 and 4).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.graph import GraphBuilder, Value

SLOPE = 0.1  # of the LeakyReLU, as printed
EPS = 1e-12  # beside the product of two lengths: a feature of length 0 has a residual of 1
BLOCKS = ("conv1", "conv2", "conv3")

Arrays = Mapping[str, NDArray[np.floating[Any]]]


def residual_name(layer: str) -> str:
    """The output that holds the residual of tap ``layer``."""
    return f"residual_{layer}"


def level_factors(sizes: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """By how much each level's reconstruction is repeated to reach the next shallower one.

    ``sizes``: (height, width) of the levels, shallow to deep; the factors are in the order of the decoder, deep to
    shallow, one fewer. Raises EngineError where a level is no whole multiple of the next deeper one."""
    factors = []
    for (height, width), (deep_height, deep_width) in reversed(list(itertools.pairwise(sizes))):
        factor = height // deep_height
        if factor < 1 or (deep_height * factor, deep_width * factor) != (height, width):
            raise EngineError(
                f"the decoder needs levels whose sizes are multiples: {height}x{width} is none of"
                f" {deep_height}x{deep_width}; use an input whose sides are multiples of 16, and layers from shallow to"
                " deep"
            )
        factors.append(factor)
    return tuple(factors)


def write_decoder_graph(backbone: bytes, decoder: Arrays, layers: Sequence[str], metadata: Mapping[str, str]) -> bytes:
    """The ONNX of ``backbone`` (a graph of ours with the taps ``layers``, shallow to deep) with the decoder behind it.

    ``decoder``: folded weights by name, ``<layer>.<conv1|conv2|conv3|out>.<weight|bias>``, weights [out, in, k, k].
    Outputs, in the order of ``layers``: ``residual_<layer>``, float32 [batch, 1, h, w], 1 minus the cosine between the
    feature and its reconstruction (the channel sum of equation 6). ``metadata`` is added to the backbone's. Raises
    EngineError: a graph that is not ours or lacks a tap, arrays that are missing or do not fit."""
    builder, taps, facts = GraphBuilder.extend(backbone)
    missing = [layer for layer in layers if layer not in taps]
    if missing or not layers:
        raise EngineError(f"the backbone has no tap {(missing or ['at all'])[0]!r}; it has {', '.join(taps)}")
    factors = level_factors([(taps[layer].height, taps[layer].width) for layer in layers])
    x = taps[layers[-1]]
    rebuilt: dict[str, Value] = {}
    for index, layer in enumerate(reversed(layers)):
        if index:
            x = builder.repeat(x, factors[index - 1])
        for block in BLOCKS:
            x = builder.leaky_relu(_conv(builder, x, decoder, f"{layer}.{block}"), SLOPE)
        x = rebuilt[layer] = _conv(builder, x, decoder, f"{layer}.out")
        if x.channels != taps[layer].channels:
            raise EngineError(
                f"the decoder rebuilds {x.channels} channels of {layer}, which has {taps[layer].channels}"
            )
    for layer in layers:
        name = residual_name(layer)
        builder.output(builder.cosine_distance(taps[layer], rebuilt[layer], name, EPS), name)
    return builder.build(f"{facts.get('backbone', 'backbone')}-hfra", {**facts, **metadata})


def _conv(builder: GraphBuilder, x: Value, decoder: Arrays, key: str) -> Value:
    try:
        weight, bias = decoder[f"{key}.weight"], decoder[f"{key}.bias"]
    except KeyError as error:
        raise EngineError(f"the decoder lacks {error}: train it again") from None
    if weight.ndim != 4 or weight.shape[1] != x.channels or bias.shape != weight.shape[:1]:
        raise EngineError(f"the decoder's {key}, {list(weight.shape)}, does not fit {x.channels} channels")
    return builder.conv(x, f"decoder.{key}", weight, bias)
