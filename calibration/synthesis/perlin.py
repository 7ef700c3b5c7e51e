"""Gradient noise (Perlin), and the masks that DRAEM and its successors cut out of it."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

THRESHOLD = 0.5
FINEST = 5  # up to 2^5 cells a side
TURN = 90.0  # degrees to either side


def perlin_noise(size: tuple[int, int], cells: tuple[int, int], random: np.random.RandomState) -> F32:
    """Smooth noise float32 [H, W] in [-1, 1] that is zero at the corners of ``cells`` (down, across), which need not
    divide the size. Source: K. Perlin, Improving Noise (2002), with unit gradients in all directions."""
    angle = random.uniform(0.0, 2 * math.pi, (cells[0] + 1, cells[1] + 1)).astype(np.float32)
    across, down = np.cos(angle), np.sin(angle)
    (row, y), (column, x) = _places(size[0], cells[0]), _places(size[1], cells[1])
    y, x = y[:, None], x[None, :]

    def slope(lower: int, right: int) -> NDArray[Any]:
        corner = np.ix_(row + lower, column + right)
        return across[corner] * (x - right) + down[corner] * (y - lower)

    fade_x, fade_y = _fade(x), _fade(y)
    upper = slope(0, 0) * (1 - fade_x) + slope(0, 1) * fade_x
    lower = slope(1, 0) * (1 - fade_x) + slope(1, 1) * fade_x
    noise = (upper * (1 - fade_y) + lower * fade_y) * np.float32(math.sqrt(2))
    return np.clip(noise, -1, 1)  # of roundings alone


def perlin_mask(
    size: tuple[int, int],
    random: np.random.RandomState,
    threshold: float = THRESHOLD,
    finest: int = FINEST,
    turn: float = TURN,
) -> Mask:
    """Where noise of random scales (1 to 2^``finest`` cells down and, independently, across), turned by up to
    ``turn`` degrees, exceeds ``threshold``: bool [H, W], which may be empty."""
    cells = 2 ** random.randint(0, finest + 1), 2 ** random.randint(0, finest + 1)
    noise = perlin_noise(size, cells, random)
    height, width = size
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), random.uniform(-turn, turn), 1.0)
    turned = cv2.warpAffine(noise, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=0)
    return np.asarray(turned > threshold)


def _places(length: int, cells: int) -> tuple[NDArray[np.intp], F32]:
    """Of every pixel its cell, and where in it, in [0, 1)."""
    at = np.arange(length) * (cells / length)
    cell = at.astype(np.intp)
    return cell, (at - cell).astype(np.float32)


def _fade(t: F32) -> F32:
    return t * t * t * (t * (t * 6 - 15) + 10)
