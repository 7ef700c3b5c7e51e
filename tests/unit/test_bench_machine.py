"""What the kernel's files say, read as text that was recorded on several machines."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from edge.bench.machine import cpu_model, machine, threads_a_core, versions, warnings
from edge.bench.processes import (
    BenchError,
    Process,
    busy_ns,
    cpu_ns,
    finish_worker,
    last_line,
    parse_stat,
    processes,
    tree,
)

XEON = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R)   Processor\n"
RASPBERRY = "processor\t: 0\nBogoMIPS\t: 108.00\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4\n"
PLAIN_ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\n"


@pytest.mark.parametrize(
    ("text", "model"),
    [(XEON, "Intel(R) Xeon(R) Processor"), (RASPBERRY, "BCM2835"), (PLAIN_ARM, None), ("", None)],
)
def test_cpu_model(text: str, model: str | None) -> None:
    assert cpu_model(text) == model


@pytest.mark.parametrize(("text", "count"), [("0\n", 1), ("0,4\n", 2), ("0-1\n", 2), ("0-1,8-9", 4), ("", None)])
def test_threads_a_core(text: str, count: int | None) -> None:
    assert threads_a_core(text) == count


def test_this_machine_and_its_versions() -> None:
    about = machine()
    assert about["cores"] >= 1
    assert about["kernel"] == os.uname().release
    found = versions()
    assert {"python", "numpy", "pyzmq", "libzmq", "opencv-python-headless"} <= found.keys()


def test_warnings_of_load_and_governor() -> None:
    quiet = {"load_before": 0.1, "cores": 2, "governor": None}
    assert warnings(quiet) == []
    assert warnings({**quiet, "governor": "performance"}) == []
    assert "busy before the run" in warnings({**quiet, "load_before": 1.5})[0]
    assert "'powersave'" in warnings({**quiet, "governor": "powersave"})[0]


def test_stat_of_a_name_with_spaces_and_parentheses() -> None:
    assert parse_stat("4711 (edge:capture-c0) S 4700 4711 4711 0 -1") == Process(4711, "edge:capture-c0", 4700)
    assert parse_stat("1 (a) (b) S) R 7 1 1") == Process(1, "a) (b) S", 7)


def test_tree_is_what_lies_below() -> None:
    everyone = [Process(4, "d", 3), Process(3, "c", 2), Process(2, "b", 1), Process(9, "x", 1), Process(1, "a", 0)]
    assert [p.pid for p in tree(2, everyone)] == [2, 3, 4]
    assert tree(77, everyone) == []


def test_a_child_is_found() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.pid in [p.pid for p in tree(os.getpid(), processes())]
        child.kill()


def test_cpu_clock_of_a_process() -> None:
    begun = cpu_ns(os.getpid())
    used = time.process_time_ns()
    while time.process_time_ns() - used < 20_000_000:
        pass
    assert cpu_ns(os.getpid()) - begun >= 20_000_000
    assert abs(cpu_ns(os.getpid()) - time.process_time_ns()) < 50_000_000


def test_cpu_clock_of_a_process_that_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    with pytest.raises(ProcessLookupError):
        cpu_ns(child.pid)


def test_busy_time_leaves_waiting_out() -> None:
    tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    #       user nice system idle iowait irq softirq steal guest guest_nice
    text = "cpu  100 10 50 9000 800 3 2 5 40 0\ncpu0 50 5 25 4500 400 1 1 2 20 0\n"
    assert busy_ns(text) == (100 + 10 + 50 + 3 + 2 + 5) * tick
    with pytest.raises(ValueError):
        busy_ns("intr 1 2 3\n")


def test_last_line() -> None:
    assert last_line("Traceback\n  File\nValueError: so it is\n\n") == "ValueError: so it is"
    assert last_line("\n") == "it said nothing"


def _worker(code: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True)


def test_a_worker_gives_its_last_line() -> None:
    assert finish_worker(_worker("print('noise'); print('{\"wall_ns\": 5}')"), 30) == {"wall_ns": 5}


def test_a_worker_that_fails_says_why() -> None:
    with pytest.raises(BenchError, match="failed with 1: RuntimeError: no camera"):
        finish_worker(_worker("raise RuntimeError('no camera')"), 30)


def test_a_worker_that_hangs_is_killed() -> None:
    worker = _worker("import time; time.sleep(600)")
    with pytest.raises(BenchError, match="not done after"):
        finish_worker(worker, 0.3)
    assert worker.poll() is not None
