"""Control sockets: one Unix SEQPACKET pair between the supervisor and each stage.

Message borders are kept, descriptors of new pools travel along (SCM_RIGHTS), and the end of the supervisor is seen
as end of file at once. Messages are msgpack maps with a ``kind``; see :mod:`edge.stages.base` for who says what.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import msgpack

MAX_BYTES = 128 * 1024  # a line of 64 cameras is about 40 KiB of settings
MAX_FDS = 4


class ControlClosed(Exception):
    """The other end is gone."""


class Control:
    """One end of a control socket; never blocks."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.setblocking(False)

    @classmethod
    def pair(cls) -> tuple[Control, socket.socket]:
        """(this process's end, the socket that a child inherits)."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_BYTES)
        return cls(ours), theirs

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, kind: str, fds: tuple[int, ...] = (), **body: Any) -> bool:
        """Send a message; False when the other end does not read (its buffer is full). Raises ControlClosed."""
        data = msgpack.packb({"kind": kind, **body})
        if len(data) > MAX_BYTES:
            raise ValueError(f"control message {kind!r} of {len(data)} bytes is over {MAX_BYTES}")
        try:
            if fds:
                socket.send_fds(self.sock, [data], list(fds))
            else:
                self.sock.send(data)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError, OSError):
            raise ControlClosed from None
        return True

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next message and its descriptors; None when nothing waits. Raises ControlClosed at end of file."""
        try:
            data, fds, _, _ = socket.recv_fds(self.sock, MAX_BYTES, MAX_FDS)
        except BlockingIOError:
            return None
        except OSError:
            raise ControlClosed from None
        if not data:
            raise ControlClosed
        for fd in fds:
            os.set_inheritable(fd, False)
        message = msgpack.unpackb(data, raw=False, strict_map_key=False)
        return message, fds

    def close(self) -> None:
        self.sock.close()
