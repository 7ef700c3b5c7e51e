"""The ledger: every captured frame ends exactly once, even under SIGKILL.

A mapped file in the state directory, shared by all processes of a line. It holds, per camera, the counters
``captured``, ``scored`` and ``not_inspected`` by reason, and a bounded table of the frames that are open: which
stage holds each, whether that stage has accepted it, and since when. The balance

    captured = scored + sum(not_inspected) + open

holds whenever the lock is free. Two means keep it so when a process dies between two stores:

* the lock is a POSIX record lock, which the kernel drops with its holder;
* every change is a small transaction of absolute 64-bit stores that is written to a redo journal first, so the
  next holder of the lock finishes what a dead one began. Replaying is idempotent.

A frame is named by its *ticket*, a number never used twice in a ledger's life. Slots carry the ticket of their
frame, so "is this slot still in use" is a question to the ledger (:meth:`Ledger.is_live`), and a dead stage's
slots come back by themselves when its frames are closed.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np

from edge.errors import ConfigError, ResourceError

MAGIC = int.from_bytes(b"EDGELDG1", "little")
MAX_CAMERAS = 64
NAME_BYTES = 64
CAPACITY = 2048  # open or unannounced frames; 64 cameras x 8 slots leave a factor of four

_INDEX_BITS = 16


class Reason(IntEnum):
    """Why a captured frame was not inspected. Values are stored; never renumber."""

    STALE = 1  # a newer frame of the same camera took its place (policy "latest")
    NO_SLOT = 2  # every slot was held by frames under inspection
    DECODE = 3  # the source delivered something that is no picture
    TIMEOUT = 4  # older than frame_timeout_s before a verdict
    STAGE_RESTART = 5  # the process that held it died
    SHUTDOWN = 6  # still open when the drain's deadline passed
    ERROR = 7  # a stage refused it: wrong geometry, features that are not finite

    @property
    def label(self) -> str:
        """The name used in verdicts, metrics and tables, e.g. ``stage_restart``."""
        return self.name.lower()


class Station(IntEnum):
    """Stages as the ledger knows them. The capture stage of camera ``i`` is ``CAPTURE + i``."""

    SUPERVISOR = 1
    PREPROCESS = 2
    BACKBONE = 3
    HEAD = 4
    ALERT = 5
    CAPTURE = 16


_FREE, _OPEN, _DROPPED = 0, 1, 2

# Word offsets (64-bit) in the file.
_H_MAGIC, _H_EPOCH0, _H_EPOCH1, _H_CAPACITY, _H_SERIAL, _H_CURSOR = range(6)
_JOURNAL = 16  # count, then pairs of (word index, value)
_JOURNAL_PAIRS = 16
_CAMERAS = 64
_CAMERA_WORDS = 24  # 8 of name, captured, scored, then not_inspected by reason value
_NAME_WORDS = NAME_BYTES // 8
_CAPTURED, _SCORED, _NOT_INSPECTED = _NAME_WORDS, _NAME_WORDS + 1, _NAME_WORDS + 2
_ENTRIES = _CAMERAS + MAX_CAMERAS * _CAMERA_WORDS
_ENTRY_WORDS = 8
_TICKET, _STATE, _CAMERA, _SEQ, _HOLDER, _CUSTODY, _MONO, _WALL = range(8)


@dataclass(frozen=True)
class Counts:
    """A camera's balance. ``captured == scored + sum(not_inspected.values()) + open`` always."""

    captured: int
    scored: int
    not_inspected: dict[str, int]
    open: int

    @property
    def balanced(self) -> bool:
        return self.captured == self.scored + sum(self.not_inspected.values()) + self.open


@dataclass(frozen=True)
class OpenFrame:
    """One row of the frame table. ``reason`` is set for a frame that is closed but not yet announced."""

    ticket: int
    camera: int
    seq: int
    holder: int
    sender: int
    accepted: bool
    mono_ns: int
    wall_ns: int
    reason: Reason | None = None


