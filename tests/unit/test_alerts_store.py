"""The alert store: ids, retention, a full disk, a damaged file."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.alerts import pictures as pictures_module
from edge.alerts.config import StoreSettings
from edge.alerts.database import IdMark
from edge.alerts.decision import DecisionState
from edge.alerts.messages import AlertDraft
from edge.alerts.pictures import PictureFolder
from edge.alerts.store import AlertStore, StoreFull
from edge.errors import ResourceError

DAY_NS = 86_400 * 10**9
NOW = 1_800_000_000 * 10**9


def draft(seq: int, camera: str = "cam1", raised_at: int = NOW, why: str = "x") -> AlertDraft:
    return AlertDraft(
        camera=camera,
        seq=seq,
        epoch="e0",
        captured_at=NOW,
        raised_at=raised_at,
        score=2.0,
        threshold=1.0,
        p_value=0.01,
        parts={"max": 2.0},
        why=why,
    )


def fill(store: AlertStore, first: int) -> None:
    """Add alerts with long texts until the store refuses."""
    for seq in range(first, 20_000):
        store.add(draft(seq, why="y" * 900))


def ids(store: AlertStore) -> list[int]:
    return [alert.id for alert in store.since(0, 10_000)]


def test_an_alert_comes_back_whole(tmp_path: Path) -> None:
    with AlertStore(tmp_path / "deep" / "folder") as store:
        added = store.add(draft(5), picture=b"jpeg")
        assert added.new
        assert not added.picture_lost
        assert added.alert.id == 1
        assert added.alert.picture is not None
        assert Path(added.alert.picture).read_bytes() == b"jpeg"
    with AlertStore(tmp_path / "deep" / "folder") as store:
        assert store.since(0, 10) == [added.alert]
        assert store.by_frame("e0", "cam1", 5) == added.alert
        assert store.by_frame("e0", "cam1", 6) is None
        assert store.by_frame("e1", "cam1", 5) is None


def test_the_same_frame_again_is_the_same_alert(tmp_path: Path) -> None:
    with AlertStore(tmp_path) as store:
        first = store.add(draft(5, why="first"), picture=b"1")
        again = store.add(draft(5, why="second"))
        assert (again.new, again.alert) == (False, first.alert)
        assert store.add(draft(5, camera="cam2")).alert.id == 2  # and the failed insert used up no id
        assert store.counts().alerts == 2


def test_since_pages_in_order(tmp_path: Path) -> None:
    with AlertStore(tmp_path) as store:
        for seq in range(10):
            store.add(draft(seq))
        assert [alert.id for alert in store.since(3, 4)] == [4, 5, 6, 7]
        assert store.since(10, 5) == []
        assert (store.oldest_id(), store.latest_id()) == (1, 10)


def test_the_decision_state_is_saved_with_the_alert(tmp_path: Path) -> None:
    state = DecisionState(window=(True, False), raised=True, raised_at=(1, 2), seen_at=(3, 4))
    with AlertStore(tmp_path) as store:
        store.add(draft(1), state)
        store.save_states({"cam2": DecisionState(calm=3)})
    with AlertStore(tmp_path) as store:
        assert store.states() == {"cam1": state, "cam2": DecisionState(calm=3)}


def test_alert_and_state_stand_or_fall_together(tmp_path: Path) -> None:
    with AlertStore(tmp_path) as store:
        store.add(draft(1), DecisionState(calm=1))
        other = sqlite3.connect(store.path)
        other.execute("CREATE TRIGGER no BEFORE INSERT ON alerts BEGIN SELECT RAISE(ABORT, 'refused'); END")
        other.close()
        with pytest.raises(ResourceError, match="refused"):
            store.add(draft(2), DecisionState(calm=2))
        assert store.states() == {"cam1": DecisionState(calm=1)}


def test_an_unreadable_state_is_forgotten_aloud(tmp_path: Path) -> None:
    told: list[str] = []
    with AlertStore(tmp_path, report=told.append) as store:
        store.save_states({"cam1": DecisionState(), "cam2": DecisionState(calm=1)})
        other = sqlite3.connect(store.path)
        other.execute("UPDATE decision_state SET body = x'c1' WHERE camera = 'cam1'")
        other.commit()
        other.close()
        assert store.states() == {"cam2": DecisionState(calm=1)}
    assert len(told) == 1
    assert "cam1" in told[0]


def test_cursors_never_go_back(tmp_path: Path) -> None:
    with AlertStore(tmp_path) as store:
        assert store.cursor("mqtt") == 0
        store.set_cursor("mqtt", 7)
        store.set_cursor("mqtt", 5)
        store.set_cursor("web", 2)
    with AlertStore(tmp_path) as store:
        assert (store.cursor("mqtt"), store.cursor("web")) == (7, 2)


def test_rows_are_bounded_and_ids_not_given_again(tmp_path: Path) -> None:
    settings = StoreSettings(max_alerts=3)
    with AlertStore(tmp_path, settings) as store:
        for seq in range(5):
            store.add(draft(seq))
        assert ids(store) == [3, 4, 5]
        assert store.counts().alerts == 3
    for row in (3, 4, 5):
        other = sqlite3.connect(tmp_path / "alerts.db")
        other.execute("DELETE FROM alerts WHERE id = ?", (row,))
        other.commit()
        other.close()
    with AlertStore(tmp_path, settings) as store:
        assert store.latest_id() == 5
        assert store.add(draft(9)).alert.id == 6


def test_rows_are_bounded_in_days(tmp_path: Path) -> None:
    with AlertStore(tmp_path, StoreSettings(max_days=2)) as store:
        store.add(draft(1, raised_at=NOW - 3 * DAY_NS))
        store.add(draft(2, raised_at=5 * 10**9))  # 1970: the clock was not set, so its age is not known
        store.add(draft(3, raised_at=NOW - DAY_NS))
        store.add(draft(4, raised_at=NOW))
        assert ids(store) == [2, 3, 4]


def test_pictures_are_bounded_and_rows_outlive_them(tmp_path: Path) -> None:
    with AlertStore(tmp_path, StoreSettings(max_pictures=2)) as store:
        for seq in range(4):
            store.add(draft(seq), picture=b"x" * 10)
        assert [alert.picture is not None for alert in store.since(0, 10)] == [False, False, True, True]
        assert (store.counts().pictures, store.counts().picture_bytes) == (2, 20)
    with AlertStore(tmp_path, StoreSettings(max_pictures=1)) as store:  # smaller bounds hold at once
        assert [alert.picture is not None for alert in store.since(0, 10)] == [False, False, False, True]


def test_pictures_are_bounded_in_bytes(tmp_path: Path) -> None:
    folder = PictureFolder(tmp_path, max_count=100, max_bytes=25)
    for name in "abc":
        assert folder.write(name, b"x" * 10)
    assert folder.path("a") is None
    assert folder.path("b") == tmp_path / "b"
    assert folder.total_bytes == 20
    assert not folder.write("huge", b"x" * 26)
    assert folder.write("b", b"x" * 3)  # the same name again replaces
    assert folder.total_bytes == 13


def test_a_picture_is_whole_or_absent(tmp_path: Path) -> None:
    (tmp_path / ".partial-x.jpg").write_bytes(b"half")
    (tmp_path / "old.jpg").write_bytes(b"whole")
    folder = PictureFolder(tmp_path, 10, 1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.jpg"]
    assert len(folder) == 1


def test_no_pictures_wanted(tmp_path: Path) -> None:
    with AlertStore(tmp_path, StoreSettings(max_picture_mb=0)) as store:
        added = store.add(draft(1), picture=b"x")
        assert (added.alert.picture, added.picture_lost) == (None, True)


# --- a full disk ---------------------------------------------------------------------------------


def limit_pages(store: AlertStore, more: int) -> None:
    connection = store._connection
    assert connection is not None
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + more}")


def test_a_full_database_frees_pictures_first_and_keeps_its_rows(tmp_path: Path) -> None:
    told: list[str] = []
    with AlertStore(tmp_path, report=told.append) as store:
        for seq in range(3):
            store.add(draft(seq), picture=b"x" * 700_000)
        limit_pages(store, 4)
        with pytest.raises(StoreFull, match="disk is full") as caught:
            fill(store, 3)
        assert "\n" not in str(caught.value)
        assert store.counts().pictures == 0
        assert len(told) == 2  # a megabyte at a time
        kept = ids(store)
        assert kept == list(range(1, len(kept) + 1))
        assert len(kept) > 3
        assert all(alert.picture is None for alert in store.since(0, 10))
        limit_pages(store, 100)
        assert store.add(draft(5000)).alert.id == len(kept) + 1  # and it goes on when there is room


def test_a_disk_too_full_for_the_new_picture_loses_the_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with AlertStore(tmp_path) as store:
        for seq in range(3):
            store.add(draft(seq), picture=b"x" * 10)
        write = PictureFolder._write

        def cramped(folder: PictureFolder, name: str, data: bytes, durable: bool) -> None:
            if folder.total_bytes + len(data) > 25:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(folder, name, data, durable)

        monkeypatch.setattr(PictureFolder, "_write", cramped)
        added = store.add(draft(9), picture=b"y" * 10)
        assert not added.picture_lost
        assert [alert.picture is not None for alert in store.since(0, 10)] == [False, False, True, True]
        added = store.add(draft(10), picture=b"y" * 26)
        assert added.picture_lost
        assert added.alert.id == 5  # the row is there all the same


def test_a_half_written_picture_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = PictureFolder(tmp_path, 10, 1000)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pictures_module.os, "fsync", full)
    assert not folder.write("a.jpg", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MB; skips where mounting is not permitted."""
    target = tmp_path / "disk"
    target.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(target)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield target
    finally:
        subprocess.run(["umount", "-l", str(target)], check=True)


