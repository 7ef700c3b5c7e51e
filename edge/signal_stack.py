"""An alternate signal stack with room for the processor's whole state.

Python's handlers run on the alternate stack where one is installed, and ``faulthandler`` installs a small one. Once an
engine has used the tile registers (AMX), the kernel needs 11 KB to save the state of a signalled thread; where that
does not fit, the signal turns into a segmentation fault, and the trace that was asked for is lost.
"""

from __future__ import annotations

import ctypes

SIZE = 256 * 1024


class _Stack(ctypes.Structure):
    _fields_ = (("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t))


_memory: ctypes.Array[ctypes.c_char] | None = None  # must outlive its registration


def install_signal_stack() -> None:
    """Give the calling thread an alternate signal stack of 256 KB. Call it after ``faulthandler.enable()``."""
    global _memory
    memory = ctypes.create_string_buffer(SIZE)
    stack = _Stack(ctypes.cast(memory, ctypes.c_void_p), 0, SIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.sigaltstack(ctypes.byref(stack), None) == 0:  # else the old stack stays, which is no worse than before
        _memory = memory
