"""Folders, their locks, and the line to the service manager."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from edge.errors import AlreadyRunning, ResourceError
from edge.supervisor.folders import FolderLock, prepare_folder, runtime_folder, state_folder
from edge.supervisor.notify import notify, watchdog_interval_s

NAMES = ("RUNTIME_DIRECTORY", "STATE_DIRECTORY", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "NOTIFY_SOCKET")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_where_the_folders_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/eve")
    assert state_folder("press") == Path("/home/eve/.local/state/edge-inspect/press")
    assert runtime_folder("press").name == "press"
    assert str(os.getuid()) in str(runtime_folder("press"))  # nobody else's folder under /tmp
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert runtime_folder("press") == Path("/run/user/7/edge-inspect/press")
    assert state_folder("press") == Path("/xdg/edge-inspect/press")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/edge:/run/second")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/edge")
    assert runtime_folder("press") == Path("/run/edge")
    assert state_folder("press") == Path("/var/lib/edge")
    assert runtime_folder("press", Path("/r")) == Path("/r")
    assert state_folder("press", Path("/s")) == Path("/s")


def test_a_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    made = prepare_folder(tmp_path / "a" / "b")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert list(made.iterdir()) == []  # the probe is gone


def test_a_file_in_a_folders_place(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(ResourceError, match=r"is a file|Not a directory"):
            prepare_folder(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder to another user takes root")
def test_another_users_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(ResourceError, match="belongs to another user"):
        prepare_folder(tmp_path)


def test_one_daemon_a_folder(tmp_path: Path) -> None:
    first = FolderLock(tmp_path)
    with pytest.raises(AlreadyRunning, match=f"process {os.getpid()}"):
        FolderLock(tmp_path)
    first.release()
    FolderLock(tmp_path).release()


def test_a_folder_whose_sockets_would_have_no_room_for_their_names(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    with pytest.raises(ResourceError, match="shorter runtime folder"):
        FolderLock(deep)


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
    ],
)
def test_how_often_the_watchdog_is_due(environ: dict[str, str], interval: float | None) -> None:
    assert watchdog_interval_s(environ) == interval


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    address = f"@edge-unit-{os.getpid()}" if abstract else str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if abstract else address)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert notify("READY=1", "STATUS=two cameras")
        assert manager.recv(4096) == b"READY=1\nSTATUS=two cameras"


@pytest.mark.parametrize("address", ["", "relative/path", "/nowhere/at/all"])
def test_notify_without_a_manager_is_no_fault(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert notify("READY=1") is False


def test_a_manager_that_does_not_listen_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        answers = [notify("WATCHDOG=1") for _ in range(2000)]
        assert answers[0] is True
        assert answers[-1] is False  # its queue is full, and we came back all the same


def test_ready_waits_for_room_in_the_managers_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        while notify("WATCHDOG=1"):
            pass
        heard: list[bytes] = []

        def read() -> None:
            while not heard or heard[-1] != b"READY=1":
                heard.append(manager.recv(4096))

        reader = threading.Thread(target=read)
        reader.start()
        assert notify("READY=1")
        reader.join(10)
        assert heard[-1] == b"READY=1"
