"""Where frames come from, as typed and frozen models: one for each kind of camera.

Validation looks at values only: it opens no file and no socket. The descriptions are the manual.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    SerializationInfo,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from edge.pictures import MAX_PIXELS

DefectKind = Literal["scratch", "dent", "stain", "missing_hole"]
DEFECT_KINDS: tuple[DefectKind, ...] = ("scratch", "dent", "stain", "missing_hole")

Fps = Annotated[float, Field(gt=0, le=1000)]
FreeFps = Annotated[Fps | None, BeforeValidator(lambda value: None if value == "max" else value)]
Side = Annotated[int, Field(ge=16, le=32768)]
Seconds = Annotated[float, Field(ge=0.1, le=600)]


_CONFIDENTIAL = frozenset({"url", "password", "passwd", "pass", "pwd", "token", "secret", "key"})


def conceal(data: Any) -> Any:
    """Wrap what may hold a password before anything is validated: pydantic's errors quote their input, and a
    forgotten ``kind`` or a ``password = "..."`` in the wrong place would put it on the screen."""
    if not isinstance(data, Mapping):
        return data
    return {k: SecretStr(v) if k in _CONFIDENTIAL and isinstance(v, str) else v for k, v in data.items()}


class Source(BaseModel):
    """What every kind of camera has."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True)


class DecodedSource(Source):
    """What every kind of camera has whose pictures come from outside."""

    max_pixels: int = Field(
        MAX_PIXELS,
        ge=256,
        le=1_000_000_000,
        description="Pictures with more pixels than this are not decoded; they count as not inspected (decode).",
    )


class SyntheticSource(Source):
    """A procedural line of machined parts with known defects; needs no hardware."""

    kind: Literal["synthetic"]
    size: tuple[Annotated[int, Field(ge=96, le=4096)], Annotated[int, Field(ge=96, le=4096)]] = Field(
        (640, 480), description="Width and height of the pictures in pixels."
    )
    fps: FreeFps = Field(30.0, description='Parts a second; "max": as fast as they are read.')
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Another seed is another run of parts.")
    defect_rate: float = Field(0.05, ge=0, le=1, description="Share of the parts that have a defect.")
    defects: tuple[DefectKind, ...] = Field(
        DEFECT_KINDS, min_length=1, max_length=4, description="Kinds of defects that occur, equally often."
    )
    frames: int | None = Field(None, ge=1, description="Stop after this many frames; without it, never.")
    prerender: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Draw only this many parts, keep them in memory and repeat them: costs no drawing time.",
    )


class FolderSource(DecodedSource):
    """Picture files in a folder."""

    kind: Literal["folder"]
    path: Path = Field(description="The folder.")
    mode: Literal["once", "loop", "watch"] = Field(
        "once",
        description="once: every picture, then stop. loop: again and again. watch: every picture that is there and"
        " every one that arrives, each version of a file once.",
    )
    fps: FreeFps = Field(None, description='Pictures a second at most; without it, or "max": as fast as they are read.')
    order: Literal["name", "mtime"] = Field("name", description="Order of a pass, and within one scan of a watch.")
    recursive: bool = Field(False, description="Also the pictures in folders below (links to folders excepted).")
    preload: bool = Field(
        False,
        description="Keep decoded pictures in memory, so that later passes of a loop cost neither disk nor decoder.",
    )
    max_preload_mb: int = Field(
        512, ge=1, le=1_048_576, description="Memory for preload in MiB; pictures beyond it are read from disk."
    )
    settle_s: float = Field(
        0.2,
        ge=0.02,
        le=60,
        description="watch: a file whose size and time of change have not moved for this long is complete."
        " Writers that write under another name (or a dot name) and rename are safe whatever they do.",
    )


class VideoSource(DecodedSource):
    """A video file."""

    kind: Literal["video"]
    path: Path = Field(description="The file; any container and codec that OpenCV's FFmpeg reads.")
    fps: Literal["native"] | FreeFps = Field(
        "native", description="native: as the file says; a number: that; max: as fast as frames are read."
    )
    loop: bool = Field(False, description="Start again at the end.")


