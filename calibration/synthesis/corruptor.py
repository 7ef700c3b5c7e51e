"""FAIR's pairs of pictures: what the network sees, and what it shall restore (``data_loaderbhpf`` of its code)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from calibration.synthesis.augmenters import rotate
from calibration.synthesis.blending import blend
from calibration.synthesis.cutpaste import Preset, cutpaste
from calibration.synthesis.perlin import perlin_mask
from calibration.synthesis.textures import Textures

Picture = NDArray[np.uint8]
Kind = Literal["clean", "cutpaste", "perlin"]

KEPT = (0.0, 0.8)  # share of the picture that shows through a texture
ROTATION = 90.0  # degrees to either side


@dataclass(frozen=True)
class Corrupted:
    """target, picture: uint8 [H, W, 3], without and with the defect; mask: bool [H, W], where it is (it may change
    nothing there, and it may be empty)."""

    target: Picture
    picture: Picture
    mask: NDArray[np.bool_]
    kind: Kind


@dataclass(frozen=True)
class Corruptor:
    """Half of the pictures stay clean, a quarter get a CutPaste patch, a quarter a texture in a Perlin mask.

    rotation: the share of pictures that are turned first, target and all."""

    textures: Textures
    preset: Preset = "reference"
    rotation: float = 0.3

    def __call__(self, picture: Picture, random: np.random.RandomState) -> Corrupted:
        """``picture``: uint8 [H, W, 3], not changed."""
        height, width = picture.shape[:2]
        turned, degrees = random.uniform() < self.rotation, random.uniform(-ROTATION, ROTATION)
        target = rotate(picture, degrees) if turned else np.ascontiguousarray(picture)
        patched, corrupted = random.uniform() > 0.5, random.uniform() > 0.5
        if not corrupted:
            return Corrupted(target, target, np.zeros((height, width), np.bool_), "clean")
        if patched:
            changed, mask = cutpaste(target, random, self.preset)
            return Corrupted(target, changed, mask, "cutpaste")
        mask = perlin_mask((height, width), random)
        changed = blend(target, self.textures.draw(random), mask, random.uniform(*KEPT))
        return Corrupted(target, changed, mask, "perlin")
