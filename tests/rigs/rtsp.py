"""A real RTSP server (gst-rtsp-server) to start, stop, freeze and kill."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

SYSTEM_PYTHON = "/usr/bin/python3"
SCRIPT = Path(__file__).with_name("rtsp_server.py")
START_S = 20.0


@lru_cache(maxsize=1)
def missing() -> str:
    """Why the rig cannot run here; empty when it can."""
    probe = (
        "import gi; gi.require_version('Gst', '1.0'); gi.require_version('GstRtspServer', '1.0');"
        "from gi.repository import Gst, GstRtspServer; Gst.init(None);"
        "print(' '.join(n for n in 'appsrc videoconvert x264enc h264parse rtph264pay'.split()"
        " if Gst.ElementFactory.find(n) is None))"
    )
    remedy = "; run make rigs"
    if not Path(SYSTEM_PYTHON).exists():
        return f"there is no {SYSTEM_PYTHON}{remedy}"
    try:
        done = subprocess.run([SYSTEM_PYTHON, "-c", probe], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return "asking the system's GStreamer for its elements took over a minute"
    if done.returncode != 0:
        return f"the system's Python lacks gst-rtsp-server ({done.stderr.strip().splitlines()[-1:]}){remedy}"
    return f"GStreamer lacks {done.stdout.strip()}{remedy}" if done.stdout.strip() else ""


class RtspServer:
    """A server at one port, which it keeps across restarts (port 0: one that is free at the first start).

    Use as a context manager: whatever state it is in, it is killed at the end. The server writes to files only, so
    that one left over would hold no pipe of the test run.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        fps: int = 25,
        gop: int = 5,
        size: tuple[int, int] = (640, 360),
        user: str = "",
        password: str = "",
    ) -> None:
        self.port = port
        self._fps, self._gop, self._size, self._user, self._password = fps, gop, size, user, password
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """With credentials where the server asks for them."""
        return self.url_as(self._user, self._password)

    def url_as(self, user: str, password: str) -> str:
        login = f"{user}:{password}@" if user else ""
        return f"rtsp://{login}127.0.0.1:{self.port}/cam"

    def start(self) -> None:
        """Start and wait until it listens."""
        assert self._process is None, "already started"
        arguments = [SYSTEM_PYTHON, str(SCRIPT), str(self.port), "--fps", str(self._fps)]
        # A key frame every 0.2 s unless asked otherwise: a client that joins need not wait long for its first.
        arguments += ["--gop", str(self._gop), "--size", f"{self._size[0]}x{self._size[1]}"]
        if self._user:
            arguments += ["--user", self._user, "--password", self._password]
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
            )
            deadline = time.monotonic() + START_S
            while time.monotonic() < deadline:
                said = os.pread(output.fileno(), 100, 0).decode()  # pread: the server shares the file's position
                if said.endswith("\n"):
                    self.port = int(said.split()[1])
                    return
                if self._process.poll() is not None:
                    break
                time.sleep(0.02)
            self.kill()
            why = os.pread(errors.fileno(), 2000, 0).decode(errors="replace")
            raise AssertionError(f"the RTSP server did not start at port {self.port}: {why}")

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone. Harmless when it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nothing moves."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, which: signal.Signals) -> None:
        assert self._process is not None, "not started"
        self._process.send_signal(which)

    def __enter__(self) -> RtspServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def age_ms(picture: NDArray[np.uint8]) -> int:
    """How old a picture of this server is, in ms, by the clock drawn into it."""
    side = picture.shape[1] // 32
    blocks = picture[8, side // 2 : side * 32 : side, :].mean(axis=1) > 128
    sent = int("".join("1" if b else "0" for b in blocks), 2)
    age = (int(time.monotonic() * 1000) - sent) & 0xFFFFFFFF
    return age - (1 << 32) if age >> 31 else age
