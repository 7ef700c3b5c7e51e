"""Where a line keeps its sockets and its state, and the lock that makes it the only one there."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from edge.errors import AlreadyRunning, ResourceError
from edge.wire.link import check_ipc_path


def runtime_folder(line: str, override: Path | None = None) -> Path:
    """``--runtime``, else systemd's $RUNTIME_DIRECTORY, else $XDG_RUNTIME_DIR/edge-inspect/LINE, else a private
    folder under the temporary one. Sockets and locks; need not outlive a reboot."""
    if override is not None:
        return override.absolute()
    if systemd := os.environ.get("RUNTIME_DIRECTORY", ""):
        return Path(systemd.split(":")[0])
    if xdg := os.environ.get("XDG_RUNTIME_DIR", ""):
        return Path(xdg) / "edge-inspect" / line
    return Path(tempfile.gettempdir()) / f"edge-inspect-{os.getuid()}" / line


def state_folder(line: str, override: Path | None = None) -> Path:
    """``--state``, else systemd's $STATE_DIRECTORY, else $XDG_STATE_HOME (~/.local/state)/edge-inspect/LINE.
    The ledger, the alert store and compiled engines; must outlive everything."""
    if override is not None:
        return override.absolute()
    if systemd := os.environ.get("STATE_DIRECTORY", ""):
        return Path(systemd.split(":")[0])
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "edge-inspect" / line


def prepare_folder(path: Path) -> Path:
    """Make the folder, for its owner alone. Raises ResourceError when that is not permitted or it is another's."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        owner = path.stat().st_uid
        probe = path / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except FileExistsError:
        raise ResourceError(f"{path}: is a file, and a folder is needed there") from None
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written ({error.strerror}); choose another with an option") from None
    if owner not in (os.getuid(), 0):
        # Under a world-writable /tmp somebody else may have made it first, to steal the sockets.
        raise ResourceError(f"{path}: belongs to another user; choose another folder")
    return path


class FolderLock:
    """Held while a daemon uses its runtime folder: two would steal each other's sockets unnoticed."""

    def __init__(self, folder: Path) -> None:
        check_ipc_path(folder / "preprocess.in")
        self.path = folder / "daemon.lock"
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise AlreadyRunning(
                f"{folder}: another daemon runs there (process {holder or 'unknown'}); stop it, or choose another"
                " --runtime folder"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let go; the file stays."""
        os.close(self._fd)
