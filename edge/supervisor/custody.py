"""Custody: the supervisor's duty that every frame ends, whoever holds it, and whoever sits on the ledger's lock."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from edge.errors import Exit
from edge.supervisor.process import StageProcess
from edge.wire.ledger import Ledger, LedgerBusy, Reason, Station

log = logging.getLogger("supervisor")


class Custody:
    """Closes frames that nobody will finish: of dead stages, too old, left at a stop, left by an earlier daemon.

    ``stages`` is the supervisor's own table. ``stranger``: the process that holds the ledger's lock and is none of
    ours (0: nobody); while there is one, nothing can be closed.
    """

    def __init__(self, ledger: Ledger, stages: Mapping[str, StageProcess]) -> None:
        self._ledger, self._stages = ledger, stages
        self._orphans: list[tuple[StageProcess, bool]] = []  # dead stages whose frames wait for the ledger's lock
        self.stranger = 0

    def recover(self) -> None:
        """Close what an earlier daemon left open when it was killed. The alert stage resolves its own frames."""
        for text in self._ledger.repair():
            log.warning("ledger: %s", text)
        left = [frame for frame in self._ledger.open_frames() if frame.holder != Station.ALERT]
        for frame in left:
            self._ledger.drop(frame.ticket, Reason.STAGE_RESTART)
        if left:
            log.warning("%d frames were under way when the daemon last ended; not inspected (stage_restart)", len(left))

    def stage_died(self, stage: StageProcess, code: int, asked: bool) -> None:
        """Frames the dead stage held, or had sent without their being taken, end here; what one that left as asked
        had sent did arrive. A dead alert stage's own frames wait for its successor, which alone can tell from the
        store whether their alert was raised."""
        in_order = asked and code == Exit.OK
        if self.stranger:
            self._orphans.append((stage, in_order))
            return
        try:
            self._drop_frames_of(stage, in_order)
        except LedgerBusy as error:
            self._orphans.append((stage, in_order))
            self.free_lock(error.pid)

    def close_orphans(self) -> None:
        """What could not be closed at a stage's death. Raises LedgerBusy."""
        while self._orphans:
            self._drop_frames_of(*self._orphans[0])
            del self._orphans[0]

    def close_overdue(self, now: float, timeout_s: float) -> None:
        """Close frames captured more than ``timeout_s`` seconds ago. Raises LedgerBusy."""
        limit = int((now - timeout_s) * 1e9)
        oldest = self._ledger.open_frames()[:1]  # needs no lock
        if oldest and oldest[0].mono_ns < limit:
            overdue = self._ledger.drop_where(Reason.TIMEOUT, older_than_ns=limit)
            log.warning("%d frames had no verdict in time; not inspected (timeout)", len(overdue))

    def close_all(self) -> None:
        """The drain is over: what is still open is not inspected (shutdown). Raises LedgerBusy when it is worth
        another try."""
        try:
            for frame in self._ledger.drop_where(Reason.SHUTDOWN):
                log.warning("frame %d of camera %d is not inspected (shutdown)", frame.seq, frame.camera)
        except LedgerBusy as error:
            if self.free_lock(error.pid):
                raise
            log.error("frames under way stay open; the next start closes them (stage_restart)")

    def free_lock(self, pid: int) -> bool:
        """A process that stands still (SIGSTOP) with the ledger's lock in hand holds up everybody: a stage goes. False:
        a stranger holds it, whom we may not kill; nothing moves until it lets go, which the watchdog tells."""
        if pid == 0:  # it let go while we asked
            return True
        for stage in self._stages.values():
            if stage.alive and stage.pid == pid:
                log.error("%s holds the ledger's lock and does not move; killed", stage.name)
                stage.kill()
                return True
        if pid != self.stranger:
            self.stranger = pid
            log.error("the ledger's lock is held by process %d, which is no stage; nothing moves until it lets go", pid)
        return False

    def _drop_frames_of(self, stage: StageProcess, in_order: bool) -> None:
        lost = [] if in_order else self._ledger.drop_where(Reason.STAGE_RESTART, sender=stage.station)
        if stage.station != Station.ALERT:
            lost += self._ledger.drop_where(Reason.STAGE_RESTART, holder=stage.station)
        if lost:
            log.warning("%s: %d frames under way are not inspected (stage_restart)", stage.name, len(lost))
