"""Defects that nobody has photographed, drawn on good pictures (or on their features) to compare heads with.

They are weak on purpose: what every head finds says nothing about which is better.
"""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.block_paste import BlockPaste
from calibration.synthesis import blend, draw_texture, perlin_mask

Picture = NDArray[np.uint8]
Taps = Mapping[str, NDArray[np.float32]]

OPACITY = {"blend 15%": 0.15, "blend 30%": 0.3, "blend 60%": 0.6}
MOVED = "moved patch"
KINDS = (*OPACITY, MOVED)
"""Kinds of defect on pictures, weakest blend first."""

PASTES = {"paste 0.5": 0.5, "paste 1": 1.0}
"""Kinds of defect on features: standard deviations that a block is raised by."""

AREA = (0.002, 0.08)  # of the picture, for a blend: from a scratch to a stain
SIDE = (0.06, 0.2)  # of the picture's sides, for a moved patch
TRIES = 50
PASTE_GRID = 32


def draw_defect(kind: str, picture: Picture, random: np.random.RandomState) -> Picture:
    """A copy of ``picture`` (uint8 [H, W, 3]) with one defect of ``kind`` (of :data:`KINDS`).

    ``blend``: a drawn texture in a Perlin mask, as opaque as the kind says; ``moved patch``: a piece of the picture
    itself somewhere else. Raises KeyError for another kind."""
    if kind == MOVED:
        return _moved(picture, random)
    opacity = OPACITY[kind]
    size = picture.shape[:2]
    return blend(picture, draw_texture(size, random), _mask(size, random), 1.0 - opacity)


def paste_block(
    kind: str, taps: Taps, scale: Mapping[str, float], random: np.random.RandomState
) -> dict[str, NDArray[np.float32]]:
    """A copy of one picture's taps (float32 [1, C, h, w]) with one block raised by ``kind`` of :data:`PASTES` times
    ``scale`` (each tap's standard deviation), at the same place of the picture in every tap."""
    strength = PASTES[kind]
    values = BlockPaste(half=(1.0, 5.0), intensity=(strength, strength)).draw(random, PASTE_GRID, PASTE_GRID).values
    pasted = {}
    for name, tap in taps.items():
        height, width = tap.shape[2:]
        pasted[name] = tap + np.float32(scale[name]) * cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA)
    return pasted


def _mask(size: tuple[int, int], random: np.random.RandomState) -> NDArray[np.bool_]:
    for _ in range(TRIES):
        mask = perlin_mask(size, random)
        # One blob of the noise, not all of them: a defect is in one place.
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        areas = stats[1:, cv2.CC_STAT_AREA] / mask.size
        fitting = 1 + np.flatnonzero((areas >= AREA[0]) & (areas <= AREA[1]))
        if count > 1 and len(fitting):
            return np.asarray(labels == fitting[random.randint(len(fitting))])
    disc = np.zeros(size, np.uint8)
    centre = int(random.randint(size[1])), int(random.randint(size[0]))
    cv2.circle(disc, centre, max(2, min(size) // 12), 1, -1)
    return disc.astype(np.bool_)


def _moved(picture: Picture, random: np.random.RandomState) -> Picture:
    height, width = picture.shape[:2]
    tall, wide = (max(2, int(random.uniform(*SIDE) * side)) for side in (height, width))
    best, found = picture, -1.0
    for _ in range(4):  # of four moves the one that changes most: a patch of the background on itself is no defect
        (top, left), (down, right) = (
            (random.randint(0, height - tall + 1), random.randint(0, width - wide + 1)) for _ in range(2)
        )
        out = picture.copy()
        out[down : down + tall, right : right + wide] = picture[top : top + tall, left : left + wide]
        change = float(cv2.absdiff(out, picture).mean())
        if change > found:
            best, found = out, change
    return best
