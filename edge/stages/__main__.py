"""Entry of a stage process: ``python -m edge.stages CONTROL_FD``. Started by the supervisor only."""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import socket
import sys
from typing import Any

from edge.errors import EdgeError, Exit
from edge.signal_stack import install_signal_stack
from edge.stages.base import Stage, StopRequested
from edge.wire.control import Control, ControlClosed
from edge.wire.ledger import Station

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


def make_stage(control: Control, spec: dict[str, Any]) -> Stage:
    """The stage that ``spec`` describes. Each is imported only where it runs: the head needs no engine."""
    station = spec["station"]
    if station >= Station.CAPTURE:
        from edge.stages.capture import CaptureStage

        return CaptureStage(control, spec)
    if station == Station.PREPROCESS:
        from edge.stages.preprocess import PreprocessStage

        return PreprocessStage(control, spec)
    if station == Station.BACKBONE:
        from edge.stages.backbone import BackboneStage

        return BackboneStage(control, spec)
    if station == Station.HEAD:
        from edge.stages.head import HeadStage

        return HeadStage(control, spec)
    if station == Station.ALERT:
        from edge.stages.alert import AlertStage

        return AlertStage(control, spec)
    raise ValueError(f"no stage has the station number {station}")


def first_spec(control: Control) -> dict[str, Any]:
    """Wait for the ``spec`` message."""
    control.sock.setblocking(True)
    received = control.receive()
    control.sock.setblocking(False)
    if received is None or received[0].get("kind") != "spec":
        raise ControlClosed
    return received[0]["spec"]


def name_process(name: str) -> None:
    """Die with the supervisor, and show ``edge:NAME`` in process lists."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NAME, f"edge:{name}".encode()[:15], 0, 0, 0)


def main() -> int:
    faulthandler.enable()  # SIGABRT from the supervisor leaves a trace of where the stage was stuck
    install_signal_stack()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle, in order
    control = Control(socket.socket(fileno=int(sys.argv[1])))
    try:
        spec = first_spec(control)
        name_process(spec["name"])
        if os.getppid() != spec["parent"]:  # it died before prctl could bind us to it
            return Exit.CRASHED
        logging.basicConfig(
            stream=sys.stderr, level=spec["log_level"], format=f"edge[{spec['name']}] %(levelname)s: %(message)s"
        )
        make_stage(control, spec).run()
    except ControlClosed:
        return Exit.CRASHED
    except StopRequested:
        return Exit.OK
    except EdgeError as error:
        _fatal(control, int(error.exit_code), str(error))
        return error.exit_code
    except Exception as error:
        logging.exception("crashed")
        _fatal(control, int(Exit.CRASHED), f"{type(error).__name__}: {error}")
        return Exit.CRASHED
    return Exit.OK


def _fatal(control: Control, code: int, text: str) -> None:
    try:
        control.send("fatal", code=code, text=text[:4000])
    except ControlClosed:
        pass


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # Not sys.exit: a reader thread stuck in a codec, or ZeroMQ's linger, must not keep a finished stage alive.
    os._exit(status)
