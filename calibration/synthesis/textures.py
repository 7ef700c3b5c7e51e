"""Textures to blend into pictures: drawn ones, those of a folder, or other pictures of the same parts.

The methods' authors take photographs (the Describable Textures Dataset). Where none are at hand, six families are
drawn here; what a network needs of them is that they look like nothing on the part, in many scales and colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.synthesis.augmenters import PRINTED, augment
from calibration.synthesis.perlin import perlin_noise
from edge.errors import DataError, PictureError
from edge.pictures import is_picture, read_picture
from edge.preprocess import prepare

Picture = NDArray[np.uint8]
F32 = NDArray[np.float32]

DRAWN_TEXTURES = 160
MAX_BYTES = 128 * 1024 * 1024  # of a folder's textures, prepared: 682 of 256 x 256


@dataclass(frozen=True)
class Textures:
    """pictures: uint8 [N, H, W, 3], may be memory-mapped; rows: which of them are used, None: all; augmenters: names of
    :data:`calibration.synthesis.AUGMENTERS`, of which every texture drawn goes through three."""

    pictures: NDArray[np.uint8]
    rows: NDArray[np.intp] | None = None
    augmenters: Sequence[str] = PRINTED

    def draw(self, random: np.random.RandomState) -> Picture:
        """uint8 [H, W, 3], new."""
        count = len(self.pictures) if self.rows is None else len(self.rows)
        index = random.randint(0, count)
        row = index if self.rows is None else self.rows[index]
        return augment(np.array(self.pictures[row]), random, self.augmenters)


def drawn_textures(size: tuple[int, int], seed: int, count: int = DRAWN_TEXTURES) -> NDArray[np.uint8]:
    """``count`` textures, uint8 [count, H, W, 3], that the seed fixes."""
    random = np.random.RandomState([seed, 7])
    return np.stack([draw_texture(size, random) for _ in range(count)])


def read_textures(folder: Path, size: tuple[int, int], max_bytes: int = MAX_BYTES) -> NDArray[np.uint8]:
    """The pictures below ``folder``, resized to ``size``: uint8 [N, H, W, 3]. Where they are more than ``max_bytes``,
    evenly spaced ones of them by name. Raises DataError, one line: no folder, no picture, an unreadable one."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of textures")
    paths = sorted(path for path in folder.rglob("*") if is_picture(path) and path.is_file())
    if not paths:
        raise DataError(f"{folder}: holds no pictures to take textures from")
    limit = max(1, max_bytes // (size[0] * size[1] * 3))
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(limit, len(paths))).round().astype(int))
    try:
        return np.stack([prepare(read_picture(paths[index]), size) for index in chosen])
    except PictureError as error:
        raise DataError(f"a texture is unusable: {error}") from None


def draw_texture(size: tuple[int, int], random: np.random.RandomState) -> Picture:
    """One texture of a random family (clouds, waves, cells, strokes, grain, tiles), uint8 RGB [H, W, 3]."""
    family = _FAMILIES[random.randint(0, len(_FAMILIES))]
    return np.ascontiguousarray(family(size, random))


def _clouds(size: tuple[int, int], random: np.random.RandomState) -> Picture:
    """Perlin octaves, stretched; sometimes folded into veins."""
    down, across = 2 ** random.randint(0, 5, 2)
    total = np.zeros(size, np.float32)
    for octave in range(random.randint(1, 5)):
        total += perlin_noise(size, (down << octave, across << octave), random) / 2**octave
    return _colored(np.abs(total) if random.uniform() < 0.4 else total, random)


def _waves(size: tuple[int, int], random: np.random.RandomState) -> Picture:
    """Up to three gratings: stripes, weaves, ripples."""
    y, x = _warped(size, random)
    total = np.zeros(size, np.float32)
    for _ in range(random.randint(1, 4)):
        angle, cycles = random.uniform(0, math.pi), 2 ** random.uniform(1, 6)
        phase = random.uniform(0, 2 * math.pi)
        total += np.sin(2 * math.pi * cycles * (x * math.cos(angle) + y * math.sin(angle)) + np.float32(phase))
    if random.uniform() < 0.3:
        total = np.sign(total)
    return _colored(total, random)


