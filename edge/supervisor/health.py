"""What the supervisor knows, as one map: the body of the ``health`` topic, less what the alert stage adds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from edge.config import LineFile
from edge.supervisor.plan import CORE, capture_name
from edge.supervisor.process import StageProcess
from edge.wire.ledger import Ledger


def snapshot(
    line: LineFile,
    ledger: Ledger,
    processes: Mapping[str, StageProcess],
    rates: Rates,
    started_at: float,
    stopping: bool,
) -> dict[str, Any]:
    """Stages, cameras with their balance, and what is wrong. For every camera ``captured`` equals ``scored`` plus
    the sum of ``not_inspected`` plus ``in_flight``."""
    now = time.monotonic()
    cameras: dict[str, Any] = {}
    problems: list[str] = []
    for camera in line.camera:
        counts = ledger.counts(ledger.camera_index(camera.name))
        capture = processes.get(capture_name(camera.name))
        status = camera_status(capture)
        if status in ("lost", "failed", "waiting"):
            problems.append(f"camera {camera.name}: {status}")
        if capture is not None and capture.beat.get("full"):
            problems.append(f"camera {camera.name}: every slot is taken, the source waits")
        cameras[camera.name] = {
            "captured": counts.captured,
            "scored": counts.scored,
            "not_inspected": counts.not_inspected,
            "in_flight": counts.open,
            "fps": rates.per_second(camera.name, now, counts.captured),
            "status": status,
        }
    stages = {}
    for name, stage in processes.items():
        silent = max(0.0, now - stage.last_beat) if stage.alive else 0.0
        stages[name] = {
            "pid": stage.pid,
            "restarts": stage.restarts,
            "silent_s": round(silent, 3),
            "status": stage.state,
        }
        if name in CORE and stage.state not in ("ready", "stopping", "ended"):
            problems.append(f"stage {name}: {stage.state}")
    return {
        "at": time.time_ns(),
        "uptime_s": round(now - started_at, 3),
        "status": "stopping" if stopping else "degraded" if problems else "ok",
        "problems": problems,
        "cameras": cameras,
        "stages": stages,
    }


def camera_status(capture: StageProcess | None) -> str:
    """``connected``, ``lost`` (trying again), ``ended`` (a finite source), or the state of its capture stage."""
    if capture is None:
        return "starting"
    if capture.state != "ready":
        return capture.state
    if capture.beat.get("done"):
        return "ended"
    return "connected" if capture.beat.get("connected") else "lost"


class Rates:
    """Frames captured a second, between one snapshot and the next."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, int, float]] = {}

    def per_second(self, camera: str, now: float, captured: int) -> float:
        then, before, rate = self._last.get(camera, (now, captured, 0.0))
        if now - then >= 0.5:
            rate = round((captured - before) / (now - then), 2)
            self._last[camera] = (now, captured, rate)
        elif camera not in self._last:
            self._last[camera] = (now, captured, 0.0)
        return rate
