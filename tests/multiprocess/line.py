"""A daemon under test: a real ``edge run`` in its own session, watched from outside, never left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq

from edge.alerts.config import StoreSettings
from edge.alerts.messages import Alert, Health, Verdict
from edge.alerts.store import AlertStore
from edge.alerts.subscriber import Gap, Subscriber
from edge.wire.ledger import Counts, Ledger, LedgerBusy

ROOT = Path(__file__).resolve().parents[2]
CORE = ("preprocess", "backbone", "head", "alert")
READY_S = 40.0
MARK = "EDGE_TEST_LINE"  # in the environment of everything the daemon starts: how leftovers are found

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


class NotInTime(AssertionError):
    """A fact did not come true before its deadline; the message says what was seen instead."""


def wait_until(fact: Callable[[], Any], within_s: float, says: Callable[[], str] = str, every_s: float = 0.02) -> Any:
    """Wait for ``fact()`` to be true and return its value. Raises NotInTime with ``says()``."""
    deadline = time.monotonic() + within_s
    while True:
        value = fact()
        if value:
            return value
        if time.monotonic() > deadline:
            raise NotInTime(f"not true within {within_s} s. {says()}")
        time.sleep(every_s)


# -- line files ------------------------------------------------------------------------------------------------


def toml(content: Mapping[str, Any]) -> str:
    """A line file from nested maps; a list of maps becomes ``[[table]]``."""
    lines: list[str] = []
    _table(lines, "", content)
    return "\n".join(lines) + "\n"


def _table(lines: list[str], name: str, content: Mapping[str, Any]) -> None:
    for key, value in content.items():
        if not isinstance(value, Mapping) and not _is_tables(value):
            lines.append(f"{key} = {_value(value)}")
    for key, value in content.items():
        full = f"{name}.{key}" if name else key
        if _is_tables(value):
            for item in value:
                lines.append(f"[[{full}]]")
                _table(lines, full, item)
        elif isinstance(value, Mapping):
            lines.append(f"[{full}]")
            _table(lines, full, value)


def _is_tables(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _value(value: Any) -> str:
    return json.dumps(str(value)) if isinstance(value, (str, Path)) else json.dumps(value)


def synthetic(name: str = "a", *, fps: float | None = 15.0, policy: str = "latest", **source: Any) -> dict[str, Any]:
    """A camera over a few drawn parts that repeat: costs no drawing time once they are drawn."""
    settings = {"kind": "synthetic", "size": [320, 240], "prerender": 16, "seed": 7, "defect_rate": 0.4, **source}
    if fps is not None:
        settings["fps"] = fps
    return {"name": name, "policy": policy, "source": settings}


def folder(path: Path, name: str = "a", *, policy: str = "every", **source: Any) -> dict[str, Any]:
    """A camera over picture files."""
    return {"name": name, "policy": policy, "source": {"kind": "folder", "path": path, **source}}


# -- what the daemon tells -------------------------------------------------------------------------------------


class Collector:
    """A subscriber in a thread of its own that outlives restarts of what it listens to."""

    def __init__(self, runtime: Path, since: int | None = 0) -> None:
        self.verdicts: list[Verdict] = []
        self.alerts: list[Alert] = []
        self.health: list[Health] = []
        self.gaps: list[Gap] = []
        self.connected = 0
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._follow, args=(runtime, since), daemon=True)
        self._thread.start()

    def _follow(self, runtime: Path, since: int | None) -> None:
        context = zmq.Context()
        try:
            with Subscriber(
                f"ipc://{runtime}/alerts.pub",
                f"ipc://{runtime}/alerts.replay",
                since,
                hwm=100_000,
                sync_s=0.5,
                context=context,
            ) as subscriber:
                while not self._stop.is_set():
                    event = subscriber.next(0.1)
                    self.connected = subscriber.counts.connected
                    if isinstance(event, Gap):
                        self.gaps.append(event)
                    elif event is not None:
                        message = event.message
                        kept: list[Any] = {"verdict": self.verdicts, "alert": self.alerts, "health": self.health}[
                            message.kind
                        ]
                        kept.append(message)
        except BaseException as error:
            self._error = error
        finally:
            context.destroy(linger=0)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive(), "the collector does not stop"
        if self._error is not None:
            raise self._error

    def ends(self, camera: str) -> dict[int, list[str]]:
        """Every end that was published for each frame of a camera: ``normal``, ``anomalous`` or the reason."""
        ends: dict[int, list[str]] = {}
        for v in list(self.verdicts):
            if v.camera == camera:
                ends.setdefault(v.seq, []).append(v.reason or v.verdict)
        return ends


# -- processes -------------------------------------------------------------------------------------------------


def marked(folder: Path) -> list[int]:
    """Living processes that carry this line's mark in their environment."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if mark in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
            except OSError:
                continue
    return found


