"""A daemon under measurement: its own folders and line file, watched through the ledger and the CPU clocks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from edge.bench.processes import BenchError, cpu_ns, has_loaded, last_line, machine_busy_ns, processes, tree
from edge.cameras.config import SyntheticSource
from edge.wire.ledger import Counts, Ledger

LOOK_S = 0.05  # how often the ledger is looked at; a sample is exact whenever it is taken
STOP_S = 60.0
CAMERA = "c{}"  # short: a process name, edge:capture-c0, has 15 bytes


@dataclass(frozen=True)
class Sample:
    """A line at one moment: monotonic time, CPU time by process (``edge:backbone`` ...), the machine's busy time (all
    in nanoseconds), and every camera's balance."""

    at_ns: int
    cpu_ns: dict[str, int]
    busy_ns: int
    cameras: tuple[Counts, ...]

    @property
    def scored(self) -> int:
        return sum(counts.scored for counts in self.cameras)

    @property
    def captured(self) -> int:
        return sum(counts.captured for counts in self.cameras)

    @property
    def not_inspected(self) -> dict[str, int]:
        """By reason, those that occurred."""
        reasons: dict[str, int] = {}
        for counts in self.cameras:
            for reason, number in counts.not_inspected.items():
                if number:
                    reasons[reason] = reasons.get(reason, 0) + number
        return reasons


@dataclass(frozen=True)
class Window:
    """What happened between two samples of one line."""

    first: Sample
    last: Sample

    @property
    def seconds(self) -> float:
        return (self.last.at_ns - self.first.at_ns) / 1e9

    @property
    def scored(self) -> int:
        return self.last.scored - self.first.scored

    @property
    def frames_per_s(self) -> float:
        return self.scored / self.seconds

    @property
    def cpu_ms(self) -> dict[str, float]:
        """CPU milliseconds a scored frame, by process. A process that was started or ended in between is an error
        of the measurement; see :meth:`check`."""
        begun = self.first.cpu_ns
        return {name: (now - begun[name]) / 1e6 / self.scored for name, now in self.last.cpu_ns.items()}

    @property
    def not_inspected(self) -> dict[str, int]:
        before = self.first.not_inspected
        return {r: n - before.get(r, 0) for r, n in self.last.not_inspected.items() if n > before.get(r, 0)}

    @property
    def share_not_inspected(self) -> float:
        """Of the frames that came to an end in the window."""
        missed = sum(self.not_inspected.values())
        return missed / (missed + self.scored) if missed + self.scored else 0.0

    @property
    def others_cores(self) -> float:
        """How many cores everything else kept busy meanwhile, the measuring process included."""
        ours = sum(self.last.cpu_ns.values()) - sum(self.first.cpu_ns.values())
        return max(0.0, (self.last.busy_ns - self.first.busy_ns - ours) / (self.last.at_ns - self.first.at_ns))

    def check(self) -> None:
        """Raises BenchError where the window cannot be trusted: a stage restarted, the ledger does not add up."""
        if self.first.cpu_ns.keys() != self.last.cpu_ns.keys():
            raise BenchError("a process of the line ended or was restarted while it was measured")
        if not all(counts.balanced for counts in (*self.first.cameras, *self.last.cameras)):
            raise BenchError("the ledger does not add up")
        if self.scored < 1:
            raise BenchError("no frame was scored while the line was measured")


