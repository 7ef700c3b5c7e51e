"""``edge bench`` end to end at tiny sizes: that it measures what it says, not how fast this machine is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.bench.processes import processes

pytestmark = pytest.mark.multiprocess


def _bench(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge.cli", "bench", *arguments]
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment)


def _json(*arguments: str, folder: Path) -> dict[str, Any]:
    done = _bench(*arguments, "--json", "-", folder=folder)
    assert done.returncode == 0, done.stderr
    body: dict[str, Any] = json.loads(done.stdout)  # nothing else on stdout
    assert body["bench"] == arguments[0]
    assert body["machine"]["cores"] >= 1
    assert body["versions"]["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}.")
    assert not list(folder.glob("edge-bench-*"))  # nothing is left behind
    return body


def test_start_up(tmp_path: Path) -> None:
    body = _json("start-up", "--rounds", "2", folder=tmp_path)
    assert body["torch_loaded"] is False
    assert body["heavy_imports"] == []
    assert 0 < body["python_s"]["min"] <= body["python_s"]["median"]
    assert body["edge_s"]["samples"] == 2
    assert any("too few" in text for text in body["unstable"])


def test_start_up_for_people(tmp_path: Path) -> None:
    target = tmp_path / "start-up.json"
    done = _bench("start-up", "--rounds", "1", "--json", str(target), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "torch loaded: no" in done.stdout
    assert "UNSTABLE: edge --help" in done.stdout  # one round proves nothing
    assert json.loads(target.read_text())["limit_s"] == 0.3


def test_wire(tmp_path: Path) -> None:
    size = ("--size", "320x240", "--slots", "3")
    body = _json("wire", "--rounds", "1", "--frames", "40", *size, folder=tmp_path)
    assert set(body["transports"]) == {"slots", "slots_in_place", "zmq_copy", "zmq_nocopy"}
    assert all(row["frames_per_s"]["median"] > 0 for row in body["transports"].values())
    assert all(row["cpu_us"]["median"] > 0 for row in body["transports"].values())
    rates = {name: row["frames_per_s"]["median"] for name, row in body["transports"].items()}
    assert body["ratio"] == pytest.approx(rates["slots"] / rates["zmq_copy"])
    assert body["settings"]["frames"] == 40


def test_wire_refuses_a_size_that_is_none(tmp_path: Path) -> None:
    done = _bench("wire", "--size", "big", folder=tmp_path)
    assert done.returncode == 2
    assert "write WIDTHxHEIGHT" in done.stderr


def test_pipeline(tmp_path: Path) -> None:
    few = ("--rounds", "1", "--frames", "30", "--good", "20", "--size", "160x120", "--seconds", "1", "--fps", "30")
    body = _json("pipeline", "--cameras", "2", *few, folder=tmp_path)
    (only,) = body["rounds"]
    assert body["ratio"] == pytest.approx(only["pipeline"]["frames_per_s"] / only["bare"]["frames_per_s"])
    assert body["ratio"] > 0
    assert body["cpu_ratio"] > 0
    # The daemon's every process is in the sum, and none of them has loaded torch.
    stages = {"supervisor", "preprocess", "backbone", "head", "alert", "capture-c0", "capture-c1"}
    assert set(only["pipeline"]["cpu_ms"]) == stages
    assert sum(only["pipeline"]["cpu_ms"].values()) > 0
    assert body["torch_loaded"] is False
    assert only["not_inspected"] == {}  # policy "every"
    assert body["latency"]["verdicts"] > 0
    assert 0 < body["latency"]["p50_ms"] <= body["latency"]["p99_ms"] <= body["latency"]["max_ms"]
    assert 0 <= body["latency"]["share_not_inspected"] <= 1
    assert not [p for p in processes() if p.name.startswith("edge:") and p.parent == 1]


def test_pipeline_with_a_bundle_that_is_none(tmp_path: Path) -> None:
    done = _bench("pipeline", "--bundle", str(tmp_path / "nowhere"), folder=tmp_path)
    assert done.returncode == 4
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
