"""The SQLite file of a ledger: its tables, how it is opened, what its errors mean.

What must never be wrong is refused by the database itself, for any program that writes to it: two leases
that overlap, a lease that changes hands, an epoch that goes back. A lease is a row exactly while it is not
free, so "no two rows overlap" is the whole rule, and time plays no part in it.

`SCHEMA_VERSION` is kept in PRAGMA user_version. A newer file is refused untouched; a change of the tables
comes with a new number and a step that brings older files up to it.
"""

from __future__ import annotations

import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from os import mknod
from pathlib import Path
from typing import TypeVar

from softunicast.core.errors import LedgerError

T = TypeVar("T")

SCHEMA_VERSION = 1
APPLICATION_ID = 0x53554C44  # "SULD": tells a ledger from any other SQLite file

BUSY_TIMEOUT_S = 5.0
"""How long to wait for other processes. A write takes under a millisecond, so this is a stuck process."""

BUSY_PAUSE_S = 0.001
"""How long to wait before trying again. SQLite's own waits grow to 100 ms, which starves the unlucky: with four
processes that write without pause the slowest request took 0.4-1.6 s, and 0.03-0.09 s with this."""

FILE_MODE = 0o600

# Slices are kept as their first and last (version, address, port), in bytes that sort as the numbers do.
TABLES = (
    """CREATE TABLE book (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        boot_id TEXT NOT NULL,
        version INTEGER NOT NULL,
        epoch INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE blocks (prefix TEXT PRIMARY KEY) STRICT, WITHOUT ROWID""",
    """CREATE TABLE addresses (
        address TEXT PRIMARY KEY,
        site TEXT NOT NULL,
        tags TEXT NOT NULL CHECK (json_valid(tags)),
        slice_ports INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE servers (
        name TEXT PRIMARY KEY,
        site TEXT NOT NULL,
        address TEXT NOT NULL,
        mac TEXT NOT NULL
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE leases (
        first BLOB PRIMARY KEY CHECK (length(first) = 19),
        last BLOB NOT NULL CHECK (length(last) = 19 AND last >= first),
        server TEXT NOT NULL,
        epoch INTEGER NOT NULL UNIQUE,
        state TEXT NOT NULL CHECK (state IN ('held', 'draining', 'quarantined')),
        expires_at REAL NOT NULL,
        quarantine_s REAL NOT NULL,
        quarantined_until REAL CHECK ((quarantined_until IS NOT NULL) = (state = 'quarantined'))
    ) STRICT, WITHOUT ROWID""",
    """CREATE INDEX leases_due ON leases (coalesce(quarantined_until, expires_at))""",
    """CREATE TABLE history (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at REAL NOT NULL,
        event TEXT NOT NULL,
        first BLOB,
        last BLOB,
        server TEXT,
        epoch INTEGER,
        detail TEXT NOT NULL
    ) STRICT""",
    """CREATE INDEX history_first ON history (first)""",
    """CREATE INDEX history_epoch ON history (epoch)""",
    # The rows do not overlap, so the last one that starts at or before the end of the new one is the only one
    # that can: one step down the index, however many leases there are.
    """CREATE TRIGGER leases_never_overlap BEFORE INSERT ON leases
        WHEN (SELECT last FROM leases WHERE first <= NEW.last ORDER BY first DESC LIMIT 1) >= NEW.first
        BEGIN SELECT raise(ABORT, 'the slice overlaps a lease that is not free'); END""",
    """CREATE TRIGGER leases_never_change_hands BEFORE UPDATE ON leases
        WHEN (NEW.first, NEW.last, NEW.server, NEW.epoch) IS NOT (OLD.first, OLD.last, OLD.server, OLD.epoch)
        BEGIN SELECT raise(ABORT, 'a lease keeps its slice, server and epoch'); END""",
    """CREATE TRIGGER leases_take_the_newest_epoch BEFORE INSERT ON leases
        WHEN NEW.epoch IS NOT (SELECT epoch FROM book)
        BEGIN SELECT raise(ABORT, 'a lease takes the newest epoch of the book'); END""",
    """CREATE TRIGGER epochs_only_grow BEFORE UPDATE ON book WHEN NEW.epoch < OLD.epoch
        BEGIN SELECT raise(ABORT, 'epochs only grow'); END""",
)


