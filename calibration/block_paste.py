"""Feature block paste (FBP): a false block added to a feature map, for training and for trying a method out.

Source: GRAD (Huang et al., ICME 2025, arXiv 2504.00609), section on feature block paste. Where its text and the
authors' code differ the code is followed; the paper's walk is an option. Pure NumPy; all chance comes from the
``RandomState`` given, so that equal seeds give equal blocks in every NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SIGMA = 0.8  # of the blur, positions: what 3x3 means to torchvision
STEPS = 100  # of the code's walk
_FOUR = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])
_EIGHT = np.array([(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)])


@dataclass(frozen=True)
class Block:
    """One block. mask: bool [h, w], where it was drawn; values: float32 [h, w], what is added there to every channel,
    in standard deviations of the features: the mask times its intensity, blurred (so one position wider)."""

    mask: NDArray[np.bool_]
    values: NDArray[np.float32]


@dataclass(frozen=True)
class BlockPaste:
    """How blocks are drawn.

    half: the half size B is the whole part of a number between these (as in the code: 0 to 9), or what fits into the
        map; the box has 2 B + 1 positions a side.
    intensity: what is added lies between these, in standard deviations of the features. The paper's 8 to 16 are in
        the units of EfficientNet-B6's raw features, which no other backbone shares.
    walk: ``code``: 100 steps to one of the four neighbours; ``paper``: B to 2 B steps to one of the nine positions
        around (its own included), a thinner mask. Both begin at the centre. A step that would leave the box is not
        made (the code walks on outside, unmarked): so the mask is in one piece.
    """

    half: tuple[float, float] = (0.5, 10.0)
    intensity: tuple[float, float] = (2.0, 4.0)
    walk: Literal["code", "paper"] = "code"

    def draw(self, random: np.random.RandomState, height: int, width: int) -> Block:
        """A block on a map of ``height`` x ``width``, its centre anywhere where the box fits."""
        half = min(int(random.uniform(*self.half)), (min(height, width) - 1) // 2)
        intensity = random.uniform(*self.intensity)
        row, column = (half + random.randint(side - 2 * half) for side in (height, width))
        mask = np.zeros((height, width), bool)
        box = mask[row - half : row + half + 1, column - half : column + half + 1]
        box |= self.mask(random, half)
        return Block(mask, blur(np.float32(intensity) * mask.astype(np.float32)))

    def mask(self, random: np.random.RandomState, half: int) -> NDArray[np.bool_]:
        """The marked positions of a box of half size ``half``: bool [2 half + 1, 2 half + 1], the centre among them."""
        if self.walk == "code":
            moves = _FOUR[random.randint(4, size=STEPS)]
        else:
            moves = _EIGHT[random.randint(9, size=random.randint(half, 2 * half + 1))]
        side = 2 * half + 1
        mask = np.zeros((side, side), bool)
        row = column = half
        mask[row, column] = True
        for down, right in moves.tolist():
            if 0 <= row + down < side and 0 <= column + right < side:
                row, column = row + down, column + right
                mask[row, column] = True
        return mask

    def paste(
        self, features: NDArray[np.floating[Any]], std: NDArray[np.floating[Any]] | float, random: np.random.RandomState
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """A copy of ``features`` [B, C, h, w] with a block of its own in every picture, and the masks [B, h, w].

        std: the features' standard deviation, one for all or one a channel [C]."""
        blocks = [self.draw(random, *features.shape[2:]) for _ in range(len(features))]
        unit = np.reshape(np.asarray(std, np.float32), (-1, 1, 1))
        added = np.stack([block.values for block in blocks])[:, None] * unit
        return np.asarray(features + added, np.float32), np.stack([block.mask for block in blocks])


def blur(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The 3x3 Gaussian of sigma 0.8 over [h, w], reflected at the border (without repeating the edge; a side of one
    repeats itself). Away from the border it keeps the sum."""
    side = float(np.exp(-0.5 / SIGMA**2))
    kernel = np.array([side, 1.0, side]) / (1.0 + 2.0 * side)
    result = values.astype(np.float64)
    for axis in (0, 1):
        pad = [(1, 1) if axis == i else (0, 0) for i in (0, 1)]
        around = np.pad(result, pad, mode="reflect" if values.shape[axis] > 1 else "edge")
        size = values.shape[axis]
        result = sum(weight * around.take(range(i, i + size), axis) for i, weight in enumerate(kernel))
    return result.astype(np.float32)
