"""The descriptor: one small single-part msgpack message per hop. Every field is bounded when it is read.

Layout, a msgpack array (fixed positions; a new field is a new version):

    [version, ticket, camera, seq, mono_ns, wall_ns, height, width,
     [pool, slot, generation],            the frame, uint8 BGR [height, width, 3]
     [pool, slot, generation] | nil,      the stage's payload: prepared input, features, or anomaly map
     [score, p_value, threshold] | nil,   from the head on
     {part: value},                       the score's parts, at most 8
     name]                                file name of a picture, for folders
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import msgpack

from edge.wire.pool import MAX_SLOTS, SlotRef

VERSION = 1
MAX_BYTES = 2048
MAX_SIDE = 65_535
MAX_PARTS = 8
MAX_NAME = 255
_U64 = 1 << 64


class DescriptorError(ValueError):
    """Bytes that are no descriptor of this version. They are dropped and counted; the frame times out."""


@dataclass(frozen=True)
class Verdict:
    """What the head said: score (unit of the bundle's rule), its p-value in (0, 1], the threshold it is held to."""

    score: float
    p_value: float
    threshold: float
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Descriptor:
    """One frame on its way. ``mono_ns`` and ``wall_ns`` are the moment of capture."""

    ticket: int
    camera: int
    seq: int
    mono_ns: int
    wall_ns: int
    height: int
    width: int
    frame: SlotRef
    payload: SlotRef | None = None
    verdict: Verdict | None = None
    name: str = ""

    def with_payload(self, payload: SlotRef, verdict: Verdict | None = None) -> Descriptor:
        """The same frame with the next stage's payload."""
        return replace(self, payload=payload, verdict=verdict)

    def pack(self) -> bytes:
        v = self.verdict
        return msgpack.packb(
            [
                VERSION,
                self.ticket,
                self.camera,
                self.seq,
                self.mono_ns,
                self.wall_ns,
                self.height,
                self.width,
                [self.frame.pool, self.frame.slot, self.frame.generation],
                None if self.payload is None else [self.payload.pool, self.payload.slot, self.payload.generation],
                None if v is None else [v.score, v.p_value, v.threshold],
                {} if v is None else v.parts,
                self.name,
            ]
        )

    @classmethod
    def unpack(cls, data: bytes) -> Descriptor:
        """Raises DescriptorError for anything but a well-formed descriptor of this version."""
        if len(data) > MAX_BYTES:
            raise DescriptorError(f"{len(data)} bytes is over the limit of {MAX_BYTES}")
        try:
            row = msgpack.unpackb(data, raw=False, strict_map_key=True, max_ext_len=0, max_bin_len=0)
        except (ValueError, msgpack.exceptions.UnpackException, UnicodeDecodeError, RecursionError) as error:
            raise DescriptorError(f"not msgpack: {error}") from None
        if not isinstance(row, list) or len(row) != 13 or row[0] != VERSION:
            raise DescriptorError("not a descriptor of this version")
        _, ticket, camera, seq, mono, wall, height, width, frame, payload, verdict, parts, name = row
        if not isinstance(name, str) or len(name.encode("utf-8", "surrogatepass")) > MAX_NAME:
            raise DescriptorError("name is not a string of at most 255 bytes")
        return cls(
            ticket=_integer("ticket", ticket, 1, _U64 - 1),
            camera=_integer("camera", camera, 0, 63),
            seq=_integer("seq", seq, 0, _U64 - 1),
            mono_ns=_integer("mono_ns", mono, 0, _U64 - 1),
            wall_ns=_integer("wall_ns", wall, 0, _U64 - 1),
            height=_integer("height", height, 1, MAX_SIDE),
            width=_integer("width", width, 1, MAX_SIDE),
            frame=_slot("frame", frame),
            payload=None if payload is None else _slot("payload", payload),
            verdict=_verdict(verdict, parts),
            name=name,
        )


def _integer(name: str, value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise DescriptorError(f"{name} must be an integer in {low}..{high}")
    return value


def _number(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise DescriptorError(f"{name} must be a finite number")
    return float(value)


def _slot(name: str, value: Any) -> SlotRef:
    if not isinstance(value, list) or len(value) != 3:
        raise DescriptorError(f"{name} must be [pool, slot, generation]")
    return SlotRef(
        _integer(f"{name}.pool", value[0], 0, 2**32 - 1),
        _integer(f"{name}.slot", value[1], 0, MAX_SLOTS - 1),
        _integer(f"{name}.generation", value[2], 0, _U64 - 1),
    )


def _verdict(value: Any, parts: Any) -> Verdict | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 3 or not isinstance(parts, dict) or len(parts) > MAX_PARTS:
        raise DescriptorError(f"verdict must be [score, p_value, threshold] with at most {MAX_PARTS} parts")
    score, p_value, threshold = (_number(n, v) for n, v in zip(("score", "p_value", "threshold"), value, strict=True))
    if not 0.0 <= p_value <= 1.0:
        raise DescriptorError("p_value must be in 0..1")
    if not all(isinstance(key, str) and len(key) <= 32 for key in parts):
        raise DescriptorError("a part's name must be a string of at most 32 characters")
    return Verdict(score, p_value, threshold, {key: _number(key, part) for key, part in parts.items()})
