"""Holding a source to its frames a second."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pacer:
    """Lets one frame through every ``1 / fps`` seconds; without ``fps``, every time.

    A reader that comes late does not get a burst: what it missed is not made up, the next frame is due one period
    after the late one. A delay below one period is made up, so that the mean rate is kept under jitter.
    """

    def __init__(
        self,
        fps: float | None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._period_s = 0.0 if fps is None else 1.0 / fps
        self._clock = clock
        self._sleep = sleep
        self._due: float | None = None

    def wait(self, timeout_s: float) -> bool:
        """True when a frame is due, waiting up to ``timeout_s`` seconds for it; the next one is then scheduled."""
        if self._period_s == 0.0:
            return True
        now = self._clock()
        if self._due is None:
            self._due = now
        if self._due - now > timeout_s:
            self._sleep(max(0.0, timeout_s))
            return False
        if self._due > now:
            self._sleep(self._due - now)
        late = max(0.0, self._clock() - self._due)
        self._due += self._period_s if late < self._period_s else late + self._period_s
        return True
