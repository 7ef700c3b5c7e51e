"""The alert store: an outbox in SQLite, the decision states, the sinks' cursors, and the evidence beside it.

What is promised, also under SIGKILL and power cuts: an alert that :meth:`AlertStore.add` returned is there
after a restart; the same frame added again is the same alert with the same id; ids grow and none is ever
given twice. A camera's decision state is saved in the transaction of its alert, so that a restart within an
episode raises nothing a second time. On a full disk the pictures go first, the oldest before the newer, and
rows are kept as long as there is room for one more.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from edge.alerts import database
from edge.alerts.config import StoreSettings
from edge.alerts.decision import DecisionState
from edge.alerts.messages import MAX_ID, Alert, AlertDraft, MessageError, pack, unpack, validate
from edge.alerts.pictures import PictureFolder
from edge.errors import ResourceError

log = logging.getLogger(__name__)

Result = TypeVar("Result")

DATABASE_NAME = "alerts.db"
CLOCK_UNSET_NS = 1_577_836_800 * 10**9  # 2020: a box without a battery-backed clock starts in 1970
_DAY_NS = 86_400 * 10**9
_ROOM_BYTES = 1_048_576  # freed from the pictures at a time when a row finds the disk full


class StoreFull(ResourceError):
    """The disk is full, all evidence pictures are gone already, and the row could not be written."""


@dataclass(frozen=True, slots=True)
class Added:
    """``new`` is False where the frame's alert was there before. ``picture_lost``: there was no room for
    it."""

    alert: Alert
    new: bool
    picture_lost: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """What the store holds now."""

    alerts: int
    oldest_id: int
    latest_id: int
    pictures: int
    picture_bytes: int


class AlertStore:
    """One writer, one thread. ``report`` gets one line for each thing that a person should know (a damaged
    file moved aside, pictures deleted for room); by default it is logged as a warning.

    Raises ResourceError from the constructor and from every method when the folder or the file cannot be
    used.
    """

    def __init__(
        self, folder: Path, settings: StoreSettings | None = None, report: Callable[[str], None] | None = None
    ) -> None:
        self._settings = settings or StoreSettings()
        self._report = report or log.warning
        self.path = folder / DATABASE_NAME
        self._mark = database.IdMark(folder / "alerts.ids")
        self._connection: sqlite3.Connection | None = None
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._pictures = PictureFolder(
                folder / "pictures", self._settings.max_pictures, self._settings.max_picture_mb * 1_000_000
            )
        except OSError as error:
            raise database.as_resource_error(error, self.path) from None
        self._rows = self._guarded(lambda db: int(db.execute("SELECT count(*) FROM alerts").fetchone()[0]))

    def __enter__(self) -> AlertStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Idempotent."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- writing ----------------------------------------------------------------------------------

    def add(self, draft: AlertDraft, state: DecisionState | None = None, picture: bytes | None = None) -> Added:
        """Store an alert, its camera's decision state in the same transaction, and its evidence picture
        (encoded).

        A frame (epoch, camera, seq) that is there already keeps its id and its first content. Raises
        StoreFull.
        """
        name = None
        if picture is not None and self.keep_picture(draft.camera, draft.epoch, draft.seq, picture):
            name = picture_name(draft.camera, draft.epoch, draft.seq)
        body = pack(draft.to_map())

        def insert(db: sqlite3.Connection) -> tuple[int, bool]:
            known = db.execute(
                "SELECT id FROM alerts WHERE epoch = ? AND camera = ? AND seq = ?", _frame(draft)
            ).fetchone()
            if state is not None:
                _save_state(db, draft.camera, state)
            if known is not None:
                return int(known[0]), False
            self._mark.cover(_latest_id(db) + 1)
            cursor = db.execute(
                "INSERT INTO alerts (epoch, camera, seq, raised_at, picture, body) VALUES (?, ?, ?, ?, ?, ?)",
                (*_frame(draft), draft.raised_at, name, body),
            )
            assert cursor.lastrowid is not None
            return cursor.lastrowid, True

        identity, new = self._transaction(insert)
        if new:
            self._rows += 1
            self._retain(draft.raised_at)
            path = self._pictures.path(name) if name is not None else None
            alert = _alert(identity, draft, path)
        else:
            stored = self.by_frame(draft.epoch, draft.camera, draft.seq)
            alert = stored if stored is not None else _alert(identity, draft, None)
        return Added(alert, new, picture is not None and alert.picture is None)

    def keep_picture(self, camera: str, epoch: str, seq: int, picture: bytes, durable: bool = True) -> bool:
        """Keep the encoded evidence of a frame, with or without an alert. False where there is no room for
        it."""
        try:
            return self._pictures.write(picture_name(camera, epoch, seq), picture, durable)
        except OSError as error:
            raise database.as_resource_error(error, self._pictures.folder) from None

    def save_states(self, states: Mapping[str, DecisionState]) -> None:
        """Save decision states by camera: at every Clear, and at intervals (``decision.SAVE_EVERY_S``)."""

        def save(db: sqlite3.Connection) -> None:
            for camera, state in states.items():
                _save_state(db, camera, state)

        self._transaction(save)

    def set_cursor(self, sink: str, last_id: int) -> None:
        """Remember that ``sink`` has delivered all alerts up to ``last_id``; a cursor never goes back."""
        self._transaction(
            lambda db: db.execute(
                "INSERT INTO cursors (sink, last_id) VALUES (?, ?)"
                " ON CONFLICT (sink) DO UPDATE SET last_id = max(last_id, excluded.last_id)",
                (sink, last_id),
            )
        )

    # --- reading ----------------------------------------------------------------------------------

    def since(self, last: int, limit: int) -> list[Alert]:
        """The alerts with an id above ``last``, oldest first, at most ``limit``."""
        rows = self._guarded(
            lambda db: db.execute(
                "SELECT id, body, picture FROM alerts WHERE id > ? ORDER BY id LIMIT ?", (last, limit)
            ).fetchall()
        )
        return [alert for row in rows if (alert := self._parse(*row)) is not None]

    def by_frame(self, epoch: str, camera: str, seq: int) -> Alert | None:
        """The alert of a frame, if it has one."""
        row = self._guarded(
            lambda db: db.execute(
                "SELECT id, body, picture FROM alerts WHERE epoch = ? AND camera = ? AND seq = ?",
                (epoch, camera, seq),
            ).fetchone()
        )
        return None if row is None else self._parse(*row)

    def oldest_id(self) -> int:
        """The lowest id that is still stored; 0 where there is none."""
        return self._guarded(lambda db: int(db.execute("SELECT coalesce(min(id), 0) FROM alerts").fetchone()[0]))

    def latest_id(self) -> int:
        """The highest id that may have been given out, stored or not; 0 at the very beginning."""
        return self._guarded(_latest_id)

    def states(self) -> dict[str, DecisionState]:
        """The saved decision state of every camera; one that cannot be read is left out and reported."""
        states: dict[str, DecisionState] = {}
        for camera, body in self._guarded(lambda db: db.execute("SELECT * FROM decision_state").fetchall()):
            try:
                states[camera] = DecisionState.from_map(unpack(bytes(body)))
            except (MessageError, ValueError, TypeError) as error:
                self._report(f"{self.path}: the decision state of camera {camera} is forgotten ({error})")
        return states

    def cursor(self, sink: str) -> int:
        """The last id that ``sink`` has delivered; 0 for a new one."""
        row = self._guarded(lambda db: db.execute("SELECT last_id FROM cursors WHERE sink = ?", (sink,)).fetchone())
        return 0 if row is None else int(row[0])

    def counts(self) -> Counts:
        """Figures for the health message."""
        return Counts(self._rows, self.oldest_id(), self.latest_id(), len(self._pictures), self._pictures.total_bytes)

    # --- inside -----------------------------------------------------------------------------------

    def _parse(self, identity: int, body: bytes, picture: str | None) -> Alert | None:
        path = self._pictures.path(picture) if picture is not None else None
        try:
            alert = validate(Alert, {**unpack(bytes(body)), "id": identity, "picture": path and str(path)})
        except (MessageError, TypeError) as error:
            self._report(f"{self.path}: alert {identity} cannot be read and is left out ({error})")
            return None
        assert isinstance(alert, Alert)
        return alert

    def _retain(self, now_ns: int) -> None:
        excess = self._rows - self._settings.max_alerts
        days = self._settings.max_days

        def prune(db: sqlite3.Connection) -> int:
            gone = 0
            if excess > 0:
                gone += db.execute(
                    "DELETE FROM alerts WHERE id IN (SELECT id FROM alerts ORDER BY id LIMIT ?)", (excess,)
                ).rowcount
            if days is not None:
                gone += db.execute(
                    "DELETE FROM alerts WHERE raised_at BETWEEN ? AND ?",
                    (CLOCK_UNSET_NS, now_ns - days * _DAY_NS),
                ).rowcount
            return gone

        if excess > 0 or days is not None:
            self._rows -= self._transaction(prune)

    def _transaction(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        def whole(db: sqlite3.Connection) -> Result:
            db.execute("BEGIN IMMEDIATE")
            try:
                result = work(db)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # SQLite has rolled back by itself after some errors, a full disk among them
                    db.execute("ROLLBACK")
                raise
            return result

        return self._guarded(whole)

    def _guarded(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Do ``work``; again after making room on a full disk, and after replacing a damaged file."""
        replaced = False
        while True:
            try:
                if self._connection is None:
                    self._connection = database.connect(self.path, self._mark.base(lost=replaced))
                return work(self._connection)
            except (sqlite3.Error, OSError, database.Damaged) as error:
                if database.is_full(error, self.path.parent):
                    self._make_room()
                elif database.is_damage(error) and not replaced:
                    self._replace_damaged(error)
                    replaced = True
                else:
                    raise database.as_resource_error(error, self.path) from error

    def _make_room(self) -> None:
        freed = self._pictures.free(_ROOM_BYTES)
        if freed == 0:
            raise StoreFull(f"{self.path}: the disk is full and no evidence picture is left to delete; free some space")
        self._report(f"{self.path}: the disk is full; deleted {freed / 1e6:.1f} MB of the oldest evidence pictures")

    def _replace_damaged(self, error: BaseException) -> None:
        self.close()
        try:
            aside = database.move_aside(self.path)
        except OSError as problem:
            raise database.as_resource_error(problem, self.path) from None
        self._rows = 0
        self._report(f"{self.path}: damaged ({error}); moved to {aside.name} and begun anew, ids continue above")


def picture_name(camera: str, epoch: str, seq: int) -> str:
    """The file name of a frame's evidence picture."""
    return f"{camera}-{epoch}-{seq:09d}.jpg"


def _alert(identity: int, draft: AlertDraft, path: Path | None) -> Alert:
    return Alert(**{**draft.__dict__, "id": identity, "picture": path and str(path)})


def _frame(draft: AlertDraft) -> tuple[str, str, int]:
    return draft.epoch, draft.camera, draft.seq


def _latest_id(db: sqlite3.Connection) -> int:
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'alerts'").fetchone()
    return min(int(row[0]), MAX_ID) if row is not None else 0


def _save_state(db: sqlite3.Connection, camera: str, state: DecisionState) -> None:
    db.execute(
        "INSERT INTO decision_state (camera, body) VALUES (?, ?)"
        " ON CONFLICT (camera) DO UPDATE SET body = excluded.body",
        (camera, pack(state.to_map())),
    )