def _cells(size: tuple[int, int], random: np.random.RandomState) -> Picture:
    """Voronoi cells: of a colour each, or shaded by the distance from their centre."""
    count = round(2 ** random.uniform(3, 10))
    away = np.full(size, 255, np.uint8)
    away[random.randint(0, size[0], count), random.randint(0, size[1], count)] = 0
    distance, label = cv2.distanceTransformWithLabels(
        away, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    if random.uniform() < 0.4:
        return _colored(distance, random)
    colors = _palette(random, 6)[random.randint(0, 6, int(label.max()) + 1)][label]
    shade = 1 - random.uniform(0, 0.7) * distance / distance.max()
    return (colors * shade[..., None]).astype(np.uint8)


def _strokes(size: tuple[int, int], random: np.random.RandomState) -> Picture:
    """Lines, rings and blots on a plain ground."""
    colors = _palette(random, 5)
    out = np.empty((*size, 3), np.uint8)
    out[:] = colors[0].astype(np.uint8)
    shape, side = random.randint(0, 3), min(size)
    for _ in range(round(2 ** random.uniform(3, 8))):
        color = [int(v) for v in colors[random.randint(1, 5)]]
        x, y = (int(v) for v in (random.randint(0, size[1]), random.randint(0, size[0])))
        reach = int(side * random.uniform(0.02, 0.3)) + 1
        thick = max(1, int(side * random.uniform(0, 0.03)))
        if shape == 0:
            angle = random.uniform(0, 2 * math.pi)
            end = (x + int(reach * math.cos(angle)), y + int(reach * math.sin(angle)))
            cv2.line(out, (x, y), end, color, thick, cv2.LINE_AA)
        elif shape == 1:
            cv2.circle(out, (x, y), reach, color, thick, cv2.LINE_AA)
        else:
            axes = (max(1, reach // 2), max(1, int(reach * random.uniform(0.1, 0.5))))
            cv2.ellipse(out, (x, y), axes, random.uniform(0, 180), 0, 360, color, -1, cv2.LINE_AA)
    return out


def _grain(size: tuple[int, int], random: np.random.RandomState) -> Picture:
    """Blurred noise, one blur each way: grain, brushed metal, cloth."""
    along, over = (2 ** random.uniform(-1, 4) for _ in range(2))
    channels = 3 if random.uniform() < 0.3 else 1
    noise = random.standard_normal((*size, channels)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), sigmaX=along, sigmaY=over).reshape(*size, channels)
    if channels == 1:
        return _colored(noise[..., 0], random)
    return (255 * _stretched(noise)).astype(np.uint8)


def _tiles(size: tuple[int, int], random: np.random.RandomState) -> Picture:
    """Tiles of a colour each with joints between, shifted from row to row."""
    y, x = _warped(size, random)
    rows, columns = (2 ** random.uniform(1.5, 5) for _ in range(2))
    angle = random.uniform(0, math.pi)
    u = (x * math.cos(angle) + y * math.sin(angle)) * np.float32(columns)
    v = (y * math.cos(angle) - x * math.sin(angle)) * np.float32(rows)
    row = np.floor(v)
    u = u + row * np.float32(random.choice([0.0, 0.5, 0.3]))
    column = np.floor(u)
    joint = random.uniform(0.02, 0.2)
    within = (np.minimum(u - column, v - row) > joint)[..., None]
    colors = _palette(random, 6)
    index = (row.astype(np.int64) * 7 + column.astype(np.int64) * random.choice([1, 3, 4])) % 5
    return np.where(within, colors[1 + index], colors[0]).astype(np.uint8)


_FAMILIES = (_clouds, _waves, _cells, _strokes, _grain, _tiles)


def _palette(random: np.random.RandomState, count: int) -> F32:
    """float32 [count, 3] in 0 to 255: any colours, or greys and shades around one."""
    if random.uniform() < 0.6:
        return random.uniform(0, 255, (count, 3)).astype(np.float32)
    base, light = random.uniform(60, 255, 3), random.uniform(0.1, 1.0, (count, 1))
    return (base * light).astype(np.float32)


def _colored(field: NDArray[Any], random: np.random.RandomState) -> Picture:
    """Any [H, W] through a smooth run of two to five colours."""
    stops = _palette(random, random.randint(2, 6))
    at = _stretched(field) * np.float32(len(stops) - 1)
    first = np.minimum(at.astype(np.intp), len(stops) - 2)
    share = (at - first)[..., None]
    return (stops[first] * (1 - share) + stops[first + 1] * share).astype(np.uint8)


def _stretched(field: NDArray[Any]) -> F32:
    low, high = float(field.min()), float(field.max())
    return ((field - low) / max(high - low, 1e-6)).astype(np.float32)


def _warped(size: tuple[int, int], random: np.random.RandomState) -> tuple[F32, F32]:
    """Coordinates y, x in units of the shorter side, sometimes bent by noise."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32) / min(size)
    if random.uniform() < 0.5:
        strength = np.float32(random.uniform(0, 0.08))
        y = y + strength * perlin_noise(size, (4, 4), random)
        x = x + strength * perlin_noise(size, (4, 4), random)
    return y, x
