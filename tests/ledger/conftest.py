"""The backends that ledger tests run on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.ledger.backend_sqlite import SqliteBackend

# Their assertions should explain themselves like those of test modules; before anything imports them.
for part in ("backend", "conformance", "conformance_inventory", "conformance_keeping", "conformance_taking"):
    pytest.register_assert_rewrite(f"tests.ledger.{part}")


@pytest.fixture
async def sqlite_backend(tmp_path: Path) -> AsyncIterator[SqliteBackend]:
    from tests.ledger.backend_sqlite import SqliteBackend

    backend = SqliteBackend(tmp_path / "ledger.db")
    yield backend
    await backend.close()
