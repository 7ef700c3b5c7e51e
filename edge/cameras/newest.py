"""Live cameras: a thread that always reads and keeps only the newest frame.

A decoder that is read late hands out its old frames in order: after a pause of two seconds, pictures are two seconds
old, and stay so while the backlog lasts. So a thread of its own takes every frame as it comes into a mailbox with
one place, and whoever reads gets the newest. That thread alone touches the decoder: it opens it, reads it and closes
it. A call that is stuck in C cannot be interrupted; such a thread is left behind as a daemon, closes its own decoder
when the call returns (the decoder's time-outs bound that), and no second one is started meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edge.cameras.base import Frame, Picture, Undecodable, as_bgr
from edge.errors import CameraError, PictureError

log = logging.getLogger(__name__)

CLOSE_S = 1.0  # how long close() waits for the thread to let go
MAX_BAD_IN_A_ROW = 50  # frames that do not decode until the stream counts as lost

Decode = Callable[[], Picture]


class Connection(Protocol):
    """What the thread drives. All is called on that thread only; every call returns within the time-outs."""

    def open(self) -> None:
        """Raises CameraError or CameraConfigError."""

    def grab(self) -> Decode:
        """Wait for the next frame. What comes back gives its picture when called, on any thread, also after
        :meth:`close`: frames that are never read then cost no colour conversion. It may raise PictureError.

        Raises PictureError (this frame is damaged, go on) or CameraError (lost).
        """

    def close(self) -> None:
        """Let go. Called once after :meth:`open`, whether or not that succeeded."""


@dataclass(frozen=True)
class _Arrival:
    decode: Decode | PictureError
    mono_ns: int
    wall_ns: int


class _Reader:
    """One life of a connection: its thread, its mailbox, how it ended."""

    def __init__(self, name: str, connection: Connection, first_s: float, stall_s: float) -> None:
        self._name = name
        self._connection = connection
        self._limit_s = first_s  # until the first frame, then stall_s
        self._stall_s = stall_s
        self._changed = threading.Condition()
        self._newest: _Arrival | None = None
        self._error: CameraError | None = None
        self._opened = False
        self._stop = False
        self._last_s = time.monotonic()  # of the last frame; of the opening before that
        self.overwritten = 0
        self._thread = threading.Thread(target=self._run, name=f"camera {name}", daemon=True)

    def start(self, timeout_s: float) -> None:
        """Start the thread and wait until the connection is open. Raises CameraError."""
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._opened or self._error is not None, timeout_s)
            if self._error is not None:
                raise self._error
            if not self._opened:
                raise CameraError(f"{self._name}: did not open within {timeout_s:g} s")

    def take(self, timeout_s: float) -> _Arrival | None:
        """The newest frame that was not taken yet; None if there is none within the time. Raises CameraError when
        the connection ended, or has given no frame for ``stall_s`` seconds (``first_s`` at the beginning)."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                if self._newest is not None:
                    newest, self._newest = self._newest, None
                    return newest
                if self._error is not None:
                    raise self._error
                now = time.monotonic()
                stalled_at = self._last_s + self._limit_s
                if now >= stalled_at:
                    # By the age of the frames and not by the decoder's word: a decoder may report success for as
                    # long as it has old frames to give, or block for its own, longer, time-out.
                    raise CameraError(f"{self._name}: no frame for {now - self._last_s:.1f} s")
                if now >= deadline:
                    return None
                self._changed.wait(min(deadline, stalled_at) - now)

    def stop(self, timeout_s: float) -> None:
        with self._changed:
            self._stop = True
            self._newest = None
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        error: CameraError | None = None
        try:
            self._connection.open()
            with self._changed:
                self._opened = True
                self._last_s = time.monotonic()
                self._changed.notify_all()
            self._read_all()
        except CameraError as lost:
            error = lost
        except Exception as fault:
            # Whatever a decoder raises must end in the reader's hands, not in threading's traceback, which would
            # print URLs; so only the type is told.
            error = CameraError(f"{self._name}: the reader failed with {type(fault).__name__}")
        finally:
            try:
                self._connection.close()
            except Exception as fault:
                log.warning("%s: closing failed with %s", self._name, type(fault).__name__)
        with self._changed:
            self._error = error or CameraError(f"{self._name}: closed")
            self._changed.notify_all()

    def _read_all(self) -> None:
        bad = 0
        while not self._stop:
            asked_s = time.monotonic()
            decode: Decode | PictureError
            try:
                decode, bad = self._connection.grab(), 0
            except PictureError as damaged:
                decode, bad = damaged, bad + 1
                if bad > MAX_BAD_IN_A_ROW:
                    raise CameraError(f"{self._name}: {bad} frames in a row could not be decoded") from None
            now_s = time.monotonic()
            if now_s - asked_s >= self._limit_s:
                # What comes out after such a wait lay in the decoder since before it (seen with FFmpeg: the first
                # call that times out returns a held frame as a success). Old is not new.
                raise CameraError(f"{self._name}: no frame for {now_s - asked_s:.1f} s")
            arrival = _Arrival(decode, time.monotonic_ns(), time.time_ns())
            with self._changed:
                if self._newest is not None:
                    self.overwritten += 1
                if not self._stop:
                    self._newest = arrival
                self._last_s, self._limit_s = now_s, self._stall_s
                self._changed.notify_all()


class LiveCamera:
    """A :class:`~edge.cameras.base.Camera` that gives the newest frame of a connection.

    ``connect`` makes a connection that is not open yet; ``name`` is shown to people. A frame that was waiting when
    the connection was lost is still delivered, then CameraError is raised, each time until it is opened again.
    """

    live = True

    def __init__(
        self, name: str, connect: Callable[[], Connection], *, open_timeout_s: float, stall_s: float, max_pixels: int
    ) -> None:
        self._name = name
        self._connect = connect
        self._open_timeout_s = open_timeout_s
        self._stall_s = stall_s
        self._max_pixels = max_pixels
        self._reader: _Reader | None = None
        self._left_behind: _Reader | None = None
        self._overwritten = 0

    @property
    def overwritten(self) -> int:
        return self._overwritten + (self._reader.overwritten if self._reader is not None else 0)

    def open(self) -> None:
        self.close()
        if self._left_behind is not None:
            if self._left_behind.alive:
                raise CameraError(f"{self._name}: the last connection still hangs in the driver; waiting for it")
            self._left_behind = None
        # A camera that is joined between two key frames may need longer for its first frame than between frames.
        first_s = max(self._stall_s, self._open_timeout_s)
        self._reader = _Reader(self._name, self._connect(), first_s, self._stall_s)
        try:
            # The decoder has the same time-out; the margin lets its own, better explained error arrive first.
            self._reader.start(self._open_timeout_s + 1.0)
        except CameraError:
            self.close()
            raise
        log.info("%s: connected", self._name)

    def read(self, timeout_s: float) -> Frame | Undecodable | None:
        if self._reader is None:
            raise CameraError(f"{self._name}: not open")
        arrival = self._reader.take(timeout_s)
        if arrival is None:
            return None
        try:
            if isinstance(arrival.decode, PictureError):
                raise arrival.decode
            picture = as_bgr(arrival.decode(), self._max_pixels)
        except PictureError as error:
            return Undecodable("", str(error), arrival.mono_ns, arrival.wall_ns)
        return Frame(picture, arrival.mono_ns, arrival.wall_ns)

    def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is None:
            return
        reader.stop(CLOSE_S)
        self._overwritten += reader.overwritten
        if reader.alive:
            self._left_behind = reader

    def describe(self) -> str:
        return self._name
