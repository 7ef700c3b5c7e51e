"""Real servers for the tests, each started on loopback and killed by whoever started it."""

from __future__ import annotations

import os

import pytest


def require_rig(condition: bool, reason: str) -> None:
    """Skip the test, with the reason, where a rig is missing; fail it where EDGE_REQUIRE_RIGS=1 promises the rig."""
    if condition:
        return
    if os.environ.get("EDGE_REQUIRE_RIGS") == "1":
        pytest.fail(f"EDGE_REQUIRE_RIGS=1, but {reason}", pytrace=False)
    pytest.skip(reason)
