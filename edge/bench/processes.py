"""Processes from outside: who belongs to a tree, what CPU each has used, whether it has loaded a library."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import EdgeError

_libc = ctypes.CDLL(None, use_errno=True)


class BenchError(EdgeError):
    """A measured process failed, or did not get as far as it must in time: there is no figure."""


@dataclass(frozen=True)
class Process:
    """A line of /proc/PID/stat: ``name`` has at most 15 bytes."""

    pid: int
    name: str
    parent: int


def parse_stat(text: str) -> Process:
    """The head of /proc/PID/stat. The name is in parentheses and may itself hold spaces and parentheses."""
    pid, _, rest = text.partition(" (")
    name, _, fields = rest.rpartition(") ")
    return Process(int(pid), name, int(fields.split()[1]))


def processes() -> list[Process]:
    """All processes that can be seen now."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                found.append(parse_stat(Path(f"/proc/{entry}/stat").read_text(errors="replace")))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def tree(root: int, among: Iterable[Process]) -> list[Process]:
    """``root`` and everything below it."""
    everyone = list(among)
    members = [p for p in everyone if p.pid == root]
    for member in members:  # grows while it is walked
        members += [p for p in everyone if p.parent == member.pid]
    return members


def cpu_ns(pid: int) -> int:
    """CPU time that a process has used since it started, all its threads, in nanoseconds.

    The kernel's per-process clock, not the 10 ms ticks of /proc. Raises ProcessLookupError when it is gone.
    """
    clock = ctypes.c_int()
    error = _libc.clock_getcpuclockid(pid, ctypes.byref(clock))
    if error:
        raise ProcessLookupError(error, os.strerror(error))
    try:
        return time.clock_gettime_ns(clock.value)
    except OSError as gone:
        raise ProcessLookupError(gone.errno, gone.strerror) from None


def busy_ns(stat: str) -> int:
    """CPU time that the whole machine has spent on anything but waiting, from the text of /proc/stat."""
    for line in stat.splitlines():
        if line.startswith("cpu "):
            user, nice, system, _, _, irq, softirq, steal = (int(n) for n in line.split()[1:9])
            return (user + nice + system + irq + softirq + steal) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
    raise ValueError("/proc/stat has no line for all processors")


def machine_busy_ns() -> int:
    """:func:`busy_ns` now."""
    return busy_ns(Path("/proc/stat").read_text())


def has_loaded(pid: int, library: str) -> bool:
    """Whether a process has mapped a file whose path contains ``library`` (``libtorch``)."""
    try:
        return library in Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False


def run_worker(module: str, spec: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Run ``python -m module SPEC`` in a fresh process; its last line of output is its result.

    Raises BenchError when it fails or takes too long.
    """
    return finish_worker(start_worker(module, spec), timeout_s)


def start_worker(module: str, spec: dict[str, Any], fds: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    """Start a worker that inherits ``fds``."""
    command = [sys.executable, "-m", module, json.dumps(spec)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, pass_fds=fds)


def finish_worker(worker: subprocess.Popen[str], timeout_s: float) -> dict[str, Any]:
    """The result of a worker; it is dead when this returns or raises."""
    what = worker.args[2] if isinstance(worker.args, list) else "worker"
    try:
        out, err = worker.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise BenchError(f"{what}: not done after {timeout_s:.0f} s; the machine may be too busy to measure") from None
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.communicate()
    if worker.returncode != 0:
        raise BenchError(f"{what}: failed with {worker.returncode}: {last_line(err)}")
    result: dict[str, Any] = json.loads(out.splitlines()[-1])
    return result


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"
