"""Video files, written here with OpenCV."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.cameras import Camera, open_camera
from edge.cameras.base import Frame, Undecodable
from edge.cameras.config import VideoSource
from edge.errors import CameraConfigError, CameraError, EndOfStream


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 frames at 25 frames/s; frame k is noise around the level 20 k."""
    path = tmp_path_factory.mktemp("video") / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    noise = np.random.default_rng(0).integers(0, 9, (48, 64, 3), np.uint8)
    for k in range(12):
        writer.write(np.uint8(20 * k) + noise)
    writer.release()
    return path


def camera(path: Path, **fields: object) -> Camera:
    opened = open_camera(VideoSource.model_validate({"kind": "video", "path": path, **fields}))
    opened.open()
    return opened


def levels(source: Camera, count: int) -> list[int]:
    got = []
    for _ in range(count):
        frame = source.read(1.0)
        assert isinstance(frame, Frame)
        assert frame.picture.flags.c_contiguous
        got.append(round(float(frame.picture.mean()) / 20))
    return got


def test_every_frame_once_then_the_end(film: Path) -> None:
    source = camera(film, fps=None)
    assert not source.live
    assert levels(source, 12) == list(range(12))
    for _ in range(2):
        with pytest.raises(EndOfStream, match="all frames were read"):
            source.read(0)


def test_a_loop_starts_again(film: Path) -> None:
    assert levels(camera(film, fps=None, loop=True), 26) == [*range(12), *range(12), 0, 1]


def test_the_rate_of_the_file_or_another(film: Path) -> None:
    for fps, shortest in (("native", 9 / 25), (100, 9 / 100)):
        source = camera(film, fps=fps)
        start = time.monotonic()
        levels(source, 10)
        took = time.monotonic() - start
        assert shortest * 0.99 <= took < shortest + 1.0


def test_it_goes_on_where_it_stood(film: Path) -> None:
    source = camera(film, fps=None)
    levels(source, 5)
    source.close()
    with pytest.raises(CameraError, match="not open"):
        source.read(0)
    source.open()
    assert levels(source, 2) == [5, 6]


def test_too_many_pixels(film: Path) -> None:
    assert isinstance(camera(film, fps=None, max_pixels=1000).read(0), Undecodable)


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.avi").write_bytes(b"")
    (tmp_path / "text.avi").write_text("no video")
    for name, kind, words in (
        ("missing.avi", CameraError, "no such file"),
        ("empty.avi", CameraError, "not a video"),
        ("text.avi", CameraError, "not a video"),
        (".", CameraConfigError, "this is a folder"),
    ):
        with pytest.raises(kind, match=words):
            camera(tmp_path / name)


def test_a_file_cut_short_gives_what_it_has_and_a_warning(
    film: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = film.read_bytes()
    short = tmp_path / "short.avi"
    short.write_bytes(data[: len(data) * 8 // 10])
    source = camera(short, fps=None)
    count = 0
    with caplog.at_level(logging.WARNING):
        try:
            while source.read(0) is not None:
                count += 1
        except EndOfStream:
            pass
    assert 2 <= count < 12
    assert f"after {count} of 12 frames; is it cut short?" in caplog.text
