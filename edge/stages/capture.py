"""Capture: one process a camera. A frame is counted in the ledger the moment it arrives, then copied into a slot.

Policy ``latest``: never wait; when too many frames lie before preprocess, the oldest of them gives way (``stale``);
when every slot is held by frames under inspection, the new one does (``no_slot``).
Policy ``every``: read the source only when a slot is free, so that nothing is dropped; the source waits.
"""

from __future__ import annotations

import select
import time
from typing import Any

from pydantic import TypeAdapter

from edge.cameras import Frame, Undecodable, open_camera
from edge.cameras.backoff import Backoff
from edge.cameras.config import CameraSource
from edge.errors import CameraConfigError, CameraError, EndOfStream
from edge.stages.base import STARVED_S, Forwarder, Stage
from edge.wire.control import Control
from edge.wire.copy import FrameCopier
from edge.wire.descriptor import MAX_NAME, Descriptor
from edge.wire.ledger import Reason, Station
from edge.wire.pool import SlotPool

READ_S = 0.1  # how long one read may wait: bounds the answer to the supervisor
FULL_ALARM_S = 2.0  # a source that had to wait this long for a slot is reported: the line outruns the inspection
STABLE_S = 10.0  # frames for this long make a reconnect count as good again


class CaptureStage(Stage):
    """``spec``: camera (index), source {...}, policy, queue, slots, max_pixels."""

    def __init__(self, control: Control, spec: dict[str, Any]) -> None:
        super().__init__(control, spec)
        self.camera_index: int = spec["camera"]
        self.every = spec["policy"] == "every"
        self.queue: int = spec["queue"]
        self.max_pixels: int = spec["max_pixels"]
        self.source = TypeAdapter(CameraSource).validate_python(spec["source"])
        self.next = Forwarder(self, Station.PREPROCESS)
        self.backoff = Backoff()
        self.copier = FrameCopier()
        self.pool: SlotPool | None = None
        self.paused = False
        self.connected = False
        self.done = False
        self._retry_at = 0.0
        self._good_since: float | None = None
        self._starved_since: float | None = None
        self._alarmed = False
        self._lost_text = ""
        self._overwritten = 0

    def setup(self) -> None:
        self.camera = open_camera(self.source)

    def report(self) -> dict[str, Any]:
        return {"connected": self.connected, "done": self.done, "paused": self.paused, "full": self._alarmed}

    def on_control(self, message: dict[str, Any]) -> None:
        if message["kind"] in ("pause", "resume"):
            self.paused = message["kind"] == "pause"
            self.control.send("paused" if self.paused else "resumed")
        else:
            super().on_control(message)

    def finish(self) -> None:
        self.camera.close()

    # -- one step ---------------------------------------------------------------------------------------------

    def step(self, timeout_s: float) -> None:
        if self.paused or self.done:
            self._rest(timeout_s)
        elif not self.connected:
            self._connect(timeout_s)
        elif not (self.every and self._waits_for_slot(timeout_s)):
            self._read()

    def _rest(self, timeout_s: float) -> None:
        select.select([self.control.fileno()], [], [], timeout_s)

    def _connect(self, timeout_s: float) -> None:
        wait = self._retry_at - time.monotonic()
        if wait > 0:
            self._rest(min(wait, timeout_s))
            return
        try:
            self.camera.open()
        except CameraConfigError:
            raise
        except CameraError as error:
            self._lost(error)
            return
        self.connected = True
        self._good_since = None
        if self._lost_text:
            self._lost_text = ""
            self.control.send("event", what="camera_back", text=f"{self.camera.describe()}: frames may come again")

    def _lost(self, error: CameraError) -> None:
        self.camera.close()
        self.connected = False
        delay = self.backoff.next_delay()
        self._retry_at = time.monotonic() + delay
        if str(error) != self._lost_text:  # said once for each new reason, not at every try
            self._lost_text = str(error)
            self.control.send("event", what="camera_lost", text=self._lost_text)
            self.log.warning("%s; trying again, first in %.1f s", error, delay)

    def _read(self) -> None:
        try:
            got = self.camera.read(READ_S)
        except EndOfStream:
            self.done = True
            self.camera.close()
            self.control.send("done")
            return
        except CameraError as error:
            self._lost(error)
            return
        self._count_overwritten()
        if got is None:
            return
        now = time.monotonic()
        self._good_since = self._good_since or now
        if now - self._good_since > STABLE_S:
            self.backoff.reset()
        if isinstance(got, Undecodable):
            self._undecodable(got)
        else:
            self._capture(got)

    def _count_overwritten(self) -> None:
        """Frames that a live camera's newest-frame reader replaced before we came: captured, and stale."""
        missed = self.camera.overwritten - self._overwritten
        self._overwritten += missed
        for _ in range(missed):
            opened = self.ledger.open_frame(self.camera_index, time.monotonic_ns(), time.time_ns())
            if opened is not None:
                self.ledger.drop(opened[0], Reason.STALE)
                self.counters.refused += 1

    # -- one frame --------------------------------------------------------------------------------------------

    def _undecodable(self, bad: Undecodable) -> None:
        opened = self.ledger.open_frame(self.camera_index, bad.mono_ns, bad.wall_ns)
        if opened is not None:
            self.ledger.drop(opened[0], Reason.DECODE)
        self.counters.refused += 1
        self.log.warning("frame not inspected (decode): %s %s", bad.name, bad.why)

    def _capture(self, frame: Frame) -> None:
        height, width = frame.picture.shape[:2]
        if height * width > self.max_pixels:
            why = f"{width} x {height} pixels is over pipeline.max_pixels"
            self._undecodable(Undecodable(frame.name, why, frame.mono_ns, frame.wall_ns))
            return
        opened = self.ledger.open_frame(self.camera_index, frame.mono_ns, frame.wall_ns)
        if opened is None:
            self.counters.refused += 1
            return
        ticket, seq = opened
        pool = self._pool_for(height, width)
        slot = self._slot(pool, ticket)
        if slot is None:
            self.ledger.drop(ticket, Reason.NO_SLOT)
            self.counters.refused += 1
            return
        target = pool.array(slot, (height, width, 3))
        self.copier.copy(target, frame.picture)
        ref = pool.commit(slot, seq, frame.mono_ns, frame.wall_ns, target.nbytes)
        name = frame.name.encode(errors="replace")[-MAX_NAME:].decode(errors="ignore")
        self.next.send(
            Descriptor(ticket, self.camera_index, seq, frame.mono_ns, frame.wall_ns, height, width, ref, name=name)
        )

    def _slot(self, pool: SlotPool, ticket: int) -> int | None:
        if not self.every:
            while self.ledger.waiting(self.camera_index, Station.PREPROCESS) >= self.queue:
                if self.ledger.drop_oldest_waiting(self.camera_index, Station.PREPROCESS) is None:
                    break
                self.counters.refused += 1
        slot = pool.free_slot(self.ledger.is_live)
        if slot is None and self.ledger.drop_oldest_waiting(self.camera_index, Station.PREPROCESS) is not None:
            self.counters.refused += 1
            slot = pool.free_slot(self.ledger.is_live)
        return None if slot is None else pool.loan(slot, ticket)

    def _pool_for(self, height: int, width: int) -> SlotPool:
        """A pool whose slots hold pictures of this size; where they are too small, the supervisor makes a new one."""
        if self.pool is None or height * width * 3 > self.pool.slot_bytes:
            self.roles.pop("frame", None)
            self.control.send("need_pool", height=height, width=width)
            before, self.pool = self.pool, self.await_role("frame")
            if before is not None:  # others read its last frames; nothing more is written there
                del self.pools[before.id]
                before.close()
        return self.pool

    def _waits_for_slot(self, timeout_s: float) -> bool:
        """Policy ``every``: True while no slot is free. Waiting for long is an alarm, said once."""
        if self.pool is None or self.pool.free_slot(self.ledger.is_live) is not None:
            self._starved_since, self._alarmed = None, False
            return False
        now = time.monotonic()
        self._starved_since = self._starved_since or now
        if not self._alarmed and now - self._starved_since > FULL_ALARM_S:
            self._alarmed = True
            self.control.send(
                "event",
                what="queue_full",
                text="every slot is taken: the line outruns the inspection, the source waits",
            )
        self.pool.wait_for_release(min(timeout_s, STARVED_S))
        return True