def children(parent: int) -> list[int]:
    """Processes whose parent is ``parent``, zombies left out."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent and fields[0] != "Z":
                found.append(int(entry))
    return found


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has arrived."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def memfds(pid: int) -> int:
    """Slot pools that a process holds open, however many descriptors each has (an ``mmap`` keeps one of its own)."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            if os.readlink(f"/proc/{pid}/fd/{fd}").startswith("/memfd:edge-"):
                found.add(os.stat(f"/proc/{pid}/fd/{fd}").st_ino)
        except OSError:
            continue
    return len(found)


def links(pid: int) -> list[str]:
    """Where the descriptors of a process lead."""
    found = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:
            continue
    return found


def rss_mb(pid: int) -> float:
    """Anonymous and file-backed resident memory; slot pools (shared memory) are counted apart by their number."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(re.search(rf"{key}:\s+(\d+)", status)[1]) for key in ("RssAnon", "RssFile")) / 1024  # type: ignore[index]


# -- the line --------------------------------------------------------------------------------------------------


class Line:
    """A line file, its folders and the daemon over them. As a context manager it starts the daemon and, whatever
    happens, leaves no process behind; leaving one, or leaving anything shared, fails the test.

    ``sections``: more of the line file, such as ``pipeline={"slots": 8}``. ``ready``: wait for the cameras to run.
    """

    def __init__(
        self,
        bundle: Path,
        cameras: Sequence[Mapping[str, Any]],
        *,
        cache: Path | None = None,
        env: Mapping[str, str] | None = None,
        ready: bool = True,
        listen: bool = True,
        **sections: Mapping[str, Any],
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="edge-", dir="/tmp"))  # short: a socket's path has 107 bytes
        self.runtime, self.state = self.folder / "run", self.folder / "state"
        self.path, self.log_path = self.folder / "line.toml", self.folder / "log"
        self.content: dict[str, Any] = {"line": {"name": "test", "bundle": bundle}, "camera": list(cameras)}
        if cache is not None:
            self.content["engine"] = {"cache": cache}
        self.content.update(sections)
        self.collector: Collector | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._env = dict(env or {})
        self._ready, self._listen = ready, listen
        self._ledger: Ledger | None = None

    def __enter__(self) -> Line:
        try:
            self.write()
            self.start()
            if self._listen:
                self.listen()
            if self._ready:
                self.wait_ready()
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left: list[str] = []
        try:
            if self.process is not None and self.process.poll() is None:
                self.stop()
            # The kernel takes a moment to end the stages of a supervisor that was killed.
            wait_until(lambda: not marked(self.folder), 5, lambda: f"processes left: {self._names()}")
            left = [name for name in os.listdir("/dev/shm") if name.startswith("edge")]
        finally:
            self._clean()
        assert not left, f"left in /dev/shm: {left}"

    def _clean(self) -> None:
        try:
            if self.collector is not None:
                self.collector.close()
        finally:
            for pid in marked(self.folder):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if self.process is not None:
                self.process.wait(10)
            if self._ledger is not None:
                self._ledger.close()
                self._ledger = None
            shutil.rmtree(self.folder, ignore_errors=True)

    def _names(self) -> str:
        return ", ".join(f"{pid} {comm(pid)}" for pid in marked(self.folder))

    # -- doing ----------------------------------------------------------------------------------------------------

    def write(self, **changes: Any) -> None:
        """Write the line file, with sections replaced."""
        self.content.update(changes)
        self.path.write_text(toml(self.content))

    def start(self, *, preexec: Callable[[], None] | None = None) -> None:
        """Start the daemon; its log is one file over all its lives."""
        assert self.process is None or self.process.poll() is not None
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "edge.cli", "run", self.path),
                    *("--runtime", self.runtime, "--state", self.state),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **ONE_THREAD, **self._env, MARK: str(self.folder)},
                start_new_session=True,
                preexec_fn=preexec,
            )

    def listen(self) -> Collector:
        """Follow everything from the first alert on."""
        if self.collector is None:
            self.collector = Collector(self.runtime)
        return self.collector

    def wait_ready(self) -> None:
        """Until the cameras are started, and whoever listens is connected."""
        self._starts(0)
        if self.collector is not None:
            self.until(lambda: self.told.connected, 5)

    def restart(self) -> None:
        """Start again after an end, and wait until the cameras run."""
        lives = self.log.count("running: ")
        self.start()
        self._starts(lives)

    def _starts(self, lives: int) -> None:
        process = self.process
        assert process is not None
        self.until(lambda: self.log.count("running: ") > lives or process.poll() is not None, READY_S)
        assert self.log.count("running: ") > lives, self._tail()

    def kill(self, stage: str, number: int = signal.SIGKILL) -> int:
        """Signal a stage; returns its pid."""
        pid = self.until(lambda: self.stages().get(stage), 10)
        os.kill(pid, number)
        return pid

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, within_s: float = 20.0) -> int:
        """SIGTERM; returns the exit code."""
        self.signal(signal.SIGTERM)
        return self.ended(within_s)

    def ended(self, within_s: float = 20.0) -> int:
        """Wait for the daemon to leave; returns its exit code (negative: a signal)."""
        process = self.process
        assert process is not None
        self.until(lambda: process.poll() is not None, within_s)
        return int(process.returncode)

    # -- seeing ---------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def told(self) -> Collector:
        assert self.collector is not None, "nobody listens to this line"
        return self.collector

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def says(self, text: str) -> bool:
        return text in self.log

    def until(self, fact: Callable[[], Any], within_s: float) -> Any:
        """Wait for a fact about this line; says the end of the log when it does not come true."""
        return wait_until(fact, within_s, self._tail)

    def _tail(self) -> str:
        state = "not started"
        if self.process is not None:
            code = self.process.poll()
            state = "running" if code is None else f"ended with {code}"
        try:
            counts = {name: str(self.counts(name)) for name in self.cameras()} if self._ledger is not None else {}
        except LedgerBusy as error:
            counts = {"ledger": str(error)}
        return f"The daemon is {state}. {counts}\n--- log ---\n" + "\n".join(self.log.splitlines()[-40:])

    def stages(self) -> dict[str, int]:
        """Pids of the stages that run, by name."""
        named = {comm(pid): pid for pid in children(self.pid)}
        return {name.removeprefix("edge:"): pid for name, pid in named.items() if name.startswith("edge:")}

    def restarts(self) -> dict[str, int]:
        """How often each stage was restarted, by the last health message."""
        return {name: stage.restarts for name, stage in self.told.health[-1].stages.items()}

    @property
    def ledger(self) -> Ledger:
        """This process's own view of the ledger; opened once, since closing it would drop its locks."""
        if self._ledger is None:
            self.until(lambda: (self.state / "ledger").exists(), READY_S)
            self._ledger = Ledger(self.state / "ledger", lock_timeout_s=5)
        return self._ledger

    def cameras(self) -> list[str]:
        return self.ledger.cameras()

    def counts(self, camera: str = "a") -> Counts:
        return self.ledger.counts(self.cameras().index(camera))

    def scored(self, camera: str = "a") -> int:
        return self.counts(camera).scored

    def missed(self, camera: str = "a") -> dict[str, int]:
        """Frames not inspected, by reason, without the zeros."""
        return {reason: count for reason, count in self.counts(camera).not_inspected.items() if count}

    def moves_on(self, camera: str = "a", frames: int = 5, within_s: float = 20.0) -> None:
        """Wait until so many more frames of the camera are scored than are now."""
        goal = self.scored(camera) + frames
        self.until(lambda: self.scored(camera) >= goal, within_s)

    def stored(self) -> list[Alert]:
        """Every alert in the store; for use when the daemon does not run."""
        with AlertStore(self.state / "alerts", StoreSettings()) as store:
            return store.since(0, 100_000)

    # -- what must hold at the end ----------------------------------------------------------------------------------

    def assert_balanced(self) -> None:
        """Of a daemon that has ended: every captured frame has one end."""
        for camera in self.cameras():
            counts = self.counts(camera)
            assert counts.balanced, f"{camera}: {counts}"
            assert counts.open == 0, f"{camera}: {counts}"

    def assert_ends_once(self) -> None:
        """Of what was told: a frame is told as scored at most once, never both scored and not inspected."""
        for camera in self.cameras():
            for seq, ends in self.told.ends(camera).items():
                kinds = Counter("scored" if end in ("normal", "anomalous") else end for end in ends)
                assert len(kinds) == 1, f"{camera} {seq}: {ends}"
                assert kinds["scored"] <= 1, f"{camera} {seq}: {ends}"

    def assert_alerts_whole(self) -> None:
        """Of what was told and stored: each alert once, one a frame, none missing from who followed by replay."""
        stored = self.stored()
        frames = [(alert.epoch, alert.camera, alert.seq) for alert in stored]
        assert len(set(frames)) == len(frames), "a frame has two alerts"
        told = [alert.id for alert in self.told.alerts]
        assert len(set(told)) == len(told), "an alert was told twice"
        assert told == sorted(told), "alerts were told out of order"
        assert set(told) <= {alert.id for alert in stored}, "an alert was told that is not stored"
        last = max(told, default=0)
        missing = [alert.id for alert in stored if alert.id <= last and alert.id not in set(told)]
        assert not missing, f"alerts {missing} never reached who followed"
