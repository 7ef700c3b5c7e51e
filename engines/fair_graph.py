"""FAIR as one graph: from the picture over its high frequencies and the restoring network to the two residuals.

Source: FAIR (Liu et al., Frequency-aware Image Restoration); :mod:`edge.heads.fair` is the same arithmetic written out.
The high pass takes no Fourier transform: a gain that is symmetric in both frequencies is a product with each value in
the basis of Hartley's transform (cosine plus sine, real and its own inverse), so four multiplications by constant
matrices filter exactly, with any gain. A truncated convolution (31 x 31) is off by up to a thousandth for the default
filter, by far more for the ideal one, and takes ten times as long (OpenVINO, 256 x 256, one core: 15 ms against 1.5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.graph import MEAN, STD, GraphBuilder, Value

GRADIENT, COLOR = "gradient", "color"  # the outputs
SCALES = 5
STEP = 2 ** (SCALES - 1)
GREY = (0.299, 0.587, 0.114)
GMS_C = 0.0026  # for pictures in [0, 1]
TINY = 1e-12  # beside squared gradients
GAMMA_KNEE, LAB_KNEE = 0.04045, 0.008856  # below: straight lines
XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
AB = ((500.0, -500.0, 0.0), (0.0, 200.0, -200.0))  # of the cube roots of XYZ
# Polynomials near the roots, highest power first: within 14 % from LAB_KNEE, 6 % from the gamma's knee to 1.
ROOT_GUESS = {3: (-1.453, 2.098, 0.217), 5: (0.442, 0.612)}
PREWITT = ((1.0, 0.0, -1.0), (1.0, 0.0, -1.0), (1.0, 0.0, -1.0))  # over 3
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))

Floats = NDArray[np.floating[Any]]
Arrays = Mapping[str, Floats]


def write_fair_graph(size: tuple[int, int], weights: Arrays, gain: Floats | None, metadata: Mapping[str, str]) -> bytes:
    """The ONNX of the whole method for pictures of ``size`` (height, width; multiples of 16).

    weights: folded, ``<block>.<weight|bias>``, as :func:`edge.heads.fair.restore` takes them. gain: of the high pass
    at every frequency of numpy.fft.fft2, [height, width], symmetric, 0 at frequency 0; None: the Sobel filter.
    Outputs: ``gradient``, float32 [batch, 1, height, width] in [0, 1), 1 minus the gradient similarity at two scales;
    ``color``, the same shape, squared distance in a and b of CIELAB. Raises EngineError: sides or arrays that do not
    fit, or that are not finite."""
    height, width = size
    if height % STEP or width % STEP or min(size) < STEP:
        raise EngineError(f"the restoring network needs sides that are multiples of {STEP}, not {height}x{width}")
    if gain is not None and (gain.shape != size or not np.allclose(gain, _mirrored(gain), rtol=0, atol=1e-9)):
        raise EngineError(f"the high pass needs a symmetric gain for {height}x{width}, not {list(gain.shape)}")
    # An engine's maximum, which ReLU is, may turn NaN into zero: what would hide there is refused here.
    bad = [name for name, array in weights.items() if not np.isfinite(array).all()]
    if bad:
        raise EngineError(f"the network's {bad[0]} is not finite: train it again")
    builder = GraphBuilder(height, width)
    # Undoes the normalisation that the input has for backbones: RGB in [0, 1].
    picture = builder.images(np.asarray(STD), np.asarray(MEAN))
    luma = builder.conv(picture, "grey", np.reshape(GREY, (1, 3, 1, 1)), None)
    x = _sobel(builder, luma) if gain is None else _high_pass(builder, luma, np.asarray(gain, np.float64))
    restored = _restore(builder, x, weights)
    builder.output(_gradient_residual(builder, restored, picture), GRADIENT)
    builder.output(_color_residual(builder, restored, picture), COLOR)
    return builder.build("fair", {**metadata, "head": "fair"})


def _high_pass(builder: GraphBuilder, x: Value, gain: Floats) -> Value:
    down, across = (_hartley(length) for length in (x.height, x.width))
    one = builder.constant("highpass.across", across[None, None])
    other = builder.constant("highpass.down", down[None, None])
    x = _same(builder, "MatMul", [x, one], "highpass.rows", x)
    x = _same(builder, "MatMul", [other, x], "highpass.spectrum", x)
    x = _same(builder, "Mul", [x, builder.constant("highpass.gain", gain[None, None])], "highpass.filtered", x)
    x = _same(builder, "MatMul", [x, one], "highpass.rows_back", x)
    return _same(builder, "MatMul", [other, x], "highpass", x)


def _sobel(builder: GraphBuilder, x: Value) -> Value:
    """Derivatives in x and y, the picture mirrored at its border pixels."""
    pads = builder.integers("sobel.pads", [0, 0, 1, 1, 0, 0, 1, 1])
    padded = builder.apply("Pad", [x, pads], "sobel.padded", (1, x.height + 2, x.width + 2), mode="reflect")
    kernel = np.asarray(SOBEL)
    weight = builder.constant("sobel.weight", np.stack([kernel, kernel.T])[:, None])
    return builder.apply("Conv", [padded, weight], "sobel", (2, x.height, x.width), kernel_shape=[3, 3])


def _restore(builder: GraphBuilder, x: Value, weights: Arrays) -> Value:
    kept: list[Value] = []
    for scale in range(1, SCALES + 1):
        if kept:
            shape = (x.channels, x.height // 2, x.width // 2)
            x = builder.apply("MaxPool", [x], f"encoder{scale}", shape, kernel_shape=[2, 2], strides=[2, 2])
        x = _block(builder, _block(builder, x, weights, f"encoder{scale}.conv1"), weights, f"encoder{scale}.conv2")
        kept.append(x)
    for scale in range(SCALES - 1, 0, -1):
        skip, here = kept[scale - 1], f"decoder{scale}"
        x = _block(builder, _double(builder, x, here, "align_corners"), weights, f"{here}.up")
        if x.channels != skip.channels:
            raise EngineError(f"the network's {here}.up gives {x.channels} channels, its skip {skip.channels}")
        x = builder.add(x, skip, f"{here}.skip")
        x = _block(builder, _block(builder, x, weights, f"{here}.conv1"), weights, f"{here}.conv2")
    x = _conv(builder, x, weights, "out")
    if x.channels != 3:
        raise EngineError(f"the network restores {x.channels} channels, not red, green and blue")
    return x


def _gradient_residual(builder: GraphBuilder, restored: Value, picture: Value) -> Value:
    """Of the restored picture as it is: what is not finite in it must not be clipped away."""
    full = _similarity(builder, restored, picture, "gms1")
    half = _similarity(builder, _halved(builder, restored, "gms2.a"), _halved(builder, picture, "gms2.b"), "gms2")
    both = builder.add(full, _double(builder, half, "gms2", "half_pixel"), "gms.sum")
    mean = _same(builder, "Mul", [both, _scalar(builder, "gms.half", 0.5)], "gms", both)
    difference = _same(builder, "Sub", [_scalar(builder, "gms.one", 1.0), mean], "gms.difference", mean)
    return _same(builder, "Abs", [difference], GRADIENT, mean)  # undoes a rounding below zero, and keeps NaN


def _similarity(builder: GraphBuilder, a: Value, b: Value, name: str) -> Value:
    """Gradient magnitude similarity, mean over the channels: [1, h, w]."""
    (one, one_square), (other, other_square) = (
        _gradient(builder, value, f"{name}.{side}") for side, value in (("a", a), ("b", b))
    )
    product = _same(builder, "Mul", [one, other], f"{name}.product", one)
    twice = _same(builder, "Mul", [product, _scalar(builder, f"{name}.two", 2.0)], f"{name}.twice", one)
    above = _same(builder, "Add", [twice, _scalar(builder, f"{name}.c", GMS_C)], f"{name}.above", one)
    squares = _same(builder, "Add", [one_square, other_square], f"{name}.squares", one)
    below = _same(builder, "Add", [squares, _scalar(builder, f"{name}.c_tiny", GMS_C + TINY)], f"{name}.below", one)
    ratio = _same(builder, "Div", [above, below], f"{name}.ratio", one)
    return builder.apply("ReduceMean", [ratio], name, (1, a.height, a.width), axes=[1], keepdims=1)


def _gradient(builder: GraphBuilder, x: Value, name: str) -> tuple[Value, Value]:
    """Length of the Prewitt gradient a channel, and its square."""
    kernel = np.asarray(PREWITT) / 3
    squares = []
    for direction, each in (("across", kernel), ("down", kernel.T)):
        weight = builder.constant(f"{name}.{direction}.weight", np.repeat(each[None, None], x.channels, axis=0))
        attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "group": x.channels}
        slope = _same(builder, "Conv", [x, weight], f"{name}.{direction}", x, **attributes)
        squares.append(_same(builder, "Mul", [slope, slope], f"{name}.{direction}.square", x))
    square = builder.add(squares[0], squares[1], f"{name}.squared")
    square = _same(builder, "Add", [square, _scalar(builder, f"{name}.tiny", TINY)], f"{name}.square", x)
    return _same(builder, "Sqrt", [square], f"{name}.length", x), square


def _halved(builder: GraphBuilder, x: Value, name: str) -> Value:
    shape = (x.channels, x.height // 2, x.width // 2)
    return builder.apply("AveragePool", [x], f"{name}.halved", shape, kernel_shape=[2, 2], strides=[2, 2])


def _color_residual(builder: GraphBuilder, restored: Value, picture: Value) -> Value:
    roots = [_roots(builder, value, f"lab.{side}") for side, value in (("a", restored), ("b", picture))]
    difference = _same(builder, "Sub", [*roots], "lab.difference", roots[0])
    ab = builder.conv(difference, "lab.ab", np.reshape(AB, (2, 3, 1, 1)), None)
    square = _same(builder, "Mul", [ab, ab], "lab.square", ab)
    return builder.conv(square, COLOR, np.ones((1, 2, 1, 1)), None)


def _roots(builder: GraphBuilder, x: Value, name: str) -> Value:
    """The cube roots of XYZ over the white's (a straight line near black): what a and b are differences of."""
    limits = [_plain_scalar(builder, f"{name}.{key}", value) for key, value in (("zero", 0.0), ("one", 1.0))]
    x = _same(builder, "Clip", [x, *limits], f"{name}.clipped", x)
    straight = _same(builder, "Mul", [x, _scalar(builder, f"{name}.slope", 1 / 12.92)], f"{name}.straight", x)
    knee = _scalar(builder, f"{name}.knee", GAMMA_KNEE)
    upper = _same(builder, "Max", [x, knee], f"{name}.upper", x)
    scaled = builder.affine(upper, f"{name}.gamma", np.full(3, 1 / 1.055), np.full(3, 0.055 / 1.055))
    product = _same(builder, "Mul", [scaled, _root(builder, scaled, 5, f"{name}.fifth")], f"{name}.power12", x)
    power = _same(builder, "Mul", [product, product], f"{name}.power24", x)
    linear = _chosen(builder, x, knee, power, straight, f"{name}.linear")
    matrix = np.asarray(XYZ)
    matrix /= matrix.sum(axis=1, keepdims=True)
    xyz = builder.conv(linear, f"{name}.xyz", matrix[:, :, None, None], None)
    line = builder.affine(xyz, f"{name}.line", np.full(3, 7.787), np.full(3, 4 / 29))
    knee = _scalar(builder, f"{name}.lab_knee", LAB_KNEE)
    upper = _same(builder, "Max", [xyz, knee], f"{name}.xyz.upper", xyz)
    return _chosen(builder, xyz, knee, _root(builder, upper, 3, f"{name}.third"), line, f"{name}.f")


