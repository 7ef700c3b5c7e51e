"""Video files through OpenCV's FFmpeg."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import cv2

from edge.cameras.base import Frame, Undecodable, as_bgr
from edge.cameras.capture import quiet_opencv
from edge.cameras.config import VideoSource
from edge.cameras.pacing import Pacer
from edge.errors import CameraConfigError, CameraError, EndOfStream, PictureError

log = logging.getLogger(__name__)


class VideoCamera:
    """A :class:`~edge.cameras.base.Camera` over a video file. Opened again after ``close`` it goes on where it stood.

    A rotation that the file asks for is ignored, as EXIF is in pictures: a camera's pixels are taken as they lie.
    """

    live = False
    overwritten = 0

    def __init__(self, spec: VideoSource) -> None:
        self._spec = spec
        self._path = Path(spec.path).expanduser()
        self._capture: cv2.VideoCapture | None = None
        self._pacer = Pacer(None)
        self._at = 0  # frames read in this pass
        self._done = False

    def open(self) -> None:
        self.close()
        self._capture = self._open_file()
        fps = self._capture.get(cv2.CAP_PROP_FPS) if self._spec.fps == "native" else self._spec.fps
        if fps is not None and not (math.isfinite(fps) and 0 < fps <= 1000):
            self.close()
            raise CameraConfigError(f"{self.describe()}: the file does not tell its frames a second; set fps")
        self._pacer = Pacer(fps)
        for _ in range(self._at):  # decoded, not sought: seeking is not exact in every container
            if not self._capture.grab():
                break

    def read(self, timeout_s: float) -> Frame | Undecodable | None:
        if self._capture is None:
            raise CameraError(f"{self.describe()}: not open")
        if self._done:
            raise EndOfStream(f"{self.describe()}: all frames were read")
        if not self._pacer.wait(timeout_s):
            return None
        ok, picture = self._capture.read()
        if not ok:
            self._end_pass()
            ok, picture = self._capture.read()
            if not ok:
                raise CameraError(f"{self.describe()}: not a single frame can be decoded")
        self._at += 1
        mono_ns, wall_ns = time.monotonic_ns(), time.time_ns()
        try:
            return Frame(as_bgr(picture, self._spec.max_pixels), mono_ns, wall_ns)
        except PictureError as error:
            return Undecodable("", str(error), mono_ns, wall_ns)

    def close(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def describe(self) -> str:
        return f"video {self._path}"

    def _end_pass(self) -> None:
        """Start the next pass. Raises EndOfStream where there is none."""
        assert self._capture is not None
        if self._at == 0:
            raise CameraError(f"{self.describe()}: not a single frame can be decoded")
        promised = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if 0 < self._at < promised:
            log.warning("%s: ended after %d of %d frames; is it cut short?", self.describe(), self._at, promised)
        if not self._spec.loop:
            self._done = True
            raise EndOfStream(f"{self.describe()}: all frames were read")
        self._capture.release()
        self._capture = self._open_file()
        self._at = 0

    def _open_file(self) -> cv2.VideoCapture:
        if self._path.is_dir():
            raise CameraConfigError(f"{self.describe()}: this is a folder; path must name a video file")
        if not self._path.exists():
            raise CameraError(f"{self.describe()}: there is no such file; correct path")
        quiet_opencv()
        capture = cv2.VideoCapture(str(self._path.absolute()), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise CameraError(f"{self.describe()}: not a video that can be read (empty, damaged, or unknown format)")
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
        return capture
