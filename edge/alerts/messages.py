"""The public messages: what the daemon publishes, in msgpack maps, versioned and bounded on every field.

A message is two ZeroMQ frames, the topic and the map: ``verdict.<camera>``, ``alert.<camera>``, ``health``.
``deploy/schema/README.md`` is the document for people who write subscribers. Unknown keys are ignored, so
that a newer daemon may add some; another major version ``v`` is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import msgpack
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edge.errors import EdgeError, Exit

VERSION = 1
MAX_MESSAGE_BYTES = 65_536
MAX_REGIONS = 16
MAX_CAMERAS = 256
MAX_ID = 2**62
CAMERA_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"
EPOCH_PATTERN = r"^[A-Za-z0-9-]{1,36}$"

Reason = Literal["stale", "no_slot", "decode", "timeout", "stage_restart", "shutdown", "error"]


class MessageError(EdgeError):
    """Bytes that are no message of this schema: damaged, out of bounds, or of another major version."""

    exit_code = Exit.BAD_DATA


CameraName = Annotated[str, Field(pattern=CAMERA_PATTERN)]
EpochName = Annotated[str, Field(pattern=EPOCH_PATTERN)]
Count = Annotated[int, Field(ge=0, le=MAX_ID)]
WallNs = Annotated[int, Field(ge=0, le=2**63 - 1)]
Real = Annotated[float, Field(allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Label = Annotated[str, Field(max_length=128)]
Pixel = Annotated[int, Field(ge=0, le=1_000_000)]
Name = Annotated[str, Field(min_length=1, max_length=64)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    def to_map(self) -> dict[str, Any]:
        """A map of msgpack types, every key present."""
        return self.model_dump()


class Region(_Part):
    """Where the map passes its threshold: a box, its area and its strongest point, in source pixels."""

    x: Pixel
    y: Pixel
    w: Annotated[int, Field(ge=1, le=1_000_000)]
    h: Annotated[int, Field(ge=1, le=1_000_000)]
    area: Annotated[float, Field(ge=0.0, le=1e12)]
    peak: Real
    peak_x: Annotated[float, Field(ge=0.0, le=1e6)]
    peak_y: Annotated[float, Field(ge=0.0, le=1e6)]


class _Message(_Part):
    v: Literal[1] = 1
    n: Count | None = None
    """Number of this message on its topic in this run of the publisher, from 1; None where it was
    replayed."""


class Verdict(_Message):
    """The end of one captured frame: scored, or not inspected with a reason."""

    kind: ClassVar[str] = "verdict"

    camera: CameraName
    seq: Count
    epoch: EpochName
    verdict: Literal["normal", "anomalous", "not_inspected"]
    reason: Reason | None = None
    score: Real | None = None
    threshold: Real | None = None
    p_value: Probability | None = None
    captured_at: WallNs
    latency_ms: Annotated[float, Field(ge=0.0, le=1e9)]
    alerting: bool = False
    bundle: Label = ""
    name: Annotated[str, Field(max_length=255)] = ""

    @model_validator(mode="after")
    def _told_apart(self) -> Verdict:
        if self.verdict == "not_inspected":
            if self.reason is None or self.score is not None:
                raise ValueError("a frame that was not inspected has a reason and no score")
        elif self.reason is not None or self.score is None or self.threshold is None or self.p_value is None:
            raise ValueError("an inspected frame has score, threshold and p_value, and no reason")
        return self

    @property
    def topic(self) -> str:
        return f"verdict.{self.camera}"


class AlertDraft(_Message):
    """An alert before the store has given it an id. ``raised_at`` is when it was decided, ``captured_at``
    when the frame arrived; both wall-clock nanoseconds."""

    camera: CameraName
    seq: Count
    epoch: EpochName
    captured_at: WallNs
    raised_at: WallNs
    score: Real
    threshold: Real
    p_value: Probability
    parts: Annotated[dict[Name, Real], Field(max_length=16)] = Field(default_factory=dict)
    regions: Annotated[tuple[Region, ...], Field(max_length=MAX_REGIONS)] = ()
    why: Annotated[str, Field(max_length=1000)]
    repeat: bool = False
    bundle: Label = ""
    engine: Label = ""
    name: Annotated[str, Field(max_length=255)] = ""

    @property
    def topic(self) -> str:
        return f"alert.{self.camera}"


class Alert(AlertDraft):
    """An alert as published and replayed. ``id`` never repeats and grows in the order of the alerts;
    ``picture`` is the path of the evidence on the daemon's machine, None where there is none or no
    longer."""

    kind: ClassVar[str] = "alert"

    id: Annotated[int, Field(ge=1, le=MAX_ID)]
    picture: Annotated[str, Field(max_length=4096)] | None = None


class CameraHealth(_Part):
    """Counts since the daemon's ledger began: captured = scored + the sum of not_inspected + in_flight."""

    captured: Count
    scored: Count
    not_inspected: Annotated[dict[Name, Count], Field(max_length=16)] = Field(default_factory=dict)
    in_flight: Count = 0
    anomalous: Count = 0
    alerts: Count = 0
    fps: Annotated[float, Field(ge=0.0, le=1e6)] = 0.0
    alerting: bool = False
    status: Label = ""


