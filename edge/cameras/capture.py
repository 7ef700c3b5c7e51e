"""What MJPEG and V4L2 cameras share: a connection over ``cv2.VideoCapture``."""

from __future__ import annotations

from abc import ABC, abstractmethod

import cv2
import numpy as np

from edge.cameras.base import Picture
from edge.cameras.newest import Decode
from edge.errors import CameraError


def quiet_opencv() -> None:
    """Keep OpenCV from printing a warning of its own beside each of our errors. For the whole process."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)


class VideoCaptureConnection(ABC):
    """One ``cv2.VideoCapture``; see :class:`~edge.cameras.newest.Connection`.

    OpenCV says only that it failed: subclasses tell why, in :meth:`open`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._capture: cv2.VideoCapture | None = None

    @abstractmethod
    def open(self) -> None:
        """Open ``self._capture``. Raises CameraError, CameraConfigError."""

    def grab(self) -> Decode:
        assert self._capture is not None, "grab() before open()"
        # read(), not grab() and retrieve() later: retrieve must not run on another thread than the next grab.
        try:
            ok, picture = self._capture.read()
        except cv2.error as error:
            raise CameraError(f"{self._name}: lost: OpenCV failed ({error.code})") from None
        if not ok or picture is None:
            raise CameraError(f"{self._name}: lost: no more frames, or none within the time-out")
        return lambda: _as_is(picture)

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None


def _as_is(picture: np.ndarray) -> Picture:
    return picture
