"""The two ends of one block of ``edge bench wire``: ``python -m edge.bench.wire_ends SPEC``, one process an end.

All transports hand over the same frames and are bound to the same number under way. A frame carries its number in
its first and its last eight bytes; the receiver reads a byte of every page, checks both numbers, and lets go. The
sending end takes its frames from a private picture that is used again and again, as a decoder does its buffer;
``in_place`` is the decoder that writes straight into the slot, so that only the numbers are written. A zero-copy send
must not write a buffer that libzmq still reads, and so takes its pictures in turn.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from edge.stages.base import STARVED_S
from edge.wire.copy import FrameCopier
from edge.wire.descriptor import Descriptor
from edge.wire.ledger import Ledger, Station
from edge.wire.link import Inlet, Outlet
from edge.wire.pool import SlotPool

SPARE = 6  # buffers of a zero-copy sender beyond the bound on frames under way: what libzmq has in hand
PAGE = 4096
LINGER_MS = 20_000
_NUMBER = struct.Struct("<Q")

Pixels = NDArray[np.uint8]


def stamp(picture: Pixels, number: int) -> None:
    """Write ``number`` into the first and the last eight bytes."""
    flat = picture.reshape(-1)
    flat[:8] = flat[-8:] = np.frombuffer(_NUMBER.pack(number), np.uint8)


def whole(picture: Pixels, number: int) -> bool:
    """Read a byte of every page, as a consumer must at least; True when both ends carry ``number``."""
    flat = picture.reshape(-1)
    int(flat[::PAGE].sum())
    return bool(flat[:8].view("<u8")[0] == number == flat[-8:].view("<u8")[0])


class Sender(ABC):
    """Sends frames numbered from 0, waiting where too many are under way."""

    @abstractmethod
    def send(self, number: int) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Returns once everything has left."""


class Receiver(ABC):
    """Takes frames one by one."""

    @abstractmethod
    def receive(self, number: int) -> bool:
        """Wait for the next frame, read it, let it go; True when it is whole and is frame ``number``."""

    def close(self) -> None:  # noqa: B027 - the process ends anyway
        """Let go of the transport."""


def _pictures(shape: tuple[int, int, int], count: int) -> list[Pixels]:
    return [np.full(shape, index + 1, np.uint8) for index in range(count)]


class SlotSender(Sender):
    """The capture stage's way: ledger, slot, copy, commit, hand over, descriptor."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.shape: tuple[int, int, int] = tuple(spec["shape"])
        self.in_place = spec["transport"] == "slots_in_place"
        self.picture = _pictures(self.shape, 1)[0]
        self.copier = FrameCopier()
        self.ledger = Ledger(Path(spec["folder"]) / "ledger")
        self.camera = self.ledger.camera_index("bench")
        self.station = Station.CAPTURE + self.camera
        self.pool = SlotPool.attach(*spec["pool"])
        self.context = zmq.Context()
        self.outlet = Outlet(self.context, Path(spec["folder"]) / "end")

    def send(self, number: int) -> None:
        while (slot := self.pool.free_slot(self.ledger.is_live)) is None:
            self.pool.wait_for_release(STARVED_S)
        mono_ns, wall_ns = time.monotonic_ns(), time.time_ns()
        opened = self.ledger.open_frame(self.camera, mono_ns, wall_ns)
        assert opened is not None, "the ledger's table is full"
        ticket, seq = opened
        target = self.pool.array(self.pool.loan(slot, ticket), self.shape)
        if self.in_place:
            stamp(target, number)
        else:
            stamp(self.picture, number)
            self.copier.copy(target, self.picture)
        ref = self.pool.commit(slot, seq, mono_ns, wall_ns, target.nbytes)
        descriptor = Descriptor(ticket, self.camera, seq, mono_ns, wall_ns, *self.shape[:2], ref)
        handed = self.ledger.pass_on(ticket, self.station, Station.PREPROCESS) and self.outlet.send(descriptor)
        assert handed, "nobody else may close the frame"

    def close(self) -> None:
        self.outlet.close()
        self.context.term()


class SlotReceiver(Receiver):
    """A stage's way: descriptor, accept, view, check, and the frame's end in the ledger, which frees the slot."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.ledger = Ledger(Path(spec["folder"]) / "ledger")
        self.pool = SlotPool.attach(*spec["pool"])
        self.inlet = Inlet(zmq.Context(), Path(spec["folder"]) / "end")
        self.poller = zmq.Poller()
        self.poller.register(self.inlet.socket, zmq.POLLIN)

    def receive(self, number: int) -> bool:
        while (descriptor := self.inlet.receive()) is None:
            self.poller.poll()
        good = self.ledger.accept(descriptor.ticket, Station.PREPROCESS)
        picture = self.pool.view(descriptor.frame, (descriptor.height, descriptor.width, 3))
        good = whole(picture, number) and good
        self.pool.check(descriptor.frame)
        good = self.ledger.score(descriptor.ticket) and good
        self.pool.poke()
        return good


