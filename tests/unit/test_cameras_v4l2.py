"""V4L2 cameras against a fake at OpenCV's border.

The machines that run these tests have no Video4Linux (no /dev/video*, no loopback module), so what OpenCV and the
driver do is imitated; /dev/null stands for the device since it is a character device that may be opened.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest

from edge.cameras import open_camera
from edge.cameras.base import Frame
from edge.cameras.config import V4l2Source
from edge.cameras.v4l2 import device_path
from edge.errors import CameraConfigError, CameraError


class FakeCapture:
    """Like ``cv2.VideoCapture`` on a camera that knows 640 x 480 only."""

    opens: ClassVar[bool] = True
    made: ClassVar[list[FakeCapture]] = []

    def __init__(self, name: str, backend: int) -> None:
        assert (name, backend) == ("/dev/null", cv2.CAP_V4L2)
        self.asked: list[tuple[int, float]] = []
        self.values: dict[int, float] = {cv2.CAP_PROP_FPS: 30.0}
        self.frames = threading.Semaphore(0)
        self.gone = False
        self.released = False
        FakeCapture.made.append(self)

    def isOpened(self) -> bool:  # OpenCV's spelling
        return FakeCapture.opens

    def set(self, prop: int, value: float) -> bool:
        self.asked.append((prop, value))
        known = {cv2.CAP_PROP_FRAME_WIDTH: 640, cv2.CAP_PROP_FRAME_HEIGHT: 480}
        self.values[prop] = known.get(prop, value)
        return True

    def get(self, prop: int) -> float:
        return self.values[prop]

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.frames.acquire(timeout=20)
        if self.gone or self.released:
            return False, None
        return True, np.full((480, 640, 3), 9, np.uint8)

    def release(self) -> None:
        self.released = True

    def unplug(self) -> None:
        self.gone = True
        self.frames.release()


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeCapture]]:
    monkeypatch.setattr(cv2, "VideoCapture", FakeCapture)
    FakeCapture.opens, FakeCapture.made = True, []
    yield FakeCapture
    for capture in FakeCapture.made:
        capture.unplug()


def source(**fields: object) -> V4l2Source:
    return V4l2Source.model_validate({"kind": "v4l2", "device": "/dev/null", **fields})


def test_frames_come_and_settings_are_asked_in_order(fake: type[FakeCapture], caplog: pytest.LogCaptureFixture) -> None:
    camera = open_camera(source(fourcc="MJPG", width=1280, height=720, fps=30))
    assert camera.live
    camera.open()
    capture = fake.made[0]
    assert [prop for prop, _ in capture.asked] == [
        cv2.CAP_PROP_FOURCC,
        cv2.CAP_PROP_FRAME_WIDTH,
        cv2.CAP_PROP_FRAME_HEIGHT,
        cv2.CAP_PROP_FPS,
        cv2.CAP_PROP_BUFFERSIZE,
    ]
    assert "asked for width 1280, the camera gives 640" in caplog.text
    assert "fps" not in caplog.text
    capture.frames.release()
    frame = camera.read(5)
    assert isinstance(frame, Frame)
    assert frame.picture.shape == (480, 640, 3)


def test_an_unplugged_camera_is_lost_and_opened_anew(fake: type[FakeCapture]) -> None:
    camera = open_camera(source())
    camera.open()
    fake.made[0].unplug()
    with pytest.raises(CameraError, match="lost"):
        camera.read(5)
    camera.close()
    assert fake.made[0].released
    camera.open()
    fake.made[1].frames.release()
    assert isinstance(camera.read(5), Frame)


def test_a_camera_that_falls_silent_is_lost() -> None:
    camera = open_camera(source(stall_s=0.2, open_timeout_s=0.2))
    camera.open()
    with pytest.raises(CameraError, match="no frame for"):
        camera.read(10)


def test_a_device_that_does_not_open_is_told_apart(fake: type[FakeCapture], tmp_path: Path) -> None:
    fake.opens = False
    with pytest.raises(CameraError, match="another program has it") as caught:
        open_camera(source()).open()
    assert not isinstance(caught.value, CameraConfigError)
    with pytest.raises(CameraError, match="plugged in") as caught:
        open_camera(source(device="/dev/no-such-camera")).open()
    assert not isinstance(caught.value, CameraConfigError)
    with pytest.raises(CameraConfigError, match="no device"):
        open_camera(source(device="/dev/../etc/hostname")).open()


def test_a_number_is_a_device() -> None:
    assert device_path(3) == Path("/dev/video3")
    assert open_camera(V4l2Source(kind="v4l2", device=3)).describe() == "camera /dev/video3"
