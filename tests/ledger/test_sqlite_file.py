"""The file of a SQLite ledger: who may read it, what is refused, a full disk, processes that wait."""

from __future__ import annotations

import asyncio
import os
import re
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from tests.ledger.backend import OTHER, SLICE, TTL_S, furnish
from tests.ledger.backend_sqlite import SqliteBackend

from softunicast.core.errors import LedgerError
from softunicast.ledger import schema
from softunicast.ledger.sqlite import SqliteLedger


@pytest.fixture
async def ledger(sqlite_backend: SqliteBackend) -> SqliteLedger:
    ledger = await sqlite_backend.open()
    await furnish(ledger)
    return ledger


def modes_in(directory: Path) -> dict[str, str]:
    return {file.name: oct(file.stat().st_mode & 0o777) for file in directory.iterdir()}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
async def test_only_the_owner_may_read_it_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "ledger.db"
    before = os.umask(umask)
    try:
        ledger = await SqliteLedger.open(path)
        await furnish(ledger)
    finally:
        os.umask(before)
    assert modes_in(tmp_path) == dict.fromkeys(("ledger.db", "ledger.db-wal", "ledger.db-shm"), "0o600")
    await ledger.close()


async def test_commits_are_synced_to_disk(ledger: SqliteLedger) -> None:
    def pragma(name: str) -> object:
        return ledger._connection.execute(f"PRAGMA {name}").fetchone()[0]

    assert await ledger._run(lambda: (pragma("journal_mode"), pragma("synchronous"))) == ("wal", 2)


async def test_a_newer_schema_is_refused_untouched(
    sqlite_backend: SqliteBackend, ledger: SqliteLedger
) -> None:
    await ledger.close()
    with sqlite_backend.raw() as raw:
        raw.execute(f"PRAGMA user_version = {schema.SCHEMA_VERSION + 1}")
    before = sqlite_backend.path.read_bytes()
    with pytest.raises(LedgerError, match="has schema 2, this program knows up to 1; fix: upgrade"):
        await sqlite_backend.open()
    assert sqlite_backend.path.read_bytes() == before


async def test_a_foreign_file_is_refused_untouched(sqlite_backend: SqliteBackend) -> None:
    with sqlite_backend.raw() as raw:
        raw.execute("CREATE TABLE contacts (name)")
    before = sqlite_backend.path.read_bytes()
    with pytest.raises(LedgerError, match="not a ledger; fix: name another path"):
        await sqlite_backend.open()
    assert sqlite_backend.path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("notes.txt", "it is not an SQLite file; fix:"),
        ("missing/ledger.db", "No such file or directory; fix:"),
        (".", "cannot be opened; fix:"),
    ],
)
async def test_what_is_no_ledger_is_one_clear_error(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "notes.txt").write_text("remember the milk " * 100)
    with pytest.raises(
        LedgerError, match=re.escape(f"opening ledger {tmp_path / name}: ") + ".*" + why
    ) as caught:
        await SqliteLedger.open(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "notes.txt").read_text() == "remember the milk " * 100


async def test_a_damaged_file_is_one_clear_error(sqlite_backend: SqliteBackend, ledger: SqliteLedger) -> None:
    await ledger.close()
    damaged = bytearray(sqlite_backend.path.read_bytes())
    damaged[4096:] = b"\xa5" * (len(damaged) - 4096)
    sqlite_backend.path.write_bytes(damaged)
    with pytest.raises(LedgerError, match="the file is damaged; fix: restore it"):
        await (await sqlite_backend.open()).snapshot()


# -- a full disk -------------------------------------------------------------------------------------------


@asynccontextmanager
async def pages_used_up(ledger: SqliteLedger) -> AsyncIterator[None]:
    def limit(pages: int) -> None:
        ledger._connection.execute(f"PRAGMA max_page_count = {pages}")

    await ledger._run(lambda: limit(1))  # SQLite takes "fewer than there are" as "no more"
    yield
    await ledger._run(lambda: limit(1_000_000))


@asynccontextmanager
async def files_cannot_grow(ledger: SqliteLedger) -> AsyncIterator[None]:
    with _file_size_limit(Path(f"{ledger._path}-wal")):
        yield


@contextmanager
def _file_size_limit(largest: Path) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest.stat().st_size + 100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("full", [pages_used_up, files_cannot_grow])
async def test_a_full_disk_is_one_error_and_nothing_half_written(
    sqlite_backend: SqliteBackend, ledger: SqliteLedger, full: type
) -> None:
    lease = await ledger.acquire("server1", SLICE, TTL_S)
    error: LedgerError | None = None
    before = await ledger.snapshot(), await ledger.history(None, None, 10_000)
    async with full(ledger):
        for _ in range(1000):  # until the pages that are there are full
            try:
                await ledger.release(lease, clean=True)
                before = await ledger.snapshot(), await ledger.history(None, None, 10_000)
                lease = await ledger.acquire("server1", SLICE, TTL_S)
                before = await ledger.snapshot(), await ledger.history(None, None, 10_000)
            except LedgerError as caught:
                error = caught
                break
        assert (await ledger.snapshot(), await ledger.history(None, None, 10_000)) == before
    assert error is not None
    assert re.search("(no space left for it|its disk refused); fix: ", str(error))
    with sqlite_backend.raw() as raw:
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    other = await sqlite_backend.open()
    assert (await other.snapshot(), await other.history(None, None, 10_000)) == before
    await ledger.acquire("server2", OTHER, TTL_S)  # with space again, the same handle goes on


# -- other processes ---------------------------------------------------------------------------------------


async def test_waiting_for_the_file_stops_neither_the_loop_nor_the_clock(
    sqlite_backend: SqliteBackend, ledger: SqliteLedger
) -> None:
    with sqlite_backend.raw() as raw:
        raw.execute("BEGIN IMMEDIATE")
        asked = asyncio.create_task(ledger.acquire("server1", SLICE, TTL_S))
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not asked.done()
        sqlite_backend.clock.advance(50)
        raw.execute("COMMIT")
    assert (await asked).expires_at == sqlite_backend.clock.up_s + TTL_S


async def test_a_stuck_process_is_one_clear_error(
    sqlite_backend: SqliteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    await furnish(await sqlite_backend.open())
    monkeypatch.setattr(schema, "BUSY_TIMEOUT_S", 0.05)
    ledger = await sqlite_backend.open()
    with sqlite_backend.raw() as raw:
        raw.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="another process has kept it locked for 5 s; fix: find it"):
            await ledger.acquire("server1", SLICE, TTL_S)
        assert (await ledger.snapshot()).leases == ()  # readers do not wait
        raw.execute("COMMIT")
    assert (await ledger.acquire("server1", SLICE, TTL_S)).server == "server1"
