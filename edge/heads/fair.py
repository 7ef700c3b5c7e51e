"""FAIR in NumPy: high pass, restoring network and the two residuals, written out (Liu et al., Frequency-aware Image
Restoration).

The reference that the trained network and the graph in the bundle are tested against; the daemon runs the graph.
Pictures are RGB in [0, 1], channels first. Any floating type goes in; the network keeps it, the filters are exact in
double precision. Where paper and code disagree the code decides, with two exceptions: colours are converted as the RGB
that they are, and what goes into the conversion is clipped to [0, 1].
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge.heads.hfra import conv

Floats = NDArray[np.floating[Any]]
F64 = NDArray[np.float64]
Filter = Literal["butterworth", "gaussian", "ideal", "sobel"]

GREY = (0.299, 0.587, 0.114)  # of R, G, B, as OpenCV's
CUTOFF = 30 / 256  # cycles per pixel: 30 in a picture of 256
ORDER = 2  # of the Butterworth filter
CHANNELS = (1, 2, 4, 8, 8)  # of the encoder's five scales, times the width
SCALES = len(CHANNELS)
STEP = 2 ** (SCALES - 1)  # sides must be multiples of it
GMS_C = 0.0026  # for pictures in [0, 1]
TINY = 1e-12  # beside squared gradients
COLOR_WEIGHT = 3e-4  # k; belongs to a and b in units of CIELAB, about +-100
MEAN_KERNEL = 21  # of the map's mean filter

# RGB to XYZ (sRGB, D65), each row divided by its sum: then grey has a = b = 0, and white L = 100, exactly.
XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))


def transfer(size: tuple[int, int], kind: Filter = "butterworth", order: int = ORDER, cutoff: float = CUTOFF) -> F64:
    """The high-pass filter's gain at every frequency of numpy.fft.fft2, float64 [H, W] in [0, 1], 0 at frequency 0.

    cutoff: cycles per pixel. ``butterworth`` of ``order`` n: 1 / (1 + (cutoff / f)^(2 n)), a half at the cutoff;
    ``gaussian``: 1 - exp(-f^2 / (2 cutoff^2)); ``ideal``: 1 beyond the cutoff, else 0. Frequencies are relative to
    the side, so that a picture that is not square is filtered alike in both directions. Raises ValueError for
    ``sobel``, which is no such filter."""
    f = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1])[None, :])
    if kind == "butterworth":
        with np.errstate(divide="ignore"):
            return 1.0 / (1.0 + (cutoff / f) ** (2 * order))
    if kind == "gaussian":
        return 1.0 - np.exp(-(f**2) / (2 * cutoff**2))
    if kind == "ideal":
        return (f > cutoff * (1 + 1e-9)).astype(np.float64)  # a frequency on the cutoff is cut, whatever the rounding
    raise ValueError(f"{kind} has no gain by frequency")


def grey(pictures: Floats) -> Floats:
    """Luma: RGB [B, 3, H, W] -> [B, 1, H, W]."""
    weights = np.asarray(GREY, pictures.dtype)
    return np.einsum("bchw,c->bhw", pictures, weights)[:, None]


def high_pass(pictures: Floats, gain: F64) -> Floats:
    """[..., H, W] filtered by ``gain`` [H, W] (see :func:`transfer`), circularly: no border is special."""
    width = pictures.shape[-1]
    spectrum = np.fft.rfft2(pictures) * gain[:, : width // 2 + 1]
    return np.fft.irfft2(spectrum, s=pictures.shape[-2:]).astype(pictures.dtype)


def sobel(pictures: Floats) -> Floats:
    """[B, 1, H, W] -> [B, 2, H, W]: derivatives in x and in y by the 3x3 kernel, not normalised; the picture is
    mirrored at its border pixels (OpenCV's default)."""
    x = np.pad(pictures, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    across = x[..., 2:] - x[..., :-2]
    down = x[..., 2:, :] - x[..., :-2, :]
    gx = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
    gy = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    return np.concatenate([gx, gy], axis=1)


def seen(pictures: Floats, kind: Filter, order: int = ORDER, cutoff: float = CUTOFF) -> Floats:
    """What the network gets of RGB [B, 3, H, W]: [B, 1, H, W], or [B, 2, H, W] for ``sobel``."""
    luma = grey(pictures)
    if kind == "sobel":
        return sobel(luma)
    return high_pass(luma, transfer((luma.shape[2], luma.shape[3]), kind, order, cutoff))


def double(x: Floats) -> Floats:
    """[..., h, w] -> [..., 2 h, 2 w], bilinear with aligned corners."""
    return _double_rows(_double_rows(x).swapaxes(-1, -2)).swapaxes(-1, -2)


def max_pool(x: Floats) -> Floats:
    """Maxima of 2x2 blocks."""
    return _blocks(x).max(axis=(-3, -1))


def restore(x: Floats, weights: Mapping[str, Floats]) -> Floats:
    """The network: [B, C, H, W] as :func:`seen` gives it -> the restored picture, RGB [B, 3, H, W], not clipped.

    weights: folded, ``<block>.<weight|bias>``; the blocks are ``encoder<1..5>.conv<1|2>``,
    ``decoder<4..1>.<up|conv1|conv2>`` and ``out``. H and W are multiples of 16."""
    kept: list[Floats] = []
    for scale in range(1, SCALES + 1):
        if kept:
            x = max_pool(x)
        x = _block(_block(x, weights, f"encoder{scale}.conv1"), weights, f"encoder{scale}.conv2")
        kept.append(x)
    for scale in range(SCALES - 1, 0, -1):
        x = _block(double(x), weights, f"decoder{scale}.up") + kept[scale - 1]
        x = _block(_block(x, weights, f"decoder{scale}.conv1"), weights, f"decoder{scale}.conv2")
    return conv(x, weights["out.weight"], weights["out.bias"])


def gms(a: Floats, b: Floats) -> Floats:
    """Gradient magnitude similarity of [B, C, H, W] with itself's like: [B, C, H, W], in (0, 1], 1 where the Prewitt
    gradients are equally long."""
    one, other = _gradient(a), _gradient(b)
    return (2 * one * other + GMS_C) / (one**2 + other**2 + GMS_C + TINY)


def gradient_residual(restored: Floats, picture: Floats) -> Floats:
    """1 minus the multi-scale gradient magnitude similarity, mean over channels and the scales 1 and 1/2: RGB
    [B, 3, H, W] twice -> [B, H, W] in [0, 1)."""
    full = gms(restored, picture).mean(axis=1)
    half = gms(_blocks(restored).mean(axis=(-3, -1)), _blocks(picture).mean(axis=(-3, -1))).mean(axis=1)
    return np.abs(1 - (full + _double_half_pixel(half)) / 2)


def lab(pictures: Floats) -> Floats:
    """CIELAB (D65) of sRGB in [0, 1]: [B, 3, H, W] -> L in 0 to 100, a and b in about +-100."""
    linear = np.where(pictures > 0.04045, ((np.maximum(pictures, 0.04045) + 0.055) / 1.055) ** 2.4, pictures / 12.92)
    matrix = np.asarray(XYZ, pictures.dtype)
    xyz = np.einsum("oc,bchw->bohw", matrix / matrix.sum(axis=1, keepdims=True), linear)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 4 / 29)
    x, y, z = f[:, 0], f[:, 1], f[:, 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def color_residual(restored: Floats, picture: Floats) -> Floats:
    """Squared distance in a and b of CIELAB, both clipped to [0, 1] first: RGB [B, 3, H, W] twice -> [B, H, W]."""
    difference = lab(np.clip(restored, 0, 1))[:, 1:] - lab(np.clip(picture, 0, 1))[:, 1:]
    return (difference**2).sum(axis=1)


def levels(
    pictures: NDArray[np.uint8],
    weights: Mapping[str, Floats],
    kind: Filter = "butterworth",
    order: int = ORDER,
    cutoff: float = CUTOFF,
) -> tuple[Floats, Floats]:
    """The level maps ``gradient`` and ``color`` of uint8 RGB [B, H, W, 3], each [B, H, W] in the weights' type."""
    dtype = weights["out.weight"].dtype
    picture = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)).astype(dtype) / dtype.type(255)
    restored = restore(seen(picture, kind, order, cutoff), weights)
    return gradient_residual(restored, picture), color_residual(restored, picture)


