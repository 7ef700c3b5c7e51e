"""Slot pools: pixels and tensors in sealed shared memory, owned, stamped, and never silently overwritten.

A pool is one anonymous memfd: no name in /dev/shm, nothing left after SIGKILL of everybody, size fixed by seals,
pages reserved up front. One process, the *producer*, loans and fills its slots; consumers read them. A slot's header
says which frame it belongs to (its *ticket*) and its *generation*, odd while it is being written.

A slot is free when its ticket is no longer live in the ledger or when its holder has released this generation; so
nothing has to be sent back for a slot to return, and a killed holder's slots come back as soon as its frames are
closed. Each header word has exactly one writer, hence no lock: the producer writes all but ``released``, which the
holder of the frame writes. A late release of an old generation is harmless, since it names the generation.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge.errors import ResourceError

MAGIC = int.from_bytes(b"EDGEPOL1", "little")
PAGE = mmap.PAGESIZE
MAX_SLOTS = 1024
MAX_POOL_BYTES = 16 * 1024**3

_P_MAGIC, _P_ID, _P_SLOTS, _P_BYTES, _P_STRIDE, _P_FIRST = range(6)
_HEADERS = 8  # word offset of the first slot header
_SLOT_WORDS = 8
_GENERATION, _S_TICKET, _S_SEQ, _S_MONO, _S_WALL, _S_NBYTES, _RELEASED, _ = range(8)


class StaleSlot(Exception):
    """A descriptor names a generation that is gone, or the slot was overwritten while in use (a torn read).

    Nothing may be concluded from the bytes. The reader counts it and drops the frame's result.
    """


@dataclass(frozen=True)
class SlotRef:
    """Where a payload lies: pool id, slot number, and the generation it had when written."""

    pool: int
    slot: int
    generation: int


@dataclass(frozen=True)
class PoolStats:
    """Slots of a pool at one moment. ``peak`` is the most that any earlier look in this process has found."""

    slots: int
    in_use: int
    peak: int


class SlotPool:
    """A pool mapped into this process. Made by :meth:`create` (supervisor) or :meth:`attach` (stages).

    ``close`` unmaps and closes this process's descriptors; the memory goes with the last process that has it.
    """

    def __init__(self, fd: int, event_fd: int) -> None:
        self.fd, self.event_fd = fd, event_fd
        size = os.fstat(fd).st_size
        if size < PAGE:
            raise ResourceError("a slot pool's memory is too small to hold a header")
        # Populated: the pages are there anyway, and 1,500 page faults in the first frames are a latency of their own.
        self._map = mmap.mmap(fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        self._w = memoryview(self._map).cast("Q")
        if self._w[_P_MAGIC] != MAGIC:
            raise ResourceError("the memory handed over is not a slot pool of this version")
        self.id = self._w[_P_ID]
        self.slots = self._w[_P_SLOTS]
        self.slot_bytes = self._w[_P_BYTES]
        self._stride = self._w[_P_STRIDE]
        self._first = self._w[_P_FIRST]
        if self._first + self.slots * self._stride > size:
            raise ResourceError("a slot pool's header does not fit its memory")
        self.peak = 0

    # -- making and sharing -----------------------------------------------------------------------------------

    @classmethod
    def create(cls, pool_id: int, slots: int, slot_bytes: int, name: str = "pool") -> SlotPool:
        """A new pool of ``slots`` slots of ``slot_bytes`` payload bytes each (page-aligned).

        Raises ResourceError when the machine does not have the memory.
        """
        if not 1 <= slots <= MAX_SLOTS or slot_bytes < 1:
            raise ValueError(f"a pool has 1 to {MAX_SLOTS} slots of at least one byte, not {slots} x {slot_bytes}")
        stride = -(-slot_bytes // PAGE) * PAGE
        first = -(-(_HEADERS + slots * _SLOT_WORDS) * 8 // PAGE) * PAGE
        size = first + slots * stride
        if size > MAX_POOL_BYTES:
            raise ResourceError(f"a pool of {slots} slots x {slot_bytes} bytes is over {MAX_POOL_BYTES} bytes")
        fd = os.memfd_create(f"edge-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        event_fd = -1
        try:
            os.posix_fallocate(fd, 0, size)  # a plain ftruncate reserves nothing: SIGBUS in a stage, later
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
            header = np.array([0, pool_id, slots, slot_bytes, stride, first], np.uint64)
            os.pwrite(fd, header.tobytes(), 0)
            os.pwrite(fd, MAGIC.to_bytes(8, "little"), 0)
            event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            return cls(fd, event_fd)
        except OSError as error:
            os.close(fd)
            if event_fd >= 0:
                os.close(event_fd)
            raise ResourceError(
                f"no memory for {slots} slots of {slot_bytes} bytes ({size >> 20} MiB): {error.strerror};"
                " fewer slots or cameras, or a smaller picture, would fit"
            ) from None

    @classmethod
    def attach(cls, fd: int, event_fd: int) -> SlotPool:
        """Map a pool whose descriptors were inherited or received. Takes ownership of both descriptors."""
        return cls(fd, event_fd)

    def close(self) -> None:
        self._w.release()
        try:
            self._map.close()
        except BufferError:  # an array over a slot is still referenced; the mapping lives as long as it does
            pass
        os.close(self.fd)
        os.close(self.event_fd)

    # -- producer ---------------------------------------------------------------------------------------------

    def free_slot(self, is_live: Callable[[int], bool]) -> int | None:
        """The lowest free slot, or None. ``is_live`` is :meth:`edge.wire.ledger.Ledger.is_live`.

        The lowest, not the next in turn: a slot that was in use a moment ago is still in the cache, and the
        generation tells a stale reference however soon the slot comes back. Measured on 1080p frames: a third faster.
        """
        for slot in range(self.slots):
            if not self._busy(slot, is_live):
                return slot
        return None

    def has_free(self, count: int, is_live: Callable[[int], bool]) -> bool:
        """Whether at least ``count`` slots are free."""
        return sum(not self._busy(slot, is_live) for slot in range(self.slots)) >= count

    def _busy(self, slot: int, is_live: Callable[[int], bool]) -> bool:
        base = _HEADERS + slot * _SLOT_WORDS
        ticket = self._w[base + _S_TICKET]
        return bool(ticket) and self._w[base + _RELEASED] != self._w[base + _GENERATION] and is_live(ticket)

    def loan(self, slot: int, ticket: int) -> int:
        """Take a free slot for the frame ``ticket`` and mark it as being written. Returns the slot."""
        base = _HEADERS + slot * _SLOT_WORDS
        generation = self._w[base + _GENERATION]
        # A producer that died while writing leaves an odd generation; the next odd one is two further.
        self._w[base + _GENERATION] = generation + 1 + (generation & 1)
        self._w[base + _S_TICKET] = ticket
        return slot

    def commit(self, slot: int, seq: int, mono_ns: int, wall_ns: int, nbytes: int) -> SlotRef:
        """Stamp the slot and make it readable. Returns the reference that goes into the descriptor."""
        base = _HEADERS + slot * _SLOT_WORDS
        w = self._w
        w[base + _S_SEQ], w[base + _S_MONO], w[base + _S_WALL] = seq, mono_ns, wall_ns
        w[base + _S_NBYTES] = nbytes
        generation = w[base + _GENERATION] + 1
        w[base + _GENERATION] = generation
        return SlotRef(self.id, slot, generation)

    def array(self, slot: int, shape: tuple[int, ...], dtype: DTypeLike = np.uint8, offset: int = 0) -> NDArray:
        """The slot's payload as a writable array, ``offset`` bytes in. For the producer, between loan and commit.

        Raises ValueError when it does not fit.
        """
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        if not 0 <= slot < self.slots or offset + nbytes > self.slot_bytes:
            raise ValueError(f"{shape} of {dtype} at {offset} does not fit a slot of {self.slot_bytes} bytes")
        start = self._first + slot * self._stride + offset
        return np.frombuffer(self._map, dtype, nbytes // dtype.itemsize, start).reshape(shape)

    def wait_for_release(self, timeout_s: float) -> None:
        """Sleep until a consumer releases a slot or the time is up. Slots whose frame was closed elsewhere do not
        wake the waiter, so callers poll again after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self.event_fd], [], [], left)[0] and self.drain_event():
                return

    def drain_event(self) -> bool:
        """Take pending release signals; True when there was one."""
        try:
            return os.eventfd_read(self.event_fd) > 0
        except BlockingIOError:
            return False

    # -- consumer ---------------------------------------------------------------------------------------------

    def view(self, ref: SlotRef, shape: tuple[int, ...], dtype: DTypeLike = np.uint8, offset: int = 0) -> NDArray:
        """The payload that ``ref`` names, as a read-only array. Call :meth:`check` once done with it.

        Raises StaleSlot when the slot has been written again, or the reference cannot be right.
        """
        self.check(ref)
        array = self.array(ref.slot, shape, dtype, offset)
        array.flags.writeable = False
        return array

    def pair(
        self, first: SlotRef, second: SlotRef, shape: tuple[int, ...], dtype: DTypeLike = np.uint8, offset: int = 0
    ) -> NDArray:
        """Two payloads as one read-only array [2, *shape], without a copy: any two slots are one stride apart.

        Each payload is contiguous, the pair is not. Raises StaleSlot.
        """
        views = self.view(first, shape, dtype, offset), self.view(second, shape, dtype, offset)
        stride = (second.slot - first.slot) * self._stride
        pair = np.lib.stride_tricks.as_strided(views[0], (2, *shape), (stride, *views[0].strides), writeable=False)
        assert pair[1].ctypes.data == views[1].ctypes.data
        return pair

    def check(self, ref: SlotRef) -> None:
        """Raises StaleSlot unless the slot still holds the generation that ``ref`` names."""
        if ref.pool != self.id or not 0 <= ref.slot < self.slots:
            raise StaleSlot(f"slot {ref.slot} of pool {ref.pool} is not in pool {self.id} of {self.slots} slots")
        found = self._w[_HEADERS + ref.slot * _SLOT_WORDS + _GENERATION]
        if found != ref.generation or ref.generation & 1:
            raise StaleSlot(f"slot {ref.slot} of pool {self.id} holds generation {found}, not {ref.generation}")

    def release(self, ref: SlotRef) -> None:
        """Give the slot back before its frame ends, and wake the producer. Idempotent; a stale one does nothing."""
        if ref.pool == self.id and 0 <= ref.slot < self.slots:
            base = _HEADERS + ref.slot * _SLOT_WORDS
            if self._w[base + _GENERATION] == ref.generation:
                self._w[base + _RELEASED] = ref.generation
        self.poke()

    def poke(self) -> None:
        """Wake a producer that waits for a slot."""
        try:
            os.eventfd_write(self.event_fd, 1)
        except BlockingIOError:  # the counter is at its maximum: the waiter is awake anyway
            pass

    def stamps(self, ref: SlotRef) -> tuple[int, int, int]:
        """(seq, mono_ns, wall_ns) of the payload. Raises StaleSlot."""
        self.check(ref)
        base = _HEADERS + ref.slot * _SLOT_WORDS
        return self._w[base + _S_SEQ], self._w[base + _S_MONO], self._w[base + _S_WALL]

    def stats(self, is_live: Callable[[int], bool]) -> PoolStats:
        """Slots in use now."""
        in_use = sum(self._busy(slot, is_live) for slot in range(self.slots))
        self.peak = max(self.peak, in_use)
        return PoolStats(self.slots, in_use, self.peak)
