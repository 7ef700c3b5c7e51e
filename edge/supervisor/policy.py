"""When to restart, when to give up, when silence means death. Pure: time comes in as an argument."""

from __future__ import annotations

import signal
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from edge.errors import Exit

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 30.0

# A stage that leaves with one of these would leave with it again: the cause is a file or the machine, not chance.
CANNOT_START = frozenset({Exit.USAGE, Exit.BAD_CONFIG, Exit.BAD_BUNDLE, Exit.BAD_DATA, Exit.NO_CAMERA})


@dataclass
class RestartPolicy:
    """Back-off of one stage: the first crash is answered at once, the next ones after 0.5, 1, 2 ... 30 s.

    More than ``limit`` crashes within ``window_s`` seconds: give up, aloud.
    """

    limit: int
    window_s: float
    crashes: deque[float] = field(default_factory=deque)

    def crashed(self, now: float) -> float | None:
        """Note a crash. Returns the delay in seconds before the restart, or None to give up."""
        self.crashes.append(now)
        while self.crashes and self.crashes[0] < now - self.window_s:
            self.crashes.popleft()
        count = len(self.crashes)
        if count > self.limit:
            return None
        return 0.0 if count == 1 else min(LONGEST_RETRY_S, FIRST_RETRY_S * 2 ** (count - 2))


Answer = Literal["wait", "abort", "kill"]
ABORT_GRACE_S = 2.0  # between SIGABRT, which leaves a trace, and SIGKILL, which always works


def answer_silence(now: float, last_beat: float, limit_s: float, aborted_at: float | None) -> Answer:
    """What to do about a stage that last beat at ``last_beat``: SIGABRT first, SIGKILL if it does not die of it."""
    if aborted_at is not None:
        return "kill" if now - aborted_at > ABORT_GRACE_S else "wait"
    return "abort" if now - last_beat > limit_s else "wait"


def describe_exit(code: int) -> str:
    """An exit status of ``Popen.returncode`` in words."""
    if code >= 0:
        name = Exit(code).name if code in set(Exit) else "unknown"
        return f"exit code {code} ({name})"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = " (out of memory, perhaps)" if -code == signal.SIGKILL else ""
    return f"{name}{hint}"
