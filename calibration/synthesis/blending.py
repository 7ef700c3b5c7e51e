"""Putting one picture into another."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[Any]


def blend(picture: Picture, texture: Picture, mask: NDArray[np.bool_], kept: float) -> Picture:
    """``texture`` inside ``mask`` (bool [H, W]), through which a share ``kept`` in [0, 1] of the picture shows.

    Both [H, W, 3] of one type, uint8 or floating; outside the mask the picture is unchanged to the last bit."""
    out = picture.copy()
    inside = texture[mask] * np.float32(1 - kept) + picture[mask] * np.float32(kept)
    out[mask] = np.rint(inside) if np.issubdtype(picture.dtype, np.integer) else inside
    return out
