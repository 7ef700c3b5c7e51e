"""MJPEG cameras against a real HTTP server in this process."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from rigs.mjpeg import MjpegServer
from rigs.rtsp import age_ms

from edge.cameras import Camera, open_camera
from edge.cameras.base import Frame
from edge.cameras.config import MjpegSource
from edge.errors import CameraConfigError, CameraError

pytestmark = pytest.mark.multiprocess

PASSWORD = "geheim@4711/%:x"


def camera(url: str, **fields: object) -> Camera:
    fields = {"open_timeout_s": 3, "read_timeout_s": 2, "stall_s": 1, **fields}
    return open_camera(MjpegSource.model_validate({"kind": "mjpeg", "url": url, **fields}))


def frame(source: Camera, timeout_s: float = 5.0) -> Frame:
    got = source.read(timeout_s)
    assert isinstance(got, Frame), got
    return got


def read_until_lost(source: Camera, within_s: float) -> CameraError:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            source.read(0.2)
        except CameraError as error:
            return error
    pytest.fail(f"not lost within {within_s} s")


@pytest.fixture
def server() -> Iterator[MjpegServer]:
    with MjpegServer() as server:
        yield server


def test_frames_arrive_and_a_paused_reader_gets_a_new_one(server: MjpegServer) -> None:
    source = camera(server.url())
    source.open()
    first = frame(source)
    assert first.picture.shape == (480, 640, 3)
    deadline = time.monotonic() + 10
    while source.overwritten < 20:  # nobody reads
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert age_ms(frame(source).picture) < 500
    source.close()


def test_a_silent_stream_is_lost_and_comes_back(server: MjpegServer) -> None:
    source = camera(server.url())
    source.open()
    frame(source)
    server.stall.set()
    started = time.monotonic()
    assert "no frame for" in str(read_until_lost(source, 5))
    assert time.monotonic() - started < 2
    source.close()
    server.stall.clear()
    reopen(source, 10)
    assert age_ms(frame(source).picture) < 1000
    source.close()


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


def test_a_server_that_goes_away_is_lost_at_once(server: MjpegServer) -> None:
    source = camera(server.url(), stall_s=30)
    source.open()
    frame(source)
    server.close()
    started = time.monotonic()
    assert "lost" in str(read_until_lost(source, 10))
    assert time.monotonic() - started < 3
    source.close()
    with pytest.raises(CameraError, match="connection refused"):
        source.open()


def test_what_is_wrong_is_told_apart() -> None:
    with MjpegServer("op", PASSWORD) as server:
        good = f"op:{quote(PASSWORD, safe='')}"
        source = camera(server.url(login=good))
        source.open()
        frame(source)
        source.close()
        with pytest.raises(CameraConfigError, match="user name or password"):
            camera(server.url(login="op:wrong")).open()
        with pytest.raises(CameraError, match="answers 404"):
            camera(server.url("/nothing", good)).open()
        with pytest.raises(CameraError, match="text/html"):
            camera(server.url("/page", good)).open()


def test_a_server_that_never_answers_costs_no_more_than_the_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        source = camera(f"http://127.0.0.1:{listening.getsockname()[1]}/", open_timeout_s=0.5)
        started = time.monotonic()
        with pytest.raises(CameraError, match="no answer within"):
            source.open()
        assert time.monotonic() - started < 5


def test_no_message_holds_the_password(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.DEBUG)
    shown = []
    login = f"op:{quote(PASSWORD, safe='')}"
    with MjpegServer("op", "another") as server:
        urls = [server.url(p, login) for p in ("/stream", "/nothing")]
    urls.append(f"http://{login}@no-such-host.invalid/stream")
    for url in urls:
        for login_part in (url, url.replace("http:", "https:")):
            source = camera(login_part, open_timeout_s=1)
            with pytest.raises(CameraError) as caught:
                source.open()
            shown += [str(caught.value), repr(caught.value), repr(source), source.describe()]
            shown.append(repr(caught.value.__context__))
    out, err = capfd.readouterr()
    everything = "\n".join([*shown, caplog.text, out, err])
    assert "127.0.0.1" in everything
    for secret in (PASSWORD, quote(PASSWORD, safe=""), "geheim"):
        assert secret not in everything


def test_reconnects_leave_nothing_behind(server: MjpegServer) -> None:
    source = camera(server.url())

    def cycle() -> None:
        source.open()
        frame(source)
        source.close()

    def held() -> tuple[int, int]:
        own = [t for t in threading.enumerate() if t.name.startswith("camera")]
        return len(os.listdir("/proc/self/fd")), len(own)

    cycle()
    settled(lambda: held()[1] == 0)
    before = held()[0]
    for _ in range(10):
        cycle()
    settled(lambda: held()[1] == 0 and held()[0] <= before + 1)


def settled(fact: object, within_s: float = 10.0) -> None:
    assert callable(fact)
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.02)
