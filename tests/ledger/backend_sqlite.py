"""A SQLite ledger on which tests open handles and move the time."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.ledger.backend import QUARANTINE_S, FakeClock

from softunicast.ledger.sqlite import SqliteLedger


class SqliteBackend:
    def __init__(self, path: Path) -> None:
        self.clock = FakeClock()
        self.path = path
        self._opened: list[SqliteLedger] = []

    async def open(self) -> SqliteLedger:
        ledger = await SqliteLedger.open(self.path, self.clock, QUARANTINE_S)
        self._opened.append(ledger)
        return ledger

    async def close(self) -> None:
        for ledger in self._opened:
            await ledger.close()

    def raw(self) -> closing[sqlite3.Connection]:
        """The file as any other program would open it."""
        return closing(sqlite3.connect(self.path, isolation_level=None))