class ZmqSender(Sender):
    """The whole frame as a message, with libzmq's copies or without the first one."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.copy = spec["transport"] == "zmq_copy"
        self.pictures = _pictures(tuple(spec["shape"]), 1 if self.copy else spec["slots"] + SPARE)
        self.context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self.context.socket(zmq.PUSH)
        # The bound on frames under way, half at each end. No acknowledgement, which would cost ZeroMQ a message more.
        self.socket.setsockopt(zmq.SNDHWM, spec["slots"] // 2)
        self.socket.setsockopt(zmq.LINGER, LINGER_MS)
        self.socket.connect(f"ipc://{spec['folder']}/end")

    def send(self, number: int) -> None:
        picture = self.pictures[number % len(self.pictures)]
        stamp(picture, number)
        self.socket.send(picture.data, copy=self.copy)

    def close(self) -> None:
        self.socket.close()
        self.context.term()


class ZmqReceiver(Receiver):
    def __init__(self, spec: dict[str, Any]) -> None:
        self.copy = spec["transport"] == "zmq_copy"
        self.shape = tuple(spec["shape"])
        self.socket = zmq.Context().socket(zmq.PULL)
        self.socket.setsockopt(zmq.RCVHWM, spec["slots"] - spec["slots"] // 2)
        self.socket.bind(f"ipc://{spec['folder']}/end")

    def receive(self, number: int) -> bool:
        message: Any = self.socket.recv(copy=self.copy)
        data = message if self.copy else message.buffer
        return whole(np.frombuffer(data, np.uint8).reshape(self.shape), number)


def send_all(sender: Sender, warm: int, frames: int) -> dict[str, Any]:
    """Send ``warm + frames`` frames; CPU nanoseconds of this process for the last ``frames``."""
    cpu = 0
    for number in range(warm + frames):
        if number == warm:
            cpu = time.process_time_ns()
        sender.send(number)
    cpu = time.process_time_ns() - cpu
    sender.close()
    return {"cpu_ns": cpu}


def receive_all(receiver: Receiver, warm: int, frames: int) -> dict[str, Any]:
    """Receive ``warm + frames`` frames; wall and CPU nanoseconds for the last ``frames``, and how many of all were
    not whole."""
    wall = cpu = bad = 0
    for number in range(warm + frames):
        if number == warm:
            wall, cpu = time.monotonic_ns(), time.process_time_ns()
        bad += not receiver.receive(number)
    return {"wall_ns": time.monotonic_ns() - wall, "cpu_ns": time.process_time_ns() - cpu, "bad": bad}


def main() -> None:
    spec = json.loads(sys.argv[1])
    slots = spec["transport"].startswith("slots")
    warm, frames = spec["warm"], spec["frames"]
    if spec["end"] == "send":
        result = send_all(SlotSender(spec) if slots else ZmqSender(spec), warm, frames)
    else:
        result = receive_all(SlotReceiver(spec) if slots else ZmqReceiver(spec), warm, frames)
    print(json.dumps(result), flush=True)
    os._exit(0)  # a receiver's context would wait for a socket that nobody needs any more


if __name__ == "__main__":
    main()