class StageHealth(_Part):
    """One process: its pid (0: not running), how often it was restarted, seconds since it last made
    progress."""

    pid: Annotated[int, Field(ge=0, le=2**31)]
    restarts: Count = 0
    silent_s: Annotated[float, Field(ge=0.0, le=1e9)] = 0.0
    status: Label = ""


class Health(_Message):
    """Whether frames move. ``last_alert_id`` lets a subscriber see that it missed an alert."""

    kind: ClassVar[str] = "health"
    topic: ClassVar[str] = "health"

    at: WallNs
    epoch: EpochName
    version: Label = ""
    status: Literal["ok", "degraded", "stopping"]
    problems: Annotated[tuple[Annotated[str, Field(max_length=500)], ...], Field(max_length=64)] = ()
    uptime_s: Annotated[float, Field(ge=0.0, le=1e10)]
    cameras: Annotated[dict[CameraName, CameraHealth], Field(max_length=MAX_CAMERAS)] = Field(default_factory=dict)
    stages: Annotated[dict[Name, StageHealth], Field(max_length=512)] = Field(default_factory=dict)
    last_alert_id: Count = 0
    alerts_stored: Count = 0
    picture_bytes: Count = 0


Message = Verdict | Alert | Health
_KINDS: dict[str, type[Verdict] | type[Alert] | type[Health]] = {
    "verdict": Verdict,
    "alert": Alert,
    "health": Health,
}


def pack(body: Mapping[str, Any], limit: int = MAX_MESSAGE_BYTES) -> bytes:
    """Pack a map of msgpack types. Raises MessageError over ``limit`` bytes."""
    data: bytes = msgpack.packb(body)
    if len(data) > limit:
        raise MessageError(f"a message of {len(data)} bytes is over the limit of {limit}")
    return data


def unpack(data: bytes, limit: int = MAX_MESSAGE_BYTES) -> dict[str, Any]:
    """Unpack bytes from outside to a map with string keys; arrays become tuples.

    Raises MessageError, and nothing else, whatever the bytes are.
    """
    if len(data) > limit:
        raise MessageError(f"a message of {len(data)} bytes is over the limit of {limit}")
    try:
        body = msgpack.unpackb(data, use_list=False, strict_map_key=True, max_ext_len=0, max_bin_len=limit)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise MessageError(f"not msgpack ({type(error).__name__}: {str(error)[:80]})") from None
    if not isinstance(body, dict) or not all(isinstance(key, str) for key in body):
        raise MessageError("not a msgpack map with string keys")
    return body


def check_version(body: Mapping[str, Any]) -> None:
    """Raises MessageError unless the map is of this major version."""
    version = body.get("v")
    if isinstance(version, bool) or version != VERSION:
        raise MessageError(f"schema version {str(version)[:20]!r} is not {VERSION}; use a subscriber of that version")


def encode(message: Message) -> tuple[bytes, bytes]:
    """The two frames of a message: topic, packed map. Raises MessageError over MAX_MESSAGE_BYTES."""
    return message.topic.encode(), pack(message.to_map())


def parse(topic: bytes, data: bytes) -> Message:
    """The message in two frames from outside. Raises MessageError, and nothing else, for anything that is
    none."""
    try:
        name = topic.decode("ascii")
    except UnicodeDecodeError:
        raise MessageError("a topic that is not ASCII") from None
    kind = name.partition(".")[0]
    if kind not in _KINDS:
        raise MessageError(f"unknown topic {name[:80]!r}; known are verdict.<camera>, alert.<camera>, health")
    body = unpack(data)
    check_version(body)
    message = validate(_KINDS[kind], body)
    if message.topic != name:
        raise MessageError(f"topic {name[:80]!r} carries a message for {message.topic!r}")
    return message


def validate(model: type[Verdict] | type[Alert] | type[Health], body: Mapping[str, Any]) -> Message:
    """A message from a map from outside, types taken strictly. Raises MessageError naming the first wrong
    key."""
    try:
        return model.model_validate(body, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(step)[:40] for step in first["loc"]) or "message"
        got = repr(first["input"])[:60]
        raise MessageError(f"{model.kind}: {where}: {first['msg'][:160]}. Got {got}") from None


def explain(
    score: float,
    threshold: float,
    p_value: float,
    anomalous: int = 1,
    inspected: int = 1,
    regions: tuple[Region, ...] = (),
) -> str:
    """The sentence of an alert's ``why``: score against threshold, the confirming frames, the strongest
    region."""
    parts = [f"score {score:.4g} is over the threshold {threshold:.4g} (p-value {p_value:.2g})"]
    if inspected > 1:
        parts.append(f"{anomalous} of the last {inspected} inspected frames anomalous")
    if regions:
        top = regions[0]
        parts.append(
            f"strongest at ({top.peak_x:.0f}, {top.peak_y:.0f}) in a box of {top.w} x {top.h} pixels"
            + (f", {len(regions)} regions" if len(regions) > 1 else "")
        )
    return "; ".join(parts)