class LedgerBusy(ResourceError):
    """Another process held the ledger's lock for too long; ``pid`` names it (0 when it is unknown)."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"the ledger's lock is held by process {pid}, which does not let go; end that process")
        self.pid = pid


class Ledger:
    """The mapped ledger of one line. Open it once a process; use it from one thread.

    ``lock_timeout_s``: how long a change may wait for the lock before :class:`LedgerBusy`; None waits for ever
    (right for a stage, which the supervisor watches; the supervisor itself must never hang).
    """

    def __init__(self, path: Path, lock_timeout_s: float | None = None, capacity: int = CAPACITY) -> None:
        self.path = path
        self._timeout = lock_timeout_s
        words = _ENTRIES + capacity * _ENTRY_WORDS
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise ResourceError(f"{path}: the ledger cannot be opened ({error.strerror})") from None
        try:
            self._acquire()
            size = os.fstat(self._fd).st_size
            if size == 0:
                # posix_fallocate, not ftruncate: a sparse file on a full disk is a SIGBUS later.
                os.posix_fallocate(self._fd, 0, words * 8)
                header = struct.pack("<6Q", 0, *struct.unpack("<2Q", uuid.uuid4().bytes), capacity, 1, 0)
                os.pwrite(self._fd, header, 0)
                os.pwrite(self._fd, struct.pack("<Q", MAGIC), 0)  # last: a half-written header has no magic
            else:
                head = os.pread(self._fd, 48, 0)
                magic, _, _, found, _, _ = struct.unpack("<6Q", head) if len(head) == 48 else (0,) * 6
                if magic != MAGIC or size != (_ENTRIES + found * _ENTRY_WORDS) * 8:
                    raise ResourceError(f"{path}: not a ledger of this version; move the file away to begin anew")
                capacity = found
                words = _ENTRIES + capacity * _ENTRY_WORDS
            self._map = mmap.mmap(self._fd, words * 8)
        except OSError as error:
            os.close(self._fd)
            raise ResourceError(f"{path}: the ledger cannot be created ({error.strerror})") from None
        except ResourceError:
            os.close(self._fd)
            raise
        fcntl.lockf(self._fd, fcntl.LOCK_UN)
        self.capacity = capacity
        # memoryview with native "Q" items: one aligned 8-byte store each, which no reader sees half done.
        self._w = memoryview(self._map).cast("Q")
        self._entries = np.frombuffer(self._map, np.uint64)[_ENTRIES:].reshape(capacity, _ENTRY_WORDS)
        self._names: dict[str, int] = {}

    # -- identity ---------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> str:
        """The ledger's uuid as 32 hex digits: (epoch, camera, seq) names a frame for good."""
        return struct.pack("<2Q", self._w[_H_EPOCH0], self._w[_H_EPOCH1]).hex()

    def camera_index(self, name: str) -> int:
        """The row of the camera called ``name``, made on first use. Rows are never taken away, so counters last.

        Raises ConfigError for a name over 64 bytes or a 65th camera.
        """
        if name in self._names:
            return self._names[name]
        raw = name.encode()
        if not raw or len(raw) > NAME_BYTES:
            raise ConfigError(f"camera name {name!r}: 1 to {NAME_BYTES} bytes are allowed")
        with self._locked():
            for index in range(MAX_CAMERAS):
                found = self.camera_name(index)
                if found == name:
                    break
                if not found:
                    words = struct.unpack(f"<{_NAME_WORDS}Q", raw.ljust(NAME_BYTES, b"\0"))
                    base = _CAMERAS + index * _CAMERA_WORDS
                    self._commit([(base + i, word) for i, word in enumerate(words)])
                    break
            else:
                raise ConfigError(
                    f"{self.path}: the ledger already knows {MAX_CAMERAS} cameras; move the file away to begin anew"
                )
        self._names[name] = index
        return index

    def camera_name(self, index: int) -> str:
        """The name in row ``index``; empty when the row is unused."""
        base = (_CAMERAS + index * _CAMERA_WORDS) * 8
        return bytes(self._map[base : base + NAME_BYTES]).rstrip(b"\0").decode(errors="replace")

    def cameras(self) -> list[str]:
        """All camera names the ledger has seen, in row order."""
        return [name for name in map(self.camera_name, range(MAX_CAMERAS)) if name]

    # -- a frame's life ---------------------------------------------------------------------------------------

    def open_frame(self, camera: int, mono_ns: int, wall_ns: int) -> tuple[int, int] | None:
        """Count a captured frame and open it, held by the camera's capture stage. Returns (ticket, seq), or
        None when the table is full (the frame is then counted as not inspected: no_slot)."""
        with self._locked():
            column = self._camera_word(camera, _CAPTURED)
            seq = self._w[column]
            index = self._free_entry()
            if index is None:
                no_slot = self._camera_word(camera, _NOT_INSPECTED + Reason.NO_SLOT)
                self._commit([(column, seq + 1), (no_slot, self._w[no_slot] + 1)])
                return None
            serial = self._w[_H_SERIAL]
            ticket = serial << _INDEX_BITS | index
            base = self._entry_word(index)
            holder = Station.CAPTURE + camera
            self._commit(
                [
                    (column, seq + 1),
                    (_H_SERIAL, serial + 1),
                    (base + _TICKET, ticket),
                    (base + _CAMERA, camera),
                    (base + _SEQ, seq),
                    (base + _HOLDER, holder),
                    (base + _CUSTODY, holder << 1 | 1),
                    (base + _MONO, mono_ns),
                    (base + _WALL, wall_ns),
                    (base + _STATE, _OPEN),
                ]
            )
            return ticket, seq

    def is_live(self, ticket: int) -> bool:
        """True while the frame of ``ticket`` is open. Needs no lock."""
        index = ticket & (1 << _INDEX_BITS) - 1
        if ticket == 0 or index >= self.capacity:
            return False
        base = self._entry_word(index)
        return self._w[base + _STATE] == _OPEN and self._w[base + _TICKET] == ticket

    def pass_on(self, ticket: int, sender: int, receiver: int) -> bool:
        """Hand the frame to the next stage, before its descriptor is sent. False: it was closed meanwhile."""
        with self._locked():
            base = self._held_by(ticket, sender)
            if base is None:
                return False
            self._commit([(base + _HOLDER, receiver), (base + _CUSTODY, sender << 1)])
            return True

    def accept(self, ticket: int, receiver: int) -> bool:
        """Take custody of a frame whose descriptor has arrived. False: it was closed meanwhile, so the
        descriptor is stale and must be dropped unread."""
        with self._locked():
            base = self._held_by(ticket, receiver)
            if base is None:
                return False
            self._commit([(base + _CUSTODY, self._w[base + _CUSTODY] | 1)])
            return True

    def drop(self, ticket: int, reason: Reason) -> bool:
        """Close an open frame as not inspected. The alert stage announces it. False: it was closed already."""
        with self._locked():
            return self._drop(ticket, reason)

    def drop_where(
        self,
        reason: Reason,
        holder: int | None = None,
        sender: int | None = None,
        older_than_ns: int | None = None,
    ) -> list[OpenFrame]:
        """Close every open frame that matches all given conditions; returns them.

        ``sender`` means: handed over by that stage and not accepted by the receiver, so that the descriptor may
        have died in the sender's socket.
        """
        with self._locked():
            doomed = [
                frame
                for frame in self._frames(_OPEN)
                if (holder is None or frame.holder == holder)
                and (sender is None or (frame.sender == sender and not frame.accepted))
                and (older_than_ns is None or frame.mono_ns < older_than_ns)
            ]
            for frame in doomed:
                self._drop(frame.ticket, reason)
            return doomed

    def drop_oldest_waiting(self, camera: int, holder: int, reason: Reason = Reason.STALE) -> OpenFrame | None:
        """Close the camera's oldest frame that ``holder`` has not accepted yet, to make room for a newer one."""
        with self._locked():
            waiting = [
                frame
                for frame in self._frames(_OPEN)
                if frame.camera == camera and frame.holder == holder and not frame.accepted
            ]
            if not waiting:
                return None
            oldest = min(waiting, key=lambda frame: frame.seq)
            self._drop(oldest.ticket, reason)
            return oldest

    def score(self, ticket: int) -> bool:
        """Close an open frame as scored. False: it was closed already (its verdict must not be published)."""
        with self._locked():
            base = self._live_base(ticket)
            if base is None:
                return False
            column = self._camera_word(self._w[base + _CAMERA], _SCORED)
            self._commit([(base + _STATE, _FREE), (column, self._w[column] + 1)])
            return True

    def unannounced(self) -> list[OpenFrame]:
        """Frames closed as not inspected whose verdict has not gone out yet, oldest first."""
        if not (self._entries[:, _STATE] & np.uint64(0xFF) == _DROPPED).any():
            return []
        return sorted(self._frames(_DROPPED), key=lambda frame: (frame.mono_ns, frame.seq))

    def announced(self, tickets: Iterable[int]) -> None:
        """Forget frames whose ``not_inspected`` verdict has been published."""
        with self._locked():
            for ticket in tickets:
                base = self._entry_word(ticket & (1 << _INDEX_BITS) - 1)
                if self._w[base + _TICKET] == ticket and self._w[base + _STATE] & 0xFF == _DROPPED:
                    self._commit([(base + _STATE, _FREE)])

    # -- reading ----------------------------------------------------------------------------------------------

    def open_frames(self, holder: int | None = None) -> list[OpenFrame]:
        """Open frames, oldest first; those that ``holder`` holds if given."""
        frames = self._frames(_OPEN)
        return sorted((f for f in frames if holder in (None, f.holder)), key=lambda f: (f.mono_ns, f.seq))

    def waiting(self, camera: int, holder: int) -> int:
        """How many frames of the camera lie before ``holder``, not accepted."""
        e = self._entries
        rows = (e[:, _STATE] == _OPEN) & (e[:, _CAMERA] == camera) & (e[:, _HOLDER] == holder)
        return int(np.count_nonzero(rows & (e[:, _CUSTODY] & np.uint64(1) == 0)))

    def counts(self, camera: int) -> Counts:
        """The camera's balance, read under the lock."""
        with self._locked():
            w = self._w
            return Counts(
                captured=w[self._camera_word(camera, _CAPTURED)],
                scored=w[self._camera_word(camera, _SCORED)],
                not_inspected={r.label: w[self._camera_word(camera, _NOT_INSPECTED + r)] for r in Reason},
                open=sum(1 for frame in self._frames(_OPEN) if frame.camera == camera),
            )

    def repair(self) -> list[str]:
        """Make an unbalanced ledger balance again and say so, a line a camera. Only a power cut can unbalance it
        (a killed process cannot: the page cache outlives it), and then pages may have reached the disk in any
        order. Frames that cannot be explained are counted as not inspected: stage_restart."""
        lines = []
        for index, name in enumerate(self.cameras()):
            counts = self.counts(index)
            missing = counts.captured - counts.scored - sum(counts.not_inspected.values()) - counts.open
            if missing == 0:
                continue
            with self._locked():
                if missing > 0:
                    column = self._camera_word(index, _NOT_INSPECTED + Reason.STAGE_RESTART)
                    self._commit([(column, self._w[column] + missing)])
                else:
                    column = self._camera_word(index, _CAPTURED)
                    self._commit([(column, self._w[column] - missing)])
            lines.append(f"camera {name}: {abs(missing)} frames did not balance after a power cut; put right")
        return lines

    def sync(self) -> None:
        """Write the mapping to disk."""
        self._map.flush()

    def close(self) -> None:
        """Unmap and close. The file stays."""
        self._w.release()
        del self._entries
        try:
            self._map.close()
        except BufferError:  # a view is still alive somewhere; the mapping goes with the process
            pass
        os.close(self._fd)

    # -- inside -----------------------------------------------------------------------------------------------

    def _acquire(self) -> None:
        if self._timeout is None:
            fcntl.lockf(self._fd, fcntl.LOCK_EX)
            return
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise LedgerBusy(self.lock_holder()) from None
                time.sleep(0.001)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._acquire()
        try:
            if self._w[_JOURNAL]:  # a holder died between the journal and the last store
                self._replay()
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def lock_holder(self) -> int:
        """The process that holds the lock now; 0 when nobody does."""
        query = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack("hhqqi4x", fcntl.fcntl(self._fd, fcntl.F_GETLK, query))
        return 0 if kind == fcntl.F_UNLCK else pid

    def _commit(self, stores: list[tuple[int, int]]) -> None:
        w, at = self._w, _JOURNAL + 1
        for word, value in stores:
            w[at], w[at + 1] = word, value
            at += 2
        w[_JOURNAL] = len(stores)
        self._replay()

    def _replay(self) -> None:
        w, at = self._w, _JOURNAL + 1
        for _ in range(min(w[_JOURNAL], _JOURNAL_PAIRS)):
            w[w[at]] = w[at + 1]
            at += 2
        w[_JOURNAL] = 0

    def _drop(self, ticket: int, reason: Reason) -> bool:
        base = self._live_base(ticket)
        if base is None:
            return False
        column = self._camera_word(self._w[base + _CAMERA], _NOT_INSPECTED + reason)
        self._commit([(base + _STATE, _DROPPED | reason << 8), (column, self._w[column] + 1)])
        return True

    def _live_base(self, ticket: int) -> int | None:
        return self._entry_word(ticket & (1 << _INDEX_BITS) - 1) if self.is_live(ticket) else None

    def _held_by(self, ticket: int, holder: int) -> int | None:
        base = self._live_base(ticket)
        return base if base is not None and self._w[base + _HOLDER] == holder else None

    def _free_entry(self) -> int | None:
        # Rotate, so that a just-freed row is the last to be used again and a stale ticket is told apart for long.
        start = self._w[_H_CURSOR] % self.capacity
        for step in range(self.capacity):
            index = (start + step) % self.capacity
            if self._w[self._entry_word(index) + _STATE] == _FREE:
                self._w[_H_CURSOR] = index + 1
                return index
        return None

    def _frames(self, state: int) -> list[OpenFrame]:
        rows = np.flatnonzero(self._entries[:, _STATE] & np.uint64(0xFF) == state)
        frames = []
        for row in rows.tolist():
            e = self._entries[row].tolist()
            frames.append(
                OpenFrame(
                    ticket=e[_TICKET],
                    camera=e[_CAMERA],
                    seq=e[_SEQ],
                    holder=e[_HOLDER],
                    sender=e[_CUSTODY] >> 1,
                    accepted=bool(e[_CUSTODY] & 1),
                    mono_ns=e[_MONO],
                    wall_ns=e[_WALL],
                    reason=Reason(e[_STATE] >> 8) if e[_STATE] >> 8 else None,
                )
            )
        return frames

    @staticmethod
    def _camera_word(camera: int, column: int) -> int:
        return _CAMERAS + camera * _CAMERA_WORDS + column

    @staticmethod
    def _entry_word(index: int) -> int:
        return _ENTRIES + index * _ENTRY_WORDS
