"""Which files of a watched folder are complete and new. Pure: it is shown listings and the time, and decides.

Polling and not inotify: inotify does not see what other machines write to NFS or SMB shares, which is how pictures
often arrive; its events say that a file was touched, not that it is whole, so sizes must be compared anyway; and it
loses events when its queue is full, so the folder must be scanned anyway. A scan costs about 7 us a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge.pictures import is_picture

Version = tuple[int, int, int]  # mtime in ns, size, inode: a file rewritten in place or replaced is another version
Listing = dict[str, Version]

MAX_DEPTH = 16


def scan(folder: Path, recursive: bool) -> Listing:
    """The pictures in ``folder``: path relative to it (with ``/``) -> version. Dot files and dot folders, other
    suffixes, and what vanishes meanwhile are left out. Raises OSError when ``folder`` itself cannot be listed."""
    return dict(_walk(folder, "", MAX_DEPTH if recursive else 0))


def _walk(folder: Path, prefix: str, depth: int) -> Iterator[tuple[str, Version]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    if depth > 0:
                        yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", depth - 1)
                elif is_picture(Path(entry.name)) and entry.is_file():
                    yield prefix + entry.name, version_of(entry.stat())
            except OSError:  # vanished between listing and looking, or not ours to read
                continue


def version_of(stat: os.stat_result) -> Version:
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def sort_key(order: str) -> Callable[[tuple[str, Version]], tuple[int, str]]:
    """Key that sorts (name, version) pairs by ``name``, or by ``mtime`` and then name."""
    return (lambda item: (item[1][0], item[0])) if order == "mtime" else (lambda item: (0, item[0]))


@dataclass
class _Pending:
    version: Version
    since_s: float
    patient: bool = False  # it settled and could not be decoded: it gets a longer time


class FolderWatch:
    """Delivers each version of each file once, when it has not changed for ``settle_s`` seconds.

    An empty file, and one that did not decode (:meth:`give_time`), gets ``patience_s`` before it is delivered all the
    same: some writers create the file, and fill it later, or pause in the middle. Remembers only files that are
    present: one that leaves and comes back is new.
    """

    def __init__(self, settle_s: float, patience_s: float) -> None:
        self._settle_s = settle_s
        self._patience_s = max(settle_s, patience_s)
        self._delivered: Listing = {}
        self._pending: dict[str, _Pending] = {}

    @property
    def remembered(self) -> int:
        """Files in memory; at most those that the last listing held."""
        return len(self._delivered.keys() | self._pending.keys())

    def observe(self, listing: Listing, now_s: float) -> list[tuple[str, Version]]:
        """Files that are complete now and were not delivered, in no order. They are not counted as delivered until
        :meth:`delivered` is called. ``now_s``: any monotonic clock, in seconds."""
        self._delivered = {n: v for n, v in self._delivered.items() if n in listing}
        self._pending = {n: p for n, p in self._pending.items() if n in listing}
        ready = []
        for name, version in listing.items():
            if self._delivered.get(name) == version:
                continue
            pending = self._pending.get(name)
            if pending is None or pending.version != version:
                self._pending[name] = _Pending(version, now_s)
                continue
            empty = version[1] == 0
            needed = self._patience_s if pending.patient or empty else self._settle_s
            if now_s - pending.since_s >= needed:
                ready.append((name, version))
        return ready

    def delivered(self, name: str, version: Version) -> None:
        """This version was handed out; it will not come again."""
        self._delivered[name] = version
        self._pending.pop(name, None)

    def changed(self, name: str) -> None:
        """The file was another one when it was read: wait for it to settle again."""
        self._pending.pop(name, None)

    def give_time(self, name: str, now_s: float) -> bool:
        """A settled file did not decode: True if it should be tried again later, False if it had its time."""
        pending = self._pending.get(name)
        if pending is None or now_s - pending.since_s >= self._patience_s:
            return False
        pending.patient = True
        return True
