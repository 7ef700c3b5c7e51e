"""Folder cameras on real files."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.cameras import Camera, open_camera
from edge.cameras.base import Frame, Undecodable
from edge.cameras.config import FolderSource
from edge.cameras.folder import FolderCamera
from edge.errors import CameraConfigError, CameraError, EndOfStream


def png(level: int, side: int = 20) -> bytes:
    ok, data = cv2.imencode(".png", np.full((side, side, 3), level, np.uint8))
    assert ok
    return bytes(data)


def camera(path: Path, **fields: object) -> Camera:
    opened = open_camera(FolderSource.model_validate({"kind": "folder", "path": path, **fields}))
    opened.open()
    return opened


def read_all(source: Camera, limit: int = 100) -> list[Frame | Undecodable]:
    got: list[Frame | Undecodable] = []
    try:
        while len(got) < limit:
            item = source.read(1.0)
            assert item is not None
            got.append(item)
    except EndOfStream:
        pass
    return got


def collect(source: Camera, count: int, within_s: float = 10.0) -> list[Frame | Undecodable]:
    """``count`` frames of a watched folder, and proof that none follows in the next scans."""
    got: list[Frame | Undecodable] = []
    deadline = time.monotonic() + within_s
    while len(got) < count:
        assert time.monotonic() < deadline, f"only {[g.name for g in got]} came"
        item = source.read(0.1)
        if item is not None:
            got.append(item)
    assert source.read(0.4) is None
    return got


def level(item: Frame | Undecodable) -> int:
    assert isinstance(item, Frame)
    return int(item.picture[0, 0, 0])


def test_once_gives_each_picture_in_order_and_ends(tmp_path: Path) -> None:
    for name, value in (("b.png", 2), ("a.png", 1), ("c.PNG", 3)):
        (tmp_path / name).write_bytes(png(value))
    (tmp_path / ".hidden.png").write_bytes(png(9))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    got = read_all(camera(tmp_path))
    assert [(g.name, level(g)) for g in got] == [("a.png", 1), ("b.png", 2), ("c.PNG", 3)]
    assert [g.mono_ns for g in got] == sorted(g.mono_ns for g in got)


def test_order_by_time_of_change(tmp_path: Path) -> None:
    for name, when in (("a.png", 300), ("b.png", 100), ("c.png", 200)):
        (tmp_path / name).write_bytes(png(1))
        os.utime(tmp_path / name, (when, when))
    assert [g.name for g in read_all(camera(tmp_path, order="mtime"))] == ["b.png", "c.png", "a.png"]


def test_folders_below_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    for name in ("a.png", "x/b.png", "x/y/c.png", ".git/d.png"):
        (tmp_path / name).write_bytes(png(1))
    (tmp_path / "x" / "loop").symlink_to(tmp_path)
    assert [g.name for g in read_all(camera(tmp_path))] == ["a.png"]
    assert [g.name for g in read_all(camera(tmp_path, recursive=True))] == ["a.png", "x/b.png", "x/y/c.png"]


def test_damaged_and_empty_files_are_undecodable_once_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").write_bytes(b"no picture at all")
    (tmp_path / "d.png").write_bytes(png(4, side=40))
    (tmp_path / "e.png").write_bytes(png(5))
    got = read_all(camera(tmp_path, max_pixels=900))
    assert [type(g).__name__ for g in got] == ["Frame", "Undecodable", "Undecodable", "Undecodable", "Frame"]
    reasons = [g.why for g in got if isinstance(g, Undecodable)]
    assert "empty" in reasons[0]
    assert "not a readable picture" in reasons[1]
    assert "over the limit" in reasons[2]


def test_a_file_that_vanishes_is_no_error(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(png(1))
    source = camera(tmp_path)
    (tmp_path / "b.png").unlink()
    assert [g.name for g in read_all(source)] == ["a.png", "c.png"]


def test_a_missing_folder_is_named_and_worth_another_try(tmp_path: Path) -> None:
    source = open_camera(FolderSource(kind="folder", path=tmp_path / "later"))
    with pytest.raises(CameraError, match=r"later: there is no such folder") as caught:
        source.open()
    assert not isinstance(caught.value, CameraConfigError)
    (tmp_path / "later").mkdir()
    with pytest.raises(CameraError, match="holds no pictures"):
        source.open()
    (tmp_path / "later" / "a.png").write_bytes(png(1))
    source.open()
    assert len(read_all(source)) == 1


def test_a_file_in_place_of_the_folder_can_never_work(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    with pytest.raises(CameraConfigError, match="this is a file"):
        camera(tmp_path / "a.png")


def test_a_closed_camera_goes_on_where_it_stood(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(png(1))
    source = camera(tmp_path)
    first = source.read(1)
    source.close()
    with pytest.raises(CameraError, match="not open"):
        source.read(0)
    source.open()
    assert isinstance(first, Frame)
    assert [first.name, *(g.name for g in read_all(source))] == ["a.png", "b.png", "c.png"]


def test_a_loop_goes_on_and_sees_what_has_changed_between_passes(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.png").write_bytes(png(value))
    source = camera(tmp_path, mode="loop", preload=True)
    assert [level(g) for g in read_all(source, 4)] == [1, 2, 1, 2]
    (tmp_path / "b.png").write_bytes(png(7, side=30))
    (tmp_path / "c.png").write_bytes(png(3))
    (tmp_path / "a.png").unlink()
    assert [level(g) for g in read_all(source, 4)] == [7, 3, 7, 3]


def test_preload_decodes_once_within_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = 400  # 480 kB each: two fit into 1 MiB
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(png(1, side))
    decoded: list[str] = []
    from edge.cameras import folder

    real = folder.read_picture
    monkeypatch.setattr(folder, "read_picture", lambda p, m: (decoded.append(p.name), real(p, m))[1])
    source = camera(tmp_path, mode="loop", preload=True, max_preload_mb=1)
    got = read_all(source, 9)
    assert decoded == ["a.png", "b.png", "c.png", "c.png", "c.png"]
    assert got[0].picture is got[3].picture  # type: ignore[union-attr]
    assert not got[0].picture.flags.writeable  # type: ignore[union-attr]


def test_the_rate_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    source = camera(tmp_path, mode="loop", fps=50)
    read_all(source, 1)
    start = time.monotonic()
    read_all(source, 10)
    assert time.monotonic() - start >= 0.19
    slow = camera(tmp_path, mode="loop", fps=0.5)
    assert slow.read(1) is not None
    assert slow.read(0.01) is None


def test_watch_gives_what_is_there_and_what_comes_each_once(tmp_path: Path) -> None:
    (tmp_path / "old.png").write_bytes(png(1))
    source = camera(tmp_path, mode="watch", settle_s=0.05)
    assert [g.name for g in collect(source, 1)] == ["old.png"]
    (tmp_path / ".new.png").write_bytes(png(2))
    os.rename(tmp_path / ".new.png", tmp_path / "new.png")
    (tmp_path / "part.tmp").write_bytes(png(3))
    os.rename(tmp_path / "part.tmp", tmp_path / "part.png")
    assert {(g.name, level(g)) for g in collect(source, 2)} == {("new.png", 2), ("part.png", 3)}
    (tmp_path / "old.png").write_bytes(png(5))
    assert [(g.name, level(g)) for g in collect(source, 1)] == [("old.png", 5)]
    (tmp_path / "new.png").unlink()
    assert source.read(0.3) is None


def test_watch_waits_for_a_file_that_grows(tmp_path: Path) -> None:
    source = camera(tmp_path, mode="watch", settle_s=0.3)
    data = png(6, side=200)
    done = threading.Event()

    def write_slowly() -> None:
        with (tmp_path / "slow.png").open("wb") as file:
            for part in range(12):
                file.write(data[part * len(data) // 12 : (part + 1) * len(data) // 12])
                file.flush()
                os.fsync(file.fileno())
                time.sleep(0.04)
        done.set()

    writer = threading.Thread(target=write_slowly)
    writer.start()
    got = collect(source, 1)
    assert done.is_set(), "delivered before it was whole"
    writer.join()
    assert level(got[0]) == 6
    assert got[0].picture.shape == (200, 200, 3)  # type: ignore[union-attr]


def test_watch_reports_a_damaged_file_once_after_giving_it_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.cameras.folder.PATIENCE_S", 0.5)
    source = camera(tmp_path, mode="watch", settle_s=0.05)
    started = time.monotonic()
    (tmp_path / "bad.png").write_bytes(png(1)[:60])
    (tmp_path / "empty.png").write_bytes(b"")
    got = collect(source, 2)
    assert sorted(g.name for g in got) == ["bad.png", "empty.png"]
    assert all(isinstance(g, Undecodable) for g in got)
    assert min(g.mono_ns for g in got) / 1e9 - started >= 0.45
    (tmp_path / "bad.png").write_bytes(png(8))
    assert level(collect(source, 1)[0]) == 8


def test_a_pause_in_the_middle_is_forgiven(tmp_path: Path) -> None:
    source = camera(tmp_path, mode="watch", settle_s=0.05)
    data = png(3, side=100)
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    assert source.read(0.5) is None, "half a file was delivered"
    (tmp_path / "a.png").write_bytes(data)
    assert level(collect(source, 1)[0]) == 3


def test_watch_delivers_every_file_of_busy_writers_exactly_once(tmp_path: Path) -> None:
    source = camera(tmp_path, mode="watch", settle_s=0.05)

    def write(writer: int) -> None:
        for k in range(40):
            temporary = tmp_path / f".{writer}-{k}.png"
            temporary.write_bytes(png(writer))
            os.rename(temporary, tmp_path / f"{writer}-{k}.png")
            time.sleep(0.002)

    writers = [threading.Thread(target=write, args=(w,)) for w in range(3)]
    for writer in writers:
        writer.start()
    got = collect(source, 120, within_s=20)
    for writer in writers:
        writer.join()
    assert len({g.name for g in got}) == 120


def test_a_watched_folder_that_goes_away_is_lost_and_comes_back_without_repeats(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(png(1))
    source = camera(folder, mode="watch", settle_s=0.05)
    collect(source, 1)
    folder.rename(tmp_path / "away")
    with pytest.raises(CameraError, match="no such folder"):
        source.read(5.0)
    source.close()
    (tmp_path / "away").rename(folder)
    source.open()
    (folder / "b.png").write_bytes(png(2))
    assert [g.name for g in collect(source, 1)] == ["b.png"]


def test_a_file_that_is_rewritten_while_it_is_read_is_delivered_as_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge.cameras import folder

    real = folder.read_picture
    reads: list[int] = []

    def read_and_rewrite(path: Path, max_pixels: int) -> object:
        picture = real(path, max_pixels)
        reads.append(int(picture[0, 0, 0]))
        if len(reads) == 1:
            path.write_bytes(png(2, side=30))
        return picture

    monkeypatch.setattr(folder, "read_picture", read_and_rewrite)
    source = camera(tmp_path, mode="watch", settle_s=0.05)
    (tmp_path / "a.png").write_bytes(png(1))
    assert [level(g) for g in collect(source, 1)] == [2]
    assert reads == [1, 2]


def test_an_idle_watch_is_cheap(tmp_path: Path) -> None:
    for k in range(300):
        (tmp_path / f"{k}.png").write_bytes(b"x")
    source = FolderCamera(FolderSource(kind="folder", path=tmp_path, mode="watch"))
    source.open()
    before = time.process_time()
    assert source.read(0.15) is None
    assert time.process_time() - before < 0.1
