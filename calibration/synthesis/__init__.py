"""Synthetic defects on pictures of good parts: what trains a restoring network, and what can stand in for defects that
nobody has collected. The door of the package.

Pictures are RGB [H, W, 3], uint8, or floating where said; nothing that is given is changed. All chance comes from the
``numpy.random.RandomState`` that is passed in, whose streams are the same in every NumPy.
"""

from __future__ import annotations

from calibration.synthesis.augmenters import AUGMENTERS, FEW_TEXTURES, PRINTED, augment
from calibration.synthesis.blending import blend
from calibration.synthesis.corruptor import Corrupted, Corruptor
from calibration.synthesis.cutpaste import Preset, cutpaste
from calibration.synthesis.perlin import perlin_mask, perlin_noise
from calibration.synthesis.textures import Textures, draw_texture, drawn_textures, read_textures

__all__ = [
    "AUGMENTERS",
    "FEW_TEXTURES",
    "PRINTED",
    "Corrupted",
    "Corruptor",
    "Preset",
    "Textures",
    "augment",
    "blend",
    "cutpaste",
    "draw_texture",
    "drawn_textures",
    "perlin_mask",
    "perlin_noise",
    "read_textures",
]
