"""CutPaste: a part of a picture, turned, pasted elsewhere into the same picture (Li, Sohn, Yoon, Pfister; CVPR 2021),
in the two forms that FAIR has of it."""

from __future__ import annotations

import math
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[Any]
Preset = Literal["reference", "paper"]

SIDE = (0.8, 0.9)  # of the picture's
REFERENCE_RADIANS = (-6, 6)  # whole ones, the end exclusive
PAPER_DEGREES = 10.0


def cutpaste(
    picture: Picture, random: np.random.RandomState, preset: Preset = "reference"
) -> tuple[Picture, NDArray[np.bool_]]:
    """A changed copy of ``picture`` [H, W, 3] and the place pasted over, bool [H, W].

    ``reference``, as FAIR's code: a patch of 0.8 to 0.9 of the sides from anywhere, cut off at the picture's edge,
    turned about its own corner by a whole number of radians, black where nothing is left of it: mostly black
    rectangles, of a fifth of the picture in the median. ``paper``, as its text: over half of the picture, from wholly
    inside, turned a little about its centre and mirrored at its borders."""
    height, width = picture.shape[:2]
    tall, wide = (_even(random.uniform(*SIDE) * side) for side in (height, width))
    if preset == "reference":
        top, left = random.randint(0, height), random.randint(0, width)
        patch = picture[top : top + tall, left : left + wide]
        patch = _turn(patch, math.degrees(random.randint(*REFERENCE_RADIANS)), (0.0, 0.0), cv2.BORDER_CONSTANT)
    else:
        top, left = random.randint(0, height - tall + 1), random.randint(0, width - wide + 1)
        patch = picture[top : top + tall, left : left + wide]
        centre = (wide - 1) / 2, (tall - 1) / 2
        patch = _turn(patch, random.uniform(-PAPER_DEGREES, PAPER_DEGREES), centre, cv2.BORDER_REFLECT_101)
    tall, wide = patch.shape[:2]
    top, left = random.randint(0, height - tall + 1), random.randint(0, width - wide + 1)
    mask = np.zeros((height, width), np.bool_)
    mask[top : top + tall, left : left + wide] = True
    out = picture.copy()
    out[top : top + tall, left : left + wide] = patch
    return out, mask


def _turn(patch: Picture, degrees: float, centre: tuple[float, float], border: int) -> Picture:
    matrix = cv2.getRotationMatrix2D(centre, degrees, 1.0)
    size = patch.shape[1], patch.shape[0]
    turned = cv2.warpAffine(np.ascontiguousarray(patch), matrix, size, flags=cv2.INTER_LINEAR, borderMode=border)
    return turned.reshape(patch.shape)


def _even(length: float) -> int:
    return max(2, round(length / 2) * 2)
