"""The SQLite ledger passes the suite of every ledger."""

from __future__ import annotations

import pytest
from tests.ledger.backend_sqlite import SqliteBackend
from tests.ledger.conformance import LedgerConformance


class TestSqlite(LedgerConformance):
    @pytest.fixture
    def backend(self, sqlite_backend: SqliteBackend) -> SqliteBackend:
        return sqlite_backend
