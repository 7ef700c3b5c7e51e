"""The publishing sockets: XPUB for messages, ROUTER for replay; driven by the caller's poll loop, no threads.

No subscriber can hold up the caller. A slow one loses messages beyond the high-water mark (ZeroMQ does not
say which); it sees the hole in the numbers ``n`` and in the ids, and asks the replay socket for the alerts
it missed.
"""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import zmq

from edge.alerts import replay
from edge.alerts.config import check_endpoint
from edge.alerts.messages import Message, encode
from edge.errors import ResourceError

LINGER_MS = 500
REQUESTS_A_CALL = 8  # a flood of requests must not keep the loop from its work
HEARTBEAT_MS = 5000


@dataclass(slots=True)
class PublisherCounts:
    """``unanswered``: replay answers that the asker had no room for, or that it did not wait for."""

    published: int = 0
    subscriptions: int = 0
    replays: int = 0
    unanswered: int = 0


class Publisher:
    """Owns both sockets and their lock files; :meth:`close` releases them.

    Raises ConfigError for a refused endpoint, ResourceError naming the endpoint that is in use or not
    permitted.
    """

    def __init__(
        self,
        endpoint: str,
        replay_endpoint: str,
        outbox: replay.Outbox,
        hwm: int = 1000,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        self.counts = PublisherCounts()
        self._outbox = outbox
        self._numbers: dict[str, int] = {}
        self._locks: list[int] = []
        context = context or zmq.Context.instance()
        self.pub = context.socket(zmq.XPUB)
        self.replay = context.socket(zmq.ROUTER)
        try:
            self._prepare(hwm)
            self._bind(self.pub, endpoint)
            self._bind(self.replay, replay_endpoint)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        """The sockets to poll for input; when one is readable, call :meth:`serve`."""
        return self.pub, self.replay

    def publish(self, message: Message) -> Message:
        """Send a message with its number ``n`` on its topic; returns it as sent. Never blocks.

        Raises MessageError for one that is over the size limit.
        """
        number = self._numbers.get(message.topic, 0) + 1
        numbered = message.model_copy(update={"n": number})
        frames = encode(numbered)
        self._numbers[message.topic] = number
        try:
            self.pub.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            pass  # an XPUB drops instead of blocking; should that ever change, the number shows the loss
        self.counts.published += 1
        return numbered

    def serve(self) -> None:
        """Take in subscriptions and answer waiting replay requests, a bounded number a call. Never blocks.

        Raises ResourceError when the store cannot be read.
        """
        for _ in range(REQUESTS_A_CALL):
            try:
                event = self.pub.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            self.counts.subscriptions += {b"\x01": 1, b"\x00": -1}.get(event[:1], 0)
        for _ in range(REQUESTS_A_CALL):
            try:
                frames = self.replay.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._answer(frames)

    def _answer(self, frames: list[bytes]) -> None:
        # DEALER sends [identity, request], REQ [identity, (number,) empty, request]; the answer mirrors it.
        envelope, payload = frames[:-1], frames[-1]
        if not 1 <= len(envelope) <= 3:
            envelope, payload = frames[:1], b""
        try:
            self.replay.send_multipart([*envelope, replay.answer(self._outbox, payload)], zmq.NOBLOCK)
            self.counts.replays += 1
        except zmq.ZMQError as error:
            if error.errno not in (errno.EAGAIN, errno.EHOSTUNREACH):
                raise
            self.counts.unanswered += 1

    def close(self) -> None:
        """Idempotent. What is queued gets LINGER_MS to leave when the context ends."""
        self.pub.close(LINGER_MS)
        self.replay.close(LINGER_MS)
        for lock in self._locks:
            os.close(lock)  # the file stays: deleting it would let two processes lock two files of one name
        self._locks.clear()

    def _prepare(self, hwm: int) -> None:
        for socket in self.sockets:
            socket.setsockopt(zmq.LINGER, LINGER_MS)
            socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)  # a dead TCP peer frees its queue
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
            socket.setsockopt(zmq.MAXMSGSIZE, replay.MAX_REQUEST_BYTES)  # of what comes in; a larger one cuts the link
        self.pub.setsockopt(zmq.SNDHWM, hwm)
        self.replay.setsockopt(zmq.SNDHWM, 4)  # answers of up to a megabyte
        self.replay.setsockopt(zmq.RCVHWM, 64)
        self.replay.setsockopt(zmq.ROUTER_MANDATORY, 1)

    def _bind(self, socket: zmq.Socket[bytes], endpoint: str) -> None:
        check_endpoint(endpoint)
        path = Path(endpoint.removeprefix("ipc://")) if endpoint.startswith("ipc://") else None
        if path is not None:
            self._lock(path, endpoint)
        try:
            socket.bind(endpoint)
            if path is not None:
                path.chmod(0o660)
        except (zmq.ZMQError, OSError) as error:
            raise _refused(endpoint, error.errno or 0) from None

    def _lock(self, path: Path, endpoint: str) -> None:
        """ZeroMQ unlinks an ipc path before it binds, so a second process would take the address from a
        living first one, which never hears of it. The lock dies with its process, however that dies."""
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        except OSError as error:
            raise _refused(endpoint, error.errno or 0) from None
        self._locks.append(lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise _refused(endpoint, error.errno or 0) from None
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
            raise ResourceError(
                f"{endpoint}: in use by process {holder or 'unknown'}; stop it or choose another endpoint"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


def _refused(endpoint: str, number: int) -> ResourceError:
    if number == errno.EADDRINUSE:
        return ResourceError(f"{endpoint}: in use by another process; stop it or choose another endpoint")
    return ResourceError(
        f"{endpoint}: cannot be bound ({os.strerror(number)}); check the folder's owner and permissions"
    )
