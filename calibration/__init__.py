"""From good pictures to a bundle: fitting, thresholds, data sets, metrics, evaluation.

Used by ``edge fit`` and ``edge eval``, never by a running daemon.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""progress(done, total, what): how long work reports to whoever shows it. Called from the caller's thread."""


def no_progress(done: int, total: int, what: str) -> None:
    """Reports to nobody."""
