"""What every stage shares: identity, pools, the loop, the heartbeat, the control socket.

Control messages, supervisor to stage:
    spec {station, name, runtime, ledger, ...}   first, once
    pool {role, camera} + 2 descriptors          a slot pool: its memfd and its event descriptor
    retire {pool}                                a pool that no open frame uses any more
    pause / resume                               capture only: stop and continue the intake
    health {...}                                 alert only: what to publish
    stop                                         finish what is in hand and exit
Stage to supervisor:
    ready                                        set up; frames may come
    beat {handled, stale, torn, malformed, refused, cpu_ns, ...}
    need_pool {height, width}                    capture: a picture of another size has come
    event {what, text}                           something a person should know, said once when it changes
    done                                         capture: a finite source has ended
    fatal {code, text}                           cannot start (an exit code of the contract) or crashed
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import zmq

from edge.wire.control import Control
from edge.wire.descriptor import Descriptor
from edge.wire.ledger import Ledger, Reason, Station
from edge.wire.link import Inlet, Outlet, link_path
from edge.wire.pool import SlotPool, SlotRef, StaleSlot

BEAT_S = 0.2  # the longest a stage waits for work before it beats again
LINGER_MS = 500
STARVED_S = 0.05  # how often a stage without a free slot looks again; releases wake it sooner

STATION_NAMES = {
    Station.PREPROCESS: "preprocess",
    Station.BACKBONE: "backbone",
    Station.HEAD: "head",
    Station.ALERT: "alert",
}


@dataclass
class Counters:
    """What a stage has done since it started; goes out with every beat."""

    handled: int = 0  # frames that left the stage towards the next
    refused: int = 0  # frames the stage closed as not inspected
    stale: int = 0  # descriptors whose frame was closed before they arrived
    torn: int = 0  # payloads overwritten while they were being read
    malformed: int = 0  # messages that were no descriptor


class StopRequested(Exception):
    """The supervisor asked this stage to stop while it waited for something that will not come any more."""


class Stage(ABC):
    """One process of the pipeline. Subclasses say what to set up and what one step of work is."""

    def __init__(self, control: Control, spec: dict[str, Any]) -> None:
        self.control = control
        self.spec = spec
        self.station: int = spec["station"]
        self.name: str = spec["name"]
        self.log = logging.getLogger(self.name)
        self.runtime = Path(spec["runtime"])
        self.ledger = Ledger(Path(spec["ledger"]))
        self.context = zmq.Context()
        self.pools: dict[int, SlotPool] = {}
        self.roles: dict[str, SlotPool] = {}
        self.counters = Counters()
        self.stopping = False
        self._last_beat = 0.0

    # -- for subclasses ---------------------------------------------------------------------------------------

    @abstractmethod
    def setup(self) -> None:
        """Load what the stage needs. Raises EdgeError when it can never work."""

    @abstractmethod
    def step(self, timeout_s: float) -> None:
        """Do the work that is there, or wait at most ``timeout_s`` for some."""

    def finish(self) -> None:  # noqa: B027 - optional
        """Last words after the loop has ended on request."""

    def on_control(self, message: dict[str, Any]) -> None:
        """A message that the base does not know."""
        self.log.warning("unknown control message %r", message.get("kind"))

    def report(self) -> dict[str, Any]:
        """More fields for the beat."""
        return {}

    # -- the loop ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until told to stop. The heartbeat beats here, in the loop that works, never in a side thread."""
        self.setup()
        self.control.send("ready")
        while not self.stopping:
            self.step(BEAT_S)
            self.pump_control()
            self.beat()
        self.finish()
        self.beat(force=True)
        # The process leaves without a wait, so what is queued must be out by now; a dead receiver gets no more time.
        self.context.destroy(linger=LINGER_MS)

    def beat(self, force: bool = False) -> None:
        now = time.monotonic()
        if force or now - self._last_beat >= BEAT_S:
            self._last_beat = now
            # A full buffer means the supervisor is busy; the next beat carries the same sums.
            self.control.send("beat", **asdict(self.counters), cpu_ns=time.process_time_ns(), **self.report())

    def pump_control(self) -> None:
        """Handle all waiting control messages. ControlClosed (the supervisor is gone) ends the process."""
        while (received := self.control.receive()) is not None:
            message, fds = received
            match message["kind"]:
                case "stop":
                    self.stopping = True
                case "pool":
                    pool = SlotPool.attach(fds[0], fds[1])
                    self.pools[pool.id] = pool
                    self.roles[message["role"]] = pool
                case "retire":
                    pool_gone = self.pools.pop(message["pool"], None)
                    if pool_gone is not None:
                        self.roles = {role: p for role, p in self.roles.items() if p is not pool_gone}
                        pool_gone.close()
                case _:
                    self.on_control(message)

    def await_role(self, role: str) -> SlotPool:
        """The pool of ``role``; waits for its arrival. The supervisor sends it right after the spec, or after a
        request, so a short wait is enough; the supervisor's own watch ends a longer one. Raises StopRequested."""
        while role not in self.roles:
            if self.stopping:
                raise StopRequested
            zmq.select([self.control.fileno()], [], [], BEAT_S)
            self.pump_control()
            self.beat()
        return self.roles[role]

    # -- helpers ----------------------------------------------------------------------------------------------

    def pool_of(self, ref: SlotRef) -> SlotPool:
        """The pool that ``ref`` names. Raises StaleSlot when it is retired or was never announced."""
        if ref.pool not in self.pools:
            self.pump_control()  # a new pool's announcement may wait behind the first descriptor
        try:
            return self.pools[ref.pool]
        except KeyError:
            raise StaleSlot(f"pool {ref.pool} is not known here") from None

    def refuse(self, descriptor: Descriptor, reason: Reason, why: str) -> None:
        """Close a frame as not inspected, and say why in the log (rate limited by the reader of the journal)."""
        if self.ledger.drop(descriptor.ticket, reason):
            self.counters.refused += 1
            camera = self.ledger.camera_name(descriptor.camera)
            self.log.warning("camera %s frame %d not inspected (%s): %s", camera, descriptor.seq, reason.label, why)