def fill_disk(path: Path) -> None:
    """As a runaway log file does."""
    with open(path, "ab", buffering=0) as file:
        try:
            while True:
                file.write(b"z" * 65_536)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def test_a_really_full_disk(small_disk: Path) -> None:
    told: list[str] = []
    store = AlertStore(small_disk / "alerts", report=told.append)
    for seq in range(6):
        store.add(draft(seq), picture=b"x" * 200_000)
    fill_disk(small_disk / "logs")
    with pytest.raises(StoreFull):
        fill(store, 6)
    assert store.counts().pictures == 0
    assert any("deleted" in line for line in told)
    kept = ids(store)
    assert len(kept) > 500  # the room of the pictures went to rows
    assert kept == list(range(1, len(kept) + 1))
    store.close()
    store = AlertStore(small_disk / "alerts")  # opening on a disk that is still full, without pictures to delete
    assert ids(store) == kept
    (small_disk / "logs").unlink()
    assert store.add(draft(30_000)).alert.id == kept[-1] + 1
    store.close()


# --- damage --------------------------------------------------------------------------------------


def overwrite_header(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to look like one" * 10)


def cut_short(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 - 100])


def scribble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [overwrite_header, cut_short, scribble])
@pytest.mark.parametrize("mark", ["kept", "lost", "damaged"])
def test_a_damaged_file_is_kept_aside_and_no_id_is_given_again(
    tmp_path: Path, damage: Callable[[Path], None], mark: str
) -> None:
    told: list[str] = []
    with AlertStore(tmp_path) as store:
        for seq in range(200):
            store.add(draft(seq))
    damage(store.path)
    if mark == "lost":
        (tmp_path / "alerts.ids").unlink()
    elif mark == "damaged":
        (tmp_path / "alerts.ids").write_text("12 deadbeef\n")
    with AlertStore(tmp_path, report=told.append) as store:
        assert store.counts().alerts == 0
        assert store.latest_id() >= 200  # so that nobody who has seen alert 200 takes it for a new store
        assert store.add(draft(1)).alert.id > 200
    assert len(told) == 1
    assert "moved to alerts.db.damaged-" in told[0]
    assert len(list(tmp_path.glob("alerts.db.damaged-*"))) >= 1


