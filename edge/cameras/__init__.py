"""Cameras: where frames come from. :func:`open_camera` is the only door; each kind is imported when it is used."""

from __future__ import annotations

from edge.cameras.base import Camera, Frame, Undecodable
from edge.cameras.config import (
    CameraSource,
    FolderSource,
    MjpegSource,
    RtspSource,
    SyntheticSource,
    V4l2Source,
    VideoSource,
)

__all__ = ["Camera", "CameraSource", "Frame", "Undecodable", "open_camera"]


def open_camera(spec: CameraSource) -> Camera:
    """The camera that ``spec`` describes, not yet connected: call its ``open()``.

    Touches no device, file or network. PyAV is imported for RTSP only: it costs about 50 ms and 17 MB.
    """
    match spec:
        case SyntheticSource():
            from edge.cameras.synthetic import SyntheticCamera

            return SyntheticCamera(spec)
        case FolderSource():
            from edge.cameras.folder import FolderCamera

            return FolderCamera(spec)
        case VideoSource():
            from edge.cameras.video import VideoCamera

            return VideoCamera(spec)
        case RtspSource():
            from edge.cameras.rtsp import rtsp_camera

            return rtsp_camera(spec)
        case MjpegSource():
            from edge.cameras.mjpeg import mjpeg_camera

            return mjpeg_camera(spec)
        case V4l2Source():
            from edge.cameras.v4l2 import v4l2_camera

            return v4l2_camera(spec)
