"""A long run of the real daemon under SIGKILL, with everything checked that the daemon promises.

Two looping cameras; every so often the next stage in turn is killed. Afterwards: the ledger adds up, every frame had
one end, no alert is lost or repeated under a new id, memory and descriptors are flat, every kill was recovered from.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge.alerts.messages import Alert, Verdict
from edge.alerts.store import AlertStore
from edge.alerts.subscriber import Gap, Subscriber
from edge.bench.processes import BenchError, last_line, processes, tree
from edge.wire.ledger import Counts, Ledger

CAMERAS = ("a", "b")
STAGES = ("capture-a", "preprocess", "backbone", "head", "alert", "capture-b")
SETTLED_S = 8.0  # of a process's life that do not count for flatness: imports, first frames, caches
SAMPLE_S = 1.0
RECOVERY_S = 30.0
LAST_KILL_S = 8.0  # before the end: the run must also show what comes after
RSS_SLACK = 12 * 2**20


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: when (seconds into the run), whom, and how long until every camera's frames were scored again."""

    at_s: float
    stage: str
    recovered_s: float | None


@dataclass
class SoakReport:
    """What was seen. ``violations`` is empty when every promise was kept."""

    seed: int
    minutes: float
    fps: float
    kills: list[Kill] = field(default_factory=list)
    balance: dict[str, Counts] = field(default_factory=dict)
    alerts: int = 0
    verdicts: int = 0
    resources: dict[str, dict[str, float]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Soak:
    """One campaign in ``folder`` (a short path: it holds sockets). ``line`` is the text of the line file; its cameras
    are :data:`CAMERAS`."""

    def __init__(self, folder: Path, line: str, report: SoakReport, kill_every_s: float) -> None:
        self.folder, self.report, self.kill_every_s = folder, report, kill_every_s
        self.state, self.runtime = folder / "state", folder / "run"
        (folder / "line.toml").write_text(line)
        self.verdicts: dict[tuple[str, int], str] = {}
        self.alerts: dict[int, Alert] = {}
        self._samples: dict[str, list[tuple[float, int, int]]] = defaultdict(list)
        self._born: dict[int, float] = {}
        self._waiting: tuple[float, str, dict[str, int]] | None = None

    def run(self, tell: Callable[[str], None]) -> SoakReport:
        """Run the campaign; ``tell`` gets a line now and then. Raises BenchError when the daemon ends by itself."""
        folders = "--runtime", str(self.runtime), "--state", str(self.state)
        command = [sys.executable, "-m", "edge.cli", "run", str(self.folder / "line.toml"), *folders]
        with (self.folder / "log").open("wb") as log:
            self.daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        endpoints = f"ipc://{self.runtime}/alerts.pub", f"ipc://{self.runtime}/alerts.replay"
        try:
            with Subscriber(*endpoints, since=0) as self.subscriber:
                self._until(self._all_scored, 120, "no camera was ever scored")
                self._campaign(tell)
                self._stop()
        finally:
            if self.daemon.poll() is None:
                self.daemon.kill()
                self.daemon.wait()
        self._judge()
        return self.report

    # -- the run ----------------------------------------------------------------------------------------------

    def _campaign(self, tell: Callable[[str], None]) -> None:
        begun = time.monotonic()
        end = begun + 60 * self.report.minutes
        order = list(STAGES)
        random.Random(self.report.seed).shuffle(order)
        next_kill, next_sample, killed = begun + self.kill_every_s, begun, 0
        while (now := time.monotonic()) < end or self._waiting is not None:
            self._listen(0.1)
            if now >= next_sample:
                next_sample = now + SAMPLE_S
                self._sample(now)
            if self._waiting is not None:
                self._check_recovery(now, begun, tell)
            elif now >= next_kill and now + LAST_KILL_S < end:
                stage = order[killed % len(order)]
                killed += 1
                self._kill(stage, now)
                next_kill = now + self.kill_every_s

    def _kill(self, stage: str, now: float) -> None:
        for process in tree(self.daemon.pid, processes()):
            if process.name == f"edge:{stage}"[:15]:
                os.kill(process.pid, signal.SIGKILL)
                self._waiting = now, stage, {name: c.scored for name, c in self._counts().items()}
                return

    def _check_recovery(self, now: float, begun: float, tell: Callable[[str], None]) -> None:
        """Recovered: the killed stage is there again under a new pid, and every camera has new scored frames."""
        assert self._waiting is not None
        killed_at, stage, before = self._waiting
        counts = self._counts()
        if all(counts[name].scored > before[name] + 2 for name in CAMERAS):
            self.report.kills.append(Kill(round(killed_at - begun, 1), stage, round(now - killed_at, 2)))
            tell(f"{killed_at - begun:7.1f} s  killed {stage}, frames again after {now - killed_at:.2f} s")
            self._waiting = None
        elif now - killed_at > RECOVERY_S:
            self.report.kills.append(Kill(round(killed_at - begun, 1), stage, None))
            self.report.violations.append(
                f"{stage} killed at {killed_at - begun:.0f} s: no recovery in {RECOVERY_S:.0f} s"
            )
            self._waiting = None

    def _stop(self) -> None:
        self.daemon.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 30
        while self.daemon.poll() is None:
            self._listen(0.1)
            if time.monotonic() > deadline:
                raise BenchError(f"the daemon did not stop: {self._said()}")
        if self.daemon.returncode:
            self.report.violations.append(f"the daemon ended with exit code {self.daemon.returncode}: {self._said()}")
        self._listen(0.5)

    def _listen(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            event = self.subscriber.next(left)
            if event is None:
                if self.daemon.poll() not in (None, 0):
                    raise BenchError(f"the daemon ended with {self.daemon.returncode}: {self._said()}")
                continue
            if isinstance(event, Gap):
                continue  # verdicts may be lost to a dead publisher; alerts are compared with the store at the end
            self._note(event.message)

    def _note(self, message: Any) -> None:
        if isinstance(message, Alert):
            known = self.alerts.setdefault(message.id, message)
            if (known.camera, known.seq) != (message.camera, message.seq):
                self.report.violations.append(f"alert {message.id} was told for two different frames")
        elif isinstance(message, Verdict):
            key, end = (message.camera, message.seq), message.reason or "scored"
            earlier = self.verdicts.setdefault(key, end)
            # "At least once" lets a verdict come twice after a crash, but never with another end.
            if earlier != end:
                self.report.violations.append(f"frame {key} ended as {earlier} and as {end}")

    def _sample(self, now: float) -> None:
        for process in tree(self.daemon.pid, processes()):
            name = "supervisor" if process.pid == self.daemon.pid else process.name.removeprefix("edge:")
            if now - self._born.setdefault(process.pid, now) < SETTLED_S:
                continue
            try:
                pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
                fds = len(os.listdir(f"/proc/{process.pid}/fd"))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            self._samples[name].append((now, pages * os.sysconf("SC_PAGE_SIZE"), fds))

    # -- the judgement ----------------------------------------------------------------------------------------

    def _judge(self) -> None:
        report = self.report
        report.balance = self._counts()
        report.alerts, report.verdicts = len(self.alerts), len(self.verdicts)
        for name, counts in report.balance.items():
            if not counts.balanced or counts.open:
                report.violations.append(f"camera {name}: the ledger does not add up: {counts}")
        with AlertStore(self.state / "alerts") as store:
            stored = {alert.id: alert for alert in store.since(0, 10_000_000)}
        frames = [(alert.epoch, alert.camera, alert.seq) for alert in stored.values()]
        if len(set(frames)) != len(frames):
            report.violations.append("a frame has two alerts in the store")
        if missing := sorted(set(stored) - set(self.alerts)):
            report.violations.append(f"{len(missing)} alerts never reached the subscriber, first id {missing[0]}")
        if extra := sorted(set(self.alerts) - set(stored)):
            report.violations.append(f"{len(extra)} alerts were told that the store does not have, first id {extra[0]}")
        self._judge_resources()

    def _judge_resources(self) -> None:
        for name, samples in sorted(self._samples.items()):
            if len(samples) < 8:
                continue
            quarter = len(samples) // 4
            early, late = samples[:quarter], samples[-quarter:]
            rss = [statistics.median(row[1] for row in part) for part in (early, late)]
            fds = [max(row[2] for row in part) for part in (early, late)]
            self.report.resources[name] = {
                "rss_mb_early": round(rss[0] / 1e6, 1),
                "rss_mb_late": round(rss[1] / 1e6, 1),
                "fds_early": fds[0],
                "fds_late": fds[1],
            }
            if rss[1] > rss[0] + RSS_SLACK:
                self.report.violations.append(f"{name}: memory grew from {rss[0] / 1e6:.0f} to {rss[1] / 1e6:.0f} MB")
            if fds[1] > fds[0] + 2:
                self.report.violations.append(f"{name}: descriptors grew from {fds[0]} to {fds[1]}")

    def _counts(self) -> dict[str, Counts]:
        path = self.state / "ledger"
        if not path.exists() or not path.stat().st_size:
            return {}
        ledger = Ledger(path, lock_timeout_s=10)
        try:
            return {name: ledger.counts(index) for index, name in enumerate(ledger.cameras())}
        finally:
            ledger.close()

    def _all_scored(self) -> bool:
        counts = self._counts()
        return len(counts) == len(CAMERAS) and all(c.scored for c in counts.values())

    def _until(self, reached: Callable[[], bool], within_s: float, otherwise: str) -> None:
        deadline = time.monotonic() + within_s
        while not reached():
            self._listen(0.1)
            if time.monotonic() > deadline:
                raise BenchError(f"{otherwise}: {self._said()}")

    def _said(self) -> str:
        return last_line((self.folder / "log").read_text(errors="replace"))
