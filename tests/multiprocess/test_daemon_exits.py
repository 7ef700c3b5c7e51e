"""Exit codes are a contract: what cannot start says why in one line and leaves; what can recover goes on."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from line import ONE_THREAD, ROOT, Line, folder, synthetic, toml

from edge.errors import Exit

pytestmark = pytest.mark.multiprocess

Start = Callable[..., Line]
Once = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def once(tmp_path: Path) -> Once:
    """Run a daemon that is expected not to start; returns how it ended."""

    def run(content: str, *prefix: str, state: Path | None = None) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "line.toml"
        path.write_text(content)
        folders = ["--runtime", str(tmp_path / "run"), "--state", str(state or tmp_path / "state")]
        done = subprocess.run(
            [*prefix, sys.executable, "-m", "edge.cli", "run", str(path), *folders],
            cwd=ROOT,
            env={**os.environ, **ONE_THREAD},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in done.stderr
        return done

    return run


def line_of(bundle: Path, *cameras: object, **sections: object) -> str:
    return toml({"line": {"name": "test", "bundle": bundle}, "camera": list(cameras), **sections})


def test_five_mistakes_are_told_at_once(once: Once, bundle: Path, tmp_path: Path) -> None:
    content = line_of(
        bundle,
        {"name": "a/b", "source": {"kind": "synthetic", "fps": -3}},
        {"name": "c", "polcy": "every", "source": {"kind": "webcam"}},
        pipeline={"slots": "many"},
    )
    done = once(content)
    assert done.returncode == Exit.BAD_CONFIG
    told = done.stderr.splitlines()
    assert len(told) == 6
    assert "5 mistakes; nothing was started" in told[-1]
    for key in ("camera[0].name", "camera[0].source.fps", "camera[1].polcy", "camera[1].source.kind", "pipeline.slots"):
        assert any(f"line.toml: {key}: " in line for line in told), f"{key} not in {told}"
    assert "Did you mean policy?" in done.stderr
    assert "-3" in done.stderr
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "state").exists()


def damage_cut(bundle: Path) -> None:
    data = (bundle / "head.safetensors").read_bytes()
    (bundle / "head.safetensors").write_bytes(data[: len(data) // 2])


def damage_edited(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["calibration"]["threshold"] *= 2
    (bundle / "bundle.json").write_text(json.dumps(manifest))


def damage_gone(bundle: Path) -> None:
    shutil.rmtree(bundle)


@pytest.mark.parametrize("damage", [damage_gone, damage_cut, damage_edited])
def test_a_bundle_that_cannot_be_used(once: Once, bundle: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    damage(copy)
    done = once(line_of(copy, synthetic()))
    assert done.returncode == Exit.BAD_BUNDLE
    assert len(done.stderr.splitlines()) == 1
    assert str(copy) in done.stderr


def test_a_state_folder_that_cannot_be_written(once: Once, bundle: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o500)
    prefix: list[str] = []
    if os.geteuid() == 0:  # root may write everywhere, unless it gives up the capability to
        if shutil.which("setpriv") is None:
            pytest.skip("runs as root, and there is no setpriv to give up the right to write everywhere")
        caps = "-dac_override,-dac_read_search"
        prefix = ["setpriv", f"--bounding-set={caps}", f"--inh-caps={caps}"]
    done = once(line_of(bundle, synthetic()), *prefix, state=state)
    assert done.returncode == Exit.NO_RESOURCE
    assert len(done.stderr.splitlines()) == 1
    assert f"{state}: cannot be written (Permission denied)" in done.stderr
    assert list(state.iterdir()) == []


def test_a_state_folder_that_is_a_file(once: Once, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    done = once(line_of(bundle, synthetic()))
    assert done.returncode == Exit.NO_RESOURCE
    assert "is a file" in done.stderr


def test_a_runtime_folder_too_long_for_sockets(once: Once, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "line.toml"
    path.write_text(line_of(bundle, synthetic()))
    arguments = ["run", str(path), "--runtime", str(tmp_path / ("r" * 110)), "--state", str(tmp_path / "state")]
    done = subprocess.run(
        [sys.executable, "-m", "edge.cli", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == Exit.NO_RESOURCE
    assert "choose a shorter runtime folder" in done.stderr


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_in_use(once: Once, bundle: Path, cache: Path, taken_port: int) -> None:
    publish = {"endpoint": f"tcp://127.0.0.1:{taken_port}"}
    done = once(line_of(bundle, synthetic(), publish=publish, engine={"cache": cache}))
    assert done.returncode == Exit.NO_RESOURCE, done.stderr
    assert f"tcp://127.0.0.1:{taken_port}: in use by another process" in done.stderr


def test_a_folder_camera_that_is_a_file(once: Once, bundle: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").touch()
    done = once(line_of(bundle, folder(tmp_path / "pictures"), engine={"cache": cache}))
    assert done.returncode == Exit.NO_CAMERA, done.stderr
    assert "this is a file; path must name a folder" in done.stderr


def test_a_second_daemon_is_refused_and_the_first_never_notices(start: Start, tmp_path: Path) -> None:
    line = start(synthetic())
    line.moves_on()
    for runtime, state in ((line.runtime, tmp_path / "state"), (tmp_path / "run", line.state)):
        arguments = ["run", line.path, "--runtime", runtime, "--state", state]
        second = subprocess.run(
            [sys.executable, "-m", "edge.cli", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert second.returncode == Exit.ALREADY_RUNNING
        assert f"another daemon runs there (process {line.pid})" in second.stderr
    line.moves_on()
    assert line.stop() == 0


def test_one_camera_works_whatever_is_wrong_with_the_others(start: Start, parts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    late = tmp_path / "late"
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        url = f"rtsp://op:geheim4711@127.0.0.1:{silent.getsockname()[1]}/cam"
        line = start(
            synthetic("a"),
            folder(tmp_path / "file", "file"),
            folder(late, "late", mode="loop", fps=10),
            {"name": "mute", "source": {"kind": "rtsp", "url": url, "open_timeout_s": 1.0}},
        )
        line.until(lambda: line.says("capture-file cannot start"), 10)
        line.until(lambda: line.says("there is no such folder"), 10)
        line.until(lambda: line.says("capture-mute") and line.says("trying again"), 15)
        line.moves_on("a", 20)
        statuses = {name: camera.status for name, camera in line.told.health[-1].cameras.items()}
        assert statuses["a"] == "connected"
        assert statuses["file"] == "failed"
        assert statuses["late"] == statuses["mute"] == "lost"
        assert line.told.health[-1].status == "degraded"
        shutil.copytree(parts / "test" / "good", late)
        line.moves_on("late", 3)
        assert set(line.missed("a")) <= {"stale", "no_slot"}
        assert line.stop() == 0
    assert "geheim4711" not in line.log
    line.assert_balanced()
    assert line.counts("file").captured == line.counts("mute").captured == 0


@pytest.mark.parametrize("fault", ["damaged", "replaced"])
def test_a_bundle_changed_under_a_running_line_stops_it_at_the_next_crash(
    start: Start, bundle: Path, other_bundle: Path, tmp_path: Path, fault: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    line = start(synthetic(), bundle=copy, listen=False)
    line.moves_on()
    if fault == "damaged":
        damage_cut(copy)
    else:  # by another good one: half a line of each would give scores that are nobody's
        shutil.rmtree(copy)
        shutil.copytree(other_bundle, copy)
    line.moves_on()  # it is in memory
    line.kill("head")
    assert line.ended() == Exit.BAD_BUNDLE
    assert line.says(f"{copy}: was replaced" if fault == "replaced" else str(copy))
    assert "Traceback" not in line.log
    line.assert_balanced()


def test_a_stage_that_crashes_too_often_ends_the_line_aloud(start: Start) -> None:
    line = start(synthetic(), pipeline={"restarts": 0}, listen=False)
    line.moves_on()
    line.kill("backbone")
    assert line.ended() == Exit.GAVE_UP
    assert line.says("backbone: SIGKILL (out of memory, perhaps); crashed 1 times, giving up")
    line.assert_balanced()