class NetworkSource(DecodedSource):
    """What cameras that are reached over a network share. ``schemes``: what the URL may begin with."""

    schemes: ClassVar[tuple[str, ...]] = ()

    url: SecretStr = Field(
        description="Address of the stream. It may hold user:password@, percent-encoded; it is never shown whole."
    )
    password_file: Path | None = Field(
        None,
        description="File whose first line is the password; the user name stands in the URL. Environment variables"
        " are expanded ($CREDENTIALS_DIRECTORY). Read when the camera is opened.",
    )
    open_timeout_s: Seconds = Field(5.0, description="Seconds to wait for the connection and the first data.")
    read_timeout_s: Seconds = Field(5.0, description="Seconds without any data until the connection is given up.")
    stall_s: Seconds = Field(
        3.0, description="Seconds without a new frame until the camera counts as lost and is connected anew."
    )

    @model_validator(mode="before")
    @classmethod
    def _conceal(cls, data: Any) -> Any:
        return conceal(data)

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: SecretStr) -> SecretStr:
        text = url.get_secret_value()
        schemes = cls.schemes
        try:
            parts = urlsplit(text)
            port = parts.port
            host = parts.hostname
        except ValueError:  # its text quotes the port, which may be half a password
            raise ValueError(
                "host or port is not valid; characters such as / @ : # in a password must be percent-encoded"
            ) from None
        if parts.scheme.lower() not in schemes:
            raise ValueError(f"must start with {' or '.join(s + '://' for s in schemes)}")
        if not host or port == 0:
            raise ValueError("must name a host, as in " + schemes[0] + "://192.168.1.20/stream")
        if any(ord(c) <= 32 or ord(c) == 127 for c in text):
            raise ValueError("must not hold spaces or control characters; percent-encode them")
        return url

    @field_serializer("url", when_used="always")
    def _dump_url(self, url: SecretStr, info: SerializationInfo) -> SecretStr | str:
        """Dumps hide the URL, unless the caller asks with ``context={"reveal_secrets": True}``, as the supervisor
        does for the pipe to a capture process."""
        if info.context and info.context.get("reveal_secrets"):
            return url.get_secret_value()
        return str(url) if info.mode == "json" else url

    # A check of the field and not of the model: the error then quotes this field's value, not the URL.
    @field_validator("password_file")
    @classmethod
    def _one_password(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        url = info.data.get("url")
        if path is None or url is None:
            return path
        user, at, _ = urlsplit(url.get_secret_value()).netloc.rpartition("@")
        if not at or not user:
            raise ValueError("needs a user name in the url, as in rtsp://user@host/stream")
        if ":" in user:
            raise ValueError("give the password in the url or in a file, not in both")
        return path


class RtspSource(NetworkSource):
    """A network camera over RTSP."""

    kind: Literal["rtsp"]
    transport: Literal["tcp", "udp"] = Field(
        "tcp", description="tcp: no lost packets, crosses firewalls. udp: lower delay, pictures may be damaged."
    )

    schemes: ClassVar[tuple[str, ...]] = ("rtsp", "rtsps")


class MjpegSource(NetworkSource):
    """A camera that sends JPEG pictures over HTTP (multipart/x-mixed-replace)."""

    kind: Literal["mjpeg"]

    schemes: ClassVar[tuple[str, ...]] = ("http", "https")


class V4l2Source(DecodedSource):
    """A camera at this machine (USB, CSI) through Video4Linux."""

    kind: Literal["v4l2"]
    device: Annotated[int, Field(ge=0, le=1023)] | Annotated[str, Field(pattern=r"^/dev/[\w./:+,=@-]{1,200}$")] = Field(
        0, description="Number of the device, or its path: /dev/v4l/by-id/... stays the same across reboots."
    )
    width: Side | None = Field(None, description="Width to ask the camera for, in pixels; it may choose another.")
    height: Side | None = Field(None, description="Height to ask the camera for, in pixels.")
    fps: Fps | None = Field(None, description="Frames a second to ask the camera for.")
    fourcc: str | None = Field(
        None, pattern=r"^[A-Z0-9 ]{4}$", description="Pixel format to ask for, such as MJPG or YUYV."
    )
    open_timeout_s: Seconds = Field(10.0, description="Seconds to wait until the device is open.")
    stall_s: Seconds = Field(
        3.0, description="Seconds without a new frame until the camera counts as lost and is opened anew."
    )

    @model_validator(mode="after")
    def _both_sides(self) -> V4l2Source:
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height go together: give both or neither")
        return self


_AnySource = Annotated[
    SyntheticSource | FolderSource | VideoSource | RtspSource | MjpegSource | V4l2Source,
    Field(discriminator="kind"),
]
CameraSource = Annotated[_AnySource, BeforeValidator(conceal)]
