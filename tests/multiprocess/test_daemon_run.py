"""The daemon in good weather: everything is inspected once, and the three ways to score agree."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from line import ONE_THREAD, ROOT, Line, folder, memfds, synthetic

pytestmark = pytest.mark.multiprocess

Start = Callable[..., Line]


def test_a_folder_once_is_scored_like_inspect_and_eval(start: Start, bundle: Path, parts: Path, tmp_path: Path) -> None:
    from calibration.evaluate import evaluate

    pictures = tmp_path / "pictures"
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    for path in sorted((parts / "test").rglob("*.png")):
        shutil.copy(path, prepared / f"{path.parent.name}-{path.name}")
    whole = sorted(path.name for path in prepared.iterdir())
    (prepared / "zero.png").touch()
    data = (prepared / whole[0]).read_bytes()
    (prepared / "cut.png").write_bytes(data[: len(data) // 3])
    (prepared / "text.png").write_text("no picture at all")
    # The camera's folder appears once the subscriber is there: no verdict can be missed, and a folder that is not
    # there yet is a camera that is tried again.
    line = start(folder(pictures, mode="once"), pipeline={"slots": 3})
    line.until(lambda: line.told.health and line.says("there is no such folder"), 10)
    prepared.rename(pictures)
    assert line.ended() == 0
    counts = line.counts()
    assert counts.captured == len(whole) + 3
    assert counts.scored == len(whole)
    assert line.missed() == {"decode": 3}
    line.assert_balanced()
    line.assert_ends_once()
    line.assert_alerts_whole()
    assert sorted(line.told.ends("a")) == list(range(counts.captured))
    told = {v.name: v for v in line.told.verdicts if v.verdict != "not_inspected"}
    assert sorted(told) == whole

    rows = subprocess.run(
        [sys.executable, "-m", "edge.cli", "inspect", str(bundle), str(pictures), "--json"],
        cwd=ROOT,
        env={**ONE_THREAD},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert rows.returncode == 5  # three of them cannot be read
    inspected = {Path(row["picture"]).name: row for row in map(json.loads, rows.stdout.splitlines())}
    evaluated = {s.name.replace("test/", "").replace("/", "-"): s for s in evaluate(bundle, parts, "mvtec").pictures}
    assert sorted(inspected) == whole
    for name in whole:
        assert told[name].score == inspected[name]["score"] == evaluated[name].score
        assert told[name].p_value == inspected[name]["p_value"] == evaluated[name].p_value
        assert told[name].verdict == inspected[name]["verdict"]
    assert {"normal", "anomalous"} == {v.verdict for v in told.values()}


def test_a_larger_batch_scores_the_same_within_rounding(start: Start, bundle: Path, parts: Path) -> None:
    from calibration.evaluate import evaluate

    pictures = parts / "test"
    cameras = [folder(pictures, name, mode="loop", recursive=True, fps=20) for name in ("a", "b")]
    line = start(*cameras, pipeline={"batch": 4, "batch_wait_ms": 20, "slots": 8})
    count = len(list(pictures.rglob("*.png")))
    line.until(lambda: min(line.scored("a"), line.scored("b")) >= count, 40)
    assert line.stop() == 0
    line.assert_balanced()
    assert line.missed("a") == line.missed("b") == {}
    told = {v.name: v.score for v in line.told.verdicts if v.score is not None}
    singly = {s.name.removeprefix("test/"): s.score for s in evaluate(bundle, parts, "mvtec").pictures}
    assert told.keys() == singly.keys()
    for name, score in told.items():
        assert math.isclose(score, singly[name], rel_tol=1e-4)


def test_bounded_cameras_end_the_daemon_by_themselves(start: Start) -> None:
    line = start(synthetic("a", frames=20, fps=60, policy="every"), synthetic("b", frames=7, fps=60, policy="every"))
    assert line.ended() == 0
    assert (line.scored("a"), line.scored("b")) == (20, 7)
    line.assert_balanced()
    line.assert_alerts_whole()


def test_pictures_of_changing_size_need_no_new_memory_for_ever(start: Start, parts: Path, tmp_path: Path) -> None:
    import cv2

    pictures = tmp_path / "watched"
    pictures.mkdir()
    line = start(folder(pictures, mode="watch", settle_s=0.02), pipeline={"slots": 2, "queue": 1})
    picture = cv2.imread(str(next((parts / "test" / "good").iterdir())))
    sizes = [(320, 240), (400, 300), (320, 240), (128, 96)]

    def feed(first: int, count: int) -> None:
        for number in range(first, first + count):
            cv2.imwrite(str(pictures / f".{number}.png"), cv2.resize(picture, sizes[number % len(sizes)]))
            (pictures / f".{number}.png").rename(pictures / f"{number:04d}.png")
        line.until(lambda: line.scored() == first + count, 20)

    feed(0, 8)
    pids = line.stages()
    feed(8, 24)
    assert line.stages() == pids
    # Three pools between the core stages, and one for the camera's frames of the moment.
    expected = {"capture-a": 1, "preprocess": 2, "backbone": 2, "head": 2, "alert": 2}
    line.until(lambda: {name: memfds(pid) for name, pid in pids.items()} == expected, 5)
    assert memfds(line.pid) == 4
    assert line.missed() == {}
    assert line.stop() == 0
    line.assert_balanced()