def test_damage_found_while_running(tmp_path: Path) -> None:
    told: list[str] = []
    with AlertStore(tmp_path, report=told.append) as store:
        for seq in range(50):
            store.add(draft(seq))
        assert store._connection is not None
        store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        store._connection.execute("PRAGMA cache_size = 0")
        overwrite_header(store.path)
        added = store.add(draft(1000))
        assert added.alert.id > 50
        assert [alert.id for alert in store.since(0, 10)] == [added.alert.id]
    assert len(told) == 1


def test_few_damaged_files_are_kept(tmp_path: Path) -> None:
    for _ in range(6):
        (tmp_path / "alerts.db").write_bytes(b"junk" * 300)
        AlertStore(tmp_path, report=lambda line: None).close()
    assert len(list(tmp_path.glob("alerts.db.damaged-*"))) == 3


def test_a_missing_database_continues_above_the_mark(tmp_path: Path) -> None:
    with AlertStore(tmp_path) as store:
        last = store.add(draft(1)).alert.id
    for path in tmp_path.glob("alerts.db*"):
        path.unlink()
    with AlertStore(tmp_path) as store:
        assert store.add(draft(1)).alert.id > last


def test_the_mark_moves_ahead_of_the_ids(tmp_path: Path) -> None:
    mark = IdMark(tmp_path / "ids")
    assert mark.base(lost=False) == 0
    for number in (1, 500, 1025, 1026, 5000):
        mark.cover(number)
        assert IdMark(tmp_path / "ids").base(lost=False) >= number
    assert not list(tmp_path.glob("*.partial"))