def _root(builder: GraphBuilder, x: Value, n: int, name: str) -> Value:
    """The third or fifth root, of values from the knees to 1 (relative error under 1e-8): Halley's iteration, twice,
    from a polynomial. An engine's own power took as long as the whole network."""

    def step(op: str, a: Value, b: Value | str, key: str) -> Value:
        return _same(builder, op, [a, b], f"{name}.{key}", x)

    first, *others = ROOT_GUESS[n]
    y = step("Mul", x, _scalar(builder, f"{name}.c0", first), "guess0")
    for index, coefficient in enumerate(others, 1):
        if index > 1:
            y = step("Mul", y, x, f"guess{index}.times")
        y = step("Add", y, _scalar(builder, f"{name}.c{index}", coefficient), f"guess{index}")
    for turn in ("turn1", "turn2"):
        power = step("Mul", y, y, f"{turn}.square")
        if n == 5:
            power = step("Mul", power, power, f"{turn}.fourth")
        power = step("Mul", power, y, f"{turn}.power")
        total = step("Add", power, x, f"{turn}.sum")
        if n == 5:  # y (2 y^5 + 3 x) / (3 y^5 + 2 x); of the third root y (y^3 + 2 x) / (2 y^3 + x)
            total = step("Add", total, total, f"{turn}.twice")
        above, below = step("Add", total, x, f"{turn}.above"), step("Add", total, power, f"{turn}.below")
        y = step("Div", step("Mul", y, above, f"{turn}.product"), below, turn)
    return y


