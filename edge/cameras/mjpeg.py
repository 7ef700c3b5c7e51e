"""JPEG pictures over HTTP (multipart/x-mixed-replace), through OpenCV's FFmpeg."""

from __future__ import annotations

import base64
import http.client
from urllib.parse import unquote_to_bytes, urlsplit

import cv2

from edge.cameras.capture import VideoCaptureConnection, quiet_opencv
from edge.cameras.config import MjpegSource
from edge.cameras.credentials import public_url, url_with_password
from edge.cameras.newest import LiveCamera
from edge.errors import CameraConfigError, CameraError


def mjpeg_camera(spec: MjpegSource) -> LiveCamera:
    """The camera at ``spec.url``, not yet connected."""
    name = f"camera {public_url(spec.url.get_secret_value())}"
    return LiveCamera(
        name,
        lambda: MjpegConnection(name, spec),
        open_timeout_s=spec.open_timeout_s + ASK_S,
        stall_s=spec.stall_s,
        max_pixels=spec.max_pixels,
    )


ASK_S = 2.0  # time to ask a server why it gives no stream


class MjpegConnection(VideoCaptureConnection):
    """One HTTP request for an endless answer."""

    def __init__(self, name: str, spec: MjpegSource) -> None:
        super().__init__(name)
        self._spec = spec

    def open(self) -> None:
        url = url_with_password(self._spec.url.get_secret_value(), self._spec.password_file)
        timeouts = [
            *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(self._spec.open_timeout_s * 1000)),
            *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(self._spec.read_timeout_s * 1000)),
        ]
        quiet_opencv()
        self._capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, timeouts)
        if not self._capture.isOpened():
            raise self._explain(url)

    def _explain(self, url: str) -> CameraError:
        """Why OpenCV got no stream: asked of the server itself, since OpenCV does not say."""
        what = f"{self._name}: cannot be opened"
        try:
            status, media = _ask(url)
        except ConnectionRefusedError:
            return CameraError(f"{what}: connection refused: nothing listens there")
        except TimeoutError:
            return CameraError(f"{what}: no answer within {self._spec.open_timeout_s:g} s")
        except OSError as error:
            return CameraError(f"{what}: {error.strerror or type(error).__name__}")
        except http.client.HTTPException:
            return CameraError(f"{what}: what answers does not speak HTTP; check host and port")
        if status in (401, 403):
            return CameraConfigError(f"{what}: user name or password is refused; correct the url")
        if status != 200:
            return CameraError(f"{what}: the server answers {status}; check the path in the url")
        return CameraError(f"{what}: the server answers with {media[:80]!r}, which is no stream of JPEG pictures")


def _ask(url: str) -> tuple[int, str]:
    """Status and media type that a GET gets. Raises OSError and http.client.HTTPException."""
    parts = urlsplit(url)
    assert parts.hostname is not None, "the config has checked the url"
    kind = http.client.HTTPSConnection if parts.scheme.lower() == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=ASK_S)
    headers = {}
    if parts.username is not None:
        login = unquote_to_bytes(parts.username) + b":" + unquote_to_bytes(parts.password or "")
        headers["Authorization"] = "Basic " + base64.b64encode(login).decode("ascii")
    try:
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers.get_content_type()
    finally:
        connection.close()
