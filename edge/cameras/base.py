"""What a camera gives and how it is read: the contract that every source of frames keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.errors import PictureError

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Frame:
    """One picture as it came.

    ``picture``: uint8 BGR [H, W, 3], C-contiguous; treat it as read-only, a source may hand out the same memory
    again (a looped folder kept in memory). ``mono_ns``, ``wall_ns``: time of arrival after decoding, on the
    monotonic and on the wall clock. ``name``: the file's name in a folder, the index on a synthetic line, empty
    otherwise.
    """

    picture: Picture
    mono_ns: int
    wall_ns: int
    name: str = ""


@dataclass(frozen=True)
class Undecodable:
    """A frame that arrived and is no usable picture. It counts as captured, and as not inspected (``decode``)."""

    name: str
    why: str
    mono_ns: int
    wall_ns: int


class Camera(Protocol):
    """A source of frames, used by one thread. ``read`` and ``close`` are bounded in time; so is ``open``.

    A camera may be opened again after :meth:`close` or after a :class:`~edge.errors.CameraError`. A finite source
    goes on where it stood; it starts anew only as a new object.
    """

    @property
    def live(self) -> bool:
        """True: frames come by themselves and old ones are lost (RTSP, MJPEG, V4L2). False: the source waits for
        the reader (folder, file, synthetic line)."""
        ...

    @property
    def overwritten(self) -> int:
        """Frames that arrived and were replaced by newer ones before anybody read them. Always 0 where the source
        waits for its reader. Grows over the object's life, across reconnects."""
        ...

    def open(self) -> None:
        """Connect. Raises CameraError (worth another try) or CameraConfigError (can never work as configured)."""
        ...

    def read(self, timeout_s: float) -> Frame | Undecodable | None:
        """The next frame, or None when none came within ``timeout_s`` seconds.

        Raises EndOfStream (a finite source is done) or CameraError (lost: close, wait, open again).
        """
        ...

    def close(self) -> None:
        """Let go of everything. Never raises; may be called twice, and on a camera that never opened."""
        ...

    def describe(self) -> str:
        """What this is, for people, without credentials."""
        ...


def as_bgr(picture: NDArray[np.generic], max_pixels: int) -> Picture:
    """Bring a decoder's output to uint8 BGR [H, W, 3], C-contiguous, copying only where it must.

    Accepts uint8 [H, W], [H, W, 1], [H, W, 3] (BGR) and [H, W, 4] (BGRA). Raises PictureError for anything else and
    for more than ``max_pixels`` pixels.
    """
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.size == 0:
        raise PictureError(f"the camera gave {picture.dtype} {list(picture.shape)}, not an 8-bit picture")
    height, width = picture.shape[:2]
    if height * width > max_pixels:
        raise PictureError(
            f"{width} x {height} pixels is over the limit of {max_pixels} pixels;"
            " lower the camera's resolution or raise max_pixels"
        )
    channels = 1 if picture.ndim == 2 else picture.shape[2]
    if channels == 1:
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR), np.uint8)
    if channels == 4:
        return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGRA2BGR), np.uint8)
    if channels != 3:
        raise PictureError(f"the camera gave {channels} channels; 1, 3 or 4 are understood")
    return np.ascontiguousarray(picture, np.uint8)
