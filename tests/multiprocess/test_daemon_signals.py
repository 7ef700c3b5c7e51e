"""SIGTERM drains in order, SIGHUP reloads, and the service manager is told."""

from __future__ import annotations

import re
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from line import Line, folder, synthetic

pytestmark = pytest.mark.multiprocess

Start = Callable[..., Line]


def test_sigterm_finishes_what_is_under_way(start: Start) -> None:
    line = start(synthetic("a", fps=200, policy="every"), synthetic("b"))
    line.moves_on("a", 10)
    assert line.stop() == 0
    line.assert_balanced()
    line.assert_ends_once()
    # Frames under way were finished, not thrown away.
    for camera in ("a", "b"):
        assert not set(line.missed(camera)) & {"stage_restart", "shutdown", "timeout", "error"}, line.missed(camera)
    assert line.missed("a") == {}
    assert sorted(line.told.ends("a")) == list(range(min(line.told.ends("a")), line.counts("a").captured))
    assert line.told.health[-1].status in ("ok", "stopping")
    assert "Traceback" not in line.log


def test_sigterm_with_a_stage_that_stands_still_has_a_deadline(start: Start) -> None:
    line = start(synthetic("a", policy="every", fps=60), pipeline={"grace_s": 60, "heartbeat_s": 60})
    line.moves_on("a")
    line.kill("head", signal.SIGSTOP)
    line.until(lambda: line.counts("a").open >= 4, 10)
    line.signal(signal.SIGTERM)
    line.until(lambda: line.says("asked to stop"), 5)
    line.signal(signal.SIGTERM)  # no more patience: not the minute that a stop may take
    assert line.ended(15) == 0
    line.assert_balanced()
    assert line.missed("a").get("shutdown", 0) > 0
    line.assert_ends_once()


@pytest.mark.parametrize("moment", ["stages start", "engine loads"])
def test_sigterm_while_it_starts(start: Start, moment: str) -> None:
    line = start(synthetic("a"), ready=False, listen=False)
    if moment == "stages start":
        line.until(line.stages, 20)
    else:
        line.until(lambda: line.says("preprocess is ready"), 20)
    assert line.stop(15) == 0
    line.assert_balanced()
    assert "Traceback" not in line.log


