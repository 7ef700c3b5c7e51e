"""Changes of colour, contrast and direction that make many textures of one. uint8 RGB [H, W, 3] in and out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Augmenter = Callable[[Picture, np.random.RandomState], Picture]

DRAWN = 3  # augmenters a texture


def augment(
    picture: Picture, random: np.random.RandomState, names: Sequence[str] | None = None, count: int = DRAWN
) -> Picture:
    """``count`` different augmenters of ``names`` (all of :data:`PRINTED` where None) one after the other."""
    names = PRINTED if names is None else names
    for index in random.choice(len(names), min(count, len(names)), replace=False):
        picture = AUGMENTERS[names[index]](picture, random)
    return picture


def gamma(picture: Picture, random: np.random.RandomState) -> Picture:
    """Exponents of 0.5 to 2, one a channel."""
    values = np.arange(256)[:, None] / 255
    return _look_up(picture, 255 * values ** random.uniform(0.5, 2.0, 3))


def brightness(picture: Picture, random: np.random.RandomState) -> Picture:
    """Times 0.8 to 1.2, plus up to 30 grey levels either way."""
    factor, offset = random.uniform(0.8, 1.2), random.uniform(-30, 30)
    return _look_up(picture, np.arange(256) * factor + offset)


def sharpness(picture: Picture, random: np.random.RandomState) -> Picture:
    """From almost smooth (0.1) to almost twice as sharp (1.9): 1 is the picture."""
    factor = random.uniform(0.1, 1.9)
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    return cv2.addWeighted(picture, factor, cv2.filter2D(picture, -1, kernel), 1 - factor, 0)


def hue_and_saturation(picture: Picture, random: np.random.RandomState) -> Picture:
    """Both moved by up to 50 of 255."""
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV_FULL).astype(np.int16)
    hue, saturation = random.randint(-50, 51, 2)
    hsv[..., 0] = (hsv[..., 0] + hue) % 256
    hsv[..., 1] = np.clip(hsv[..., 1] + saturation, 0, 255)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB_FULL)


def solarize(picture: Picture, random: np.random.RandomState) -> Picture:
    """Every second time, values from a threshold of 32 to 128 on are inverted."""
    values, threshold = np.arange(256), random.randint(32, 129)
    if random.uniform() >= 0.5:
        return picture
    return _look_up(picture, np.where(values >= threshold, 255 - values, values))


def posterize(picture: Picture, random: np.random.RandomState) -> Picture:
    """1 to 7 bits a channel."""
    bits = random.randint(1, 8)
    return _look_up(picture, np.arange(256) >> (8 - bits) << (8 - bits))


def invert(picture: Picture, random: np.random.RandomState) -> Picture:
    return 255 - picture


def autocontrast(picture: Picture, random: np.random.RandomState) -> Picture:
    """Every channel stretched to the whole range, but up to a tenth of its values at either end."""
    cut = random.uniform(0, 10)
    low, high = np.percentile(picture.reshape(-1, 3), [cut, 100 - cut], axis=0)
    scale = np.where(high > low, 255 / np.maximum(high - low, 1), 1.0)
    return _look_up(picture, (np.arange(256)[:, None] - np.where(high > low, low, 0)) * scale)


def equalize(picture: Picture, random: np.random.RandomState) -> Picture:
    """Every channel's histogram flattened."""
    return np.dstack([cv2.equalizeHist(np.ascontiguousarray(picture[..., i])) for i in range(3)])


def turn(picture: Picture, random: np.random.RandomState) -> Picture:
    """By up to 45 degrees, black corners."""
    return rotate(picture, random.uniform(-45, 45))


def shift_hue(picture: Picture, random: np.random.RandomState) -> Picture:
    """By up to half a circle."""
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)  # hue: 0 to 179
    hsv[..., 0] = (hsv[..., 0].astype(np.int16) + random.randint(0, 91)) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def drop_channel(picture: Picture, random: np.random.RandomState) -> Picture:
    """Every second time, one channel black."""
    channel = random.randint(0, 3)
    if random.uniform() >= 0.5:
        return picture
    out = picture.copy()
    out[..., channel] = 0
    return out


def rotate(picture: NDArray[np.uint8], degrees: float) -> NDArray[np.uint8]:
    """About the centre, bilinear, black corners."""
    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=0)


AUGMENTERS: Mapping[str, Augmenter] = {
    "gamma": gamma,
    "brightness": brightness,
    "sharpness": sharpness,
    "hue_and_saturation": hue_and_saturation,
    "solarize": solarize,
    "posterize": posterize,
    "invert": invert,
    "autocontrast": autocontrast,
    "equalize": equalize,
    "turn": turn,
    "shift_hue": shift_hue,
    "drop_channel": drop_channel,
}
PRINTED = tuple(AUGMENTERS)[:10]
"""DRAEM's ten, for textures of many kinds."""
FEW_TEXTURES = tuple(AUGMENTERS)
"""All twelve, as FAIR has them where the training pictures themselves are the textures."""


def _look_up(picture: Picture, table: NDArray[np.floating] | NDArray[np.integer]) -> Picture:
    """``table``: [256], or [256, 3] for a table a channel; rounded and clipped."""
    entries = np.clip(np.rint(table), 0, 255).astype(np.uint8)
    return cv2.LUT(picture, entries if entries.ndim == 1 else entries[None])
