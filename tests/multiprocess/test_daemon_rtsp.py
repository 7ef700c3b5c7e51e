"""A network camera's server killed, restarted and frozen under a running line: its frames come back by themselves."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from urllib.parse import quote

import pytest
from line import Line, synthetic
from rigs import require_rig
from rigs.rtsp import RtspServer, missing

pytestmark = [pytest.mark.multiprocess, pytest.mark.rig]

PASSWORD = "geheim@4711"
STALL_S = 1.0


def test_a_camera_that_goes_and_comes_back(start: Callable[..., Line]) -> None:
    require_rig(not missing(), missing())
    with RtspServer(user="op", password=PASSWORD, fps=15, size=(320, 240)) as server:
        source = {
            "kind": "rtsp",
            "url": server.url_as("op", quote(PASSWORD, safe="")),
            "open_timeout_s": 2.0,
            "read_timeout_s": 1.0,
            "stall_s": STALL_S,
        }
        line = start(synthetic("a", fps=10), {"name": "net", "source": source})
        line.moves_on("net", within_s=30)
        pids = line.stages()

        server.kill()
        line.until(lambda: status(line) == "lost", 15)
        line.moves_on("a", 10)
        server.start()
        line.moves_on("net", within_s=30)

        server.freeze()  # connections stay open, nothing moves
        line.until(lambda: status(line) == "lost", 15)
        line.moves_on("a", 10)
        server.thaw()
        line.moves_on("net", within_s=30)

        assert line.stages() == pids  # no stage had to be replaced for it
        assert line.stop() == 0
    line.assert_balanced()
    line.assert_ends_once()
    assert set(line.missed("net")) <= {"stale", "no_slot"}
    # The other camera never noticed: none of its frames is missing or late.
    captured = sorted(v.captured_at for v in line.told.verdicts if v.camera == "a")
    assert len(captured) == len(line.told.ends("a"))
    longest = max(after - before for before, after in itertools.pairwise(captured)) / 1e9
    assert longest < 1.0, f"the other camera paused for {longest:.2f} s"
    for secret in (PASSWORD, quote(PASSWORD, safe="")):
        assert secret not in line.log
        assert not any(secret in str(health) for health in line.told.health)


def status(line: Line) -> str:
    return line.told.health[-1].cameras["net"].status
