"""Telling systemd: sd_notify, a no-op outside a service of Type=notify."""

from __future__ import annotations

import os
import socket

PATIENCE_S = 1.0


def watchdog_interval_s(environ: dict[str, str] | None = None) -> float | None:
    """How often WATCHDOG=1 is due: half of WATCHDOG_USEC, or None where no watchdog is asked of this process."""
    env = os.environ if environ is None else environ
    usec, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2e6


def notify(*assignments: str) -> bool:
    """Send ``KEY=value`` lines to the service manager. False where there is none or it cannot be reached."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or address[0] not in "/@":
        return False
    if address[0] == "@":  # abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            # The manager's queue holds but ten messages: a lost WATCHDOG=1 is followed by the next, a lost READY=1 by
            # nothing. Connected first, for only then does waiting mean waiting for room in its queue.
            sock.settimeout(0.0 if assignments == ("WATCHDOG=1",) else PATIENCE_S)
            sock.connect(address)
            sock.send("\n".join(assignments).encode())
    except OSError:  # a full or missing socket must never stop the line; the watchdog will tell if it matters
        return False
    return True
