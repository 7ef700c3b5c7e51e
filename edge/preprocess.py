"""The one preprocessing: fit, evaluation, inspection and the daemon all resize a picture here and nowhere else.

Region of interest, then the whole of it to the bundle's size; ``cv2.INTER_AREA`` where it shrinks, bilinear where
it grows; uint8 RGB out. Normalisation is part of the engine's graph, so a frame costs a quarter of the bytes.
Peers that resize in one way when fitting and in another when running shift a 1080p picture by 0.2 normalised units.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import ConfigError

Roi = tuple[int, int, int, int]  # x, y, width, height in source pixels


def prepare(
    picture: NDArray[np.uint8],
    size: tuple[int, int],
    roi: Roi | None = None,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Resize a uint8 BGR [H, W, 3] picture to uint8 RGB [size[0], size[1], 3].

    ``roi`` (x, y, width, height) is cut first. Each axis that shrinks is averaged over area, each axis that grows
    is interpolated linearly; when a picture does both, the shrinking axis goes first (OpenCV's INTER_AREA silently
    turns into an interpolation when either axis grows). ``out``, if given, receives the result in place.

    Raises ConfigError when the region lies outside the picture.
    """
    if roi is not None:
        x, y, w, h = roi
        if x < 0 or y < 0 or w < 1 or h < 1 or x + w > picture.shape[1] or y + h > picture.shape[0]:
            raise ConfigError(
                f"region of interest {roi} (x, y, width, height) lies outside the picture of"
                f" {picture.shape[1]} x {picture.shape[0]} pixels"
            )
        picture = picture[y : y + h, x : x + w]
    height, width = size
    shrinks = picture.shape[0] >= height, picture.shape[1] >= width
    if all(shrinks):
        small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    elif not any(shrinks):
        small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
    else:
        middle = (picture.shape[1], height) if shrinks[0] else (width, picture.shape[0])
        small = cv2.resize(picture, middle, interpolation=cv2.INTER_AREA)
        small = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    # Colour order last: swapping the small picture costs a tenth of swapping the source.
    return cv2.cvtColor(small, cv2.COLOR_BGR2RGB, dst=out)