class LinkStage(Stage):
    """A stage that receives descriptors on its inlet."""

    def __init__(self, control: Control, spec: dict[str, Any]) -> None:
        super().__init__(control, spec)
        self.inlet = Inlet(self.context, link_path(self.runtime, STATION_NAMES[Station(self.station)]))
        self._hungry = zmq.Poller()
        self._hungry.register(self.inlet.socket, zmq.POLLIN)
        self._hungry.register(control.fileno(), zmq.POLLIN)

    @abstractmethod
    def handle(self, descriptor: Descriptor) -> None:
        """Work on one accepted frame: pass it on, refuse it, or close it. StaleSlot may escape."""

    def output_free(self) -> bool:
        """Whether there is a slot for the next result; frames wait in the link while there is none."""
        return True

    def wait_for_output(self, timeout_s: float) -> None:
        """Sleep until an output slot may be free."""

    def step(self, timeout_s: float) -> None:
        if not self.output_free():
            self.wait_for_output(min(timeout_s, STARVED_S))
            return
        descriptor = self.next_accepted()
        if descriptor is None:
            self._hungry.poll(int(timeout_s * 1000))
            return
        self.work(descriptor)

    def work(self, descriptor: Descriptor) -> None:
        """Handle one accepted frame; a torn or stale payload is counted and the frame closed."""
        try:
            self.handle(descriptor)
        except StaleSlot as error:
            self.counters.torn += 1
            # Usually the frame was closed elsewhere (that is why its slot was written again); if not, it ends here.
            self.refuse(descriptor, Reason.ERROR, str(error))

    def next_accepted(self) -> Descriptor | None:
        """The next descriptor whose frame is still open; stale ones are counted and skipped."""
        while True:
            descriptor = self.inlet.receive()
            self.counters.malformed = self.inlet.malformed
            if descriptor is None or self.ledger.accept(descriptor.ticket, self.station):
                return descriptor
            self.counters.stale += 1


class Forwarder:
    """The way to the next stage: the ledger first, then the message, so that no descriptor outruns its record."""

    def __init__(self, stage: Stage, receiver: Station) -> None:
        self._stage, self._receiver = stage, receiver
        self._outlet = Outlet(stage.context, link_path(stage.runtime, STATION_NAMES[receiver]))

    def send(self, descriptor: Descriptor) -> None:
        stage = self._stage
        if not stage.ledger.pass_on(descriptor.ticket, stage.station, self._receiver):
            stage.counters.stale += 1  # closed meanwhile (timeout): its slots are free already
            return
        if self._outlet.send(descriptor):
            stage.counters.handled += 1
        else:
            stage.refuse(descriptor, Reason.NO_SLOT, "the link to the next stage is full")

    def close(self) -> None:
        self._outlet.close()
