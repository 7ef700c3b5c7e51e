"""Cameras at this machine (USB, CSI) through Video4Linux and OpenCV."""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path

import cv2

from edge.cameras.capture import VideoCaptureConnection, quiet_opencv
from edge.cameras.config import V4l2Source
from edge.cameras.newest import LiveCamera
from edge.errors import CameraConfigError, CameraError

log = logging.getLogger(__name__)


def v4l2_camera(spec: V4l2Source) -> LiveCamera:
    """The camera at ``spec.device``, not yet opened."""
    path = device_path(spec.device)
    return LiveCamera(
        f"camera {path}",
        lambda: V4l2Connection(path, spec),
        open_timeout_s=spec.open_timeout_s,
        stall_s=spec.stall_s,
        max_pixels=spec.max_pixels,
    )


def device_path(device: int | str) -> Path:
    return Path(f"/dev/video{device}") if isinstance(device, int) else Path(device)


class V4l2Connection(VideoCaptureConnection):
    """One open device."""

    def __init__(self, path: Path, spec: V4l2Source) -> None:
        super().__init__(f"camera {path}")
        self._path = path
        self._spec = spec

    def open(self) -> None:
        self._check_device()
        quiet_opencv()
        self._capture = cv2.VideoCapture(str(self._path), cv2.CAP_V4L2)
        if not self._capture.isOpened():
            raise CameraError(
                f"{self._name}: cannot be opened: no camera that captures video, or another program has it"
                f" (fuser {self._path})"
            )
        # The pixel format first: the driver offers sizes and rates for the format that is set.
        if self._spec.fourcc is not None:
            self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*self._spec.fourcc))
        if self._spec.width is not None and self._spec.height is not None:
            self._ask("width", cv2.CAP_PROP_FRAME_WIDTH, self._spec.width)
            self._ask("height", cv2.CAP_PROP_FRAME_HEIGHT, self._spec.height)
        if self._spec.fps is not None:
            self._ask("fps", cv2.CAP_PROP_FPS, self._spec.fps)
        # The driver's queue would hold old frames; the newest one is wanted.
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def _ask(self, name: str, prop: int, value: float) -> None:
        assert self._capture is not None
        self._capture.set(prop, value)
        got = self._capture.get(prop)
        if abs(got - value) > 0.01 * value:
            log.warning("%s: asked for %s %g, the camera gives %g", self._name, name, value, got)

    def _check_device(self) -> None:
        try:
            mode = self._path.stat().st_mode
        except FileNotFoundError:
            raise CameraError(f"{self._name}: there is no such device; is the camera plugged in?") from None
        except OSError as error:
            raise CameraError(f"{self._name}: {os.strerror(error.errno or errno.EIO)}") from None
        if not stat.S_ISCHR(mode):
            raise CameraConfigError(f"{self._name}: this is no device; give /dev/videoN or its number")
        if not os.access(self._path, os.R_OK | os.W_OK):
            raise CameraConfigError(
                f"{self._name}: no permission; add this user to the group of the device (usually video)"
            )