def connect(path: Path, boot_id: str) -> sqlite3.Connection:
    """Open the ledger at `path`, making it first when there is none. Raises LedgerError.

    Python's own transaction handling is off: whoever writes says BEGIN IMMEDIATE.
    """
    with translated(f"opening ledger {path}"):
        _create_file(path)
        connection = sqlite3.connect(path, timeout=0, isolation_level=None)
        try:
            patiently(lambda: _check_ours(connection, path))
            patiently(lambda: _write_ahead(connection, path))
            connection.execute("PRAGMA synchronous = FULL")
            patiently(lambda: _ensure_tables(connection, boot_id))
        except BaseException:
            connection.close()
            raise
        return connection


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Errors of SQLite and of the file system become LedgerError."""
    try:
        yield
    except sqlite3.Error as error:
        why, fix = _explain(error)
        raise LedgerError(f"{doing}: {why}", fix) from error
    except OSError as error:
        raise LedgerError(f"{doing}: {error.strerror}", "check the path and its permissions") from error


def patiently(attempt: Callable[[], T]) -> T:
    """Try until no other process has the file locked. An attempt that found it so must have changed nothing."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            return attempt()
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(BUSY_PAUSE_S)


def rollback(connection: sqlite3.Connection) -> None:
    """Undo what is open; after some errors SQLite has done so already."""
    if connection.in_transaction:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def _create_file(path: Path) -> None:
    # SQLite would make the file with whatever the umask leaves of 0644. And it must not be opened here:
    # closing that descriptor would drop the locks that other connections of this process hold on the file.
    with suppress(FileExistsError):
        mknod(path, stat.S_IFREG | FILE_MODE)
        path.chmod(FILE_MODE)


def _check_ours(connection: sqlite3.Connection, path: Path) -> None:
    """Raises LedgerError for a file that this program must not write to. Changes nothing."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if tables and application != APPLICATION_ID:
        raise LedgerError(f"{path} is an SQLite file, but not a ledger", "name another path")
    if version > SCHEMA_VERSION:
        raise LedgerError(
            f"ledger {path} has schema {version}, this program knows up to {SCHEMA_VERSION}",
            "upgrade softunicast on this host",
        )


def _write_ahead(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise LedgerError(f"ledger {path}: its file system cannot share it", "put it on a local disk")


def _ensure_tables(connection: sqlite3.Connection, boot_id: str) -> None:
    try:
        connection.execute("BEGIN IMMEDIATE")
        # Asked again: another process may have made them since.
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in TABLES:
                connection.execute(statement)
            connection.execute(
                "INSERT INTO book (one, boot_id, version, epoch) VALUES (1, ?, 1, 0)", (boot_id,)
            )
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        rollback(connection)
        raise


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


_EXPLAINED = {
    sqlite3.SQLITE_BUSY: (
        f"another process has kept it locked for {BUSY_TIMEOUT_S:g} s",
        "find it with `fuser FILE`",
    ),
    sqlite3.SQLITE_FULL: ("no space left for it", "free space on its file system"),
    # A quota or size limit shows up as an I/O error, too; only ENOSPC is SQLITE_FULL.
    sqlite3.SQLITE_IOERR: ("its disk refused", "check its space, quota and `dmesg`"),
    sqlite3.SQLITE_NOTADB: ("it is not an SQLite file", "name another path"),
    sqlite3.SQLITE_CORRUPT: ("the file is damaged", "restore it from a copy"),
    sqlite3.SQLITE_READONLY: ("it is read-only here", "run as its owner, or make it writable"),
    sqlite3.SQLITE_CANTOPEN: ("it cannot be opened", "check the path and its permissions"),
}


def _explain(error: sqlite3.Error) -> tuple[str, str | None]:
    return _EXPLAINED.get(_code(error), (str(error).replace("\n", " "), None))
