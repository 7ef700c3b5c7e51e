"""Compiled blobs on disk: what a runtime made of a graph for this very device, so that it starts faster.

A blob is only ever a copy of what can be compiled again, so no fault of the cache is fatal: a damaged or
missing blob is compiled anew, and a full or read-only disk costs a log line. The runtime parses a blob
without checking it and could crash on a damaged one; therefore each carries its SHA-256, checked before the
runtime sees it. That detects damage, not malice: the folder must belong to the user who runs the engine.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from engines.files import write_atomically

MAGIC = b"EDGEBLOB1\n"
SUFFIX = ".blob"
DEFAULT_MAX_BYTES = 1 << 30
_LEFTOVER_S = 3600.0  # a temporary file this old belongs to a process that was killed while writing

log = logging.getLogger(__name__)


class BlobCache:
    """Blobs in one folder, the least recently used ones removed when they exceed ``max_bytes`` in all."""

    def __init__(self, folder: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def path(self, key: Mapping[str, str]) -> Path:
        """Where the blob of ``key`` lies. Every fact that changes the blob must be in the key."""
        text = json.dumps(dict(key), sort_keys=True)
        return self.folder / (hashlib.sha256(text.encode()).hexdigest() + SUFFIX)

    def get(self, key: Mapping[str, str]) -> bytes | None:
        """The blob of ``key``, now the most recently used, or None where there is no undamaged one."""
        path = self.path(key)
        try:
            if path.stat().st_size > self.max_bytes:
                return None
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("compiled blob %s cannot be read (%s); compiling again", path, error.strerror)
            return None
        start = len(MAGIC) + hashlib.sha256().digest_size
        blob = data[start:]
        if data[:start] != MAGIC + hashlib.sha256(blob).digest():
            log.warning("compiled blob %s is damaged; compiling again", path)
            return None
        try:
            os.utime(path)
        except OSError:
            pass  # a read-only cache still serves; only the order of eviction suffers
        return blob

    def put(self, key: Mapping[str, str], blob: bytes) -> None:
        """Keeps ``blob`` for ``key`` and evicts old ones. A blob over ``max_bytes`` is not kept."""
        data = MAGIC + hashlib.sha256(blob).digest() + blob
        if len(data) > self.max_bytes:
            return
        path = self.path(key)
        try:
            write_atomically(path, data)
            self._evict(keep=path)
        except OSError as error:
            log.warning("compiled blob %s cannot be kept (%s)", path, error.strerror)

    def _evict(self, keep: Path) -> None:
        now, found = time.time(), []
        for path in self.folder.iterdir():
            try:
                state = path.stat()
                if path.suffix == SUFFIX:
                    found.append((path != keep, state.st_mtime_ns, state.st_size, path))
                elif _is_leftover(path) and now - state.st_mtime > _LEFTOVER_S:
                    path.unlink()
            except FileNotFoundError:
                pass  # another process evicts too
        total = sum(size for _, _, size, _ in found)
        for evictable, _, size, path in sorted(found, key=lambda entry: entry[1]):
            if total <= self.max_bytes:
                break
            if evictable:
                path.unlink(missing_ok=True)
                total -= size


def _is_leftover(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix == ".tmp"
