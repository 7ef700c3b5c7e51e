"""Where cached files live, and how a file is written so that nobody ever sees half of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def default_cache_dir() -> Path:
    """``$CACHE_DIRECTORY`` (set by systemd), else ``edge-inspect`` under ``$XDG_CACHE_HOME`` or
    ``~/.cache``."""
    service = os.environ.get("CACHE_DIRECTORY", "").split(":")[0]
    if service:
        return Path(service)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "edge-inspect"


def write_atomically(path: Path, data: bytes) -> None:
    """Writes ``data`` to ``path`` by way of a temporary file beside it, making folders (mode 0700) as needed.

    Raises OSError, and leaves nothing behind, where the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
