"""Paced reconnects: exponential back-off with jitter. Pure: it counts, the caller waits."""

from __future__ import annotations

import random


class Backoff:
    """Delays before the next attempt: ``first_s``, then ``factor`` times as long each time, up to ``cap_s``.

    Each delay is scaled by a random factor in ``[1 - jitter, 1 + jitter]`` (never beyond ``cap_s``), so that a
    switch that comes back is not met by all its cameras at once. ``seed`` makes the sequence repeatable.
    """

    def __init__(
        self,
        first_s: float = 0.5,
        factor: float = 2.0,
        cap_s: float = 30.0,
        jitter: float = 0.25,
        seed: int | None = None,
    ) -> None:
        if not (0 < first_s <= cap_s and factor >= 1 and 0 <= jitter < 1):
            raise ValueError("need 0 < first_s <= cap_s, factor >= 1, 0 <= jitter < 1")
        self._first_s, self._factor, self._cap_s, self._jitter = first_s, factor, cap_s, jitter
        self._base_s = first_s
        self._attempts = 0
        self._random = random.Random(seed)

    @property
    def attempts(self) -> int:
        """Delays given since the last :meth:`reset`."""
        return self._attempts

    def next_delay(self) -> float:
        """Seconds to wait before the next attempt."""
        self._attempts += 1
        delay = self._base_s * self._random.uniform(1 - self._jitter, 1 + self._jitter)
        self._base_s = min(self._cap_s, self._base_s * self._factor)
        return min(self._cap_s, delay)

    def reset(self) -> None:
        """The camera is back: call it once frames flow, not when a connection merely opens."""
        self._base_s = self._first_s
        self._attempts = 0
