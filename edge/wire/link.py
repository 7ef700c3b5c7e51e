"""Links between stages: ZeroMQ PUSH and PULL over ipc, one descriptor a message.

The receiving stage binds, senders connect: a connected pipe keeps its messages while the receiver restarts, a bound
one throws them away. What arrives late is told apart by the ledger, so keeping is always safe.
"""

from __future__ import annotations

import os
from pathlib import Path

import zmq

from edge.errors import ResourceError
from edge.wire.descriptor import Descriptor, DescriptorError

# sun_path holds 108 bytes with its terminator; ZeroMQ truncates or refuses with an unhelpful message.
MAX_IPC_PATH = 107
HIGH_WATER = 512  # descriptors, not frames: never reached while slots bound what is under way


def link_path(runtime: Path, station: str) -> Path:
    """The socket file of a station's inlet."""
    return runtime / f"{station}.in"


def check_ipc_path(path: Path) -> None:
    """Raises ResourceError when ``path`` is too long for a Unix socket."""
    if len(os.fsencode(path)) > MAX_IPC_PATH:
        raise ResourceError(
            f"{path}: a socket path may have {MAX_IPC_PATH} bytes; choose a shorter runtime folder (--runtime)"
        )


class Inlet:
    """A stage's receiving end. ``socket`` may stand in a poller; ``malformed`` counts dropped messages."""

    def __init__(self, context: zmq.Context, path: Path) -> None:
        check_ipc_path(path)
        self.malformed = 0
        self.socket: zmq.Socket = context.socket(zmq.PULL)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, HIGH_WATER)
        try:
            self.socket.bind(f"ipc://{path}")
        except zmq.ZMQError as error:
            self.socket.close()
            raise ResourceError(f"{path}: the stage's socket cannot be bound ({error.strerror})") from None

    def receive(self) -> Descriptor | None:
        """The next descriptor, or None when nothing is waiting. Malformed messages are counted and skipped."""
        while True:
            try:
                data = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return None
            try:
                return Descriptor.unpack(data)
            except DescriptorError:
                self.malformed += 1

    def close(self) -> None:
        self.socket.close()


class Outlet:
    """A stage's sending end."""

    def __init__(self, context: zmq.Context, path: Path) -> None:
        check_ipc_path(path)
        self.socket: zmq.Socket = context.socket(zmq.PUSH)
        # A finishing stage must get its last descriptors out; a dead receiver must not hold it for long.
        self.socket.setsockopt(zmq.LINGER, 1000)
        self.socket.setsockopt(zmq.SNDHWM, HIGH_WATER)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
        self.socket.connect(f"ipc://{path}")

    def send(self, descriptor: Descriptor) -> bool:
        """Queue a descriptor; False when the queue is full (the caller drops the frame and counts it)."""
        try:
            self.socket.send(descriptor.pack(), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        self.socket.close()
