"""One stage as a process: started with ``spawn`` semantics, watched by pidfd and control socket, killed for sure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from edge.supervisor.policy import RestartPolicy
from edge.wire.control import Control, ControlClosed

State = Literal["starting", "ready", "stopping", "waiting", "ended", "failed"]


@dataclass
class StageProcess:
    """A stage's slot in the supervisor: at most one process at a time, and what is known of it.

    ``waiting``: it crashed and starts again at ``start_at``; ``ended``: it left because it was told to, or its
    source is finished; ``failed``: it cannot start, or crashed too often.
    """

    name: str
    station: int
    policy: RestartPolicy
    state: State = "ended"
    process: subprocess.Popen[bytes] | None = None
    control: Control | None = None
    pidfd: int = -1
    started_at: float = 0.0
    last_beat: float = 0.0
    aborted_at: float | None = None
    start_at: float = 0.0
    restarts: int = 0
    starts: int = 0
    beat: dict[str, Any] = field(default_factory=dict)
    fatal: tuple[int, str] | None = None
    last_handled: int = 0

    @property
    def alive(self) -> bool:
        return self.process is not None

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    def start(self, spec: dict[str, Any], log_level: int) -> None:
        """Spawn the process and tell it its spec. A fresh interpreter, never a fork: threads, CUDA contexts and
        locks of the parent do not survive one."""
        assert self.process is None
        self.control, theirs = Control.pair()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edge.stages", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C at the terminal is for the supervisor, which drains in order
            )
        finally:
            theirs.close()
        self.pidfd = os.pidfd_open(self.process.pid)
        now = time.monotonic()
        self.state, self.started_at, self.last_beat, self.aborted_at = "starting", now, now, None
        self.beat, self.fatal, self.last_handled = {}, None, 0
        self.starts += 1
        identity = {"station": self.station, "name": self.name, "parent": os.getpid(), "log_level": log_level}
        self.tell("spec", spec={**spec, **identity})

    def tell(self, kind: str, fds: tuple[int, ...] = (), **body: Any) -> bool:
        """Send a control message; False when the stage is gone or does not read."""
        if self.control is None:
            return False
        try:
            return self.control.send(kind, fds, **body)
        except ControlClosed:
            return False  # its death comes through the pidfd

    def ask_to_stop(self) -> None:
        if self.alive and self.state != "stopping":
            self.state = "stopping"
            self.tell("stop")

    def abort(self, now: float) -> None:
        """SIGABRT: the stage's fault handler writes where it was stuck, then it dies."""
        self.aborted_at = now
        self.signal(signal.SIGABRT)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                pass

    def reap(self) -> int:
        """Collect the exit status of a dead process and let go of its descriptors. Returns it (negative: signal)."""
        assert self.process is not None
        code = self.process.wait()
        os.close(self.pidfd)
        if self.control is not None:
            self.control.close()
        self.process, self.control, self.pidfd = None, None, -1
        return code