def parameter_shapes(width: int, inputs: int) -> dict[str, tuple[int, ...]]:
    """The folded network's arrays by name, for :func:`restore`: convolutions 3x3 with bias."""
    channels = [width * factor for factor in CHANNELS]
    blocks: dict[str, tuple[int, int]] = {}
    for scale, (before, after) in enumerate(itertools.pairwise([inputs, *channels]), 1):
        blocks[f"encoder{scale}.conv1"] = (before, after)
        blocks[f"encoder{scale}.conv2"] = (after, after)
    for scale in range(SCALES - 1, 0, -1):
        here, after = channels[scale - 1], channels[max(scale - 2, 0)]
        blocks[f"decoder{scale}.up"] = (here, here)
        blocks[f"decoder{scale}.conv1"] = (here, here)
        blocks[f"decoder{scale}.conv2"] = (here, after)
    blocks["out"] = (width, 3)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (before, after) in blocks.items():
        shapes[f"{name}.weight"] = (after, before, 3, 3)
        shapes[f"{name}.bias"] = (after,)
    return shapes


def _block(x: Floats, weights: Mapping[str, Floats], name: str) -> Floats:
    return np.maximum(conv(x, weights[f"{name}.weight"], weights[f"{name}.bias"]), 0)


def _blocks(x: Floats) -> Floats:
    *before, height, width = x.shape
    return x.reshape(*before, height // 2, 2, width // 2, 2)


def _gradient(x: Floats) -> Floats:
    """Length of the Prewitt gradient (kernels over 3), zeros around."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    across = padded[..., :-2] - padded[..., 2:]
    down = padded[..., :-2, :] - padded[..., 2:, :]
    gx = (across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]) / 3
    gy = (down[..., :-2] + down[..., 1:-1] + down[..., 2:]) / 3
    return np.sqrt(gx**2 + gy**2 + x.dtype.type(TINY))


def _double_rows(x: Floats) -> Floats:
    count = x.shape[-2]
    places = np.arange(2 * count) * ((count - 1) / (2 * count - 1))
    first = np.minimum(places.astype(np.intp), max(count - 2, 0))
    share = (places - first).astype(x.dtype)[:, None]
    return x[..., first, :] * (1 - share) + x[..., np.minimum(first + 1, count - 1), :] * share


def _double_half_pixel(x: Floats) -> Floats:
    """[..., h, w] -> [..., 2 h, 2 w], bilinear between the centres of pixels: quarters and three quarters."""
    for axis in (-2, -1):
        x = np.moveaxis(x, axis, -1)
        before = np.concatenate([x[..., :1], x[..., :-1]], axis=-1)
        after = np.concatenate([x[..., 1:], x[..., -1:]], axis=-1)
        both = np.stack([x * 3 / 4 + before / 4, x * 3 / 4 + after / 4], axis=-1)
        x = np.moveaxis(both.reshape(*x.shape[:-1], -1), -1, axis)
    return x
