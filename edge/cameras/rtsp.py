"""RTSP cameras through PyAV.

PyAV and not OpenCV: it tells a refused connection from a wrong password from a stall, and was faster here (60 against
91 ms from the camera's shutter to the picture, 720p at 25 frames/s).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import av
from av.codec.context import Flags

from edge.cameras.base import Picture
from edge.cameras.config import RtspSource
from edge.cameras.credentials import public_url, scrub, secrets_of, url_with_password
from edge.cameras.newest import Decode, LiveCamera
from edge.errors import CameraConfigError, CameraError, PictureError

# FFmpeg prints to standard error by itself, and quotes URLs there.
av.logging.set_level(None)


def rtsp_camera(spec: RtspSource) -> LiveCamera:
    """The camera at ``spec.url``, not yet connected."""
    return LiveCamera(
        f"camera {public_url(spec.url.get_secret_value())}",
        lambda: RtspConnection(spec),
        open_timeout_s=spec.open_timeout_s,
        stall_s=spec.stall_s,
        max_pixels=spec.max_pixels,
    )


class RtspConnection:
    """One RTSP session; see :class:`~edge.cameras.newest.Connection`."""

    def __init__(self, spec: RtspSource) -> None:
        self._spec = spec
        self._name = f"camera {public_url(spec.url.get_secret_value())}"
        self._container: av.container.InputContainer | None = None
        self._packets: Iterator[av.Packet] = iter(())
        self._frames: list[av.VideoFrame] = []

    def open(self) -> None:
        url = url_with_password(self._spec.url.get_secret_value(), self._spec.password_file)
        options = {
            "rtsp_transport": self._spec.transport,
            "flags": "low_delay",
            "allowed_media_types": "video",  # no bandwidth for sound
            # The frame rate is of no interest, and finding it out costs 20 frames: 0.8 s of every reconnect.
            "fpsprobesize": "0",
            # Not "fflags nobuffer": it throws away what was read while opening, the key frame with it. With one key
            # frame in 2 s the first picture then came after 2.1 s instead of 0.4 s; the delay after that is equal.
        }
        started_s = time.monotonic()
        failed: CameraError | None = None
        try:
            self._container = av.open(
                url, timeout=(self._spec.open_timeout_s, self._spec.read_timeout_s), options=options
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            late = time.monotonic() - started_s >= 0.95 * self._spec.open_timeout_s
            failed = self._explain("cannot be opened", error, url, late)
        if failed is not None:
            raise failed  # outside of "except": PyAV's error holds the whole URL, and would stay its context
        assert self._container is not None
        if not self._container.streams.video:
            raise CameraConfigError(f"{self._name}: the stream has no video")
        stream = self._container.streams.video[0]
        # Threads of the decoder hold back one frame each.
        stream.thread_type = "NONE"
        stream.codec_context.flags |= Flags.low_delay
        self._packets = self._container.demux(stream)

    def grab(self) -> Decode:
        while not self._frames:
            packet = self._next_packet()
            try:
                # An empty packet at the end of the stream flushes the decoder; the next call then ends.
                self._frames.extend(f for f in packet.decode() if isinstance(f, av.VideoFrame))
            except av.FFmpegError:
                raise PictureError("the stream's data is damaged (lost packets?)") from None
        frame = self._frames.pop(0)
        if frame.is_corrupt:
            raise PictureError("the picture is damaged (lost packets?)")
        limit = self._spec.max_pixels
        if frame.width * frame.height > limit:
            raise PictureError(f"{frame.width} x {frame.height} pixels is over the limit of {limit} (max_pixels)")
        return lambda: _picture(frame)

    def close(self) -> None:
        self._frames.clear()
        self._packets = iter(())
        if self._container is not None:
            self._container.close()
            self._container = None

    def _next_packet(self) -> av.Packet:
        lost: CameraError | None = None
        try:
            packet = next(self._packets)
        except StopIteration:
            lost = CameraError(f"{self._name}: the camera ended the stream")
        except (av.FFmpegError, OSError) as error:
            lost = self._explain("lost", error)
        if lost is not None:
            raise lost
        return packet

    def _explain(self, what: str, error: Exception, url: str = "", late: bool = False) -> CameraError:
        """A typed, scrubbed error in one line. FFmpeg's own text is quoted only for what is not known here.

        ``late``: the time-out had run out. FFmpeg, interrupted, may say "invalid data" just as well as "exit".
        """
        if isinstance(error, (av.HTTPUnauthorizedError, av.HTTPForbiddenError)):
            return CameraConfigError(f"{self._name}: {what}: user name or password is refused; correct the url")
        timeout_s = self._spec.read_timeout_s if what == "lost" else self._spec.open_timeout_s
        if late or isinstance(error, (av.ExitError, av.TimeoutError)):
            return CameraError(f"{self._name}: {what}: no answer within {timeout_s:g} s")
        known = {
            av.HTTPNotFoundError: "there is no stream of this name (404); check the path in the url",
            av.ConnectionRefusedError: "connection refused: nothing listens there",
            av.InvalidDataError: "what answers there does not speak RTSP as it should; check host and port",
            av.ProtocolNotFoundError: "this build of PyAV does not speak the protocol",
        }
        for kind, why in known.items():
            if isinstance(error, kind):
                return CameraError(f"{self._name}: {what}: {why}")
        text = getattr(error, "strerror", None) or type(error).__name__
        secrets = (*secrets_of(self._spec.url.get_secret_value()), *secrets_of(url))
        return CameraError(f"{self._name}: {what}: {scrub(str(text), *secrets)}")


def _picture(frame: av.VideoFrame) -> Picture:
    try:
        return frame.to_ndarray(format="bgr24")
    except (av.FFmpegError, ValueError) as error:
        raise PictureError(f"the picture cannot be converted to BGR ({type(error).__name__})") from None
