"""The folder of evidence pictures: written whole or not at all, bounded in number and bytes, oldest deleted
first.

The folder is its own truth: no table lists it, so nothing can disagree with it. An alert row holds the name
of its picture, and whoever reads the row asks whether the file is (still) there.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from pathlib import Path

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PARTIAL = ".partial-"


class PictureFolder:
    """Evidence pictures below ``folder``, at most ``max_count`` of at most ``max_bytes`` together. One
    writer."""

    def __init__(self, folder: Path, max_count: int, max_bytes: int) -> None:
        self.folder = folder
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()  # oldest first
        self.total_bytes = 0
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        found = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(_PARTIAL):
                    os.unlink(entry.path)  # a writer that was killed before its rename
                elif entry.is_file(follow_symlinks=False):
                    stat = entry.stat(follow_symlinks=False)
                    found.append((stat.st_mtime_ns, entry.name, stat.st_size))
        for _, name, size in sorted(found):
            self._sizes[name] = size
            self.total_bytes += size
        self._retain()

    def __len__(self) -> int:
        return len(self._sizes)

    def path(self, name: str) -> Path | None:
        """Where the picture lies, or None when it is not there (any more)."""
        path = self.folder / name
        return path if path.is_file() else None

    def write(self, name: str, data: bytes, durable: bool = True) -> bool:
        """Keep a picture; the same name again replaces it. Makes room by deleting the oldest ones, both for
        the folder's own bounds and on a full disk. False when it could not be kept: it alone is over the
        bounds, or the disk is full without any older picture. ``durable``: on the disk, not only in its
        cache, on return.

        Raises OSError for everything else (no permission, a broken disk).
        """
        if self._max_count < 1 or len(data) > self._max_bytes:
            return False
        while True:
            try:
                self._write(name, data, durable)
                break
            except OSError as error:
                if error.errno not in FULL:
                    raise
                if self.free(len(data)) == 0:
                    return False
        self.total_bytes += len(data) - self._sizes.pop(name, 0)
        self._sizes[name] = len(data)
        self._retain()
        return True

    def free(self, wanted: int) -> int:
        """Delete the oldest pictures until ``wanted`` bytes are free or none is left; the bytes deleted."""
        freed = 0
        while self._sizes and freed < wanted:
            freed += self._delete_oldest()
        return freed

    def _write(self, name: str, data: bytes, durable: bool) -> None:
        partial = self.folder / f"{_PARTIAL}{name}"
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(partial, self.folder / name)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        if durable:
            sync_folder(self.folder)

    def _retain(self) -> None:
        while self._sizes and (len(self._sizes) > self._max_count or self.total_bytes > self._max_bytes):
            self._delete_oldest()

    def _delete_oldest(self) -> int:
        name, size = self._sizes.popitem(last=False)
        self.total_bytes -= size
        (self.folder / name).unlink(missing_ok=True)
        return size


def sync_folder(folder: Path) -> None:
    """Make a rename within ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
