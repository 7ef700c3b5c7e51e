"""The newest-frame reader, driven by a connection that the test holds."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from edge.cameras.base import Frame, Picture, Undecodable, as_bgr
from edge.cameras.newest import MAX_BAD_IN_A_ROW, Decode, LiveCamera
from edge.errors import CameraConfigError, CameraError, PictureError

Step = Callable[[], Decode]


def picture(value: int, shape: tuple[int, ...] = (4, 6, 3)) -> Picture:
    return np.full(shape, value, np.uint8)


def gives(value: int) -> Step:
    return lambda: lambda: picture(value)


def fails(error: Exception) -> Step:
    def step() -> Decode:
        raise error

    return step


class FakeConnection:
    """Does what the test puts into ``steps``; blocks while there is nothing, until the test ends."""

    def __init__(self, refuse: Exception | None = None) -> None:
        self.steps: queue.SimpleQueue[Step] = queue.SimpleQueue()
        self.refuse = refuse
        self.grabbed = 0
        self.closed = threading.Event()
        self.release = threading.Event()

    def open(self) -> None:
        if self.refuse is not None:
            raise self.refuse

    def grab(self) -> Decode:
        while not self.release.is_set():
            try:
                step = self.steps.get(timeout=0.01)
            except queue.Empty:
                continue
            self.grabbed += 1
            return step()
        raise CameraError("the test is over")

    def close(self) -> None:
        self.closed.set()

    def feed(self, *steps: Step) -> None:
        before = self.grabbed
        for step in steps:
            self.steps.put(step)
        wait_until(lambda: self.grabbed >= before + len(steps) and self.steps.empty())


def wait_until(fact: Callable[[], bool], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.002)


class Rig:
    def __init__(self) -> None:
        self.connections: list[FakeConnection] = []
        self.refuse: Exception | None = None

    def connect(self) -> FakeConnection:
        self.connections.append(FakeConnection(self.refuse))
        return self.connections[-1]

    def camera(self, stall_s: float = 30.0, open_timeout_s: float = 0.1, max_pixels: int = 10_000) -> LiveCamera:
        return LiveCamera(
            "camera fake", self.connect, open_timeout_s=open_timeout_s, stall_s=stall_s, max_pixels=max_pixels
        )


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    before = threading.active_count()
    yield rig
    for connection in rig.connections:
        connection.release.set()
    wait_until(lambda: threading.active_count() == before)


def value(item: Frame | Undecodable | None) -> int:
    assert isinstance(item, Frame)
    return int(item.picture[0, 0, 0])


def test_the_newest_frame_wins_and_the_others_are_counted(rig: Rig) -> None:
    camera = rig.camera()
    camera.open()
    rig.connections[0].feed(*(gives(k) for k in range(1, 6)))
    wait_until(lambda: camera.overwritten == 4)
    assert value(camera.read(1)) == 5
    assert camera.read(0.01) is None
    rig.connections[0].feed(gives(6))
    assert value(camera.read(1)) == 6
    assert camera.overwritten == 4
    rig.connections[0].release.set()
    camera.close()
    assert camera.overwritten == 4
    assert rig.connections[0].closed.wait(5)


def test_a_frame_carries_the_time_of_its_arrival_not_of_its_reading(rig: Rig) -> None:
    camera = rig.camera()
    camera.open()
    before = time.monotonic_ns()
    rig.connections[0].feed(gives(1), gives(2))
    wait_until(lambda: camera.overwritten == 1)
    after = time.monotonic_ns()
    frame = camera.read(1)
    assert isinstance(frame, Frame)
    assert before <= frame.mono_ns <= after
    assert abs(frame.wall_ns - time.time_ns()) < 5e9


def test_no_frame_for_the_stall_time_is_a_loss(rig: Rig) -> None:
    camera = rig.camera(stall_s=0.3)
    camera.open()
    rig.connections[0].feed(gives(1))
    assert value(camera.read(1)) == 1
    started = time.monotonic()
    with pytest.raises(CameraError, match="no frame for"):
        camera.read(10)
    assert time.monotonic() - started < 2


def test_the_stall_is_found_by_short_reads_too(rig: Rig) -> None:
    camera = rig.camera(stall_s=0.2)
    camera.open()

    def read_on() -> None:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            assert camera.read(0.01) is None

    with pytest.raises(CameraError, match="no frame for"):
        read_on()


def test_the_first_frame_may_take_as_long_as_the_opening(rig: Rig) -> None:
    camera = rig.camera(stall_s=0.1, open_timeout_s=30.0)
    camera.open()
    assert camera.read(0.3) is None
    rig.connections[0].feed(gives(1))
    assert value(camera.read(1)) == 1
    with pytest.raises(CameraError, match="no frame for"):
        camera.read(5)


def test_a_frame_that_comes_after_a_stall_is_not_taken_for_new(rig: Rig) -> None:
    camera = rig.camera(stall_s=0.15)
    camera.open()
    connection = rig.connections[0]
    connection.feed(gives(1))
    assert value(camera.read(1)) == 1

    def held_back() -> Decode:
        time.sleep(0.3)  # FFmpeg's time-out runs out, and it gives what its decoder held
        return lambda: picture(2)

    connection.feed(held_back)
    wait_until(connection.closed.is_set)
    with pytest.raises(CameraError, match="no frame for"):
        camera.read(1)


def test_an_error_comes_after_the_last_frame_and_stays(rig: Rig) -> None:
    camera = rig.camera()
    camera.open()
    rig.connections[0].feed(gives(1), fails(CameraError("camera fake: lost: gone")))
    wait_until(rig.connections[0].closed.is_set)
    assert value(camera.read(1)) == 1
    for _ in range(2):
        with pytest.raises(CameraError, match="gone"):
            camera.read(1)
    camera.open()
    rig.connections[1].feed(gives(2))
    assert value(camera.read(1)) == 2


def test_a_refused_opening_is_raised_as_it_is(rig: Rig) -> None:
    rig.refuse = CameraConfigError("camera fake: user name or password is refused")
    camera = rig.camera()
    with pytest.raises(CameraConfigError, match="refused"):
        camera.open()
    with pytest.raises(CameraError, match="not open"):
        camera.read(0)
    assert rig.connections[0].closed.is_set()


def test_an_unknown_error_is_told_by_its_type_only(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    camera = rig.camera()
    camera.open()
    caplog.set_level(logging.DEBUG)
    rig.connections[0].feed(fails(ZeroDivisionError("rtsp://op:geheim@camera/cam")))
    with pytest.raises(CameraError, match="ZeroDivisionError") as caught:
        camera.read(5)
    assert "geheim" not in str(caught.value) + caplog.text
    assert caught.value.__context__ is None or "geheim" not in str(caught.value.__context__)


def test_a_damaged_frame_is_undecodable_and_the_next_one_counts(rig: Rig) -> None:
    camera = rig.camera()
    camera.open()
    rig.connections[0].feed(fails(PictureError("torn")))
    item = camera.read(1)
    assert isinstance(item, Undecodable)
    assert item.why == "torn"
    rig.connections[0].feed(gives(3))
    assert value(camera.read(1)) == 3


def test_a_stream_of_damaged_frames_is_a_loss(rig: Rig) -> None:
    camera = rig.camera()
    camera.open()
    for _ in range(MAX_BAD_IN_A_ROW + 1):
        rig.connections[0].steps.put(fails(PictureError("torn")))
    wait_until(rig.connections[0].closed.is_set)
    assert isinstance(camera.read(5), Undecodable)
    with pytest.raises(CameraError, match="in a row"):
        camera.read(5)


def test_a_resolution_that_changes_is_delivered_and_one_too_large_is_not(rig: Rig) -> None:
    camera = rig.camera(max_pixels=10_000)
    camera.open()
    shapes = [(4, 6, 3), (40, 60, 3), (200, 300, 3), (8, 8)]
    got = []
    for shape in shapes:
        rig.connections[0].feed(lambda shape=shape: lambda: picture(1, shape))  # type: ignore[misc]
        got.append(camera.read(1))
    assert [g.picture.shape for g in got if isinstance(g, Frame)] == [(4, 6, 3), (40, 60, 3), (8, 8, 3)]
    assert isinstance(got[2], Undecodable)
    assert "over the limit" in got[2].why


def test_a_reader_stuck_in_its_driver_is_left_behind_and_not_doubled(rig: Rig) -> None:
    camera = rig.camera()
    camera.open()
    stuck = rig.connections[0]
    hold = threading.Event()

    def hang() -> Decode:
        hold.wait(30)
        return lambda: picture(1)

    stuck.feed(hang)
    started = time.monotonic()
    camera.close()
    assert time.monotonic() - started < 3
    assert not stuck.closed.is_set()
    with pytest.raises(CameraError, match="still hangs"):
        camera.open()
    assert len(rig.connections) == 1
    hold.set()
    assert stuck.closed.wait(5), "the thread did not close its own connection"
    wait_until(lambda: not any(t.name == "camera camera fake" for t in threading.enumerate()))
    camera.open()
    rig.connections[1].feed(gives(2))
    assert value(camera.read(1)) == 2


def test_close_may_come_twice_and_before_open(rig: Rig) -> None:
    camera = rig.camera()
    camera.close()
    camera.open()
    rig.connections[0].release.set()
    camera.close()
    camera.close()
    assert camera.live


@pytest.mark.parametrize(
    ("shape", "dtype", "fine"),
    [
        ((4, 6, 3), np.uint8, True),
        ((4, 6), np.uint8, True),
        ((4, 6, 1), np.uint8, True),
        ((4, 6, 4), np.uint8, True),
        ((4, 6, 2), np.uint8, False),
        ((4, 6, 3), np.uint16, False),
        ((0, 6, 3), np.uint8, False),
        ((24,), np.uint8, False),
        ((101, 100, 3), np.uint8, False),
    ],
)
def test_as_bgr(shape: tuple[int, ...], dtype: type, fine: bool) -> None:
    given = np.full(shape, 7, dtype)
    if not fine:
        with pytest.raises(PictureError):
            as_bgr(given, 10_000)
        return
    bgr = as_bgr(given, 10_000)
    assert bgr.shape == (4, 6, 3)
    assert bgr.dtype == np.uint8
    assert bgr.flags.c_contiguous
    assert (bgr == 7).all()
    assert (bgr is given) == (shape == (4, 6, 3)), "copied without need, or not where needed"


def test_as_bgr_makes_a_strided_view_contiguous() -> None:
    wide = np.arange(2 * 8 * 3, dtype=np.uint8).reshape(2, 8, 3)
    assert as_bgr(wide[:, ::2], 100).flags.c_contiguous