class Line:
    """A running ``edge run`` in its own folders. A context manager; leaving it stops the daemon and everything that
    it started."""

    def __init__(self, bundle: Path, sources: list[SyntheticSource], policy: str, cache: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="edge-bench-")
        root = Path(self._folder.name)
        self.runtime, self.state, self._log = root / "run", root / "state", root / "log"
        file = root / "line.toml"
        file.write_text(line_file(bundle, sources, policy, cache), encoding="utf-8")
        self.cameras = len(sources)
        self._ledger: Ledger | None = None
        command = [sys.executable, "-m", "edge.cli", "run", str(file), "--log-level", "warning"]
        with self._log.open("wb") as log:
            self._daemon = subprocess.Popen(
                [*command, "--runtime", str(self.runtime), "--state", str(self.state)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._daemon.poll() is None:
            self._daemon.kill()  # its stages die with it
            self._daemon.wait()
        if self._ledger is not None:
            self._ledger.close()
        self._folder.cleanup()

    @property
    def publisher(self) -> str:
        """The endpoint of verdicts."""
        return f"ipc://{self.runtime}/alerts.pub"

    def wait(
        self,
        reached: Callable[[Sequence[Counts]], bool],
        timeout_s: float,
        meanwhile: Callable[[], None] | None = None,
    ) -> Sample:
        """Wait until the balance of all cameras satisfies ``reached``; the line at that moment. ``meanwhile`` is called
        at every look. Raises BenchError when the daemon ends, or does not get there in time."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self._daemon.poll() is not None:
                raise BenchError(f"the daemon ended with {self._daemon.returncode}: {self._said()}")
            if meanwhile is not None:
                meanwhile()
            counts = self._counts()
            if len(counts) == self.cameras and reached(counts):
                return self.sample()
            if time.monotonic() > deadline:
                told = f"{sum(c.scored for c in counts)} frames in {timeout_s:.0f} s"
                raise BenchError(f"the daemon scored only {told}: {self._said()}")
            time.sleep(LOOK_S)

    def sample(self) -> Sample:
        """The line now."""
        members = tree(self._daemon.pid, processes())
        counts = self._counts()
        now = time.monotonic_ns()
        clocks = {}
        for member in members:
            name = "supervisor" if member.pid == self._daemon.pid else member.name.removeprefix("edge:")
            try:
                clocks[name] = cpu_ns(member.pid)
            except ProcessLookupError:
                continue  # it ended; the window's check tells
        return Sample(now, clocks, machine_busy_ns(), counts)

    def has_loaded(self, library: str) -> bool:
        """Whether any process of the line has mapped ``library``."""
        return any(has_loaded(member.pid, library) for member in tree(self._daemon.pid, processes()))

    def stop(self) -> Sample:
        """SIGTERM, the drain, the end: the closing balance. Raises BenchError unless every captured frame came to
        exactly one end and the daemon left as asked."""
        self._daemon.send_signal(signal.SIGTERM)
        try:
            code = self._daemon.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise BenchError(f"the daemon did not stop within {STOP_S:.0f} s: {self._said()}") from None
        if code != 0:
            raise BenchError(f"the daemon ended with {code}: {self._said()}")
        counts = self._counts()
        if any(c.open or not c.balanced for c in counts):
            raise BenchError("the ledger does not add up after the drain")
        return Sample(time.monotonic_ns(), {}, machine_busy_ns(), counts)

    def _counts(self) -> tuple[Counts, ...]:
        path = self.state / "ledger"
        if self._ledger is None:
            if not path.exists() or not path.stat().st_size:
                return ()
            self._ledger = Ledger(path, lock_timeout_s=10)
        known = self._ledger.cameras()
        names = [CAMERA.format(index) for index in range(self.cameras)]
        return tuple(self._ledger.counts(known.index(name)) for name in names if name in known)

    def _said(self) -> str:
        return last_line(self._log.read_text(errors="replace"))


def line_file(bundle: Path, sources: list[SyntheticSource], policy: str, cache: Path) -> str:
    """The TOML of a line with a camera a source; engine on one thread, all else as it comes."""
    lines = ["[line]", 'name = "bench"', f"bundle = {_toml(os.path.abspath(bundle))}"]
    lines += ["[engine]", "threads = 1", f"cache = {_toml(os.path.abspath(cache))}"]
    for index, source in enumerate(sources):
        lines += ["[[camera]]", f"name = {_toml(CAMERA.format(index))}", f"policy = {_toml(policy)}"]
        lines.append("[camera.source]")
        fields: dict[str, Any] = source.model_dump(mode="json", exclude_none=True)
        lines += [f"{key} = {_toml(value)}" for key, value in fields.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """A string, number or list of them: JSON's spelling is TOML's, but for the escape of DEL."""
    return json.dumps(value).replace("\x7f", "\\u007f")
