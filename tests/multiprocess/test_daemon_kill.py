"""kill -9 and SIGSTOP: whoever dies or stands still, the ledger balances, no alert is lost, the line goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from line import CORE, ROOT, Line, is_stopped, marked, synthetic

pytestmark = pytest.mark.multiprocess

Start = Callable[..., Line]

QUICK_ALERTS = {"n": 1, "m": 1, "clear_after": 1, "overlay": False}


def test_each_stage_killed_in_turn(start: Start) -> None:
    line = start(synthetic("a"), synthetic("b", seed=9), alerts=QUICK_ALERTS, pipeline={"frame_timeout_s": 3})
    line.moves_on("a")
    line.moves_on("b")
    for stage in ("head", "capture-a", "preprocess", "alert", "backbone", "alert"):
        before = line.counts("a").captured
        pid = line.kill(stage)
        line.until(lambda stage=stage, pid=pid: line.stages().get(stage, pid) != pid, 10)
        line.until(lambda before=before: line.counts("a").captured > before, 10)
        line.moves_on("a", within_s=15)
        line.moves_on("b", within_s=15)
        assert line.counts("a").balanced
        assert line.counts("b").balanced
    restarts = line.until(lambda: (r := line.restarts())["alert"] == 2 and r, 5)
    assert restarts == {"head": 1, "capture-a": 1, "preprocess": 1, "alert": 2, "backbone": 1, "capture-b": 0}
    assert line.stop() == 0
    line.assert_balanced()
    line.assert_ends_once()
    line.assert_alerts_whole()
    assert len(line.stored()) > 0
    for camera in ("a", "b"):
        # A frame whose verdict is told as scored counts as scored; the verdicts that died unsent with the alert
        # stage, and those while nobody was connected to it, are told by nobody: the ledger knows them all the same.
        ends = line.told.ends(camera)
        counts = line.counts(camera)
        told = sum(end[0] in ("normal", "anomalous") for end in ends.values())
        assert told <= counts.scored
        assert max(ends) < counts.captured
        assert set(line.missed(camera)) <= {"stage_restart", "stale", "no_slot", "timeout"}


def test_alerts_survive_a_barrage_on_the_alert_stage(start: Start) -> None:
    line = start(
        synthetic("a", defect_rate=0.7, fps=40), alerts=QUICK_ALERTS, pipeline={"restarts": 50, "frame_timeout_s": 2}
    )
    for _ in range(3):
        alerts = len(line.told.alerts)
        line.until(lambda alerts=alerts: len(line.told.alerts) > alerts, 20)
        pid = line.kill("alert")
        line.until(lambda pid=pid: line.stages().get("alert", pid) != pid, 15)
    line.moves_on("a")
    assert line.stop() == 0
    line.assert_balanced()
    line.assert_ends_once()
    line.assert_alerts_whole()


def test_a_stage_that_stands_still_is_replaced(start: Start) -> None:
    line = start(
        synthetic("a"),
        synthetic("b", policy="every"),
        pipeline={"heartbeat_s": 0.6, "frame_timeout_s": 1.0},
    )
    line.moves_on("a")
    before = line.stages()
    line.kill("head", signal.SIGSTOP)
    line.kill("capture-a", signal.SIGSTOP)
    for stage in ("head", "capture-a"):
        line.until(lambda stage=stage: line.stages().get(stage, before[stage]) != before[stage], 10)
    line.moves_on("a")
    line.moves_on("b")
    assert line.stages()["capture-b"] == before["capture-b"]
    assert line.says("head: silent for")
    assert line.says("capture-a: silent for")
    assert line.stop() == 0
    line.assert_balanced()
    line.assert_ends_once()
    # The frames that no stage inspected were told as such, with their reason.
    told = [v.reason for v in line.told.verdicts if v.reason in ("timeout", "stage_restart")]
    missed_in_all = sum(line.missed(c).get(r, 0) for c in "ab" for r in ("timeout", "stage_restart"))
    assert len(told) == missed_in_all > 0


@contextmanager
def lock_held(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is no stage and holds the ledger's lock until the end."""
    code = "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); "
    code += "sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        yield holder
    finally:
        holder.kill()
        holder.communicate(timeout=10)


def test_a_stranger_with_the_ledgers_lock_stops_nobody_for_good(start: Start) -> None:
    line = start(synthetic("a"), pipeline={"heartbeat_s": 30, "grace_s": 0.5})
    line.moves_on("a")
    with lock_held(line.state / "ledger") as stranger:
        line.until(lambda: line.says(f"held by process {stranger.pid}"), 10)
    line.moves_on("a")  # it has let go: the same stages go on
    assert set(line.restarts().values()) == {0}
    with lock_held(line.state / "ledger"):
        # A stop cannot close what is open, and must not wait for a stranger: the next start closes it.
        line.signal(signal.SIGTERM)
        line.ended(20)
    line.restart()
    line.moves_on("a")
    assert line.stop() == 0
    line.assert_balanced()


def test_a_stage_that_stands_still_with_the_ledgers_lock_is_killed(start: Start) -> None:
    """SIGSTOP until it hits a stage inside the ledger: the lock's holder is seen from outside by F_GETLK."""
    # A camera that outruns everything: its capture stage spends most of its time in the ledger.
    line = start(synthetic("a", fps=1000), synthetic("b"), pipeline={"heartbeat_s": 30, "frame_timeout_s": 3})
    line.moves_on("a")
    pid = line.stages()["capture-a"]
    for _ in range(3000):
        os.kill(pid, signal.SIGSTOP)
        line.until(lambda: is_stopped(pid), 5)
        if line.ledger.lock_holder() == pid:
            break
        os.kill(pid, signal.SIGCONT)
    else:
        pytest.fail("no SIGSTOP of 3000 hit the stage while it held the lock")
    line.until(lambda: line.says("capture-a holds the ledger's lock and does not move; killed"), 15)
    line.moves_on("a")
    assert line.counts("a").balanced
    assert line.stop() == 0
    line.assert_balanced()


def test_the_supervisor_killed(start: Start) -> None:
    line = start(synthetic("a"), synthetic("b", seed=9, policy="every"), alerts=QUICK_ALERTS)
    line.until(lambda: line.told.alerts, 20)
    line.moves_on("b")
    epoch = line.ledger.epoch
    assert len(line.stages()) == len(CORE) + 2
    line.signal(signal.SIGKILL)
    assert line.ended(5) == -signal.SIGKILL
    line.until(lambda: not marked(line.folder), 5)  # no orphan: the stages go with their supervisor
    last_id, open_frames = len(line.stored()), sum(line.counts(c).open for c in "ab")
    line.restart()
    line.until(lambda: len(line.told.alerts) > last_id, 20)
    line.moves_on("a")
    assert line.stop() == 0
    assert line.ledger.epoch == epoch
    line.assert_balanced()
    line.assert_ends_once()
    line.assert_alerts_whole()
    closed = sum(line.missed(c).get("stage_restart", 0) for c in "ab")
    assert closed <= open_frames  # the alert stage may close its own as scored
    if open_frames:
        assert line.says("under way when the daemon last ended") or closed < open_frames
    ids = [alert.id for alert in line.stored()]
    assert ids == sorted(ids)
    assert len(ids) > last_id