def test_an_unreadable_row_is_left_out_aloud(tmp_path: Path) -> None:
    told: list[str] = []
    with AlertStore(tmp_path, report=told.append) as store:
        for seq in range(3):
            store.add(draft(seq))
        other = sqlite3.connect(store.path)
        other.execute("UPDATE alerts SET body = x'c1' WHERE id = 2")
        other.commit()
        other.close()
        assert ids(store) == [1, 3]
    assert len(told) == 1


# --- a machine that refuses ----------------------------------------------------------------------


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(ResourceError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "alerts").write_text("")
    assert "alerts.db" in refused(lambda: AlertStore(tmp_path / "alerts"))


def test_a_database_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "alerts.db").mkdir()
    assert "cannot be used" in refused(lambda: AlertStore(tmp_path))


def test_a_newer_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    AlertStore(tmp_path).close()
    other = sqlite3.connect(tmp_path / "alerts.db")
    other.execute("PRAGMA user_version = 99")
    other.close()
    assert "newer version" in refused(lambda: AlertStore(tmp_path))
    assert not list(tmp_path.glob("*.damaged-*"))


def test_a_foreign_database_is_moved_aside(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "alerts.db")
    other.execute("CREATE TABLE shopping (item TEXT)")
    other.close()
    with AlertStore(tmp_path, report=lambda line: None) as store:
        store.add(draft(1))
    assert len(list(tmp_path.glob("alerts.db.damaged-*"))) == 1


def test_a_database_that_another_process_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.alerts.database.BUSY_MS", 50)
    with AlertStore(tmp_path) as store:
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert "another process" in refused(lambda: store.add(draft(1)))
        other.execute("ROLLBACK")
        other.close()
        assert store.add(draft(1)).alert.id == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "permissions" in refused(lambda: AlertStore(tmp_path / "alerts"))
