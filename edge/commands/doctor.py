"""``edge doctor``: what this machine has, and what would stop the daemon."""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

from edge.errors import Exit

Grade = Literal["ok", "note", "stop"]


@dataclass(frozen=True)
class Finding:
    """One line: ``stop`` means the daemon cannot run like this."""

    grade: Grade
    what: str
    text: str


@click.command("doctor")
@click.option("--self-test", is_flag=True, help="Also run a short line end to end.")
@click.option("--line", type=click.Path(path_type=Path), help="Also check a line file and its bundles.")
@click.option("--runtime", type=click.Path(path_type=Path), help="Runtime folder to check.")
@click.option("--state", type=click.Path(path_type=Path), help="State folder to check.")
@click.pass_context
def command(ctx: click.Context, self_test: bool, line: Path | None, runtime: Path | None, state: Path | None) -> None:
    """Look at processor, memory, runtimes, folders and limits. Exit code 6 when something would stop the daemon."""
    findings = list(examine(runtime, state))
    if line is not None:
        findings.append(_attempt("line file", lambda: _check_line(line)))
    if self_test:
        findings.append(_attempt("self-test", _self_test))
    marks = {"ok": "ok  ", "note": "note", "stop": "STOP"}
    for finding in findings:
        click.echo(f"{marks[finding.grade]}  {finding.what:<14} {finding.text}")
    if any(finding.grade == "stop" for finding in findings):
        ctx.exit(Exit.NO_RESOURCE)


def examine(runtime: Path | None, state: Path | None) -> Iterator[Finding]:
    """Everything that can be told without starting anything."""
    yield Finding("ok", "python", f"{platform.python_version()} on {platform.machine()}, kernel {platform.release()}")
    cores = len(os.sched_getaffinity(0))
    yield Finding(
        "ok" if cores > 1 else "note", "processor", f"{cores} cores" + ("" if cores > 1 else "; stages share one")
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Finding("ok" if memory >= 1 else "note", "memory", f"{memory:.1f} GiB")
    yield _attempt("shared memory", _sealed_memory)
    yield from _runtimes()
    yield _attempt("engine", _engine)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield Finding("ok" if limit >= 1024 else "note", "open files", f"limit {limit}; 64 cameras need about 1000")
    from edge.supervisor.folders import prepare_folder, runtime_folder, state_folder
    from edge.wire.link import check_ipc_path

    def runtime_ok() -> str:
        folder = prepare_folder(runtime_folder("line", runtime))
        check_ipc_path(folder / "preprocess.in")
        return str(folder)

    def state_ok() -> str:
        folder = prepare_folder(state_folder("line", state))
        return f"{folder}, {shutil.disk_usage(folder).free / 2**30:.1f} GiB free"

    yield _attempt("runtime folder", runtime_ok)
    yield _attempt("state folder", state_ok)


def _attempt(what: str, check: Callable[[], str]) -> Finding:
    """The check's text, or its failure as a finding that stops."""
    try:
        return Finding("ok", what, check())
    except Exception as error:
        return Finding("stop", what, str(error).replace("\n", "; ") or type(error).__name__)


def _sealed_memory() -> str:
    from edge.wire.pool import SlotPool

    pool = SlotPool.create(1, 2, 1 << 20, "doctor")
    pool.close()
    return "sealed memfds work"


def _runtimes() -> Iterator[Finding]:
    from importlib import metadata

    for name, need in (("openvino", True), ("onnxruntime", False), ("tensorrt", False), ("pycuda", False)):
        if importlib.util.find_spec(name) is None:
            yield Finding("stop" if need else "note", name, "not installed" + ("" if need else " (optional)"))
        else:
            version = metadata.version(name)
            # Installed is not working: of these only OpenVINO and ONNX Runtime are driven by this version.
            unused = "" if name in ("openvino", "onnxruntime") else "; installed, not used by this version"
            yield Finding("ok" if not unused else "note", name, version + unused)


def _engine() -> str:
    import time

    import numpy as np

    from engines import builtin_graph, open_engine

    engine = open_engine(builtin_graph())
    picture = np.zeros((1, *engine.info.input_size, 3), np.uint8)
    times = []
    for _ in range(12):
        start = time.perf_counter()
        engine.infer(picture)
        times.append(time.perf_counter() - start)
    info = engine.info
    median = 1000 * sorted(times[2:])[5]
    return f"built-in backbone on {info.runtime}, {info.precision}, 1 thread: {median:.1f} ms a picture"


def _check_line(path: Path) -> str:
    from edge.commands.run import check_line

    return check_line(path)[-1]


def _self_test() -> str:
    import subprocess

    with tempfile.TemporaryDirectory(prefix="edge-doctor-") as folder:
        arguments = [sys.executable, "-m", "edge.cli", "demo", "--frames", "20", "--good", "30", "--out", folder]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(f"the demo ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    return "a short line ran end to end, and its ledger added up"
