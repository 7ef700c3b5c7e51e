"""RTSP cameras against a real server: killed, frozen, restarted, absent."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import av
import pytest
from rigs import require_rig
from rigs.rtsp import RtspServer, age_ms, missing

from edge.cameras import Camera, open_camera
from edge.cameras.base import Frame
from edge.cameras.config import RtspSource
from edge.errors import CameraConfigError, CameraError

pytestmark = pytest.mark.multiprocess

PASSWORD = "geheim@4711/%:x"
LOGIN = f"op:{quote(PASSWORD, safe='')}"

OPEN_S, READ_S, STALL_S = 2.5, 2.0, 1.0
MARGIN_S = 2.0  # for two busy cores


def camera(url: str, **fields: object) -> Camera:
    fields = {"open_timeout_s": OPEN_S, "read_timeout_s": READ_S, "stall_s": STALL_S, **fields}
    return open_camera(RtspSource.model_validate({"kind": "rtsp", "url": url, **fields}))


def frame(source: Camera, timeout_s: float = 10.0) -> Frame:
    got = source.read(timeout_s)
    assert isinstance(got, Frame), got
    return got


def read_until_lost(source: Camera, within_s: float) -> tuple[CameraError, float]:
    started = time.monotonic()
    while time.monotonic() < started + within_s:
        try:
            source.read(0.2)
        except CameraError as error:
            return error, time.monotonic() - started
    pytest.fail(f"not lost within {within_s} s")


def reopen(source: Camera, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while True:
        try:
            source.open()
            return
        except CameraError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def wait_until(fact: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


@pytest.fixture
def server() -> Iterator[RtspServer]:
    require_rig(not missing(), missing())
    with RtspServer() as server:
        yield server


@pytest.mark.rig
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_frames_arrive_and_a_paused_reader_gets_a_new_one(server: RtspServer, transport: str) -> None:
    source = camera(server.url, transport=transport)
    source.open()
    first = frame(source)
    assert first.picture.shape == (360, 640, 3)
    assert first.picture.flags.c_contiguous
    stamps = [frame(source).mono_ns for _ in range(10)]
    assert stamps == sorted(stamps)
    seen = source.overwritten
    wait_until(lambda: source.overwritten >= seen + 25)  # nobody reads for a second
    assert age_ms(frame(source).picture) < 500
    source.close()


@pytest.mark.rig
def test_a_killed_server_is_lost_and_comes_back(server: RtspServer) -> None:
    source = camera(server.url)
    source.open()
    frame(source)
    server.kill()
    _, after_s = read_until_lost(source, READ_S + MARGIN_S)
    assert after_s < STALL_S + MARGIN_S
    source.close()
    started = time.monotonic()
    with pytest.raises(CameraError, match="connection refused"):
        source.open()
    assert time.monotonic() - started < 1.0
    server.start()
    reopen(source, 10)
    assert age_ms(frame(source).picture) < 1000
    source.close()


@pytest.mark.rig
def test_a_frozen_server_is_lost_within_the_stall_time_and_comes_back(server: RtspServer) -> None:
    source = camera(server.url)
    source.open()
    frame(source)
    server.freeze()
    error, after_s = read_until_lost(source, STALL_S + MARGIN_S)
    assert "no frame for" in str(error)
    assert after_s < STALL_S + 0.5
    started = time.monotonic()
    source.close()
    assert time.monotonic() - started < READ_S
    # It still accepts connections (the kernel does), and never answers.
    wait_until(lambda: not camera_threads(), READ_S + OPEN_S + MARGIN_S)
    started = time.monotonic()
    with pytest.raises(CameraError, match="no answer within"):
        source.open()
    assert time.monotonic() - started < OPEN_S + MARGIN_S
    server.thaw()
    reopen(source, 15)
    assert age_ms(frame(source).picture) < 1000
    source.close()


@pytest.mark.rig
def test_logins_and_paths_are_told_apart() -> None:
    require_rig(not missing(), missing())
    with RtspServer(user="op", password=PASSWORD) as server:
        source = camera(server.url_as("op", quote(PASSWORD, safe="")))
        source.open()
        frame(source)
        source.close()
        with pytest.raises(CameraConfigError, match="user name or password"):
            camera(server.url_as("op", "wrong")).open()
        with pytest.raises(CameraError, match="404"):
            camera(server.url_as("op", quote(PASSWORD, safe="")).replace("/cam", "/none")).open()


@pytest.mark.rig
def test_a_password_from_a_file(tmp_path: Path) -> None:
    require_rig(not missing(), missing())
    (tmp_path / "pw").write_text(PASSWORD + "\n")
    with RtspServer(user="op", password=PASSWORD) as server:
        source = camera(f"rtsp://op@127.0.0.1:{server.port}/cam", password_file=tmp_path / "pw")
        source.open()
        frame(source)
        source.close()


@pytest.mark.rig
def test_reconnects_leave_nothing_behind(server: RtspServer) -> None:
    source = camera(server.url)

    def cycle() -> None:
        source.open()
        frame(source)
        source.close()

    cycle()
    wait_until(lambda: not camera_threads())
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for _ in range(10):
        cycle()
    wait_until(lambda: not camera_threads())
    assert len(os.listdir("/proc/self/fd")) <= before[0]
    assert threading.active_count() <= before[1]


def camera_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("camera")]


def test_nothing_listens() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it, and connections are refused
        source = camera(f"rtsp://127.0.0.1:{held.getsockname()[1]}/cam")
        started = time.monotonic()
        with pytest.raises(CameraError, match="connection refused"):
            source.open()
        assert time.monotonic() - started < 1.0


def test_a_server_that_accepts_and_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        source = camera(f"rtsp://127.0.0.1:{silent.getsockname()[1]}/cam", open_timeout_s=0.5)
        started = time.monotonic()
        with pytest.raises(CameraError, match=r"no answer within 0\.5 s"):
            source.open()
        assert time.monotonic() - started < 0.5 + MARGIN_S


@pytest.fixture
def babbler() -> Iterator[int]:
    """A port that answers every connection with something that is not RTSP."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.recv(1000)
                connection.sendall(b"RTSP/1.0 500 rtsp://op:leak@here\r\nCSeq: 1\r\n\r\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(5)


def test_no_message_holds_the_password(
    babbler: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    url = f"rtsp://{LOGIN}@127.0.0.1:{babbler}/cam?token={quote(PASSWORD, safe='')}"
    with pytest.raises((av.FFmpegError, OSError)) as raw:
        av.open(url)
    assert quote(PASSWORD, safe="") in str(raw.value), "FFmpeg's text is harmless, so this test proves nothing"
    capfd.readouterr()
    caplog.set_level(logging.DEBUG)
    urls = [
        url,
        f"rtsp://{LOGIN}@127.0.0.1:1/cam",
        f"rtsp://{LOGIN}@no-such-host.invalid/cam",
        f"rtsps://{LOGIN}@127.0.0.1:{babbler}/cam",
    ]
    shown: list[str] = []
    for one in urls:
        source = camera(one)
        with pytest.raises(CameraError) as caught:
            source.open()
        shown += [str(caught.value), repr(caught.value), repr(source), source.describe()]
        shown += [repr(caught.value.__context__), repr(caught.value.__cause__)]
    out, err = capfd.readouterr()
    everything = "\n".join([*shown, caplog.text, out, err])
    assert "127.0.0.1" in everything
    for secret in (PASSWORD, quote(PASSWORD, safe=""), "geheim", "leak"):
        assert secret not in everything


def test_pyav_is_imported_for_rtsp_only() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from edge.cameras import open_camera;"
        "from edge.cameras.config import MjpegSource, SyntheticSource;"
        "open_camera(SyntheticSource(kind='synthetic'));"
        "open_camera(MjpegSource(kind='mjpeg', url='http://camera/'));"
        "sys.exit('av' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