def test_reload(start: Start, bundle: Path, other_bundle: Path, parts: Path) -> None:
    cameras = [synthetic("a"), synthetic("b", seed=9, policy="every")]
    line = start(*cameras, pipeline={"grace_s": 60, "frame_timeout_s": 60, "heartbeat_s": 60})
    line.moves_on("a")
    line.moves_on("b")
    at_first = line.stages()

    # Another source for one camera: only its capture stage goes.
    cameras[1] = folder(parts / "test" / "good", "b", mode="loop", fps=15)
    line.write(camera=cameras)
    line.signal(signal.SIGHUP)
    line.until(lambda: line.stages().get("capture-b", 0) not in (0, at_first["capture-b"]), 10)
    line.moves_on("b")
    now = line.stages()
    assert {n: p for n, p in now.items() if n != "capture-b"} == {n: p for n, p in at_first.items() if n != "capture-b"}

    # Broken files: every mistake is told, and the old line runs on.
    whole = line.path.read_text()
    line.path.write_text(whole.replace('policy = "every"', 'policy = "evry"') + "\n[pipelin]\nx = 1\n")
    line.signal(signal.SIGHUP)
    line.until(lambda: line.says("reload refused"), 10)
    assert line.says("camera[1].policy")
    assert line.says("Did you mean pipeline?")
    line.path.write_text("camera = [")
    line.signal(signal.SIGHUP)
    line.until(lambda: line.says("not valid TOML"), 10)
    line.path.write_text(whole.replace(str(bundle), "/nowhere/bundle"))
    line.signal(signal.SIGHUP)
    line.until(lambda: line.log.count("reload refused") == 3, 10)
    line.moves_on("a")
    line.moves_on("b")
    assert line.stages() == now

    assert len({v.bundle for v in line.told.verdicts if v.score is not None}) == 1

    # Another bundle: the stages that work with it are exchanged between two frames, and wait for those under way.
    line.write(line={"name": "test", "bundle": other_bundle})
    line.kill("preprocess", signal.SIGSTOP)
    line.until(lambda: line.counts("b").open > 0, 10)
    line.signal(signal.SIGHUP)
    line.until(lambda: line.says("exchanging backbone, head, alert"), 10)
    line.signal(signal.SIGHUP)  # in the middle of the other: it follows
    line.until(lambda: line.says("reload asked for while pausing"), 10)
    several = len(line.told.health) + 2
    line.until(lambda: len(line.told.health) >= several, 10)
    assert line.stages() == now
    line.kill("preprocess", signal.SIGCONT)
    line.until(lambda: line.stages().get("head", 0) not in (0, now["head"]), 20)
    line.until(lambda: line.says("nothing has changed"), 20)
    line.moves_on("a")
    line.moves_on("b")
    line.until(lambda: len({v.bundle for v in line.told.verdicts if v.score is not None}) == 2, 10)
    assert line.stages()["capture-a"] == now["capture-a"]

    # A camera goes, another comes, and one goes over to a region of interest.
    line.write(camera=[{**cameras[0], "roi": [10, 10, 200, 200]}, synthetic("c", seed=4)])
    line.signal(signal.SIGHUP)
    line.until(lambda: "capture-c" in line.stages() and "capture-b" not in line.stages(), 20)
    line.moves_on("c")
    line.moves_on("a")
    assert line.log.count("Traceback") == 0
    assert line.stop() == 0
    line.assert_balanced()
    line.assert_ends_once()
    for camera in ("a", "b", "c"):
        assert set(line.missed(camera)) <= {"stale", "no_slot"}, f"{camera}: {line.missed(camera)}"
    assert line.missed("b") == {}
    assert line.says("crashed") is False


class ServiceManager:
    """What systemd is to a service of Type=notify: a datagram socket that is read all the time, for it holds but ten
    messages."""

    def __init__(self, path: Path) -> None:
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while data := self._socket.recv(4096):
            self.heard += data.decode().split("\n")

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"", self._socket.getsockname())
        self._thread.join(10)
        self._socket.close()


@pytest.fixture
def manager() -> Iterator[tuple[ServiceManager, Path]]:
    with tempfile.TemporaryDirectory(prefix="edge-", dir="/tmp") as folder:  # short, as for every socket
        path = Path(folder) / "notify"
        made = ServiceManager(path)
        yield made, path
        made.close()


def test_the_service_manager_is_told(start: Start, manager: tuple[ServiceManager, Path]) -> None:
    systemd, path = manager
    heard = systemd.heard
    line = start(
        synthetic("a"),
        pipeline={"heartbeat_s": 1.5},
        env={"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "400000"},
    )
    line.until(lambda: "READY=1" in heard, 5)
    assert "STATUS=1 cameras" in heard
    line.until(lambda: heard.count("WATCHDOG=1") >= 5, 5)
    line.signal(signal.SIGHUP)
    line.until(lambda: "RELOADING=1" in heard, 5)
    line.until(lambda: heard.count("READY=1") == 2, 5)
    assert any(re.fullmatch(r"MONOTONIC_USEC=\d+", text) for text in heard)
    # A stage stands still: no word from its limit on, until the stage is replaced.
    line.kill("head", signal.SIGSTOP)
    line.until(lambda: line.says("head: silent"), 10)
    beats = heard.count("WATCHDOG=1")
    line.until(lambda: line.says("head: SIG"), 10)
    assert heard.count("WATCHDOG=1") <= beats + 1
    line.until(lambda: heard.count("WATCHDOG=1") > beats + 3, 15)
    assert line.stop() == 0
    line.until(lambda: "STOPPING=1" in heard, 5)
