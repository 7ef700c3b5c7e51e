"""What a figure was measured on: the processor, its cores, the kernel, the load, the versions of what ran."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "edge-inspect",
    "numpy",
    "opencv-python-headless",
    "openvino",
    "onnxruntime",
    "pyzmq",
    "msgpack",
    "pydantic",
)


def machine() -> dict[str, Any]:
    """Processor, usable cores, threads a core, memory in MiB, kernel, frequency governor (None where the kernel does
    not say), and the one-minute load before the measurement."""
    cores = len(os.sched_getaffinity(0))
    return {
        "cpu": cpu_model(_read("/proc/cpuinfo")) or platform.processor() or "unknown",
        "cores": cores,
        "threads_a_core": threads_a_core(_read("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list")),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "kernel": platform.release(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None,
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Python's version and those of the packages that are installed, read from their metadata (no import)."""
    found = {"python": platform.python_version(), "libzmq": _libzmq()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_model(cpuinfo: str) -> str | None:
    """The processor's name from the text of /proc/cpuinfo; None where it has none (most ARM boards)."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware") and value.strip():
            return " ".join(value.split())
    return None


def threads_a_core(siblings: str) -> int | None:
    """How many hardware threads share the first core, from a kernel list such as ``0,4`` or ``0-1``."""
    text = siblings.strip()
    if not text:
        return None
    count = 0
    for part in text.split(","):
        first, dash, last = part.partition("-")
        count += int(last) - int(first) + 1 if dash else 1
    return count


def warnings(about: dict[str, Any]) -> list[str]:
    """What on this machine makes figures worse or less certain than they could be."""
    told = []
    if about["load_before"] > 0.3 * about["cores"]:
        told.append(f"the machine was busy before the run: load {about['load_before']} on {about['cores']} cores")
    if about["governor"] not in (None, "performance"):
        told.append(f"the frequency governor is {about['governor']!r}, not 'performance': clocks may wander")
    return told


def _libzmq() -> str:
    import zmq

    return zmq.zmq_version()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
