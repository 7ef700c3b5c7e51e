"""How much memory a process may still take: of the machine, and of its control group."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Bytes that can be taken without pushing the machine into swapping: the kernel's MemAvailable, or what the
    control group (v2, as systemd's ``MemoryMax`` and containers set it) leaves, whichever is less. None where the
    system does not say."""
    figures = [_available(meminfo), _group_room(cgroup)]
    known = [figure for figure in figures if figure is not None]
    return min(known) if known else None


def gigabytes(size: int) -> str:
    """``size`` bytes for people: "1.4 GB"."""
    return f"{size / 1e9:.1f} GB"


def _available(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _group_room(cgroup: Path) -> int | None:
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        if limit == "max":
            return None
        return max(0, int(limit) - int((cgroup / "memory.current").read_text()))
    except (OSError, ValueError):
        return None