def _chosen(builder: GraphBuilder, x: Value, knee: str, above: Value, below: Value, name: str) -> Value:
    over = _same(builder, "Greater", [x, knee], f"{name}.over", x)
    return _same(builder, "Where", [over, above, below], name, x)


def _block(builder: GraphBuilder, x: Value, weights: Arrays, key: str) -> Value:
    return builder.relu(_conv(builder, x, weights, key))


def _conv(builder: GraphBuilder, x: Value, weights: Arrays, key: str) -> Value:
    try:
        weight, bias = weights[f"{key}.weight"], weights[f"{key}.bias"]
    except KeyError as error:
        raise EngineError(f"the network lacks {error}: train it again") from None
    if weight.ndim != 4 or weight.shape[1] != x.channels or bias.shape != weight.shape[:1]:
        raise EngineError(f"the network's {key}, {list(weight.shape)}, does not fit {x.channels} channels")
    return builder.conv(x, key, weight, bias)


def _double(builder: GraphBuilder, x: Value, name: str, mode: str) -> Value:
    """Twice the sides, bilinear."""
    scales = builder.constant(f"{name}.scales", np.array([1.0, 1.0, 2.0, 2.0]))
    modes = {"mode": "linear", "coordinate_transformation_mode": mode}
    return builder.apply("Resize", [x, "", scales], f"{name}.doubled", (x.channels, x.height * 2, x.width * 2), **modes)


def _same(
    builder: GraphBuilder, op: str, inputs: list[Value | str], name: str, like: Value, **attributes: Any
) -> Value:
    return builder.apply(op, inputs, name, (like.channels, like.height, like.width), **attributes)


def _scalar(builder: GraphBuilder, key: str, value: float) -> str:
    return builder.constant(key, np.full((1, 1, 1, 1), value))


def _plain_scalar(builder: GraphBuilder, key: str, value: float) -> str:
    return builder.constant(key, np.reshape(value, ()))


def _hartley(length: int) -> Floats:
    """cos + sin of every frequency at every place, over the root of the length: symmetric, and its own inverse."""
    angle = (2 * math.pi / length) * (np.outer(np.arange(length), np.arange(length)) % length)
    return (np.cos(angle) + np.sin(angle)) / math.sqrt(length)


def _mirrored(gain: Floats) -> Floats:
    """The gain at the opposite frequency down; symmetric both ways where that changes nothing, for it is even."""
    return np.roll(gain[::-1], 1, axis=0)
