"""The alert database as a file: opening, schema, damage, a full disk, and ids that outlive all of it."""

from __future__ import annotations

import os
import sqlite3
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from edge.alerts.pictures import FULL, sync_folder
from edge.errors import ResourceError

Report = Callable[[str], None]

SCHEMA_VERSION = 1
BUSY_MS = 5000
KEPT_DAMAGED = 3
_SIDE_FILES = ("-wal", "-shm")

_SCHEMA = """
CREATE TABLE alerts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- AUTOINCREMENT: an id is not given again after its row is deleted
    epoch TEXT NOT NULL,
    camera TEXT NOT NULL,
    seq INTEGER NOT NULL,
    raised_at INTEGER NOT NULL,  -- wall clock, ns
    picture TEXT,                -- name in the picture folder, which may have deleted it since
    body BLOB NOT NULL,          -- msgpack of AlertDraft
    UNIQUE (epoch, camera, seq)  -- the same frame inserted again after a crash is the same alert
);
CREATE INDEX alerts_by_age ON alerts (raised_at);
CREATE TABLE decision_state (camera TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE cursors (sink TEXT PRIMARY KEY, last_id INTEGER NOT NULL) WITHOUT ROWID;
"""


class Damaged(Exception):
    """The file is no database, or one that contradicts itself. Never leaves this package: it is moved
    aside."""


def connect(path: Path, first_id_above: int) -> sqlite3.Connection:
    """Open the database, creating it where it is missing or empty; ids of a new one start above
    ``first_id_above``.

    Raises Damaged; ResourceError for one of a newer version; sqlite3.Error for everything else.
    """
    connection = sqlite3.connect(path, timeout=BUSY_MS / 1000, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: an alert that was published must still be there after a power cut. Alerts are rare; 1 fsync
        # each.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        # Every alert writes some four pages anew. With SQLite's default of 1000 pages the log would take 4 MB of
        # a full disk for the same few rows again and again.
        connection.execute("PRAGMA wal_autocheckpoint = 64")
        connection.execute("PRAGMA journal_size_limit = 262144")
        problems = connection.execute("PRAGMA quick_check(1)").fetchone()
        if problems != ("ok",):
            raise Damaged(str(problems[0] if problems else "no answer to quick_check")[:200])
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            _create(connection, first_id_above)
        elif version > SCHEMA_VERSION:
            raise ResourceError(
                f"{path}: written by a newer version of edge (schema {version}, this one knows"
                f" {SCHEMA_VERSION}); upgrade, or move the file away"
            )
    except sqlite3.DatabaseError as error:
        connection.close()
        if is_damage(error):
            raise Damaged(str(error)[:200]) from None
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def _create(connection: sqlite3.Connection, first_id_above: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
            raise Damaged("tables of unknown origin")
        for statement in _SCHEMA.split(";\n"):
            if statement.strip():
                connection.execute(statement)
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('alerts', ?)", (first_id_above,))
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def is_damage(error: BaseException) -> bool:
    """True where SQLite says that the file's content is wrong."""
    text = str(error)
    return isinstance(error, Damaged) or (
        isinstance(error, sqlite3.DatabaseError)
        and any(sign in text for sign in ("not a database", "malformed", "disk image", "malformed database schema"))
    )


def is_full(error: BaseException, folder: Path) -> bool:
    """True where the disk (or quota, or the database's own page limit) has no room."""
    if isinstance(error, OSError):
        return error.errno in FULL
    if not isinstance(error, sqlite3.OperationalError):
        return False
    text = str(error)
    if "is full" in text:
        return True
    # SQLite reports a shared-memory index that cannot grow as an I/O error; the file system knows why.
    return ("disk I/O error" in text or "unable to open" in text) and _free_bytes(folder) < 262_144


def _free_bytes(folder: Path) -> int:
    try:
        stat = os.statvfs(folder)
    except OSError:
        return 2**62
    return stat.f_bavail * stat.f_frsize


def as_resource_error(error: BaseException, path: Path) -> ResourceError:
    """The one line for a person, from an error that neither room nor a new file mends."""
    text = error.strerror if isinstance(error, OSError) else str(error)
    if "locked" in str(error):
        return ResourceError(f"{path}: another process holds the database; stop it, or wait until it ends")
    return ResourceError(
        f"{path}: the alert store cannot be used ({text}); check the owner and permissions of {path.parent}"
    )


def move_aside(path: Path) -> Path:
    """Rename a damaged database, with its side files, to ``<name>.damaged-<time>``; the newest few are
    kept."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    for suffix in ("", *_SIDE_FILES):
        side = Path(f"{path}{suffix}")
        if side.exists():
            os.replace(side, f"{aside}{suffix}")
    stamps = sorted(path.parent.glob(f"{path.name}.damaged-*[0-9]"))
    for old in stamps[:-KEPT_DAMAGED]:
        for suffix in ("", *_SIDE_FILES):
            Path(f"{old}{suffix}").unlink(missing_ok=True)
    return aside


class IdMark:
    """A small file beside the database: ids up to the number in it may have been given out.

    It is raised by a block before the first id of that block is committed, so that a database that is lost or
    damaged is followed by one whose ids start above all that anybody has seen. When this file is unreadable
    too, the seconds since 1970 serve: more than any store can have counted.
    """

    BLOCK = 1024

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark: int | None = None

    def base(self, lost: bool) -> int:
        """The id above which a new database starts. ``lost``: there was one before, and it was moved
        aside."""
        mark = self._read()
        if mark is not None:
            return mark
        return int(time.time()) if lost or self._path.exists() else 0

    def cover(self, next_id: int) -> None:
        """Make sure that the file's number is at least ``next_id``. Raises OSError."""
        if self._mark is None:
            self._mark = self._read() or 0
        if next_id <= self._mark:
            return
        mark = next_id + self.BLOCK
        number = str(mark)
        partial = self._path.with_name(f"{self._path.name}.partial")
        try:
            with open(partial, "w", encoding="ascii") as file:
                file.write(f"{number} {zlib.crc32(number.encode()):08x}\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self._path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(self._path.parent)
        self._mark = mark

    def _read(self) -> int | None:
        try:
            with open(self._path, "rb") as file:
                number, _, check = file.read(64).decode("ascii").strip().partition(" ")
        except (OSError, UnicodeDecodeError):
            return None
        if not number.isdigit() or check != f"{zlib.crc32(number.encode()):08x}":
            return None
        return int(number)
